# SPDX-License-Identifier: Apache-2.0
"""Field paths of the numbers in messages of any type, for topics outside a contract."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from rosbags.interfaces import Nodetype
from rosbags.typesys.store import Typestore

from spc_core.contract.frames import TF
from spc_ros.messages.fields import JOINT_ARRAYS, JOINT_TRAJECTORY, array_names
from spc_ros.messages.frames_reader import pair_name

MAX_ELEMENTS = 64  # of an array; images and point clouds have millions
HEADER = "std_msgs/msg/Header"
PLACEHOLDER = "structure_needs_at_least_one_member"
FLOATS = frozenset({"float32", "float64"})


@dataclasses.dataclass(frozen=True)
class _Choice:
    """A selection of a message's numbers."""

    all_kinds: bool = True  # else floating point only
    lists: bool = True  # of submessages, whose number may vary
    longest: int | None = None  # array; a longer one is left out entirely


STATE = _Choice(all_kinds=False, lists=False, longest=32)  # longer ones are images and scans


def numeric_fields(typestore: Typestore, type_name: str, message: Any) -> list[str]:
    """Paths that FieldReader can read from this message, in the message's order.

    Left out are headers, covariance matrices, and the elements of an array beyond the first 64.
    """
    if type_name in JOINT_ARRAYS:
        try:
            return _joint_fields(type_name, message)
        except (AttributeError, TypeError):  # the bag defines it otherwise, which whoever reads it is told
            return []
    if type_name == TF:
        return _transform_fields(message)
    if type_name.endswith("MultiArray") and hasattr(message, "layout") and hasattr(message, "data"):
        return _array_fields(message)
    return list(_paths(typestore, (Nodetype.NAME, type_name), message, "", _Choice()))


def state_fields(typestore: Typestore, type_name: str, message: Any) -> list[str]:
    """The numeric fields that may be a robot's state or command, at most 64 except in joint messages.

    Left out are long arrays, lists of submessages such as transforms, and, except in std_msgs, all but floating-point
    numbers.
    """
    if type_name in JOINT_ARRAYS or (type_name.endswith("MultiArray") and hasattr(message, "layout")):
        return numeric_fields(typestore, type_name, message)
    choice = dataclasses.replace(STATE, all_kinds=type_name.startswith("std_msgs/"))
    return list(_paths(typestore, (Nodetype.NAME, type_name), message, "", choice))[:MAX_ELEMENTS]


def _joint_fields(type_name: str, message: Any) -> list[str]:
    is_trajectory = type_name == JOINT_TRAJECTORY
    if is_trajectory and not len(message.points):
        return []
    holder = message.points[0] if is_trajectory else message
    names = message.joint_names if is_trajectory else message.name
    filled = [array for array in JOINT_ARRAYS[type_name] if len(getattr(holder, array)) == len(names)]
    joints = [name for name in dict.fromkeys(names) if name][:MAX_ELEMENTS]
    return [f"{array}.{joint}" for array in filled for joint in joints]


def _transform_fields(message: Any) -> list[str]:
    pairs = dict.fromkeys(pair_name(transform) for transform in message.transforms)
    parts = [*(f"translation.{axis}" for axis in "xyz"), *(f"rotation.{axis}" for axis in "xyzw")]
    return [f"transforms.{pair}.{part}" for pair in pairs for part in parts][: 7 * MAX_ELEMENTS]


def _array_fields(message: Any) -> list[str]:
    names = array_names(message)
    if names and len(set(names)) == len(names) and not any(name.startswith("data.") for name in names):
        return names[:MAX_ELEMENTS]
    return [f"data.{i}" for i in range(min(len(message.data), MAX_ELEMENTS))]


def _paths(typestore: Typestore, description: Any, value: Any, path: str, choice: _Choice) -> Iterator[str]:
    node, what = description
    if node == Nodetype.BASE:
        if what[0] in FLOATS or (choice.all_kinds and what[0] != "string"):
            yield path
    elif node == Nodetype.NAME:
        for name, part in [] if what == HEADER else typestore.get_msgdef(what).fields:
            if name != PLACEHOLDER and not _is_covariance(name, part):
                yield from _paths(typestore, part, getattr(value, name), f"{path}.{name}" if path else name, choice)
    elif (choice.lists or what[0][0] == Nodetype.BASE) and not (choice.longest and len(value) > choice.longest):
        for index in range(min(len(value), MAX_ELEMENTS)):
            yield from _paths(typestore, what[0], value[index], f"{path}.{index}", choice)


def _is_covariance(name: str, description: Any) -> bool:
    return "covariance" in name and description[0] in (Nodetype.ARRAY, Nodetype.SEQUENCE)
