# SPDX-License-Identifier: Apache-2.0
"""Node `policy`: turns each observation and the newest task vector into one safe command."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
from rclpy.duration import Duration
from std_msgs.msg import Float32MultiArray, String
from std_srvs.srv import Trigger

from spc_core.alignment.episode import EpisodeInfo
from spc_core.alignment.live import EpisodeEnd, StreamClock
from spc_core.alignment.streaming import Frame, ObservationAligner
from spc_core.contract.contract import Contract
from spc_core.deploy.checkpoint_files import model_id
from spc_core.deploy.controller import Controller, Guards, Record
from spc_core.deploy.deployable import Deployable, Policy
from spc_core.deploy.guards import Heartbeat, StallWatch
from spc_core.deploy.health import Health, Level
from spc_core.deploy.model_swap import ModelSwitch
from spc_core.deploy.safety import by_name
from spc_ros.node_parts.background_services import ModelSwapServer
from spc_ros.node_parts.command_publisher import CommandPublisher
from spc_ros.node_parts.context_message import ContextInbox, ContextReading
from spc_ros.node_parts.contract_topics import ContractTopics
from spc_ros.node_parts.diagnostics import steady_timer
from spc_ros.node_parts.lifecycle import ManagedNode
from spc_ros.node_parts.model_params import POLICY_PARAMS as PARAMS
from spc_ros.node_parts.model_params import load_agent, observation_watch, planner_config, with_qos, workspace_box
from spc_ros.node_parts.other_publishers import OtherPublishers
from spc_ros.node_parts.plain_node import run
from spc_ros.node_parts.priority import use_realtime_priority
from spc_ros.node_parts.shadow_run import PREFIX, ShadowRun
from spc_ros.node_parts.stop_topics import StopTopics
from spc_ros.node_parts.topics import CONTEXT_TOPIC, EPISODE_TOPIC, INTERVENTION_TOPIC, latched_qos, now_ns

CHECK_NS = (1_000_000, 5_000_000)  # limits of the polling interval, which is a tenth of the period
IDLE_NS = 20_000_000  # polling interval while only a message or a long timeout can change anything
CALM_SHARE = 0.9  # of the time from a good observation to silence
ACK_TIMEOUT = Duration(seconds=0.2)
STALL_S = 0.01  # a process may be this late at any rate
WARM_UP = 3  # number of actions; the first ones are slow


class PolicyNode(ManagedNode):
    """Services: ~/report returns counts of interventions and latencies; ~/swap loads the checkpoint parameter."""

    def __init__(self, subscribe_context: bool = True) -> None:
        """Without `subscribe_context`, the context is passed to `take_context` instead."""
        super().__init__("policy", PARAMS)
        self._subscribe_context = subscribe_context
        self._control: Controller | None = None
        self._shadow: ShadowRun | None = None
        self._record = Record(self.diagnostics.counts)
        self._stops = StopTopics(self, self._on_stop)

    def setup(self) -> None:
        p = self.params
        policy, number, checkpoint = self._load(p.checkpoint)
        contract = with_qos(checkpoint.contract, p)
        self._watched = bool(self.get_parameter("use_sim_time").value) and not p.lockstep  # in lock-step time may stop
        self._aligner = ObservationAligner(contract, patience_ns=contract.period_ns // 4)
        self._newest_ns = 0  # newest stamp of the first stream when the last frame was processed
        self._clock_of_streams = None if p.lockstep else StreamClock(self._aligner)
        self._end = EpisodeEnd(self._aligner)
        warn_once = self.diagnostics.warn_once
        self._shadow = None
        if p.shadow:
            is_state, receive_ns = self._aligner.is_state, lambda topic: self._topics.receive_ns(topic)
            self._shadow = ShadowRun(self, contract, p.lockstep, warn_once, is_state, receive_ns)
        self._commands = CommandPublisher(self, contract, p.lockstep, prefix=PREFIX if p.shadow else "")
        self._rivals = OtherPublishers(self, [part.topic for part in contract.action.parts])
        events = f"{PREFIX if p.shadow else ''}{INTERVENTION_TOPIC}"
        self._interventions = self.create_publisher(String, events, latched_qos(depth=100))
        models = ModelSwitch(policy, number, p.probation_ticks, math.inf if p.lockstep else 1 / contract.rate_hz)
        self._swap = ModelSwapServer(self, lambda: self._load(p.checkpoint, contract), self._offer)
        self._control = Controller(
            contract, models, checkpoint.config.model.context_dim, self._make_guards(contract), self, self._record
        )
        self.on_parameters()
        self.create_service(Trigger, "~/report", self._on_report)
        self.create_subscription(String, EPISODE_TOPIC, self._on_episode, latched_qos(depth=10))
        if self._subscribe_context:
            self._inbox = ContextInbox()
            self.create_subscription(
                Float32MultiArray, CONTEXT_TOPIC, self._on_context, latched_qos(depth=10), raw=True
            )
        self._topics = ContractTopics(
            self, contract, self._aligner, self._on_frames, p.lockstep, self.diagnostics.warn_once
        )
        self._start_checks(contract)
        if p.realtime_priority:
            use_realtime_priority(p.realtime_priority)

    def teardown(self) -> None:
        self._control = None

    def start(self) -> None:
        self._aligner.reset(keep_held=True)
        if others := self._refused_company():
            raise ValueError(others)
        self.control.start(time.monotonic())

    def stop_safely(self) -> None:
        self.control.stop()
        self._commands.wait_for_all_acked(ACK_TIMEOUT)

    def on_parameters(self) -> None:
        if self._control is not None:
            self._control.context_wait_s = self.params.context_wait_s

    def diagnose(self) -> dict[str, Any]:
        if self._control is None:
            return {}
        return self._control.values() | (self._shadow.comparison.values() if self._shadow is not None else {})

    def activates(self) -> bool:
        """See ManagedNode."""
        return self.params.activate or self.params.shadow

    def each_second(self, now_s: float) -> None:
        if self.active and (others := self._refused_company()):
            self.deactivate(others)

    def _refused_company(self) -> str:
        """The other publishers of the command topic, if they keep the policy from acting; empty if not."""
        refuses = self._shadow is None and self.params.other_publishers == "refuse"
        return self._rivals.found() if refuses else ""

    def health(self, now_s: float) -> Health:
        if self._control is None or not self.active:
            return Health(Level.WARN, "inactive: no commands are sent")
        control = self._control.health(now_s, self._topics.missing(now_s))
        if self._shadow is not None:
            return self._shadow.health(control)
        if unheard := self._commands.unheard:
            topics, have = ", ".join(f"'{topic}'" for topic in unheard), "has" if len(unheard) == 1 else "have"
            text = f"{topics} {have} no subscriber, so the robot gets no commands"
            self.diagnostics.warn_once("commands unheard", text)
            return Health(Level.ERROR, text)
        others = self._rivals.found()
        return Health(Level.WARN, others) if others and control.level < Level.WARN else control

    @property
    def control(self) -> Controller:
        """Only while configured."""
        assert self._control is not None
        return self._control

    def send(self, action: np.ndarray, t_ns: int) -> None:
        """See CommandSink."""
        self._commands.send(action, t_ns)
        if self._shadow is not None:
            kinds = [kind.value for kind, _ in self.control.filter.interventions]
            self._shadow.would(action, t_ns, kinds)

    def publish_intervention(self, event: str) -> None:
        """See CommandSink."""
        self._interventions.publish(String(data=event))

    def publish_swap(self, state: str, model: int, reason: str = "") -> None:
        """See CommandSink."""
        self._swap.report(state, model, reason)

    def has_listeners(self) -> bool:
        """See CommandSink."""
        enough = self._commands.listeners >= self.params.min_subscriptions
        return enough or self._shadow is not None

    def _make_guards(self, contract: Contract) -> Guards:
        """Raises GuardError, which names the invalid parameter."""
        p, period_s = self.params, 1 / contract.rate_hz
        self._stops.stop.configure(p.estop_loss, p.estop_timeout_s, p.estop_required)
        return Guards(
            observation_watch(p, contract),
            workspace_box(p, contract),
            self._stops.stop,
            Heartbeat("frozen clock: /clock stands still", p.clock_timeout_s if self._watched else 0.0),
            Heartbeat("context: silent", p.context_timeout_s),
            StallWatch(math.inf if p.lockstep else max(1.5 * period_s, STALL_S), period_s / 2),
        )

    def _load(self, folder: str, contract: Contract | None = None) -> tuple[Policy, int, Deployable]:
        """A warmed-up policy, its model id and its checkpoint, which must match `contract`."""
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
        fresh, self._newest_ns = newest_ns != self._newest_ns, newest_ns
        if self.control.observe(frames, fresh, time.monotonic(), self._checks.timer_period_ns / 1e9):
            self._end.decided(frames[-1].t_ns)
            calm = fresh and frames[-1].observation is not None and not self.control.waiting
            self._check_every(self._slow_ns if calm else self._fast_ns, restart=calm)

    def _start_checks(self, contract: Contract) -> None:
        """Start the timer of `_check`; with one stream and no watch on /clock it can be slow."""
        self._fast_ns = int(np.clip(contract.period_ns / 10, *CHECK_NS))
        quiet = len(contract.observation) == 1 and not self._watched
        calm_ns = round(CALM_SHARE * min(1.5 * contract.period_ns, 1e9 * self.control.guards.watch.silence_s))
        self._slow_ns = max(calm_ns, self._fast_ns) if quiet else self._fast_ns
        self._idle_ns = IDLE_NS if quiet else self._fast_ns
        self._checks = steady_timer(self, self._fast_ns / 1e9, self._check)

    def _check_every(self, wanted_ns: int, restart: bool = False) -> None:
        """Change the interval of `_check`; `restart` counts it from now."""
        if restart or self._checks.timer_period_ns != wanted_ns:
            self._checks.timer_period_ns = wanted_ns
            self._checks.reset()

    def _check(self) -> None:
        """Check, by a steady clock, for expired waits and missing observations."""
        now_s, control, clock = time.monotonic(), self.control, self._clock_of_streams
        if self._watched:
            control.guards.clock.update(now_ns(self), now_s)
        interval_s = self._checks.timer_period_ns / 1e9
        self._check_every(self._idle_ns if control.guards.watch.idle and not control.waiting else self._fast_ns)
        control.check_silence(now_s, lambda: clock.faults() if clock is not None else [], interval_s)
        if self.active and clock is not None and (frames := clock.frames()):
            self._on_frames(frames)
        if self.active:
            control.act(now_s)

    def _on_context(self, data: bytes) -> None:
        try:
            reading = self._inbox.read(data)
        except ValueError as error:
            self.diagnostics.warn_once("unreadable", str(error))
        else:
            self.take_context(reading)

    def take_context(self, reading: ContextReading) -> None:
        """Accept the task vector of a tick, unless it is invalid."""
        if self._control is None:
            return
        try:
            self._control.take_context(reading.context, reading.t_ns, reading.model, time.monotonic())
        except ValueError as error:
            self.diagnostics.warn_once("unreadable", f"topic '{CONTEXT_TOPIC}': {error}")

    def _on_episode(self, msg: String) -> None:
        info = EpisodeInfo.from_json(msg.data)
        if info.state == "ended":
            self._end.ended(info.end_ns)
        if self.params.lockstep:
            self.control.await_listeners()  # the node that scores this episode may have restarted

    def _on_stop(self, pressed: bool) -> None:
        if self._control is not None:
            self._control.emergency_stop(pressed)

    def _offer(self, loaded: tuple[Policy, int, Deployable]) -> None:
        """Offer a warm model, which takes over between two ticks with the first context of its own encoder."""
        self.control.models.offer(loaded[0], loaded[1])

    def _on_report(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = True
        record = self._record
        counts: dict[str, Any] = {**by_name(record.log.counts), **record.counts, **record.latency.report()}
        if self._shadow is not None:
            counts["shadow"] = self._shadow.comparison.as_dict()
        response.message = json.dumps(counts)
        return response


def main() -> int:
    return run(PolicyNode)


if __name__ == "__main__":
    raise SystemExit(main())
