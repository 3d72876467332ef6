# SPDX-License-Identifier: Apache-2.0
"""Node `context_encoder`: watches the robot; publishes the task vector z, its uncertainty, and the command delay."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from std_msgs.msg import Float32MultiArray, Float64MultiArray, String
from std_srvs.srv import Trigger

from spc_core.alignment import NO_TIME, PATIENCE_NS
from spc_core.alignment.episode import EpisodeInfo
from spc_core.alignment.faults import FaultKind
from spc_core.alignment.live import EpisodeEnd
from spc_core.alignment.streaming import Step, StreamingAligner, Transition
from spc_core.command_delay.estimate import DelayEstimate
from spc_core.command_delay.online import DelayWatch, delay_of_data
from spc_core.contract.contract import Contract
from spc_core.deploy.checkpoint_files import CheckpointError, model_id
from spc_core.deploy.context_tracker import MODES, ContextTracker
from spc_ros.node_parts.background_services import LoadContextServer, ModelSwapServer
from spc_ros.node_parts.context_message import ContextOutbox, ContextReading, encode_delay
from spc_ros.node_parts.contract_topics import subscribe_contract
from spc_ros.node_parts.lifecycle import ManagedNode
from spc_ros.node_parts.model_params import CHECKPOINT_PARAMS, load_agent
from spc_ros.node_parts.plain_node import Param, run, steady_timer
from spc_ros.node_parts.priority import give_way
from spc_ros.node_parts.topics import CONTEXT_TOPIC, DELAY_TOPIC, EPISODE_TOPIC, SWAP_TOPIC, latched_qos

PARAMS = [
    *CHECKPOINT_PARAMS,
    Param("mode", "online", "online: learn and show | collect: learn, show the prior | frozen", choices=MODES),
    Param(
        "nice",
        5,
        "how far it gives way to the policy on a busy processor, as the command nice; not in lockstep or deploy",
        0,
        19,
        read_only=True,
    ),
    Param("limit", 0, "most transitions in the context; 0: no limit", 0, 10_000_000),
    Param("half_life_steps", 0.0, "a transition counts half after so many newer ones; 0: all count alike", 0.0, 1e9),
    Param("recordings", "", "~/recall: dataset to make the context of"),
    Param("recordings_task", "", "~/recall: task id in that dataset"),
    Param(
        "delay_tolerance_ms",
        0.0,
        "warn when the command delay differs more from the data's; 0: 1.5 control periods",
        0.0,
        10_000.0,
    ),
]
POLL_S = 0.02
FOREIGN_CLOCK_NS = 10_000_000_000


class ContextEncoderNode(ManagedNode):
    """Service ~/reset forgets the context; so does a new task on `episode`, and a clock that jumps back.

    Service ~/recall makes it of recordings.
    """

    def __init__(self, alone: bool = True) -> None:
        """`alone`: the process is this node's own, to be made less urgent than the policy's."""
        super().__init__("context_encoder", PARAMS)
        self._alone = alone
        self.on_context: Callable[[ContextReading], None] | None = None  # who is told without DDS
        self.must_wait: Callable[[int], bool] | None = None  # whether something more urgent is to come, by a tick
        self.latest: ContextReading | None = None
        self._held: list[Step] = []
        self._tracker: ContextTracker | None = None
        self._task_id: str | None = None
        self._tick_ns = 0  # the last decided tick
        self._begin_ns = 0  # the first transition's time since the last reset
        self._changed_ns = 0  # transitions before belong to another task than the announced one
        self._data_delays: dict[int, DelayEstimate | None] = {}  # by model

    def setup(self) -> None:
        self._tracker, self._model, contract = self._load(self.params.checkpoint)
        self._former: tuple[ContextTracker, int] | None = None
        self._delay = DelayWatch(contract)
        self._delay.compare_with(self._data_delays[self._model])
        self._delays = self.create_publisher(Float64MultiArray, DELAY_TOPIC, latched_qos())
        self._apply_mode(self._tracker)
        self._aligner = StreamingAligner(contract, PATIENCE_NS)
        self._end = EpisodeEnd(self._aligner)
        self._outbox = ContextOutbox(len(self._tracker.context))
        if self._alone and not self.params.lockstep:
            give_way(self.params.nice)
        self._publisher = self.create_publisher(Float32MultiArray, CONTEXT_TOPIC, latched_qos())
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_subscription(String, EPISODE_TOPIC, self._on_episode, latched_qos(depth=10))
        self._swap = ModelSwapServer(self, lambda: self._load(self.params.checkpoint, contract), self._take)
        self.create_subscription(String, SWAP_TOPIC, self._on_swap_told, latched_qos(depth=10))
        self._recall = LoadContextServer(self, contract, self._recalled, self._on_recalled)
        steady_timer(self, POLL_S, self._poll)
        subscribe_contract(
            self, contract, self._aligner, self._on_steps, self.params.lockstep, self.diagnostics.complain,
            self._delay.sample,
        )  # fmt: skip
        self._publish()

    def start(self) -> None:
        self._delay.cut()

    def teardown(self) -> None:
        self._tracker = self.latest = None
        self._held = []
        self.diagnostics.warning = ""

    def on_parameters(self) -> None:
        if self._tracker is not None:
            self._apply_mode(self._tracker)
            self._publish()

    def diagnose(self) -> dict[str, Any]:
        count = self._tracker.count if self._tracker else 0
        model = self._model if self._tracker else 0
        values = {"transitions": count, "model": model, "mode": self.params.mode, "task": self._task_id or "unknown"}
        return values | (self._delay.values() if self._tracker else {})

    def _poll(self) -> None:
        """Away from the messages: what was loaded beside, and a slice of the work on the command delay."""
        self._recall.poll()
        if not self.active or (estimate := self._delay.work()) is None:
            return
        self._delays.publish(encode_delay(estimate.delay_ms, estimate.uncertainty_ms))
        if began := self._delay.judge(self.params.delay_tolerance_ms):
            self.get_logger().warning(began)
        self.diagnostics.warning = self._delay.warning

    def _load(self, folder: str, contract: Contract | None = None) -> tuple[ContextTracker, int, Contract]:
        """A tracker that has embedded a transition already, its model's id, and its contract."""
        checkpoint = load_agent(self.params, folder, contract)
        tracker = ContextTracker(checkpoint)
        observation, action = np.zeros(checkpoint.contract.observation_dim), np.asarray(checkpoint.contract.action.safe)
        tracker.update(Transition(0, observation, action, 0.0, observation))
        if not np.isfinite(tracker.context).all():
            raise CheckpointError(f"checkpoint {folder}: its context is not finite; train anew or give another one")
        tracker.reset()
        number = model_id(folder)
        try:
            self._data_delays[number] = delay_of_data(checkpoint.metrics)
        except ValueError as error:
            raise CheckpointError(f"checkpoint {folder}: metrics: {error}; copy it again or train anew") from None
        return tracker, number, checkpoint.contract

    def _take(self, loaded: tuple[ContextTracker, int, Contract]) -> None:
        """A new model takes over, from the prior: the transitions that the old one saw are not kept."""
        self.catch_up()
        if self._tracker is not None:
            self._former = (self._tracker, self._model)
            self._use(loaded[0], loaded[1])
            self._swap.report("swapped", self._model)

    def _recalled(self, transitions: list[Transition]) -> None:
        """Transitions of recordings, whatever the mode; an empty list begins anew."""
        if self._tracker is None:
            return
        if not transitions:
            self._tracker.reset()
        self._tracker.mode, self._tracker.limit, self._tracker.half_life = "online", None, None
        for transition in transitions:
            self._tracker.update(transition)
        self._apply_mode(self._tracker)

    def _on_recalled(self, task_id: str) -> None:
        """The context is that of this task: an episode on it is no news."""
        self._task_id = task_id
        self._publish()

    def _use(self, tracker: ContextTracker, model: int) -> None:
        self._recall.cancel()
        self._tracker, self._model = tracker, model
        self._delay.compare_with(self._data_delays.get(model))
        self._outbox = ContextOutbox(len(tracker.context))
        self._apply_mode(tracker)
        self._publish()

    def _on_swap_told(self, msg: String) -> None:
        """The policy went back to its former model: so do we, or it could not use our context."""
        try:
            told = json.loads(msg.data)
            mine = told["state"] == "rolled back" and told["node"] != self.get_name()
        except (ValueError, TypeError, KeyError) as error:
            self.diagnostics.complain("unreadable", f"topic '{SWAP_TOPIC}': {error!r} in {msg.data[:80]!r}")
            return
        if self._former is None or not mine:
            return
        if told.get("model") == self._former[1]:
            (tracker, model), self._former = self._former, None
            tracker.reset()
            self._use(tracker, model)
            self._swap.report("rolled back", model, told["reason"])

    def _apply_mode(self, tracker: ContextTracker) -> None:
        tracker.mode, tracker.limit = self.params.mode, self.params.limit or None
        tracker.half_life = self.params.half_life_steps or None

    def _on_steps(self, steps: list[Step]) -> None:
        """Adapt at once, unless a command is to leave first: a context of now serves the next tick only."""
        self.catch_up()
        if self.must_wait is not None and self.must_wait(steps[-1].t_ns):
            self._held = steps
        else:
            self._adapt(steps)

    def catch_up(self) -> None:
        """Do what was put off."""
        if self._held:
            steps, self._held = self._held, []
            self._adapt(steps)

    def _adapt(self, steps: list[Step]) -> None:
        if not self.active or self._tracker is None:
            return
        for step in steps:
            if step.transition is None:
                self.diagnostics.counts["cuts"] += step.cut is not None and step.cut.kind is not FaultKind.START
                self._compare_clocks(step)
                if step.cut is not None and step.cut.kind is FaultKind.CLOCK_JUMP:
                    self._tracker.reset()
                    self._changed_ns = 0
            elif step.transition.t_ns < self._changed_ns:
                self.diagnostics.counts["transitions of the task before"] += 1
            elif self._tracker.update(step.transition) and self._tracker.count == 1:
                self._begin_ns = step.transition.t_ns
            self._tick_ns = step.t_ns
            self._publish()
        self._end.decided(self._tick_ns)

    def _compare_clocks(self, cut: Step) -> None:
        """Say so when no command can belong to an observation because their senders' clocks differ."""
        newest_ns = self._aligner.actions.newest_ns
        if newest_ns != NO_TIME and abs(newest_ns - cut.t_ns) > FOREIGN_CLOCK_NS:
            self.diagnostics.complain(
                "foreign clocks",
                "commands and observations are stamped by different clocks, so no transition can be seen; "
                "set use_sim_time alike on all nodes",
            )

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
