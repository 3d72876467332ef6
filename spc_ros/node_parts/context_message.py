# SPDX-License-Identifier: Apache-2.0
"""Defines the messages of the context and of the command delay."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from rclpy.serialization import serialize_message
from std_msgs.msg import Float32MultiArray, Float64MultiArray, MultiArrayDimension

from spc_ros.messages.cdr_walk import LayoutError
from spc_ros.messages.fields import NS_PER_S, MessageError, message_class
from spc_ros.messages.live import LiveReader, LiveWriter
from spc_ros.node_parts.contract_topics import deserializer
from spc_ros.node_parts.topics import CONTEXT_TOPIC


@dataclasses.dataclass(frozen=True)
class ContextReading:
    """The content of a context message."""

    context: np.ndarray  # z, (Z,) float32
    uncertainty: np.ndarray | None  # (Z,) float32, standard error of z; None: not in the message
    count: int  # transitions that went into z
    t_ns: int  # the tick that z belongs to
    model: int | None = None  # id of the model whose encoder computed z; None: not in the message


def encode_context(
    context: np.ndarray, uncertainty: np.ndarray, count: int, t_ns: int, model: int | None = None
) -> Float32MultiArray:
    """The context message: `data` is z (Z,), then its uncertainty (Z,); the layout's labels hold the rest.

    dim[0] "context": Z. dim[1] "transitions": their number in z. dim[2] "stamp.sec" and dim[3] "stamp.nanosec":
    the tick that z belongs to, since Float32MultiArray has no header. dim[4] "uncertainty": Z again; older bags lack
    it. dim[5] "model": the id of the model whose encoder computed z, where `model` is given.
    """
    if len(uncertainty) != len(context):
        raise ValueError(f"uncertainty has {len(uncertainty)} numbers; give one for each of context's {len(context)}")
    msg = Float32MultiArray()
    seconds, nanoseconds = divmod(t_ns, 1_000_000_000)
    sizes = {
        "context": len(context),
        "transitions": count,
        "stamp.sec": seconds,
        "stamp.nanosec": nanoseconds,
        "uncertainty": len(uncertainty),
    }
    if model is not None:
        sizes["model"] = model
    msg.layout.dim = [MultiArrayDimension(label=label, size=size, stride=1) for label, size in sizes.items()]
    msg.layout.dim[0].stride = len(context)
    msg.data = np.concatenate((context, uncertainty)).astype(np.float32).tolist()
    return msg


def encode_delay(delay_ms: float, uncertainty_ms: float) -> Float64MultiArray:
    """The delay from command to state: `data` is delay_ms, uncertainty_ms, as labelled in the layout."""
    msg = Float64MultiArray(data=[delay_ms, uncertainty_ms])
    labels = ("delay_ms", "uncertainty_ms")
    msg.layout.dim = [MultiArrayDimension(label=label, size=1, stride=1) for label in labels]
    return msg


def decode_context(msg: Float32MultiArray) -> ContextReading:
    """Decode a context message, with or without uncertainty. Raises ValueError for another layout."""
    sizes = {dim.label: dim.size for dim in msg.layout.dim}
    missing = [k for k in ("context", "transitions", "stamp.sec", "stamp.nanosec") if k not in sizes]
    z, uncertain = sizes.get("context", 0), sizes.get("uncertainty", 0)
    if missing or uncertain not in (0, z) or z + uncertain != len(msg.data):
        raise ValueError(f"topic '{CONTEXT_TOPIC}': not a context message, layout {sizes}, {len(msg.data)} numbers")
    numbers = np.asarray(msg.data, np.float32)
    t_ns = sizes["stamp.sec"] * 1_000_000_000 + sizes["stamp.nanosec"]
    return ContextReading(
        numbers[:z], numbers[z:] if uncertain else None, sizes["transitions"], t_ns, sizes.get("model")
    )


TYPE = "std_msgs/msg/Float32MultiArray"
LABELS = ["context", "transitions", "stamp.sec", "stamp.nanosec", "uncertainty", "model"]


def _numbers(message: Any) -> list[float]:
    """The sizes in the order of LABELS, then the data. Raises LayoutError for another layout."""
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
        values = self._reader.read(data)
        if values is None or not values[0] == values[4] == (len(values) - len(LABELS)) / 2:
            message = self._deserialize(data)
            reading = decode_context(message)
            if values is None:
                self._reader.learn(data, message)
            return reading
        numbers = np.array(values[len(LABELS) :], np.float32)
        z, t_ns = values[0], values[2] * NS_PER_S + values[3]
        return ContextReading(numbers[:z], numbers[z:], values[1], t_ns, values[5])


class ContextOutbox:
    """Writes serialised context messages of one size."""

    def __init__(self, size: int) -> None:
        zeros = np.zeros(size, np.float32)
        self._size = size
        try:
            self._writer = LiveWriter(TYPE, serialize_message(encode_context(zeros, zeros, 0, 0, 0)), _numbers)
        except LayoutError as error:
            raise MessageError(
                f"topic '{CONTEXT_TOPIC}': {error}; the installed std_msgs differs from that of ROS 2"
            ) from None

    def write(self, reading: ContextReading) -> bytes:
        """As encode_context; needs an uncertainty and a model."""
        if reading.uncertainty is None or reading.model is None:
            raise ValueError(f"topic '{CONTEXT_TOPIC}': uncertainty or model is missing")
        z, seconds = self._size, divmod(reading.t_ns, NS_PER_S)
        values = (*reading.context.tolist(), *reading.uncertainty.tolist())
        return self._writer.write((z, reading.count, *seconds, z, reading.model, *values))
