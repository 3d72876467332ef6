# SPDX-License-Identifier: Apache-2.0
"""The context message without its Python objects: its numbers from and into the serialised message."""

from __future__ import annotations

from typing import Any

import numpy as np
from rclpy.serialization import serialize_message

from spc_ros.bags.cdr_layout import LayoutError
from spc_ros.bags.live_layout import LiveReader, LiveWriter
from spc_ros.bags.messages import NS_PER_S, MessageError
from spc_ros.nodes.topic_bridge import (
    CONTEXT_TOPIC,
    ContextReading,
    decode_context,
    deserializer,
    encode_context,
    message_class,
)

TYPE = "std_msgs/msg/Float32MultiArray"
LABELS = ["context", "transitions", "stamp.sec", "stamp.nanosec", "uncertainty", "model"]


def _numbers(message: Any) -> list[float]:
    """The sizes in the order of LABELS, then the data. Raises LayoutError for a message of another form."""
    if [dim.label for dim in message.layout.dim] != LABELS:
        raise LayoutError(f"topic '{CONTEXT_TOPIC}': an older form")
    return [*(dim.size for dim in message.layout.dim), *message.data]


class ContextInbox:
    """Reads serialised context messages."""

    def __init__(self) -> None:
        self._reader = LiveReader(TYPE, _numbers)
        self._deserialize = deserializer(message_class(TYPE), CONTEXT_TOPIC)

    def read(self, data: bytes) -> ContextReading:
        """As decode_context. Raises ValueError."""
        found = self._reader.read(data)
        if found is None or not found[0] == found[4] == (len(found) - len(LABELS)) / 2:
            message = self._deserialize(data)
            reading = decode_context(message)
            if found is None:
                self._reader.learn(data, message)
            return reading
        numbers = np.array(found[len(LABELS) :], np.float32)
        z, t_ns = found[0], found[2] * NS_PER_S + found[3]
        return ContextReading(numbers[:z], numbers[z:], found[1], t_ns, found[5])


class ContextOutbox:
    """Writes serialised context messages of one size."""

    def __init__(self, size: int) -> None:
        nothing = np.zeros(size, np.float32)
        self._size = size
        try:
            self._writer = LiveWriter(TYPE, serialize_message(encode_context(nothing, nothing, 0, 0, 0)), _numbers)
        except LayoutError as error:
            raise MessageError(
                f"topic '{CONTEXT_TOPIC}': {error}; the installed std_msgs is not that of ROS 2"
            ) from None

    def write(self, reading: ContextReading) -> bytes:
        """As encode_context; needs an uncertainty and a model."""
        if reading.uncertainty is None or reading.model is None:
            raise ValueError(f"topic '{CONTEXT_TOPIC}': uncertainty or model is missing")
        z, seconds = self._size, divmod(reading.t_ns, NS_PER_S)
        values = (*reading.context.tolist(), *reading.uncertainty.tolist())
        return self._writer.write((z, reading.count, *seconds, z, reading.model, *values))
