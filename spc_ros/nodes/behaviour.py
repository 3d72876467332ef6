# SPDX-License-Identifier: Apache-2.0
"""Node `behaviour`: drives a simulated robot during data collection, as expert, noisy expert, or at random.

Unlike a policy, it knows the task of each episode.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from std_msgs.msg import String

from spc_core.alignment.episode import EpisodeInfo
from spc_core.alignment.streaming import Frame, ObservationAligner
from spc_core.contract.contract import load_contract
from spc_core.tasks import contract_file, find_task, make_env
from spc_core.tasks.behaviour import KINDS, Behaviour
from spc_ros.node_parts.command_publisher import CommandPublisher
from spc_ros.node_parts.contract_topics import ContractTopics
from spc_ros.node_parts.diagnostics import steady_timer
from spc_ros.node_parts.plain_node import FAMILY, Param, PlainNode, run
from spc_ros.node_parts.topics import EPISODE_TOPIC, latched_qos

PARAMS = [
    Param("family", "arm_reach", FAMILY, read_only=True),
    Param("contract", "", "contract file or name; empty: the family's", read_only=True),
    Param("kind", "expert", "behaviour from the next episode on", choices=KINDS),
    Param("seed", 0, "seed of the next episode's noise", 0, 2**31),
    Param(
        "lockstep", True, "simulated time waits for the commands: reliable QoS; false: sensor data QoS", read_only=True
    ),
    Param("min_subscriptions", 1, "subscribers of the command topic to await before the first command", 0, 100),
]
HOUSEKEEPING_S = 0.02


class BehaviourNode(PlainNode):
    """Answers each frame of a running episode with one command."""

    def __init__(self) -> None:
        super().__init__("behaviour", PARAMS)
        self.contract = load_contract(contract_file(self.params.contract, self.params.family))
        self._env = make_env(self.params.family)
        self._behaviour: Behaviour | None = None  # of the running episode
        self._start_ns = 0
        self._pending: Frame | None = None  # waits for its episode's task or for the first connections
        self._connected = False
        self._commands = CommandPublisher(self, self.contract, self.params.lockstep)
        self._aligner = ObservationAligner(self.contract, patience_ns=self.contract.period_ns)
        self.create_subscription(String, EPISODE_TOPIC, self._on_episode, latched_qos(depth=10))
        ContractTopics(
            self,
            self.contract,
            self._aligner,
            self._on_frames,
            self.params.lockstep,
            self.diagnostics.warn_once,
        )
        self._waiting = steady_timer(self, HOUSEKEEPING_S, self._answer_pending)

    def diagnose(self) -> dict[str, Any]:
        return {"kind": self.params.kind, "task": self._env.task.task_id}

    def _on_episode(self, msg: String) -> None:
        info = EpisodeInfo.from_json(msg.data)
        self._behaviour = None
        if info.state == "running":
            self._env.set_task(find_task(info.task_now))
            self._behaviour = Behaviour(self._env, self.params.kind, self.params.seed)
            self._start_ns = info.start_ns
            self._answer_pending()

    def _on_frames(self, frames: list[Frame]) -> None:
        self._pending = frames[-1]
        self._answer_pending()

    def _answer_pending(self) -> None:
        frame = self._pending
        if frame is None or self._behaviour is None or frame.t_ns < self._start_ns:
            return
        if not self._connected:
            found = self._commands.listeners
            self._connected = found >= self.params.min_subscriptions
            if not self._connected:
                return
            self._waiting.cancel()
        self._pending = None
        if frame.observation is None:
            self.diagnostics.warn_once("faults", f"no command at {frame.t_ns / 1e9:.3f} s: {frame.fault}")
            return
        self._commands.send(np.asarray(self._behaviour.act(frame.observation)), frame.t_ns)
        self.diagnostics.counts["commands"] += 1


def main() -> int:
    return run(BehaviourNode)


if __name__ == "__main__":
    raise SystemExit(main())
