# SPDX-License-Identifier: Apache-2.0
"""Many serialised messages at once as ColumnReader reads them, but what some lack is noted instead of refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rosbags.typesys.store import Typestore

from spc_ros.messages.cdr_layout import Layout, LayoutError, Walk, make_layout
from spc_ros.messages.columns import MAX_LAYOUTS, WORTHWHILE, Block, decisive_fields, deserialize, has_stamp
from spc_ros.messages.fields import JOINT_ARRAYS, FieldReader, MessageError, stamp_ns
from spc_ros.messages.numeric_fields import state_fields
from spc_ros.messages.raw_messages import RawColumn

Layouts = tuple[tuple[int, tuple[str, ...]], ...]
"""(first message, joint names), where the names change."""
DAMAGED = "the bytes are no message of the type, they are damaged; record again, or cut these messages out of the bag"


@dataclasses.dataclass(frozen=True)
class Shape:
    """What messages of one layout have in common: what they hold, and where they hold something else than asked."""

    present: tuple[int, ...] = ()  # places of the fields that they have
    joints: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()  # of the arrays that go with the joints
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Recorded:
    """N messages of a topic, F fields."""

    receive_ns: np.ndarray  # (N,) int64
    stamp_ns: np.ndarray | None  # (N,) int64, 0 where unset; None for a type without a header
    fields: tuple[str, ...]
    values: np.ndarray  # (N, F), NaN where absent
    absent: np.ndarray | None  # (N, F) bool; None where nothing is
    layouts: Layouts
    lengths: Mapping[str, np.ndarray]  # (N,) of the arrays that go with the joints
    problems: Mapping[str, int]  # messages by what is wrong with them


class TolerantReader:
    """Gathers one topic, column by column. Joints are read by name, whichever of them a message has."""

    def __init__(self, typestore: Typestore, type_name: str, fields: Sequence[str] | None, where: str) -> None:
        """Without `fields`, all numbers of a state; `where` is the topic, for errors. Raises MessageError."""
        try:
            typestore.get_msgdef(type_name)
        except KeyError as error:
            raise MessageError(
                f"no definition of the type {error}, neither in the bag nor in ROS 2 Jazzy; give the folder of its "
                f"package, with msg/*.msg, or record again"
            ) from None
        self.typestore, self.type_name, self.where = typestore, type_name, where
        self.has_stamp = has_stamp(typestore, type_name)
        joints = type_name in JOINT_ARRAYS
        self._fields = _Joints(typestore, type_name, fields) if joints else _Any(typestore, type_name, fields, where)
        self._shapes: dict[Shape, int] = {}
        self._layouts: dict[Layout, int] = {}  # the shape of each
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, column: RawColumn) -> None:
        """The next messages of the topic; nothing of the column is kept but what was read."""
        with np.errstate(invalid="ignore"):  # widening a signalling NaN
            self._parts.append((column.receive_ns.copy(), *self._read(column)))

    def recorded(self) -> Recorded:
        """All that was added; the reader is then empty."""
        parts, self._parts = self._parts, []
        fields, names = tuple(self._fields.fields or ()), list(self._shapes)
        none = np.empty(0, np.int64)
        receive, stamps, shape = (np.concatenate([p[i] for p in parts]) if parts else none for i in (0, 1, 3))
        values = np.concatenate([_wider(p[2], len(fields)) for p in parts]) if parts else np.empty((0, len(fields)))
        present = np.zeros((max(1, len(names)), len(fields)), bool)
        for i, name in enumerate(names):
            present[i, list(name.present)] = True
        counts = np.bincount(shape, minlength=len(names)).tolist()
        problems: dict[str, int] = {}
        for name, count in zip(names, counts, strict=True):
            if name.problem:
                problems[name.problem] = problems.get(name.problem, 0) + count
        layouts, lengths = self._joints(names, shape)
        return Recorded(
            receive_ns=receive,
            stamp_ns=stamps if self.has_stamp else None,
            fields=fields,
            values=values,
            absent=None if not names or present.all() else ~present[shape],
            layouts=layouts,
            lengths=lengths,
            problems=problems,
        )

    def _joints(self, shapes: Sequence[Shape], shape: np.ndarray) -> tuple[Layouts, dict[str, np.ndarray]]:
        """Where the joint names change, and (N,) lengths of the arrays that go with them."""
        arrays = JOINT_ARRAYS.get(self.type_name, ())
        if not arrays or not shapes:
            return (), {}
        joints = list(dict.fromkeys(each.joints for each in shapes))
        whose = np.array([joints.index(each.joints) for each in shapes])[shape]
        layouts = tuple((int(i), joints[whose[i]]) for i in np.flatnonzero(np.diff(whose, prepend=-1)))
        lengths = np.array([each.lengths or (0,) * len(arrays) for each in shapes])[shape]
        return layouts, {array: lengths[:, i] for i, array in enumerate(arrays)}

    def _read(self, column: RawColumn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N,) stamps, (N, F) values, (N,) shapes."""
        block = Block(column, len(self._fields.fields or ()))
        block.values[:] = math.nan
        shapes = np.zeros(len(column), np.int32)
        found: dict[Layout, int] = {}
        for layout, shape in self._layouts.items():
            rows = block.decode(layout)
            shapes[rows], found[layout] = shape, len(rows)
        in_vain = 0
        while len(block.left):
            row = int(block.left[0])
            shape, layout = self._read_one(block, column, row, in_vain < MAX_LAYOUTS)
            number = shapes[row] = self._shapes.setdefault(shape, len(self._shapes))
            if layout is not None:
                rows = block.decode(layout)
                shapes[rows], found[layout] = number, len(rows)
                self._layouts[layout] = number
            in_vain += layout is None or found[layout] < WORTHWHILE
        best = sorted(reversed(found), key=lambda layout: found[layout], reverse=True)[:MAX_LAYOUTS]
        self._layouts = {layout: self._layouts[layout] for layout in best}
        return block.stamps, block.values, shapes

    def _read_one(self, block: Block, column: RawColumn, row: int, learn: bool) -> tuple[Shape, Layout | None]:
        """The shape of the first message left, which is put in its place, and its layout if it is to be learnt."""
        try:
            message = deserialize(self.typestore, column, row, self.type_name, self.where)
        except MessageError:
            block.put(row, 0, np.full(block.values.shape[1], math.nan))
            return Shape(problem=DAMAGED), None
        shape, numbers = self._fields.take(message)
        block.values = _wider(block.values, len(self._fields.fields or ()))
        values = np.array([math.nan if number is None else number for number in numbers], float)
        block.put(row, (stamp_ns(message) or 0) if self.has_stamp else 0, values)
        return shape, self._learn(block, row, shape) if learn else None

    def _learn(self, block: Block, row: int, shape: Shape) -> Layout | None:
        """The layout of a message that has just been read singly; None where bulk reading would not agree."""
        data = block.message(row)
        try:
            walk = Walk(self.typestore, self.type_name, data, decisive_fields(self.type_name))
            stamp = walk.places.header.stamp if self.has_stamp else None
            places = self._fields.take(walk.places)
            layout = make_layout(walk, places[1], () if stamp is None else (stamp.sec, stamp.nanosec))
        except LayoutError:
            return None
        stamps, values = np.zeros(1, np.int64), np.full((1, block.values.shape[1]), math.nan)
        layout.decode(np.frombuffer(data, np.uint8), np.zeros(1, np.int64), stamps, values)
        same = np.array_equal(values[0], block.values[row], equal_nan=True) and stamps[0] == block.stamps[row]
        return layout if same and places[0] == shape else None


def _wider(values: np.ndarray, width: int) -> np.ndarray:
    """Columns of NaN added on the right."""
    missing = width - values.shape[1]
    return np.pad(values, ((0, 0), (0, missing)), constant_values=math.nan) if missing else values


class _Joints:
    """JointState and JointTrajectory (first point)."""

    def __init__(self, typestore: Typestore, type_name: str, fields: Sequence[str] | None) -> None:
        self.typestore, self.type_name = typestore, type_name
        self.is_open = fields is None
        self.fields: list[str] = list(fields or ())

    def take(self, message: Any) -> tuple[Shape, list[Any]]:
        """A message's shape and what it has at the fields, None where nothing."""
        if self.is_open:
            found = state_fields(self.typestore, self.type_name, message)
            self.fields += [field for field in found if field not in self.fields]
        joints = tuple(message.name if hasattr(message, "name") else message.joint_names)
        holder = message
        if hasattr(message, "points"):
            holder = message.points[0] if len(message.points) else None
        arrays = {name: getattr(holder, name, ()) for name in JOINT_ARRAYS[self.type_name]}
        columns = {joint: place for place, joint in reversed(list(enumerate(joints)))}
        numbers = []
        for field in self.fields:
            name, _, joint = field.partition(".")
            array, place = arrays.get(name, ()), columns.get(joint, -1)
            numbers.append(array[place] if 0 <= place < len(array) else None)
        present = tuple(i for i, number in enumerate(numbers) if number is not None)
        return Shape(present, joints, tuple(map(len, arrays.values()))), numbers


class _Any:
    """Any other type: the fields asked for, or those of the first message."""

    def __init__(self, typestore: Typestore, type_name: str, fields: Sequence[str] | None, where: str) -> None:
        self.typestore, self.type_name, self.where = typestore, type_name, where
        self.fields = None if fields is None else list(fields)
        self.reader = None if fields is None else FieldReader(type_name, fields, where)

    def take(self, message: Any) -> tuple[Shape, list[Any]]:
        """A message's shape and what it has at the fields, None where nothing."""
        if self.fields is None:
            self.fields = state_fields(self.typestore, self.type_name, message)
            self.reader = FieldReader(self.type_name, self.fields, self.where)
        try:
            numbers = self.reader.read(message).tolist() if self.fields and self.reader else []
        except MessageError as error:
            problem = str(error).removeprefix(f"topic '{self.where}': ")
        except (AttributeError, TypeError, ValueError) as error:
            problem = f"the bag defines {self.type_name} in another way than ROS 2 ({error}); record again"
        else:
            return Shape(tuple(range(len(self.fields)))), numbers
        return Shape(problem=problem), [None] * len(self.fields)
