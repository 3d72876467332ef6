# SPDX-License-Identifier: Apache-2.0
"""Writes vectors into messages, by the same field paths as fields.py reads."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from spc_core.contract.frames import TF
from spc_core.contract.positional import elements, hole
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
        if missing := hole(type_name, self.fields):
            raise MessageError(f"topic '{where}': the contract {missing}")
        if type_name == TF:
            raise MessageError(
                f"topic '{where}': {TF} is read here and not written; the simulation publishes no transforms"
            )
        if type_name in JOINT_ARRAYS:
            self._write = self._joint_state if type_name == JOINT_STATE else self._trajectory
            self._group(JOINT_ARRAYS[type_name])
        elif type_name.endswith("MultiArray"):
            kind = type_name.rpartition("/")[2]
            if kind not in ("Float64MultiArray", "Float32MultiArray"):
                raise MessageError(f"topic '{where}': cannot write {type_name}; use Float64MultiArray")
            self.typecode = "d" if kind == "Float64MultiArray" else "f"
            self._order = self._element_order()
            names = (self.fields[index].removeprefix("data.") for index in self._order)
            self.label = ",".join(names)
            self._write = self._multi_array
        else:
            self._lists = {
                array: [places[i] for i in sorted(places)] for array, places in elements(self.fields).items()
            }
            listed = {index for order in self._lists.values() for index in order}
            self._numbers = [(field, index) for index, field in enumerate(self.fields) if index not in listed]
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

    def _element_order(self) -> list[int]:
        """The index of the field for each element of the array: by number, or in the contract's order."""
        places = elements(self.fields).get("data", {})
        if places and len(places) != len(self.fields):
            raise MessageError(
                f"topic '{self.where}': some fields are numbers (data.{min(places)}) and some are names; "
                f"write all as data.<i>, or all as names"
            )
        return [places[place] for place in sorted(places)] or list(range(len(self.fields)))

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
        message.data = array(self.typecode, [values[index] for index in self._order])

    def _paths(self, message: Any, values: list[float]) -> None:
        for field, index in self._numbers:
            setattr(*self._place(message, field), values[index])
        for path, order in self._lists.items():
            holder, name = self._place(message, path)
            try:
                setattr(holder, name, [values[index] for index in order])
            except (AssertionError, TypeError) as error:
                raise MessageError(
                    f"topic '{self.where}': cannot write {len(order)} numbers as '{path}' of {self.type_name}: "
                    f"{error}; name each of its elements in the contract"
                ) from None

    def _place(self, message: Any, path: str) -> tuple[Any, str]:
        """The part of the message that holds the last name of a path, and this name. Raises MessageError."""
        *parts, last = path.split(".")
        holder = message
        try:
            for part in parts:
                holder = getattr(holder, part)
            getattr(holder, last)
        except AttributeError as error:
            raise MessageError(
                f"topic '{self.where}': cannot write field '{path}' of {self.type_name}: {error}; "
                f"it has {contents_of(holder)}; correct the contract"
            ) from None
        return holder, last
