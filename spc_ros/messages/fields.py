# SPDX-License-Identifier: Apache-2.0
"""Reads vectors from messages of a bag (rosbags) and of a live node (rclpy); field_writer.py writes them.

Field paths, as a contract writes them:
- JointState `position.<joint>`, JointTrajectory `positions.<joint>`: by joint name, not index. Of a trajectory with
  several points, the contract's `point` says which one is meant.
- MultiArray `data.<i>`, or an element's name: the layout's labels decide; a message without layout holds the
  elements in the contract's order.
- TFMessage `transforms.<parent>-><child>.translation.x`: by the names of the frames.
- all others by attribute, with numbers as list indices: `vector.x`, `pose.pose.position.x`, `ranges.3`.
"""

from __future__ import annotations

import importlib
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from spc_core.contract.frames import TF
from spc_core.contract.positional import JOINT_STATE, JOINT_TRAJECTORY, elements
from spc_core.system.config_files import suggest
from spc_ros.messages.frames_reader import FramesReader

JOINT_ARRAYS = {
    JOINT_STATE: ("position", "velocity", "effort"),
    JOINT_TRAJECTORY: ("positions", "velocities", "accelerations", "effort"),
}
PACKAGES = ("sensor_msgs", "std_msgs", "geometry_msgs", "nav_msgs", "trajectory_msgs",
            "diagnostic_msgs", "rosgraph_msgs", "tf2_msgs")  # fmt: skip
NS_PER_S = 1_000_000_000
Point = str | float | None
"""The point of a JointTrajectory: first, last, at a time in s, or the only one."""


class MessageError(ValueError):
    """A message or field path that does not fit; names topic, field, actual contents and the fix."""


class FieldReader:
    """Reads a fixed list of fields from messages of one type."""

    def __init__(
        self,
        type_name: str,
        fields: Sequence[str],
        where: str,
        point: Point = None,
        partial: bool = False,
        whole: bool = False,
    ) -> None:
        """`where` is the topic, for errors; `point` that of a JointTrajectory.

        `partial`: messages may lack some of the joints, which is no error for `find`. `whole`: refuse arrays with more
        elements than are named by number.
        """
        self.type_name, self.fields, self.where = type_name, tuple(fields), where
        self.by_value = isinstance(point, float)  # what is read depends on other numbers of the message
        if type_name in JOINT_ARRAYS:
            joints = _JointReader(type_name, self.fields, where, point, partial)
            self.read, self.find = joints.read, joints.find
        elif type_name == TF:
            self.read, self.find = self._frames(partial)
        else:
            is_array = type_name.endswith("MultiArray")
            self.read, self.find = (_ArrayReader if is_array else _PathReader)(self.fields, where).read, self._find
            if whole and elements(self.fields):
                self.read = _WholeReader(self.read, self.fields, where).read

    read: Callable[[Any], np.ndarray]
    """A message to a (F,) float64 vector in the order of `fields`. Raises MessageError. NaN is passed on."""
    find: Callable[[Any], tuple[list[Any], str]]
    """The same as a list, None for missing numbers, and the text of the MessageError instead of an error."""

    def _frames(self, partial: bool) -> tuple[Callable[[Any], np.ndarray], Callable[[Any], tuple[list[Any], str]]]:
        try:
            reader = FramesReader(self.fields, self.where)
        except ValueError as error:
            raise MessageError(f"topic '{self.where}': {error}") from None

        def find(message: Any) -> tuple[list[Any], str]:
            return reader.find(message), "" if partial else reader.problem(message)

        def read(message: Any) -> np.ndarray:
            numbers, problem = find(message)
            if problem:
                raise MessageError(problem)
            return np.array(numbers, float)

        return read, find

    def _find(self, message: Any) -> tuple[list[Any], str]:
        try:
            return self.read(message).tolist(), ""
        except MessageError as error:
            return [None] * len(self.fields), str(error)


class _WholeReader:
    """Reads a command, and refuses one whose arrays hold more than the fields name, which a policy would leave out."""

    def __init__(self, read: Callable[[Any], np.ndarray], fields: Sequence[str], where: str) -> None:
        self._read, self.where = read, where
        self.arrays = {path: (path.split("."), len(places)) for path, places in elements(fields).items()}

    def read(self, message: Any) -> np.ndarray:
        vector = self._read(message)
        for path, (parts, count) in self.arrays.items():
            array = message
            for part in parts:
                array = array[int(part)] if part.isdigit() else getattr(array, part)
            if len(array) != count:
                raise MessageError(
                    f"topic '{self.where}': '{path}' has {len(array)} elements, the contract's action names {count}; "
                    f"a robot takes each by its place, so list all of {path}.0 to {path}.{len(array) - 1}"
                )
        return vector


class _JointReader:
    def __init__(self, type_name: str, fields: tuple[str, ...], where: str, point: Point, partial: bool) -> None:
        self.fields, self.where, self.is_trajectory = fields, where, type_name == JOINT_TRAJECTORY
        self.point, self.partial = point, partial
        self.wanted = [joint_field(field, JOINT_ARRAYS[type_name], where) for field in fields]
        self.seen: Any = None
        self.missing = ""  # the error of joints that are not among those seen
        self.plan: list[tuple[str, list[int], list[int]]] = []  # array, indices in the vector, and in the message or -1

    def read(self, message: Any) -> np.ndarray:
        numbers, problem = self.find(message)
        if problem:
            raise MessageError(problem)
        return np.array(numbers, float)

    def find(self, message: Any) -> tuple[list[Any], str]:
        names = message.joint_names if self.is_trajectory else message.name
        if names != self.seen:
            self._learn(list(names))
        if not self.is_trajectory:
            return self._numbers(message, len(names))
        points, problem = self._points(message.points)
        found = [self._numbers(point, len(names)) for point in points]
        problem = next((text for _, text in found if text), problem)
        if isinstance(self.point, float) and found:
            return _at_time(points, [row for row, _ in found], self.point), problem
        return found[0][0] if found else [None] * len(self.wanted), problem

    def _numbers(self, holder: Any, joints: int) -> tuple[list[Any], str]:
        """The numbers in the arrays of a message or a point, for a message that names so many joints."""
        numbers, problem = [None] * len(self.wanted), self.missing
        for attribute, places, indices in self.plan:
            values = getattr(holder, attribute)
            if len(values) != joints and not (self.partial and max(indices) < 0):
                problem = problem or self._length_error(attribute, len(values), joints)
            for place, index in zip(places, indices, strict=True):
                if 0 <= index < len(values):
                    numbers[place] = values[index]
        return numbers, problem

    def _points(self, points: Sequence[Any]) -> tuple[Sequence[Any], str]:
        """The points that decide, and the problem of a trajectory without them."""
        count = len(points)
        if not count:
            return [], f"topic '{self.where}': the trajectory has no points; publish at least one"
        if isinstance(self.point, float):
            return points, ""
        if self.point is None and count > 1:
            return points[:1], (
                f"topic '{self.where}': a trajectory has {count} points, and the contract does not say which one is "
                f"meant; add `point: first`, `point: last`, or a time in s, such as `point: 0.1`"
            )
        return [points[-1] if self.point == "last" else points[0]], ""

    def _learn(self, names: list[str]) -> None:
        """Find each wanted joint in `names`; repeated only when the names change."""
        missing = sorted({joint for _, joint in self.wanted if joint not in names})
        text = (
            f"topic '{self.where}': no joint {', '.join(repr(m) for m in missing)}; the message has "
            f"{', '.join(names) or 'no joints at all'}; correct the contract or the driver"
        )
        self.missing = text if missing and not self.partial else ""
        twice = sorted({joint for _, joint in self.wanted if names.count(joint) > 1})
        if twice:
            self.missing = (
                f"topic '{self.where}': a message names {', '.join(twice)} more than once, so that its value is not "
                "known; make the driver name each joint once"
            )
        index = {name: i for i, name in enumerate(names)}
        self.plan = []
        for attribute in dict.fromkeys(attribute for attribute, _ in self.wanted):
            places = [i for i, (a, _) in enumerate(self.wanted) if a == attribute]
            self.plan.append((attribute, places, [index.get(self.wanted[i][1], -1) for i in places]))
        self.seen = names

    def _length_error(self, attribute: str, length: int, joints: int) -> str:
        field = next(field for field in self.fields if field.startswith(f"{attribute}."))
        what = "is empty" if length == 0 else f"has {length} entries"
        return (
            f"topic '{self.where}': cannot read {field}: the array '{attribute}' {what}, the message names "
            f"{joints} joints; make the driver fill it or take the field out of the contract"
        )


def _at_time(points: Sequence[Any], rows: list[list[Any]], time_s: float) -> list[Any]:
    """Numbers of a trajectory at a time, in between linearly, before the first and after the last point as there."""
    times = [point.time_from_start.sec + point.time_from_start.nanosec / NS_PER_S for point in points]
    columns = zip(*rows, strict=True)
    return [None if None in column else float(np.interp(time_s, times, column)) for column in columns]


def joint_field(field: str, arrays: tuple[str, ...], where: str) -> tuple[str, str]:
    attribute, _, joint = field.partition(".")
    if attribute not in arrays or not joint:
        ways = ", ".join(f"{name}.<joint>" for name in arrays)
        raise MessageError(f"topic '{where}': field '{field}' is not one of {ways}; correct the contract")
    return attribute, joint


class _ArrayReader:
    def __init__(self, fields: tuple[str, ...], where: str) -> None:
        self.fields, self.where = fields, where
        numbered = [field.partition(".")[2] for field in fields if field.startswith("data.")]
        self.by_number = len(numbered) == len(fields) and all(number.isdigit() for number in numbered)
        self.indices = [int(n) for n in numbered] if self.by_number else list(range(len(fields)))
        self.seen: list[str] = []  # the names that `indices` belong to; empty for a message without layout

    def read(self, message: Any) -> np.ndarray:
        data = message.data
        if not self.by_number:
            names = array_names(message)
            if names != self.seen:
                self._learn(names)
            if not names and len(data) != len(self.fields):
                raise MessageError(
                    f"topic '{self.where}': {len(data)} elements without a labelled layout, the contract "
                    f"names {len(self.fields)}: {', '.join(self.fields)}; label the layout or write data.<i>"
                )
        try:
            return np.array([as_number(data[index]) for index in self.indices], dtype=float)
        except IndexError:
            raise MessageError(
                f"topic '{self.where}': the message has {len(data)} elements, the contract wants "
                f"{', '.join(self.fields)}; correct the contract's fields"
            ) from None

    def _learn(self, names: list[str]) -> None:
        missing = [field for field in self.fields if names and field not in names]
        if missing:
            raise MessageError(
                f"topic '{self.where}': no element {', '.join(repr(m) for m in missing)}; the layout names "
                f"{', '.join(names)}; correct the contract's fields"
            )
        self.indices = [names.index(f) for f in self.fields] if names else list(range(len(self.fields)))
        self.seen = names


def array_names(message: Any) -> list[str]:
    """Names of a MultiArray's elements: one dimension labelled 'a,b,c', or a labelled dimension for each."""
    dim, count = message.layout.dim, len(message.data)
    names = dim[0].label.split(",") if len(dim) == 1 else [d.label for d in dim]
    return names if dim and len(names) == count and all(names) else []


class _PathReader:
    def __init__(self, fields: tuple[str, ...], where: str) -> None:
        self.fields, self.where = fields, where
        self.paths = [[int(p) if p.isdigit() else p for p in field.split(".")] for field in fields]

    def read(self, message: Any) -> np.ndarray:
        vector = np.empty(len(self.paths))
        for place, path in enumerate(self.paths):
            value = message
            for part in path:
                try:
                    value = value[part] if isinstance(part, int) else getattr(value, part)
                except (AttributeError, IndexError, TypeError):
                    raise self._error(place, f"there is no '{part}'; there is {contents_of(value)}") from None
            value = as_number(value)
            if not isinstance(value, (numbers.Real, np.bool_)):
                raise self._error(place, f"it is not a number but holds {contents_of(value)}")
            vector[place] = value
        return vector

    def _error(self, place: int, problem: str) -> MessageError:
        return MessageError(
            f"topic '{self.where}': cannot read field '{self.fields[place]}': {problem}; correct the contract"
        )


def as_number(value: Any) -> Any:
    """The number of a `byte`, for which rclpy has an object of type bytes; all else as it is."""
    return value[0] if isinstance(value, bytes) and len(value) == 1 else value


def contents_of(value: Any) -> str:
    """The contents of a part of a message, for errors."""
    if hasattr(value, "get_fields_and_field_types"):
        return ", ".join(value.get_fields_and_field_types())
    if hasattr(value, "__dataclass_fields__"):
        return ", ".join(name for name in value.__dataclass_fields__ if not name.startswith("_"))
    if isinstance(value, str) or not hasattr(value, "__len__"):
        return f"the {type(value).__name__} {value!r}"
    return f"a list of {len(value)}"


def stamp_ns(message: Any) -> int | None:
    """The header's time in nanoseconds; None without a header or where the stamp was left at zero."""
    header = getattr(message, "header", None)
    if header is None:
        return None
    return header.stamp.sec * NS_PER_S + header.stamp.nanosec or None


def set_stamp(message: Any, t_ns: int) -> None:
    """Write the header's time, if the message has a header."""
    if hasattr(message, "header"):
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(t_ns, NS_PER_S)


def sample_time(message: Any, receive_ns: int, clock: str) -> tuple[int, bool]:
    """(the time to align a message by, whether its stamp is unset although the clock is its header)."""
    if clock == "receive":
        return receive_ns, False
    t_ns = stamp_ns(message)
    return (receive_ns, True) if t_ns is None else (t_ns, False)


def message_class(type_name: str) -> Any:
    """The ROS Python class of 'package/msg/Type'. Raises MessageError: of packages beyond PACKAGES none is imported."""
    package, _, name = type_name.partition("/msg/")
    if package not in PACKAGES:
        raise MessageError(f"message type '{type_name}' is not of a known package; known: {', '.join(PACKAGES)}")
    try:
        module = importlib.import_module(f"{package}.msg")
    except ModuleNotFoundError:
        fix = f"install {package} (on ROS: ros-<distribution>-{package.replace('_', '-')})"
        raise MessageError(
            f"message type '{type_name}' is not installed here, so no node can receive it; {fix}"
        ) from None
    if not hasattr(module, name):
        raise MessageError(f"{package} has no message '{name}'{suggest(name, dir(module))}")
    return getattr(module, name)
