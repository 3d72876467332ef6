# SPDX-License-Identifier: Apache-2.0
"""Random messages of any type, and columns of them as a bag would hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.typesys.store import Typestore

from spc_ros.messages.columns import RawColumn

JOINTS = ["hip", "knee", "ankle", "left.wrist", "ü"]
STRINGS = ["", "a", "map", "base_link", "odometry frame", "größe", "漢字"]
DTYPES = {"byte": "int8", "char": "uint8"}


class MessageMaker:
    """Messages of one type: `shape` decides lengths and strings, `number` all numbers."""

    def __init__(self, typestore: Typestore, type_name: str, shape: int, number: int) -> None:
        self.typestore, self.type_name = typestore, type_name
        self.shape, self.number = np.random.default_rng(shape), np.random.default_rng(number)

    def make(self) -> Any:
        message = self._value((Nodetype.NAME, self.type_name))
        if self.type_name.endswith("/JointState"):
            message.name = self._joints()
            self._fill(message, ("position", "velocity", "effort"), len(message.name))
        elif self.type_name.endswith("/JointTrajectory"):
            message.joint_names = self._joints()
            for point in message.points:
                self._fill(point, ("positions", "velocities", "accelerations", "effort"), len(message.joint_names))
        elif self.type_name.endswith("MultiArray"):
            self._label(message)
        return message

    def _joints(self) -> list[str]:
        return [str(name) for name in self.shape.permutation(JOINTS)[: self.shape.integers(3, len(JOINTS) + 1)]]

    def _fill(self, holder: Any, arrays: Sequence[str], joints: int) -> None:
        for array in arrays:
            lengths = [joints, joints, joints, 0, joints - 1]
            setattr(holder, array, self.numbers("float64", lengths[self.shape.integers(len(lengths))]))

    def _label(self, message: Any) -> None:
        dimension = self.typestore.types["std_msgs/msg/MultiArrayDimension"]
        message.data = self.numbers(str(message.data.dtype), 3)
        labels = [["c,a,b"], ["a", "b", "c"], [], ["x,y"]][self.shape.integers(4)]
        message.layout.dim = [dimension(label=label, size=3, stride=3) for label in labels]

    def _value(self, description: Any) -> Any:
        node, what = description
        if node == Nodetype.NAME:
            return self._submessage(what)
        if node == Nodetype.BASE:
            return self._base(*what)
        element, count = what
        if node == Nodetype.SEQUENCE:
            count = int(self.shape.integers(0, min(count or 4, 4) + 1))
        if element[0] == Nodetype.BASE and element[1][0] != "string":
            return self.numbers(element[1][0], count)
        return [self._value(element) for _ in range(count)]

    def _submessage(self, type_name: str) -> Any:
        definition = self.typestore.get_msgdef(type_name)
        return definition.cls(*[self._value(part) for _, part in definition.fields])

    def _base(self, name: str, bound: int) -> Any:
        if name == "string":
            return STRINGS[self.shape.integers(len(STRINGS))][: bound or None]
        return self.numbers(name, 1)[0].item()

    def numbers(self, name: str, count: int) -> np.ndarray:
        """Any bits, so that there are NaN, denormals and large integers as well; floats mostly ordinary."""
        dtype = np.dtype(DTYPES.get(name, name))
        if dtype.kind == "b":
            return self.number.random(count) < 0.5
        if dtype.kind == "f" and self.number.random() < 0.8:
            return self.number.normal(size=count).astype(dtype)
        return np.frombuffer(self.number.bytes(count * dtype.itemsize), dtype)


def column_of(messages: Sequence[bytes], type_name: str, random: np.random.Generator) -> RawColumn:
    """The messages with odd gaps between them, as records of other topics would leave."""
    parts, start = [], []
    position = 0
    for message in messages:
        gap = random.bytes(int(random.integers(0, 30)))
        parts += [gap, message]
        start.append(position + len(gap))
        position += len(gap) + len(message)
    count = len(messages)
    size = np.array([len(message) for message in messages], np.int64)
    receive_ns, order = 10**18 + np.arange(count) * 10**7, np.arange(count) * 3
    buffer = np.frombuffer(b"".join(parts), np.uint8)
    return RawColumn("/robot/topic", type_name, receive_ns, order, buffer, np.array(start, np.int64), size)
