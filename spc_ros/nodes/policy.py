# SPDX-License-Identifier: Apache-2.0
"""Node `policy`: each observation, with the newest task vector, becomes one command, made safe."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
from rclpy.duration import Duration
from std_msgs.msg import Bool, Float32MultiArray, String
from std_srvs.srv import Trigger

from spc_core.alignment.episode import EpisodeInfo
from spc_core.alignment.live import EpisodeEnd, StreamClock
from spc_core.alignment.streaming import Frame, ObservationAligner
from spc_core.contract.contract import Contract
from spc_core.deploy.checkpoint_files import model_id
from spc_core.deploy.controller import Controller, Guards, Record
from spc_core.deploy.deployable import Deployable, Policy
from spc_core.deploy.guards import Heartbeat, StallWatch
from spc_core.deploy.model_swap import ModelSwitch
from spc_core.deploy.safety import by_name
from spc_ros.node_parts.background_services import ModelSwapServer
from spc_ros.node_parts.command_publisher import CommandPublisher
from spc_ros.node_parts.context_message import ContextInbox, ContextReading
from spc_ros.node_parts.contract_topics import subscribe_contract
from spc_ros.node_parts.lifecycle import ManagedNode
from spc_ros.node_parts.model_params import POLICY_PARAMS as PARAMS
from spc_ros.node_parts.model_params import emergency_stop, load_agent, observation_watch, planner_config, workspace_box
from spc_ros.node_parts.plain_node import run, steady_timer
from spc_ros.node_parts.priority import take_precedence
from spc_ros.node_parts.topics import CONTEXT_TOPIC, EPISODE_TOPIC, INTERVENTION_TOPIC, latched_qos, now_ns

STOP_TOPIC = "emergency_stop"
CHECK_NS = (1_000_000, 5_000_000)  # how often waits are looked at: a tenth of the period, within these
IDLE_NS = 20_000_000  # the same where only a message, or the end of many seconds, could change anything
CALM_SHARE = 0.9  # of the time from a good observation to silence
ACK_TIMEOUT = Duration(seconds=0.2)
STALL_S = 0.01  # a process may be late by this at any rate
WARM_UP = 3  # actions; the first ones are slow


class PolicyNode(ManagedNode):
    """Services: ~/report counts interventions, and ticks by latency; ~/swap takes the checkpoint of the parameter."""

    def __init__(self, hears_context: bool = True) -> None:
        """Without `hears_context`, the context comes by `take_context`, not by the topic."""
        super().__init__("policy", PARAMS)
        self._hears_context = hears_context
        self._control: Controller | None = None
        self._record = Record(self.diagnostics.counts)

    def setup(self) -> None:
        p = self.params
        policy, its_id, checkpoint = self._load(p.checkpoint)
        contract = checkpoint.contract
        self._watched = bool(self.get_parameter("use_sim_time").value) and not p.lockstep  # else time may stand
        self._aligner = ObservationAligner(contract, patience_ns=contract.period_ns // 4)
        self._heard_ns = 0  # stamp of the first stream's newest message when a frame was last dealt with
        self._clock_of_streams = None if p.lockstep else StreamClock(self._aligner)
        self._end = EpisodeEnd(self._aligner)
        self._commands = CommandPublisher(self, contract, p.lockstep)
        self._interventions = self.create_publisher(String, INTERVENTION_TOPIC, latched_qos(depth=100))
        models = ModelSwitch(policy, its_id, p.probation_ticks, math.inf if p.lockstep else 1 / contract.rate_hz)
        self._swap = ModelSwapServer(self, lambda: self._load(p.checkpoint, contract), self._offer)
        self._control = Controller(
            contract, models, checkpoint.config.model.context_dim, self._make_guards(contract), self, self._record
        )
        self.on_parameters()
        self.create_service(Trigger, "~/report", self._on_report)
        self.create_subscription(String, EPISODE_TOPIC, self._on_episode, latched_qos(depth=10))
        if self._hears_context:
            self._inbox = ContextInbox()
            self.create_subscription(
                Float32MultiArray, CONTEXT_TOPIC, self._on_context, latched_qos(depth=10), raw=True
            )
        self.create_subscription(Bool, STOP_TOPIC, self._on_stop, 10)
        subscribe_contract(self, contract, self._aligner, self._on_frames, p.lockstep, self.diagnostics.complain)
        self._pace_by(contract)
        if p.realtime_priority:
            take_precedence(p.realtime_priority)

    def teardown(self) -> None:
        self._control = None

    def start(self) -> None:
        self._aligner.reset()
        self.control.start()

    def make_safe(self) -> None:
        self.control.stop()
        self._commands.publisher.wait_for_all_acked(ACK_TIMEOUT)

    def on_parameters(self) -> None:
        if self._control is not None:
            self._control.context_wait_s = self.params.context_wait_s

    def diagnose(self) -> dict[str, Any]:
        if self._control is None:
            return {}
        if self.active and self._commands.publisher.get_subscription_count() == 0:
            self.diagnostics.complain("commands unheard", "nobody subscribes to the commands: they reach no robot")
        return self._control.values()

    @property
    def control(self) -> Controller:
        """Only while configured."""
        assert self._control is not None
        return self._control

    def send(self, action: np.ndarray, t_ns: int) -> None:
        """See CommandSink."""
        self._commands.send(action, t_ns)

    def publish_intervention(self, event: str) -> None:
        """See CommandSink."""
        self._interventions.publish(String(data=event))

    def publish_swap(self, state: str, model: int, reason: str = "") -> None:
        """See CommandSink."""
        self._swap.report(state, model, reason)

    def deactivate(self, reason: str) -> None:
        """See CommandSink."""
        self.close_gate(reason)

    def has_listeners(self) -> bool:
        """See CommandSink."""
        return self._commands.publisher.get_subscription_count() >= self.params.min_subscriptions

    def _make_guards(self, contract: Contract) -> Guards:
        """Raises GuardError naming the parameter that cannot be."""
        p, period_s = self.params, 1 / contract.rate_hz
        return Guards(
            observation_watch(p, contract),
            workspace_box(p, contract),
            emergency_stop(p),
            Heartbeat("frozen clock: /clock stands still", p.clock_timeout_s if self._watched else 0.0),
            Heartbeat("context: silent", p.context_timeout_s),
            StallWatch(math.inf if p.lockstep else max(1.5 * period_s, STALL_S), period_s / 2),
        )

    def _load(self, folder: str, contract: Contract | None = None) -> tuple[Policy, int, Deployable]:
        """A policy that has acted already, its model's id, and what it came from; refuses another contract."""
        checkpoint = load_agent(self.params, folder, contract)
        policy = Policy(checkpoint, planner_config(self.params, checkpoint.contract))
        observation = np.zeros(checkpoint.contract.observation_dim)
        for _ in range(WARM_UP):
            policy.act(observation, np.zeros(checkpoint.config.model.context_dim, np.float32))
        return policy, model_id(folder), checkpoint

    def _on_frames(self, frames: list[Frame]) -> None:
        if not self.active:
            return
        newest_ns = self._aligner.streams[0].newest_ns
        fresh, self._heard_ns = newest_ns != self._heard_ns, newest_ns
        if self.control.observe(frames, fresh, time.monotonic(), self._checks.timer_period_ns / 1e9):
            self._end.decided(frames[-1].t_ns)
            calm = fresh and frames[-1].observation is not None and not self.control.waiting
            self._pace(self._seldom_ns if calm else self._often_ns, restart=calm)

    def _pace_by(self, contract: Contract) -> None:
        """How often to look at the clock: one stream and a /clock that nobody watches need it seldom."""
        self._often_ns = int(np.clip(contract.period_ns / 10, *CHECK_NS))
        quiet = len(contract.observation) == 1 and not self._watched
        calm_ns = round(CALM_SHARE * min(1.5 * contract.period_ns, 1e9 * self.control.guards.watch.silence_s))
        self._seldom_ns = max(calm_ns, self._often_ns) if quiet else self._often_ns
        self._idle_ns = IDLE_NS if quiet else self._often_ns
        self._checks = steady_timer(self, self._often_ns / 1e9, self._check)

    def _pace(self, wanted_ns: int, restart: bool = False) -> None:
        """When to look at the clock again; `restart` counts from now."""
        if restart or self._checks.timer_period_ns != wanted_ns:
            self._checks.timer_period_ns = wanted_ns
            self._checks.reset()

    def _check(self) -> None:
        """By a steady clock: waits that ended without news, and silence where observations should be."""
        now_s, control, clock = time.monotonic(), self.control, self._clock_of_streams
        if self._watched:
            control.guards.clock.update(now_ns(self), now_s)
        rested_s = self._checks.timer_period_ns / 1e9
        self._pace(self._idle_ns if control.guards.watch.idle and not control.waiting else self._often_ns)
        control.check_silence(now_s, lambda: clock.faults() if clock is not None else [], rested_s)
        if self.active and clock is not None and (frames := clock.frames()):
            self._on_frames(frames)
        if self.active:
            control.act(now_s)

    def _on_context(self, data: bytes) -> None:
        try:
            reading = self._inbox.read(data)
        except ValueError as error:
            self.diagnostics.complain("unreadable", str(error))
        else:
            self.take_context(reading)

    def take_context(self, reading: ContextReading) -> None:
        """The task vector of a tick, unless it cannot be one."""
        if self._control is None:
            return
        try:
            self._control.take_context(reading.context, reading.t_ns, reading.model, time.monotonic())
        except ValueError as error:
            self.diagnostics.complain("unreadable", f"topic '{CONTEXT_TOPIC}': {error}")

    def _on_episode(self, msg: String) -> None:
        info = EpisodeInfo.from_json(msg.data)
        if info.state == "ended":
            self._end.ended(info.end_ns)
        if self.params.lockstep:
            self.control.await_listeners()  # who scores this episode may have come anew

    def _on_stop(self, msg: Bool) -> None:
        self.control.emergency_stop(msg.data, time.monotonic())

    def _offer(self, loaded: tuple[Policy, int, Deployable]) -> None:
        """A model is warm: it takes over between two ticks, with the first context of its own encoder."""
        self.control.models.offer(loaded[0], loaded[1])

    def _on_report(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = True
        seen = self._record
        response.message = json.dumps({**by_name(seen.log.counts), **seen.counts, **seen.latency.report()})
        return response


def main() -> int:
    return run(PolicyNode)


if __name__ == "__main__":
    raise SystemExit(main())
