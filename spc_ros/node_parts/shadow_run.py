# SPDX-License-Identifier: Apache-2.0
"""A policy in shadow mode: it receives everything, and nothing that it publishes can reach the robot."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.node import Node

from spc_core.contract.contract import Contract
from spc_core.deploy.health import Health, Level
from spc_core.deploy.shadow import ShadowComparison
from spc_ros.messages.contract_reader import ContractReader
from spc_ros.messages.fields import MessageError, message_class
from spc_ros.node_parts.contract_topics import deserializer
from spc_ros.node_parts.matched_subscription import MatchedSubscription
from spc_ros.node_parts.topics import stream_qos

PREFIX = "shadow/"


class ShadowRun:
    """Compares the policy's would-be commands with those on the contract's command topics."""

    def __init__(
        self,
        node: Node,
        contract: Contract,
        reliable: bool,
        warn_once: Callable[[str, str], None],
        is_state: Callable[[int], bool],
        receive_ns: Callable[[str], int],
    ) -> None:
        """`is_state`: whether a time is the stamp of a recent state. `receive_ns`: as of ContractTopics."""
        self.comparison = ShadowComparison(contract)
        self._is_state = is_state
        self._node, self._warn_once = node, warn_once
        self._topics = ", ".join(part.topic for part in contract.action.parts)
        self._reader, self._receive_ns = ContractReader(contract), receive_ns
        depth = stream_qos(reliable).depth
        for part in contract.action.parts:
            kind = message_class(part.type)
            callback = functools.partial(self._on_command, part.topic, deserializer(kind, part.topic))
            MatchedSubscription(node, kind, part.topic, callback, depth, reliable, warn_once)

    def would(self, action: np.ndarray, t_ns: int, kinds: list[str]) -> None:
        """A would-be command (A,) and the kinds of interventions in it."""
        self.comparison.would(t_ns, action, kinds)

    def health(self, control: Health) -> Health:
        """`control` is what would hold for a policy that drives; nobody is at risk here, so it is a warning at most."""
        if control.level:
            return Health(Level.WARN, f"shadow: {control.reason}")
        if self.comparison.absent:
            return Health(Level.WARN, f"shadow: nothing to compare with, since nobody commands on '{self._topics}'")
        return Health(Level.OK, "shadow: nothing is sent to the robot")

    def _on_command(self, topic: str, deserialize: Callable[[bytes], Any], data: bytes) -> None:
        try:
            samples = self._reader.live_samples(topic, data, lambda: self._receive_ns(topic), deserialize)
        except MessageError as error:
            self._warn_once("unreadable", str(error))
            return
        for role, t_ns, values in samples:
            if role.is_action:
                counts_ns = t_ns + self._is_state(t_ns)  # 1 ns after its state
                self.comparison.incumbent(counts_ns, values, role.part)
