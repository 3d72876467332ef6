# SPDX-License-Identifier: Apache-2.0
"""Node `context_encoder`: watches the robot's topics and publishes the task vector z and its uncertainty, each tick."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from std_msgs.msg import Float32MultiArray, String
from std_srvs.srv import Trigger

from spc_core.contract import find_config, load_contract
from spc_core.deployed import CheckpointError, load_deployed
from spc_core.episode import EpisodeInfo
from spc_core.frames import NO_TIME, Step, TransitionAssembler
from spc_core.runtime import MODES, ContextTracker
from spc_ros.managed_node import ManagedNode, run
from spc_ros.plain_node import Param
from spc_ros.topic_bridge import (
    CONTEXT_TOPIC,
    EPISODE_TOPIC,
    PATIENCE_NS,
    EpisodeEnd,
    encode_context,
    latched_qos,
    subscribe_contract,
)

if TYPE_CHECKING:
    from spc_core.checkpoint import Checkpoint
    from spc_core.onnx_networks import OnnxCheckpoint

CHECKPOINT_PARAMS = (
    Param("checkpoint", "", "folder of a trained checkpoint, or of its export to ONNX"),
    Param("contract", "", "the robot's contract; must mean the same as the checkpoint's. Empty: not compared"),
    Param("device", "cpu", "where the networks run: cpu, cuda, cuda:<n> or auto"),
    Param("threads", 1, "CPU threads of the networks; more is slower for one robot", 1, 64),
    Param("lockstep", False, "time waits for our commands: lose nothing, hurry nothing; off: sensor data"),
)
PARAMS = [
    *CHECKPOINT_PARAMS,
    Param("mode", "online", "online: learn and show; collect: learn and show the prior; frozen", choices=MODES),
    Param("limit", 0, "most transitions in the context; 0: no limit", 0, 10_000_000),
]
FOREIGN_CLOCK_NS = 10_000_000_000


def load_agent(params: Any) -> Checkpoint | OnnxCheckpoint:
    """What a node was given to run. Raises CheckpointError when its contract is not the robot's."""
    if not params.checkpoint:
        raise CheckpointError("parameter 'checkpoint' is empty; give the folder that `spc train` wrote")
    checkpoint = load_deployed(params.checkpoint, params.device, params.threads)
    if checkpoint.config.method.context == "oracle":
        raise CheckpointError(
            f"checkpoint {params.checkpoint}: method '{checkpoint.config.method.name}' must be told the true task "
            "parameters, which no robot knows; it serves `spc evaluate` and `spc compare` only"
        )
    if params.contract:
        path = find_config("contracts", params.contract)
        lines = load_contract(path).differences(checkpoint.contract)
        if lines:
            where = f"contract {path} (here) is not the one of checkpoint {params.checkpoint} (there)"
            raise CheckpointError("\n  ".join([f"{where}:", *lines]))
    return checkpoint


class ContextEncoderNode(ManagedNode):
    """Service ~/reset forgets the context; so does a new task on `episode`, and a clock that jumps back."""

    def __init__(self) -> None:
        super().__init__("context_encoder", PARAMS)
        self._tracker: ContextTracker | None = None
        self._task_id: str | None = None
        self._tick_ns = 0  # the last decided tick
        self._begin_ns = 0  # the first transition's time since the last reset

    def setup(self) -> None:
        checkpoint = load_agent(self.params)
        contract = checkpoint.contract
        self._tracker = ContextTracker(checkpoint)
        self._apply_mode(self._tracker)
        self._assembler = TransitionAssembler(contract, PATIENCE_NS)
        self._end = EpisodeEnd(self._assembler)
        self._publisher = self.create_publisher(Float32MultiArray, CONTEXT_TOPIC, latched_qos())
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_subscription(String, EPISODE_TOPIC, self._on_episode, latched_qos(depth=10))
        subscribe_contract(
            self, contract, self._assembler, self._on_steps, self.params.lockstep, self.diagnostics.complain
        )
        self._publish()

    def teardown(self) -> None:
        self._tracker = None

    def on_parameters(self) -> None:
        if self._tracker is not None:
            self._apply_mode(self._tracker)
            self._publish()

    def diagnose(self) -> dict[str, Any]:
        count = self._tracker.count if self._tracker else 0
        return {"transitions": count, "mode": self.params.mode, "task": self._task_id or "unknown"}

    def _apply_mode(self, tracker: ContextTracker) -> None:
        tracker.mode, tracker.limit = self.params.mode, self.params.limit or None

    def _on_steps(self, steps: list[Step]) -> None:
        if not self.active or self._tracker is None:
            return
        for step in steps:
            if step.transition is None:
                self.diagnostics.counts["cuts"] += step.cut != "start"
                self._compare_clocks(step)
                if step.cut and step.cut.startswith("clock jumped back"):
                    self._tracker.reset()
            elif self._tracker.update(step.transition) and self._tracker.count == 1:
                self._begin_ns = step.transition.t_ns
            self._tick_ns = step.t_ns
            self._publish()
        self._end.decided(self._tick_ns)

    def _compare_clocks(self, cut: Step) -> None:
        """Say so when no command can belong to an observation because their senders' clocks differ."""
        newest_ns = self._assembler.actions.newest_ns
        if newest_ns != NO_TIME and abs(newest_ns - cut.t_ns) > FOREIGN_CLOCK_NS:
            self.diagnostics.complain(
                "foreign clocks",
                "commands and observations are stamped by different clocks, so no transition can be seen; "
                "set use_sim_time alike on all nodes",
            )

    def _publish(self) -> None:
        if self._tracker is not None:
            t = self._tracker
            self._publisher.publish(encode_context(t.context, t.uncertainty, t.count, self._tick_ns))

    def _on_episode(self, msg: String) -> None:
        info = EpisodeInfo.from_json(msg.data)
        if info.state == "ended":
            self._end.ended(info.end_ns)
        elif info.state == "running":
            new = self._task_id is not None and info.task_id != self._task_id
            self._task_id = info.task_id
            if new and self._tracker is not None and self._tracker.count and self._begin_ns < info.start_ns:
                self.diagnostics.counts["task changes"] += 1
                self._tracker.reset()
                self._publish()

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._tracker is not None
        if self._tracker is not None:
            self._tracker.reset()
            self._publish()
        return response


def main() -> int:
    return run(ContextEncoderNode)


if __name__ == "__main__":
    raise SystemExit(main())
