# SPDX-License-Identifier: Apache-2.0
"""Writes vectors into messages, by the same field paths as fields.py reads."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from spc_ros.messages.fields import (
    JOINT_ARRAYS,
    JOINT_STATE,
    NS_PER_S,
    MessageError,
    contents_of,
    joint_field,
    message_class,
)


class FieldWriter:
    """Writes a vector into messages (rclpy classes) of one type; `where` is the topic, for errors."""

    def __init__(self, type_name: str, fields: Sequence[str], where: str, period_ns: int = 0) -> None:
        """`period_ns` becomes a JointTrajectory's time_from_start."""
        self.type_name, self.fields, self.where, self.period_ns = type_name, tuple(fields), where, period_ns
        if type_name in JOINT_ARRAYS:
            self._write = self._joint_state if type_name == JOINT_STATE else self._trajectory
            self._group(JOINT_ARRAYS[type_name])
        elif type_name.endswith("MultiArray"):
            kind = type_name.rpartition("/")[2]
            if kind not in ("Float64MultiArray", "Float32MultiArray"):
                raise MessageError(f"topic '{where}': cannot write {type_name}; use Float64MultiArray")
            self.typecode = "d" if kind == "Float64MultiArray" else "f"
            self.label = ",".join(field.removeprefix("data.") for field in self.fields)
            self._write = self._multi_array
        else:
            self.paths = [field.split(".") for field in self.fields]
            self._write = self._paths

    def fill(self, message: Any, values: np.ndarray) -> None:
        """Write (F,) values in the order of `fields`; set_stamp writes the header. Raises MessageError."""
        if len(values) != len(self.fields):
            raise MessageError(f"topic '{self.where}': {len(values)} values for {len(self.fields)} fields")
        self._write(message, [float(value) for value in values])

    def _group(self, arrays: tuple[str, ...]) -> None:
        """Group the fields into arrays over the same joints."""
        wanted = [joint_field(field, arrays, self.where) for field in self.fields]
        self.joints = list(dict.fromkeys(joint for _, joint in wanted))
        self.arrays = {
            name: [wanted.index((name, joint)) if (name, joint) in wanted else -1 for joint in self.joints]
            for name in dict.fromkeys(attribute for attribute, _ in wanted)
        }
        for attribute, places in self.arrays.items():
            if -1 in places:
                joint = self.joints[places.index(-1)]
                raise MessageError(
                    f"topic '{self.where}': field '{attribute}.{joint}' is missing; an array of this message "
                    f"covers all its joints ({', '.join(self.joints)}); add the field to the contract"
                )

    def _joint_state(self, message: Any, values: list[float]) -> None:
        message.name = self.joints
        for attribute, places in self.arrays.items():
            setattr(message, attribute, array("d", [values[place] for place in places]))

    def _trajectory(self, message: Any, values: list[float]) -> None:
        point = message_class("trajectory_msgs/msg/JointTrajectoryPoint")()
        for attribute, places in self.arrays.items():
            setattr(point, attribute, array("d", [values[place] for place in places]))
        point.time_from_start.sec, point.time_from_start.nanosec = divmod(self.period_ns, NS_PER_S)
        message.header.stamp.sec = message.header.stamp.nanosec = 0  # start at once
        message.joint_names, message.points = self.joints, [point]

    def _multi_array(self, message: Any, values: list[float]) -> None:
        if not message.layout.dim:
            message.layout.dim = [message_class("std_msgs/msg/MultiArrayDimension")()]
        dim = message.layout.dim[0]
        dim.label, dim.size, dim.stride = self.label, len(values), len(values)
        message.data = array(self.typecode, values)

    def _paths(self, message: Any, values: list[float]) -> None:
        for path, value in zip(self.paths, values, strict=True):
            holder = message
            try:
                for part in path[:-1]:
                    holder = getattr(holder, part)
                getattr(holder, path[-1])
            except AttributeError as error:
                field = ".".join(path)
                raise MessageError(
                    f"topic '{self.where}': cannot write field '{field}' of {self.type_name}: {error}; "
                    f"it has {contents_of(holder)}; correct the contract"
                ) from None
            setattr(holder, path[-1], value)
