# SPDX-License-Identifier: Apache-2.0
"""The numbers in a message of any type, by the field paths of contracts; for statistics of topics in no contract."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rosbags.interfaces import Nodetype
from rosbags.typesys.store import Typestore

from spc_ros.messages import JOINT_ARRAYS, JOINT_TRAJECTORY, array_names

MAX_ELEMENTS = 64  # of an array; images and point clouds have millions
HEADER = "std_msgs/msg/Header"
PLACEHOLDER = "structure_needs_at_least_one_member"


def numeric_fields(typestore: Typestore, type_name: str, message: Any) -> list[str]:
    """Paths that FieldReader can read from this message, in the message's order; [] where there are none.

    Left out are headers, covariance matrices, and the elements of an array beyond the first 64.
    """
    if type_name in JOINT_ARRAYS:
        return _joint_fields(type_name, message)
    if type_name.endswith("MultiArray") and hasattr(message, "layout") and hasattr(message, "data"):
        return _array_fields(message)
    return list(_paths(typestore, (Nodetype.NAME, type_name), message, ""))


def _joint_fields(type_name: str, message: Any) -> list[str]:
    is_trajectory = type_name == JOINT_TRAJECTORY
    if is_trajectory and not len(message.points):
        return []
    holder = message.points[0] if is_trajectory else message
    names = message.joint_names if is_trajectory else message.name
    filled = [array for array in JOINT_ARRAYS[type_name] if len(getattr(holder, array)) == len(names)]
    joints = [name for name in dict.fromkeys(names) if name][:MAX_ELEMENTS]
    return [f"{array}.{joint}" for array in filled for joint in joints]


def _array_fields(message: Any) -> list[str]:
    names = array_names(message)
    if names and len(set(names)) == len(names) and not any(name.startswith("data.") for name in names):
        return names[:MAX_ELEMENTS]
    return [f"data.{i}" for i in range(min(len(message.data), MAX_ELEMENTS))]


def _paths(typestore: Typestore, description: Any, value: Any, path: str) -> Iterator[str]:
    node, what = description
    if node == Nodetype.BASE:
        if what[0] != "string":
            yield path
    elif node == Nodetype.NAME:
        for name, part in [] if what == HEADER else typestore.get_msgdef(what).fields:
            if name != PLACEHOLDER and not _is_covariance(name, part):
                yield from _paths(typestore, part, getattr(value, name), f"{path}.{name}" if path else name)
    else:
        for index in range(min(len(value), MAX_ELEMENTS)):
            yield from _paths(typestore, what[0], value[index], f"{path}.{index}")


def _is_covariance(name: str, description: Any) -> bool:
    return "covariance" in name and description[0] in (Nodetype.ARRAY, Nodetype.SEQUENCE)
