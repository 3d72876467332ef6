# SPDX-License-Identifier: Apache-2.0
"""Listens to the emergency stop, whatever its publishers' QoS, and watches who publishes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from std_msgs.msg import Bool

from spc_core.deploy.emergency_stop import EmergencyStop
from spc_ros.node_parts.diagnostics import steady_timer
from spc_ros.node_parts.topics import OPERATOR_STOP_TOPIC, STOP_TOPIC

STOP_TOPICS = (STOP_TOPIC, OPERATOR_STOP_TOPIC)
TYPE = "std_msgs/msg/Bool"
WATCH_S = 0.5  # between looks at the publishers
# The channels. A latched message that was sent before reaches the first for sure, and the others now and then; a
# volatile publisher reaches the second.
LATCHED, VOLATILE, BEST_EFFORT = range(3)


class StopTopics:
    """Keeps an `EmergencyStop` up to date from the node's start, in every state of its lifecycle."""

    def __init__(self, node: Node, on_stop: Callable[[bool], None]) -> None:
        """`on_stop(pressed)` is called for each message, after `stop` has taken it."""
        self.stop = EmergencyStop(STOP_TOPICS)
        self._node, self._on_stop = node, on_stop
        self._best_effort: set[str] = set()  # topics with a publisher that only the third channel hears
        self._latched = {topic: self._subscribe(topic, LATCHED) for topic in STOP_TOPICS}
        for topic in STOP_TOPICS:
            self._subscribe(topic, VOLATILE)
        steady_timer(node, WATCH_S, self._watch)

    def _subscribe(self, topic: str, channel: int) -> Subscription:
        qos = QoSProfile(
            depth=10,
            reliability=ReliabilityPolicy.BEST_EFFORT if channel == BEST_EFFORT else ReliabilityPolicy.RELIABLE,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if channel == LATCHED else DurabilityPolicy.VOLATILE,
        )
        callback = partial(self._on_message, topic, channel)
        silent = SubscriptionEventCallbacks(use_default_callbacks=False)
        return self._node.create_subscription(Bool, topic, callback, qos, event_callbacks=silent)

    def _on_message(self, topic: str, channel: int, msg: Bool) -> None:
        if self.stop.pressed and not msg.data:
            self._watch()  # whether this may be a release depends on who publishes now
        self.stop.receive(msg.data, time.monotonic(), topic, channel)
        self._on_stop(msg.data)

    def _watch(self) -> None:
        for topic in STOP_TOPICS:
            found = self._node.get_publishers_info_by_topic(topic) if self._node.count_publishers(topic) else []
            unreadable = ""
            for publisher in found:
                if publisher.topic_type != TYPE:
                    who = f"{publisher.node_namespace.rstrip('/')}/{publisher.node_name}"
                    unreadable = f"{topic} is published as {publisher.topic_type} by {who}; publish {TYPE}"
            latched = [p.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in found]
            best_effort = any(p.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT for p in found)
            if best_effort and topic not in self._best_effort:
                self._best_effort.add(topic)
                self._subscribe(topic, BEST_EFFORT)
            deaf = None if not found else [VOLATILE, BEST_EFFORT] if all(latched) else [] if any(latched) else [LATCHED]
            if self.stop.watch(topic, len(found), unreadable, deaf):
                self._node.destroy_subscription(self._latched[topic])
                self._latched[topic] = self._subscribe(topic, LATCHED)  # and get the last word of the one that is left
