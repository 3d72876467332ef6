# SPDX-License-Identifier: Apache-2.0
"""Node `policy`: each observation, with the newest task vector, becomes one command, made safe."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import deque
from typing import Any

import numpy as np
from rclpy.duration import Duration
from std_msgs.msg import Bool, Float32MultiArray, String
from std_srvs.srv import Trigger

from spc_core.alignment.episode import EpisodeInfo
from spc_core.alignment.frames import Frame, ObservationAssembler
from spc_core.contract import Contract
from spc_core.deploy.deployed import Deployed, model_id
from spc_core.deploy.guards import Heartbeat, Reaction, StallWatch
from spc_core.deploy.interventions import InterventionLog
from spc_core.deploy.latency_bins import LatencyBins
from spc_core.deploy.model_swap import ModelSwitch
from spc_core.deploy.runtime import Policy
from spc_core.deploy.safety import SafetyFilter
from spc_ros.nodes.command_bridge import CommandPublisher
from spc_ros.nodes.context_bridge import ContextInbox
from spc_ros.nodes.context_encoder_node import load_agent
from spc_ros.nodes.managed_node import ManagedNode, run
from spc_ros.nodes.model_swap_node import ModelSwapServer
from spc_ros.nodes.plain_node import steady_timer
from spc_ros.nodes.policy_params import PARAMS, emergency_stop, observation_watch, planner_config, workspace_box
from spc_ros.nodes.topic_bridge import (
    CONTEXT_TOPIC,
    EPISODE_TOPIC,
    INTERVENTION_TOPIC,
    ContextReading,
    EpisodeEnd,
    StreamClock,
    latched_qos,
    now_ns,
    subscribe_contract,
)

STOP_TOPIC = "emergency_stop"
CHECK_NS = (1_000_000, 5_000_000)  # how often waits are looked at: a tenth of the period, within these
IDLE_NS = 20_000_000  # the same where only a message, or the end of many seconds, could change anything
CALM_SHARE = 0.9  # of the time from a good observation to silence
ACK_TIMEOUT = Duration(seconds=0.2)
AGES = 1000  # contexts since the last diagnostics whose age is kept
HELD_UP = "the policy was held up: this observation may be old"
STALL_S = 0.01  # a process may be late by this at any rate
WARM_UP = 3  # actions; the first ones are slow


class PolicyNode(ManagedNode):
    """Services: ~/report counts interventions, and ticks by latency; ~/swap takes the checkpoint of the parameter."""

    def __init__(self, hears_context: bool = True) -> None:
        """Without `hears_context`, the context comes by `take_context`, not by the topic."""
        super().__init__("policy", PARAMS)
        self._hears_context = hears_context
        self._models: ModelSwitch[Policy] | None = None
        self._z_ns = 0
        self._z_model: int | None = None  # whose encoder made z
        self._frame: Frame | None = None  # waits for its context, or for the first connections
        self._frame_s = 0.0
        self._last_ns = 0  # the last frame's time
        self._heard_ns = 0  # stamp of the first stream's newest message when a frame was last dealt with
        self._connected = False
        self._ages_ns: deque[int] = deque(maxlen=AGES)  # of the contexts that were acted on
        self._log, self._latency = InterventionLog(), LatencyBins()

    def setup(self) -> None:
        p = self.params
        policy, its_id, checkpoint = self._load(p.checkpoint)
        contract = checkpoint.contract
        self._z = np.zeros(checkpoint.config.model.context_dim, np.float32)
        self._filter = SafetyFilter(contract)
        self._watch = observation_watch(p, contract)
        self._box, self._stop = workspace_box(p, contract), emergency_stop(p)
        self._watched = watched = self.get_parameter("use_sim_time").value and not p.lockstep  # else time may stand
        self._beats = (
            Heartbeat("frozen clock: /clock stands still", p.clock_timeout_s if watched else 0.0),
            Heartbeat("context: silent", p.context_timeout_s),
        )
        self._gap_ns = 2 * contract.period_ns
        period_s = 1 / contract.rate_hz
        self._stall = StallWatch(math.inf if p.lockstep else max(1.5 * period_s, STALL_S), period_s / 2)
        self._assembler = ObservationAssembler(contract, patience_ns=contract.period_ns // 4)
        self._clock_of_streams = None if p.lockstep else StreamClock(self._assembler)
        self._end = EpisodeEnd(self._assembler)
        self._commands = CommandPublisher(self, contract, p.lockstep)
        self._news = self.create_publisher(String, INTERVENTION_TOPIC, latched_qos(depth=100))
        deadline_s = math.inf if p.lockstep else 1 / contract.rate_hz
        self._models = ModelSwitch(policy, its_id, p.probation_ticks, deadline_s)
        self._swap = ModelSwapServer(self, lambda: self._load(p.checkpoint, contract), self._offer)
        self.create_service(Trigger, "~/report", self._on_report)
        self.create_subscription(String, EPISODE_TOPIC, self._on_episode, latched_qos(depth=10))
        if self._hears_context:
            self._inbox = ContextInbox()
            self.create_subscription(
                Float32MultiArray, CONTEXT_TOPIC, self._on_context, latched_qos(depth=10), raw=True
            )
        self.create_subscription(Bool, STOP_TOPIC, self._on_stop, 10)
        subscribe_contract(self, contract, self._assembler, self._on_frames, p.lockstep, self.diagnostics.complain)
        self._often_ns = int(np.clip(contract.period_ns / 10, *CHECK_NS))
        # one stream and a clock that nobody watches: between two ticks that come in time there is nothing to look at
        quiet = len(contract.observation) == 1 and not watched
        calm_ns = round(CALM_SHARE * min(1.5 * contract.period_ns, 1e9 * self._watch.silence_s))
        self._seldom_ns = max(calm_ns, self._often_ns) if quiet else self._often_ns
        self._idle_ns = IDLE_NS if quiet else self._often_ns
        self._checks = steady_timer(self, self._often_ns / 1e9, self._check)

    def teardown(self) -> None:
        self._models = None

    def start(self) -> None:
        self._assembler.reset()
        self._watch.reset()
        self._begin_sequence()
        self._frame = None

    def make_safe(self) -> None:
        self._frame = None
        self._send(None, "the policy is being closed", self._last_ns, "closed")
        self._commands.publisher.wait_for_all_acked(ACK_TIMEOUT)

    def diagnose(self) -> dict[str, Any]:
        if self._models is None:
            return {}
        if self.active and self._commands.publisher.get_subscription_count() == 0:
            self.diagnostics.complain("commands unheard", "nobody subscribes to the commands: they reach no robot")
        planner = self._models.model.planner
        values = {**self._filter.counts, **self._log.values(), "model": self._models.model_id}
        if self._ages_ns and self._z_ns:
            values["context age ms"] = f"{statistics.median(self._ages_ns) / 1e6:.2f}"
            self._ages_ns.clear()
        if planner is not None:
            values |= {"plans": planner.plans, "plans cut short": planner.cut_short, "plans too late": planner.late}
        return values

    def _load(self, folder: str, contract: Contract | None = None) -> tuple[Policy, int, Deployed]:
        """A policy that has acted already, its model's id, and what it came from; refuses another contract."""
        checkpoint = load_agent(self.params, folder, contract)
        policy = Policy(checkpoint, planner_config(self.params, checkpoint.contract))
        observation = np.zeros(checkpoint.contract.observation_dim)
        for _ in range(WARM_UP):
            policy.act(observation, np.zeros(checkpoint.config.model.context_dim, np.float32))
        return policy, model_id(folder), checkpoint

    def _begin_sequence(self) -> None:
        """What comes next does not follow from what was: an episode, or the end of a gap."""
        self._filter.reset()
        if self._models is not None:
            self._models.model.reset()

    def _on_frames(self, frames: list[Frame]) -> None:
        if not self.active:
            return
        frame, now_s = frames[-1], time.monotonic()
        newest_ns = self._assembler.streams[0].newest_ns
        fresh, self._heard_ns = newest_ns != self._heard_ns, newest_ns  # else the old one was held: none came in time
        if self._watch.silent and not fresh:
            return
        if any(f.fault for f in frames) or frame.t_ns - self._last_ns > self._gap_ns:
            self._begin_sequence()
            self.diagnostics.counts["sequences begun"] += 1
        self._last_ns = frame.t_ns
        if self._stall.held_up(now_s, self._checks.timer_period_ns / 1e9):
            self._react(self._watch.bad(HELD_UP, now_s, fresh))
        elif frame.observation is None:
            self._react(self._watch.bad(frame.fault or "no observation", now_s, fresh, frame.also))
        else:
            if fresh:
                self._watch.good(now_s)
            self._frame, self._frame_s = frame, now_s
            self._act()
        self._end.decided(frame.t_ns)
        calm = fresh and frame.observation is not None and self._frame is None
        self._pace(self._seldom_ns if calm else self._often_ns, restart=calm)

    def _pace(self, wanted_ns: int, restart: bool = False) -> None:
        """When to look at the clock again; `restart` counts from now."""
        if restart or self._checks.timer_period_ns != wanted_ns:
            self._checks.timer_period_ns = wanted_ns
            self._checks.reset()

    def _react(self, reaction: Reaction) -> None:
        """An observation is bad or fails to come."""
        self._frame = None
        kind = "silence" if self._watch.silent else "fault"
        if reaction.kind == "hold":
            self._note("hold", reaction.reason)
        else:
            self._begin_sequence()
            self._send(None, reaction.reason, self._last_ns, kind)
        if reaction.kind == "deactivate":
            self.close_gate(reaction.reason)

    def _act(self) -> None:
        """Answer the waiting frame, if nothing that it waits for is still to come."""
        frame, wait_s = self._frame, self.params.context_wait_s
        if frame is None or frame.observation is None or self._models is None or not self._is_connected():
            return
        if self._z_ns < frame.t_ns and wait_s > 0:
            if time.monotonic() - self._frame_s < wait_s:
                return
            self.diagnostics.counts["context came too late"] += 1
        self._frame = None
        if self._models.take(self._z_model):
            self._swap.tell("swapped", self._models.model_id)
        refusal = self._refusal(frame.observation)
        if refusal is None:
            action, refusal = self._answer(self._models, frame.observation)
        else:
            action = None
        kind, reason = refusal or ("fault", None)
        self._send(action, reason, frame.t_ns, kind)
        self._latency.note(time.monotonic() - self._frame_s)
        self._ages_ns.append(frame.t_ns - self._z_ns)
        self.diagnostics.counts["commands"] += 1

    def _answer(self, models: ModelSwitch[Policy], observation: np.ndarray) -> Any:
        """(action, refusal): of the model, or of the former one where this one fails on probation."""
        begin_s = time.monotonic()
        action = models.model.act(observation, self._z)
        failed_id = models.model_id
        why = models.judge(action, time.monotonic() - begin_s)
        if why is None:
            return action, None
        self._swap.tell("rolled back", models.model_id, f"model {failed_id}: {why}")
        self._note("rollback", why)
        refusal = self._refusal(observation)  # z may be the failed model's
        return (models.model.act(observation, self._z), None) if refusal is None else (None, refusal)

    def _refusal(self, observation: np.ndarray) -> tuple[str, str] | None:
        """(kind, reason) to send the safe action instead of an answer."""
        now_s = time.monotonic()
        if reason := self._stop.reason(now_s):
            return "emergency stop", reason
        if self._models is not None and self._z_model not in (None, self._models.model_id):
            return "foreign model", f"context: made by model {self._z_model}, the policy is {self._models.model_id}"
        for kind, beat in zip(("frozen clock", "context lost"), self._beats, strict=True):
            if reason := beat.reason(now_s):
                return kind, reason
        reason = self._box.reason(observation)
        return ("workspace", reason) if reason else None

    def _send(self, action: np.ndarray | None, fault: str | None, t_ns: int, kind: str = "fault") -> None:
        self._commands.send(self._filter.apply(action, fault, kind), t_ns)
        for what, reason in self._filter.happened:
            self._note(what, reason)

    def _note(self, kind: str, reason: str) -> None:
        news = self._log.note(kind, reason, self._last_ns, time.monotonic())
        if news is not None:
            self._news.publish(String(data=news))

    def _is_connected(self) -> bool:
        """In lock-step, the first command waits until all who need it would get it."""
        if not self._connected:
            found = self._commands.publisher.get_subscription_count()
            self._connected = found >= self.params.min_subscriptions
            self._frame_s = time.monotonic()
        return self._connected

    def _check(self) -> None:
        """By a steady clock: waits that ended without news, and silence where observations should be."""
        now_s = time.monotonic()
        if self._watched:
            self._beats[0].look(now_ns(self), now_s)
        if self._stall.held_up(now_s, self._checks.timer_period_ns / 1e9):
            self._frame = None  # an observation of before
        idle = self._watch.idle and self._frame is None
        self._pace(self._idle_ns if idle else self._often_ns)
        if not self.active:
            return
        waiting = self._frame is not None  # for its context; the robot waits for us
        if not waiting and (reaction := self._watch.check(now_s)) is not None:
            self.diagnostics.counts["silences"] += self._watch.silent
            self._react(reaction)
        if not self.active:
            return
        if self._watch.silent and self._clock_of_streams is not None:  # a hold is not for streams that fail besides
            reaction = self._watch.worse(self._clock_of_streams.faults(), now_s)
            if reaction is not None:
                self._react(reaction)
        if self.active and self._clock_of_streams is not None and (frames := self._clock_of_streams.frames()):
            self._on_frames(frames)
        self._act()

    def _on_context(self, data: bytes) -> None:
        try:
            reading = self._inbox.read(data)
        except ValueError as error:
            self.diagnostics.complain("unreadable", str(error))
        else:
            self.take_context(reading)

    def take_context(self, reading: ContextReading) -> None:
        """The task vector of a tick, unless it cannot be one."""
        if self._models is None:
            return
        context = reading.context
        if len(context) != len(self._z) or not math.isfinite(sum(context.tolist())):
            text = f"topic '{CONTEXT_TOPIC}': {context.size} numbers, not {self._z.size} finite ones"
            self.diagnostics.complain("unreadable", text)
            return
        self._z, self._z_ns, self._z_model = context, reading.t_ns, reading.model
        self._beats[1].look(time.monotonic(), time.monotonic())
        if self.active:
            self._act()

    def _on_episode(self, msg: String) -> None:
        info = EpisodeInfo.from_json(msg.data)
        if info.state == "ended":
            self._end.ended(info.end_ns)
        if self.params.lockstep:
            self._connected = False  # who scores this episode may have come anew

    def _on_stop(self, msg: Bool) -> None:
        self._stop.heard(msg.data, time.monotonic())
        if msg.data and self.active:
            self._frame = None
            self._send(None, "emergency stop", self._last_ns, "emergency stop")

    def _offer(self, loaded: tuple[Policy, int, Deployed]) -> None:
        """A model is warm: it takes over between two ticks, with the first context of its own encoder."""
        if self._models is not None:
            self._models.offer(loaded[0], loaded[1])

    def _on_report(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = True
        response.message = json.dumps({**self._log.counts, **self.diagnostics.counts, **self._latency.report()})
        return response


def main() -> int:
    return run(PolicyNode)


if __name__ == "__main__":
    raise SystemExit(main())
