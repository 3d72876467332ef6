# SPDX-License-Identifier: Apache-2.0
"""Node `context_encoder`: estimates the task vector z, its uncertainty, and the command delay."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.timer import Timer
from std_msgs.msg import Float32MultiArray, Float64MultiArray, String
from std_srvs.srv import Trigger

from spc_core.alignment import NO_TIME, PATIENCE_NS
from spc_core.alignment.command_lag import CommandLag, LagWatch
from spc_core.alignment.episode import EpisodeInfo
from spc_core.alignment.faults import FaultKind
from spc_core.alignment.live import EpisodeEnd
from spc_core.alignment.streaming import Step, StreamingAligner, Transition
from spc_core.command_delay.estimate import DelayEstimate
from spc_core.command_delay.online import DelayWatch, delay_of_data
from spc_core.contract.contract import Contract
from spc_core.contract.sections import Role
from spc_core.deploy.checkpoint_files import CheckpointError, model_id
from spc_core.deploy.context_tracker import MODES, ContextTracker
from spc_core.deploy.health import Health, LearnHealth, Level, Renewal
from spc_ros.node_parts.background_services import LoadContextServer, ModelSwapServer
from spc_ros.node_parts.context_message import ContextOutbox, ContextReading, encode_delay
from spc_ros.node_parts.contract_topics import ContractTopics
from spc_ros.node_parts.diagnostics import steady_timer
from spc_ros.node_parts.lifecycle import ManagedNode
from spc_ros.node_parts.model_params import CHECKPOINT_PARAMS, load_agent, with_qos
from spc_ros.node_parts.plain_node import Param, run
from spc_ros.node_parts.priority import lower_priority
from spc_ros.node_parts.topics import CONTEXT_TOPIC, DELAY_TOPIC, EPISODE_TOPIC, SWAP_TOPIC, latched_qos

PARAMS = [
    *CHECKPOINT_PARAMS,
    Param(
        "mode",
        "online",
        "online: update and publish | collect: update, publish the prior | frozen: no updates",
        choices=MODES,
    ),
    Param(
        "nice",
        5,
        "nice value of the process, below the policy's priority; unused in lockstep and in deploy",
        0,
        19,
        read_only=True,
    ),
    Param(
        "defer_periods",
        0.25,
        "adapt this share of a period after a state, when the policy has answered; 0: at once",
        0.0,
        0.9,
        at_configure=True,
    ),
    Param("limit", 0, "maximum number of transitions in the context; 0: no limit", 0, 10_000_000),
    Param("half_life_steps", 0.0, "half-life of a transition's weight, in transitions; 0: equal weights", 0.0, 1e9),
    Param("detect_changes", True, "notice an unannounced change of the task, and continue with the transitions since"),
    Param("max_gap_s", 10.0, "start the context again after a longer pause between transitions; 0: never", 0.0, 1e6),
    Param("recordings", "", "~/recall: dataset to compute the context from"),
    Param("recordings_task", "", "~/recall: task id in that dataset"),
    Param(
        "delay_tolerance_ms",
        0.0,
        "warn when the command delay differs by more from that of the data; 0: 1.5 control periods",
        0.0,
        10_000.0,
    ),
]
POLL_S = 0.02
MAX_SHIFTS = 3  # of the ticks' phase after an activation
FOREIGN_CLOCK_NS = 10_000_000_000
FOREIGN_CLOCKS = (
    "commands and observations are stamped by different clocks, so they form no transitions; use the same use_sim_time "
    "on all nodes"
)


class ContextEncoderNode(ManagedNode):
    """Service ~/reset resets the context, as do a new task on `episode` and a clock that jumps back.

    Service ~/recall computes it from recordings.
    """

    def __init__(self, own_process: bool = True) -> None:
        """`own_process`: no other node shares the process, so its priority may be lowered."""
        super().__init__("context_encoder", PARAMS)
        self._own_process = own_process
        self.on_context: Callable[[ContextReading], None] | None = None  # receives contexts without DDS
        self.must_wait: Callable[[int], bool] | None = None  # whether more urgent work is due at a tick
        self.latest: ContextReading | None = None
        self._deferred: list[Step] = []
        self._later: Timer | None = None  # ends the deferral, in a process of its own
        self._tracker: ContextTracker | None = None
        self._task_id: str | None = None
        self._tick_ns = 0  # the last decided tick
        self._begin_ns = 0  # the first transition's time since the last reset
        self._changed_ns = 0  # transitions before this belong to another task
        self._learning = LearnHealth()
        self._foreign_commands = 0  # the latest in a row that came with a stamp far from the states'
        self._between_episodes = False  # as the topic `episode` says, where there is one
        self._data_timing: dict[int, tuple[DelayEstimate | None, CommandLag | None]] = {}  # by model

    def setup(self) -> None:
        self._tracker, self._model, trained = self._load(self.params.checkpoint)
        contract = with_qos(trained, self.params)
        self._previous: tuple[ContextTracker, int] | None = None
        self._delay, self._lag, self._shifts = DelayWatch(contract), LagWatch(contract.period_ns), 0
        self._compare_timing()
        self._delays = self.create_publisher(Float64MultiArray, DELAY_TOPIC, latched_qos())
        self._apply_mode(self._tracker)
        self._aligner = StreamingAligner(contract, PATIENCE_NS)
        self._end = EpisodeEnd(self._aligner)
        self._outbox = ContextOutbox(len(self._tracker.context))
        self._later = None
        if self._own_process and not self.params.lockstep:
            lower_priority(self.params.nice)
            if self.params.defer_periods:
                self._later = steady_timer(self, self.params.defer_periods / contract.rate_hz, self.catch_up)
                self._later.cancel()
        self._publisher = self.create_publisher(Float32MultiArray, CONTEXT_TOPIC, latched_qos())
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_subscription(String, EPISODE_TOPIC, self._on_episode, latched_qos(depth=10))
        self._swap = ModelSwapServer(self, lambda: self._load(self.params.checkpoint, contract), self._switch_model)
        self.create_subscription(String, SWAP_TOPIC, self._on_swap_report, latched_qos(depth=10))
        self._recall = LoadContextServer(self, contract, self._add_recorded, self._on_context_loaded)
        steady_timer(self, POLL_S, self._poll)
        self._topics = ContractTopics(
            self, contract, self._aligner, self._on_steps, self.params.lockstep, self.diagnostics.warn_once,
            self._on_sample,
        )  # fmt: skip
        self._renewal = Renewal()
        self._publish()

    def _compare_timing(self) -> None:
        delay, lag = self._data_timing.get(self._model, (None, None))
        self._delay.compare_with(delay)
        self._lag.compare_with(lag)

    def _on_sample(self, role: Role, t_ns: int, values: np.ndarray) -> None:
        self._delay.sample(role, t_ns, values)
        if role.stream == 0:
            self._lag.state(t_ns)
        if role.is_action:
            state_ns = self._aligner.observations.streams[0].newest_ns
            foreign = state_ns != NO_TIME and abs(t_ns - state_ns) > FOREIGN_CLOCK_NS
            self._foreign_commands = self._foreign_commands + 1 if foreign else 0

    def start(self) -> None:
        self._delay.cut()
        self._lag.clear()
        self._shifts = 0
        self._learning.start(time.monotonic())

    def teardown(self) -> None:
        self._tracker = self.latest = None
        self._deferred = []
        self.diagnostics.warning = ""

    def on_parameters(self) -> None:
        if self._tracker is not None:
            self._apply_mode(self._tracker)
            self._publish()

    def diagnose(self) -> dict[str, Any]:
        count = self._tracker.count if self._tracker else 0
        model = self._model if self._tracker else 0
        values = {"transitions": count, "model": model, "mode": self.params.mode, "task": self._task_id or "unknown"}
        values["last cut"] = self._learning.cut
        lag = self._lag.lag if self._tracker else None
        values |= {"state to command": str(lag)} if lag is not None else {}
        if self._tracker is not None:
            values["detection of changes"] = self._tracker.detection
            values["task belief"] = self._tracker.judging
            values |= {"context restarts": self._tracker.restarts, "last restart": self._tracker.last_restart or "none"}
        return values | (self._delay.values() if self._tracker else {})

    @property
    def _should_learn(self) -> bool:
        return self._tracker is not None and self.active and self.params.mode != "frozen"

    def each_second(self, now_s: float) -> None:
        """Begin anew where transitions stay away, and shift the ticks where commands answer other states."""
        if not self._should_learn:
            return
        if self._between_episodes:
            self._learning.start(now_s)
            return
        if self._renewal.due(now_s, self._learning.without_s(now_s)):
            topics = self._topics.unheard(now_s)
            self.diagnostics.counts["alignment restarts"] += 1
            why = self._learning.cut or self._topics.missing(now_s) or "no observation"
            anew = f", and subscribing again to {', '.join(topics)}" if topics else ""
            self.get_logger().warning(f"no transitions ({why}): restarting the alignment{anew}")
            self._topics.renew(topics)
            self._aligner.reset(keep_held=True)
        if self._shifts < MAX_SHIFTS and (skip := self._lag.skip()):
            self._shifts += 1
            self.diagnostics.counts["phase shifts"] += 1
            self._aligner.reset(keep_held=True, skip=skip)
            self._lag.clear()

    def health(self, now_s: float) -> Health:
        if self._tracker is None or not self.active:
            return Health(Level.WARN, "inactive: the context is not updated")
        if not self._should_learn or self._between_episodes:
            return Health()
        found = self._learning.judge(now_s, self._topics.missing(now_s))
        return found if found.level or not self._lag.warning else Health(Level.WARN, self._lag.warning)

    def _poll(self) -> None:
        """Work outside the message callbacks: loaded recordings, and part of the command delay estimation."""
        self._recall.poll()
        if not self.active or (estimate := self._delay.work()) is None:
            return
        self._delays.publish(encode_delay(estimate.delay_ms, estimate.uncertainty_ms))
        if warning := self._delay.judge(self.params.delay_tolerance_ms):
            self.get_logger().warning(warning)
        self.diagnostics.warning = self._delay.warning

    def _load(self, folder: str, contract: Contract | None = None) -> tuple[ContextTracker, int, Contract]:
        """A tracker, warmed up with one transition, with the id and the contract of its model."""
        checkpoint = load_agent(self.params, folder, contract)
        tracker = ContextTracker(checkpoint)
        observation, action = np.zeros(checkpoint.contract.observation_dim), np.asarray(checkpoint.contract.action.safe)
        tracker.update(Transition(0, observation, action, 0.0, observation))
        if not np.isfinite(tracker.context).all():
            raise CheckpointError(f"checkpoint {folder}: its context is not finite; train again or use another one")
        tracker.reset()
        number = model_id(folder)
        try:
            lag = checkpoint.metrics.get("command_lag")
            known_lag = None if lag is None else CommandLag.from_dict(lag)
            self._data_timing[number] = (delay_of_data(checkpoint.metrics), known_lag)
        except ValueError as error:
            raise CheckpointError(f"checkpoint {folder}: metrics: {error}; copy it again or train again") from None
        return tracker, number, checkpoint.contract

    def _switch_model(self, loaded: tuple[ContextTracker, int, Contract]) -> None:
        """Switch to a new model, starting from the prior; the transitions of the old one are dropped."""
        self.catch_up()
        if self._tracker is not None:
            self._previous = (self._tracker, self._model)
            self._use_model(loaded[0], loaded[1])
            self._swap.report("swapped", self._model)

    def _add_recorded(self, transitions: list[Transition]) -> None:
        """Add recorded transitions in any mode; an empty list resets the context."""
        if self._tracker is None:
            return
        if not transitions:
            self._tracker.reset()
        self._tracker.mode, self._tracker.limit, self._tracker.half_life = "online", None, None
        self._tracker.detect_changes, self._tracker.max_gap_s = False, None  # recordings come in any order
        for transition in transitions:
            self._tracker.update(transition)
        self._apply_mode(self._tracker)

    def _on_context_loaded(self, task_id: str) -> None:
        """The context belongs to this task, so an episode on it does not reset the context."""
        self._task_id = task_id
        self._publish()

    def _use_model(self, tracker: ContextTracker, model: int) -> None:
        self._recall.cancel()
        self._tracker, self._model = tracker, model
        self._compare_timing()
        self._outbox = ContextOutbox(len(tracker.context))
        self._apply_mode(tracker)
        self._publish()

    def _on_swap_report(self, msg: String) -> None:
        """Follow the policy back to its previous model, since it cannot use the context of another."""
        try:
            report = json.loads(msg.data)
            rolled_back = report["state"] == "rolled back" and report["node"] != self.get_name()
        except (ValueError, TypeError, KeyError) as error:
            self.diagnostics.warn_once("unreadable", f"topic '{SWAP_TOPIC}': {error!r} in {msg.data[:80]!r}")
            return
        if self._previous is None or not rolled_back:
            return
        if report.get("model") == self._previous[1]:
            (tracker, model), self._previous = self._previous, None
            tracker.reset()
            self._use_model(tracker, model)
            self._swap.report("rolled back", model, report["reason"])

    def _apply_mode(self, tracker: ContextTracker) -> None:
        tracker.mode, tracker.limit = self.params.mode, self.params.limit or None
        tracker.half_life = self.params.half_life_steps or None
        tracker.detect_changes, tracker.max_gap_s = self.params.detect_changes, self.params.max_gap_s or None

    def _on_steps(self, steps: list[Step]) -> None:
        """Adapt at once, unless a command is due first: this context is used at the next tick only."""
        self.catch_up()
        if self.must_wait is not None and self.must_wait(steps[-1].t_ns):
            self._deferred = steps
        elif self._later is not None:
            self._deferred = steps
            self._later.reset()
        else:
            self._adapt(steps)

    def catch_up(self) -> None:
        """Process the deferred steps."""
        if self._later is not None:
            self._later.cancel()
        if self._deferred:
            steps, self._deferred = self._deferred, []
            self._adapt(steps)

    def _adapt(self, steps: list[Step]) -> None:
        if not self.active or self._tracker is None:
            return
        for step in steps:
            if step.transition is None:
                if step.cut is not None and step.cut.kind is not FaultKind.START:
                    self.diagnostics.counts["cuts"] += 1
                    self._learning.was_cut(str(step.cut.summary), time.monotonic())
                self._compare_clocks(step)
                if step.cut is not None and step.cut.kind is FaultKind.CLOCK_JUMP:
                    self._tracker.reset()
                    self._changed_ns = 0
            elif self._foreign_commands > 1:  # of commands that hold, the first may have been sent long before
                self._say_foreign()
            elif step.transition.t_ns < self._changed_ns:
                self.diagnostics.counts["transitions of the task before"] += 1
            else:
                self._learning.learned(time.monotonic())
                if step.transition.lag_ns:
                    self._lag.add(step.transition.lag_ns)
                self._learn_from(step.transition)
            self._tick_ns = step.t_ns
            self._publish()
        self._end.decided(self._tick_ns)

    def _learn_from(self, transition: Transition) -> None:
        """Add a transition to the context; logs when and why the context started again."""
        tracker = self._tracker
        assert tracker is not None
        restarts = tracker.restarts
        if tracker.update(transition) and tracker.count == 1:
            self._begin_ns = transition.t_ns
        if tracker.restarts != restarts:
            self._begin_ns = transition.t_ns
            self.get_logger().warning(f"context started again at {transition.t_ns / 1e9:.3f} s: {tracker.last_restart}")

    def _compare_clocks(self, cut: Step) -> None:
        """Warn when the clocks of commands and observations differ so much that they cannot be paired."""
        for stream, part in zip(self._aligner.actions, self._aligner.contract.action.parts, strict=True):
            may_be_old = part.hold and stream.newest_ns < cut.t_ns
            if stream.newest_ns != NO_TIME and not may_be_old and abs(stream.newest_ns - cut.t_ns) > FOREIGN_CLOCK_NS:
                self._say_foreign()

    def _say_foreign(self) -> None:
        self._learning.cut = FOREIGN_CLOCKS
        self.diagnostics.warn_once("foreign clocks", FOREIGN_CLOCKS)

    def _publish(self) -> None:
        if self._tracker is not None:
            t = self._tracker
            self.latest = ContextReading(t.context, t.uncertainty, t.count, self._tick_ns, self._model)
            if self.on_context is not None:
                self.on_context(self.latest)
            self._publisher.publish(self._outbox.write(self.latest))

    def _on_episode(self, msg: String) -> None:
        self.catch_up()
        info = EpisodeInfo.from_json(msg.data)
        self._between_episodes = info.state != "running"
        if info.state == "ended":
            self._end.ended(info.end_ns)
        elif info.state == "running":
            new = self._task_id is not None and info.task_now != self._task_id
            self._task_id, self._changed_ns = info.task_now, info.changes[-1].t_ns if info.changes else 0
            since_ns = self._changed_ns or info.start_ns
            if new and self._tracker is not None and self._tracker.count and self._begin_ns < since_ns:
                self.diagnostics.counts["task changes"] += 1
                self._tracker.reset()
                self._publish()

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self.catch_up()
        response.success = self._tracker is not None
        if self._tracker is not None:
            self._recall.cancel()
            self._tracker.reset()
            self._publish()
        return response


def main() -> int:
    return run(ContextEncoderNode)


if __name__ == "__main__":
    raise SystemExit(main())
