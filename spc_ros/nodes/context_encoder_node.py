# SPDX-License-Identifier: Apache-2.0
"""Node `context_encoder`: watches the robot's topics and publishes the task vector z and its uncertainty, each tick."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from std_msgs.msg import Float32MultiArray, String
from std_srvs.srv import Trigger

from spc_core.alignment.episode import EpisodeInfo
from spc_core.alignment.frames import NO_TIME, Step, Transition, TransitionAssembler
from spc_core.contract import Contract, find_config, load_contract
from spc_core.deploy.deployed import CheckpointError, Deployed, load_deployed, model_id
from spc_core.deploy.runtime import MODES, ContextTracker
from spc_ros.nodes.context_bridge import ContextOutbox
from spc_ros.nodes.managed_node import ManagedNode, run
from spc_ros.nodes.model_swap_node import ModelSwapServer
from spc_ros.nodes.plain_node import Param
from spc_ros.nodes.topic_bridge import (
    CONTEXT_TOPIC,
    EPISODE_TOPIC,
    PATIENCE_NS,
    SWAP_TOPIC,
    ContextReading,
    EpisodeEnd,
    latched_qos,
    subscribe_contract,
)

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
    Param(
        "nice",
        5,
        "how far it gives way to the policy on a busy processor, as the command nice; not in lockstep or in `deploy`",
        0,
        19,
        read_only=True,
    ),
    Param("limit", 0, "most transitions in the context; 0: no limit", 0, 10_000_000),
]
FOREIGN_CLOCK_NS = 10_000_000_000


def give_way(nice: int) -> None:
    """Make this process's threads less urgent than others by `nice`, on Linux; never more urgent."""
    for thread in Path("/proc/self/task").glob("*"):  # the middleware's too
        with contextlib.suppress(ProcessLookupError):  # it has ended
            number = int(thread.name)
            os.setpriority(os.PRIO_PROCESS, number, max(nice, os.getpriority(os.PRIO_PROCESS, number)))


def load_agent(params: Any, folder: str, running: Contract | None = None) -> Deployed:
    """The checkpoint, or export of one, that a node was given.

    `running` is the contract that the node works by already, whose topics it could not change any more. Raises
    CheckpointError when the checkpoint's contract is not the robot's.
    """
    if not folder:
        raise CheckpointError("parameter 'checkpoint' is empty; give the folder that `spc train` wrote")
    checkpoint = load_deployed(folder, params.device, params.threads)
    if checkpoint.config.method.context == "oracle":
        raise CheckpointError(
            f"checkpoint {folder}: method '{checkpoint.config.method.name}' must be told the true task "
            "parameters, which no robot knows; it serves `spc evaluate` and `spc compare` only"
        )
    if running is not None:
        _compare(running, "that the node runs by", checkpoint, folder)
    elif params.contract:
        path = find_config("contracts", params.contract)
        _compare(load_contract(path), str(path), checkpoint, folder)
    return checkpoint


def _compare(contract: Contract, name: str, checkpoint: Deployed, folder: str) -> None:
    lines = contract.differences(checkpoint.contract)
    if lines:
        where = f"contract {name} (here) is not the one of checkpoint {folder} (there)"
        raise CheckpointError("\n  ".join([f"{where}:", *lines]))


class ContextEncoderNode(ManagedNode):
    """Service ~/reset forgets the context; so does a new task on `episode`, and a clock that jumps back."""

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

    def setup(self) -> None:
        self._tracker, self._model, contract = self._load(self.params.checkpoint)
        self._former: tuple[ContextTracker, int] | None = None
        self._apply_mode(self._tracker)
        self._assembler = TransitionAssembler(contract, PATIENCE_NS)
        self._end = EpisodeEnd(self._assembler)
        self._outbox = ContextOutbox(len(self._tracker.context))
        if self._alone and not self.params.lockstep:
            give_way(self.params.nice)
        self._publisher = self.create_publisher(Float32MultiArray, CONTEXT_TOPIC, latched_qos())
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_subscription(String, EPISODE_TOPIC, self._on_episode, latched_qos(depth=10))
        self._swap = ModelSwapServer(self, lambda: self._load(self.params.checkpoint, contract), self._take)
        self.create_subscription(String, SWAP_TOPIC, self._on_swap_told, latched_qos(depth=10))
        subscribe_contract(
            self, contract, self._assembler, self._on_steps, self.params.lockstep, self.diagnostics.complain
        )
        self._publish()

    def teardown(self) -> None:
        self._tracker = self.latest = None
        self._held = []

    def on_parameters(self) -> None:
        if self._tracker is not None:
            self._apply_mode(self._tracker)
            self._publish()

    def diagnose(self) -> dict[str, Any]:
        count = self._tracker.count if self._tracker else 0
        model = self._model if self._tracker else 0
        return {"transitions": count, "model": model, "mode": self.params.mode, "task": self._task_id or "unknown"}

    def _load(self, folder: str, contract: Contract | None = None) -> tuple[ContextTracker, int, Contract]:
        """A tracker that has embedded a transition already, its model's id, and its contract."""
        checkpoint = load_agent(self.params, folder, contract)
        tracker = ContextTracker(checkpoint)
        observation, action = np.zeros(checkpoint.contract.observation_dim), np.asarray(checkpoint.contract.action.safe)
        tracker.update(Transition(0, observation, action, 0.0, observation))
        if not np.isfinite(tracker.context).all():
            raise CheckpointError(f"checkpoint {folder}: its context is not finite; train anew or give another one")
        tracker.reset()
        return tracker, model_id(folder), checkpoint.contract

    def _take(self, loaded: tuple[ContextTracker, int, Contract]) -> None:
        """A new model takes over, from the prior: the transitions that the old one saw are not kept."""
        self.catch_up()
        if self._tracker is not None:
            self._former = (self._tracker, self._model)
            self._use(loaded[0], loaded[1])
            self._swap.tell("swapped", self._model)

    def _use(self, tracker: ContextTracker, model: int) -> None:
        self._tracker, self._model = tracker, model
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
            self._swap.tell("rolled back", model, told["reason"])

    def _apply_mode(self, tracker: ContextTracker) -> None:
        tracker.mode, tracker.limit = self.params.mode, self.params.limit or None

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
            new = self._task_id is not None and info.task_id != self._task_id
            self._task_id = info.task_id
            if new and self._tracker is not None and self._tracker.count and self._begin_ns < info.start_ns:
                self.diagnostics.counts["task changes"] += 1
                self._tracker.reset()
                self._publish()

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self.catch_up()
        response.success = self._tracker is not None
        if self._tracker is not None:
            self._tracker.reset()
            self._publish()
        return response


def main() -> int:
    return run(ContextEncoderNode)


if __name__ == "__main__":
    raise SystemExit(main())
