# SPDX-License-Identifier: Apache-2.0
"""Publishes actions on the contract's command topics with little latency."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.serialization import deserialize_message, serialize_message

from spc_core.contract.contract import Contract
from spc_core.contract.sections import Action
from spc_ros.messages.cdr_walk import LayoutError
from spc_ros.messages.field_writer import FieldWriter
from spc_ros.messages.fields import (
    JOINT_TRAJECTORY,
    NS_PER_S,
    FieldReader,
    MessageError,
    message_class,
    set_stamp,
)
from spc_ros.messages.live import LiveWriter
from spc_ros.node_parts.topics import now_ns, stream_qos


class CommandPublisher:
    """Publishes actions on the contract's command topics, each its part."""

    def __init__(
        self, node: Node, contract: Contract, lockstep: bool, serialised: bool = True, prefix: str = ""
    ) -> None:
        """`serialised`: write numbers straight into a serialised message, where its type allows.

        `prefix` comes before the contract's topics.
        """
        self._topics = [
            _TopicPublisher(node, part, contract.period_ns, lockstep, serialised, prefix)
            for part in contract.action.parts
        ]
        self._slices = contract.action.slices

    def send(self, action: np.ndarray, t_ns: int) -> None:
        """Publish the command (A,) for the observation at `t_ns`, stamped now and always later than t_ns.

        In lock-step, time stands still until the answer, so now is t_ns.
        """
        for topic, columns in zip(self._topics, self._slices, strict=True):
            topic.send(action[columns], t_ns)

    @property
    def listeners(self) -> int:
        """Subscribers of the topic that has the fewest."""
        return min(topic.publisher.get_subscription_count() for topic in self._topics)

    @property
    def unheard(self) -> list[str]:
        """Names of the topics without a subscriber."""
        publishers = [topic.publisher for topic in self._topics]
        return [publisher.topic_name for publisher in publishers if not publisher.get_subscription_count()]

    def wait_for_all_acked(self, timeout: Duration) -> None:
        """Wait until the subscribers have what was sent."""
        for topic in self._topics:
            topic.publisher.wait_for_all_acked(timeout)


class _TopicPublisher:
    """Publishes one topic's part of the action."""

    def __init__(
        self, node: Node, action: Action, period_ns: int, lockstep: bool, serialised: bool, prefix: str
    ) -> None:
        self._node, self._lockstep = node, lockstep
        self._class = message_class(action.type)
        self._stamped = action.type != JOINT_TRAJECTORY  # stamp 0 of a trajectory: start at once
        self._writer = FieldWriter(action.type, action.fields, action.topic, period_ns)
        qos = stream_qos(reliable=True)  # a best-effort publisher would not reach a reliable controller
        topic = f"{prefix}{action.topic.lstrip('/')}" if prefix else action.topic
        self.publisher: Publisher = node.create_publisher(self._class, topic, qos)
        self._has_stamp = self._stamped and hasattr(self._class(), "header")
        self._fields = FieldReader(action.type, action.fields, action.topic)
        self._fast = self._serialised_writer(action.type, np.asarray(action.safe, float)) if serialised else None

    def send(self, action: np.ndarray, t_ns: int) -> None:
        """See CommandPublisher."""
        after_ns = t_ns + 1
        if self._fast is not None:
            stamp = ()
            if self._has_stamp:
                stamp = divmod(after_ns if self._lockstep else max(now_ns(self._node), after_ns), NS_PER_S)
            self.publisher.publish(self._fast.write((*stamp, *action.tolist())))
            return
        msg = self._class()
        self._writer.fill(msg, action)
        if self._stamped:
            set_stamp(msg, after_ns if self._lockstep else max(now_ns(self._node), after_ns))
        self.publisher.publish(msg)

    def _numbers(self, message: Any) -> list[float]:
        stamp = [message.header.stamp.sec, message.header.stamp.nanosec] if self._has_stamp else []
        return stamp + self._fields.read(message).tolist()

    def _serialised_writer(self, type_name: str, safe: np.ndarray) -> LiveWriter | None:
        """None for a message type whose serialised layout is not supported."""
        msg = self._class()
        self._writer.fill(msg, safe)
        try:
            writer = LiveWriter(type_name, serialize_message(msg), self._numbers)
            wanted = [*((12, 345) if self._has_stamp else ()), *(0.1 * np.arange(1, len(safe) + 1)).tolist()]
            decoded = deserialize_message(writer.write(wanted), self._class)
        except (LayoutError, MessageError, struct.error):
            return None
        return writer if self._numbers(decoded) == wanted else None
