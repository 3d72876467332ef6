# SPDX-License-Identifier: Apache-2.0
"""Node `relay`: answers each state with a constant command at once, as a baseline for latency measurements.

It uses the messages, QoS and executor of the policy node, but reads, checks and computes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spc_core.contract.contract import load_contract
from spc_ros.messages.fields import message_class
from spc_ros.node_parts.command_publisher import CommandPublisher
from spc_ros.node_parts.plain_node import Param, PlainNode, run
from spc_ros.node_parts.topics import stream_qos

PARAMS = [
    Param("contract", "", "the robot's contract"),
    Param("lockstep", False, "reliable QoS for states, as for the policy"),
]


class RelayNode(PlainNode):
    """Subscribes to the contract's first observation and publishes its safe action."""

    def __init__(self) -> None:
        super().__init__("relay", PARAMS)
        contract = load_contract(self.params.contract)
        stream = contract.observation[0]
        self._commands = CommandPublisher(self, contract, self.params.lockstep, serialised=False)
        self._action = np.asarray(contract.action.safe, float)
        qos = stream_qos(self.params.lockstep)
        self.create_subscription(message_class(stream.type), stream.topic, self._on_state, qos)

    def _on_state(self, msg: Any) -> None:
        self._commands.send(self._action, 0)


def main() -> int:
    return run(RelayNode)


if __name__ == "__main__":
    raise SystemExit(main())
