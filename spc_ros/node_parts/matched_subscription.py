# SPDX-License-Identifier: Apache-2.0
"""A subscription whose QoS follows its publishers: latched messages that were sent before it are received too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from spc_core.contract.sections import Qos
from spc_ros.node_parts.diagnostics import steady_timer

COUNT_S = 0.1  # between counts of the publishers
LOOK_EVERY = 10  # counts; where one publisher replaced another, the count stays
LATCHED_DEPTH = 10
RELIABLE = {True: ReliabilityPolicy.RELIABLE, False: ReliabilityPolicy.BEST_EFFORT}


class MatchedSubscription:
    """Receives serialised messages of one topic.

    It starts as `qos` says, or else volatile and as reliable as asked. While all publishers latch the topic, it is
    latched, which is reliable; where one is best effort only and `follow_reliability`, it becomes best effort. What
    the contract's `qos` fixes does not change.
    """

    def __init__(
        self,
        node: Node,
        kind: Any,
        topic: str,
        callback: Callable[[bytes], None],
        depth: int,
        reliable: bool,
        warn_once: Callable[[str, str], None],
        qos: Qos | None = None,
        follow_reliability: bool = False,
    ) -> None:
        """`warn_once(kind, text)` reports publishers that do not offer what is asked for."""
        self._node, self._kind, self._topic, self._callback, self._depth = node, kind, topic, callback, depth
        self._warn_once, self._qos, self._follow = warn_once, qos or Qos(), follow_reliability
        self.latched = self._qos.durability == "transient_local"
        self._reliable = reliable if self._qos.reliability is None else self._qos.reliability == "reliable"
        self.problem = ""  # why nothing can arrive from the publishers that are there
        self._last = b""  # the newest message
        self._copy = b""  # the one that a new latched subscription may deliver again
        self._publishers, self._counted = 0, 0  # how many, and counts since `_match` looked at them
        steady_timer(node, COUNT_S, self._match)
        self._subscription = self._subscribe()

    def renew(self) -> None:
        """Subscribe again, for when messages stay away although there is a publisher."""
        self._node.destroy_subscription(self._subscription)
        self._copy = self._last if self.latched else b""
        self._subscription = self._subscribe()

    def _subscribe(self) -> Any:
        latched = DurabilityPolicy.TRANSIENT_LOCAL if self.latched else DurabilityPolicy.VOLATILE
        depth = max(self._depth, LATCHED_DEPTH) if self.latched else self._depth
        qos = QoSProfile(depth=depth, reliability=RELIABLE[self._reliable or self.latched], durability=latched)
        events = SubscriptionEventCallbacks(use_default_callbacks=False)  # a pending event outlives its subscription
        return self._node.create_subscription(
            self._kind, self._topic, self._on_message, qos, raw=True, event_callbacks=events
        )

    def _on_message(self, data: bytes) -> None:
        if self._copy:
            copy, self._copy = self._copy, b""
            if data == copy:
                return
        self._last = data
        self._callback(data)

    def _match(self) -> None:
        """Follow the publishers that are there now."""
        self._counted += 1
        if self._node.count_publishers(self._topic) == self._publishers and self._counted < LOOK_EVERY:
            return
        self._counted = 0
        found = [info.qos_profile for info in self._node.get_publishers_info_by_topic(self._topic)]
        self._publishers = len(found)
        if not found:
            return
        self.problem = ""
        latched = [qos.durability == DurabilityPolicy.TRANSIENT_LOCAL for qos in found]
        best_effort = [qos.reliability == ReliabilityPolicy.BEST_EFFORT for qos in found]
        before = (self.latched, self._reliable)
        if self._qos.durability is None:
            self.latched = all(latched)
            if any(latched) and not self.latched:
                self._warn("some publishers latch it and others do not: a message sent before is not received")
        if self._qos.durability == "transient_local" and not any(latched):
            self.problem = (
                "the contract's qos.durability is transient_local, which no publisher offers: nothing arrives"
            )
        if any(best_effort) and self._reliable and self._qos.reliability is None and self._follow:
            self._reliable = False
            self._warn("published best effort: messages may be lost")
        elif self._reliable and self._qos.reliability == "reliable" and all(best_effort):
            self.problem = "the contract's qos.reliability is reliable, which no publisher offers: nothing arrives"
        if self.problem:
            self._warn(self.problem)
        if (self.latched, self._reliable) != before:
            self.renew()

    def _warn(self, text: str) -> None:
        self._warn_once("qos", f"topic '{self._topic}': {text}")
