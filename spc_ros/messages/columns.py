# SPDX-License-Identifier: Apache-2.0
"""Fields of many serialised messages at once; message by message only where the layout keeps changing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.typesys.store import Typestore

from spc_core.alignment.batch.sampling import Samples
from spc_core.contract.contract import Contract
from spc_core.contract.frames import TF, is_static, no_transform, pairs_of, stamp_fields
from spc_core.contract.sections import REWARD, Role, commanded, observed
from spc_core.contract.transforms import FieldTransforms
from spc_ros.messages.cdr_layout import Block, Layout, make_layout
from spc_ros.messages.cdr_walk import LayoutError, Walk
from spc_ros.messages.fields import (
    JOINT_ARRAYS,
    JOINT_STATE,
    JOINT_TRAJECTORY,
    FieldReader,
    MessageError,
    Point,
    stamp_ns,
)
from spc_ros.messages.frames_reader import pair_name
from spc_ros.messages.numeric_fields import state_fields
from spc_ros.messages.raw_column import DAMAGED, FOREIGN, BytesError, RawColumn, read_row
from spc_ros.messages.spread import NewestTransforms, NewestValues, StaticTransforms

LONGER = "longer than their definition says, by {} bytes that ROS 2 does not read either; give the right definition"
MAX_LAYOUTS = 16  # kept from one column to the next; also useless templates before a column is read one by one
WORTHWHILE = 32  # messages that a template must decode, or it counts as useless
NAMES = {
    JOINT_STATE: frozenset({"name"}),
    JOINT_TRAJECTORY: frozenset({"joint_names"}),
    TF: frozenset({"transforms"}),
}


@dataclasses.dataclass(frozen=True)
class Source:
    """The fields that one role of the contract reads from a topic."""

    role: Role
    topic: str  # the contract's name
    type: str
    fields: tuple[str, ...]
    clock: str  # header | receive
    transforms: FieldTransforms | None  # None where the numbers are used as they are
    point: Point = None  # of a JointTrajectory
    newest: NewestValues | None = None  # where messages may lack some of the fields

    def reader(self) -> FieldReader:
        """For single messages. Raises MessageError for fields that the type cannot have."""
        return FieldReader(self.type, self.fields, self.topic, *self._how)

    def columns(self, typestore: Typestore) -> ColumnReader:
        """For many messages at a time. Raises MessageError for fields that the type cannot have."""
        return ColumnReader(typestore, self.type, self.fields, self.topic, *self._how)

    @property
    def _how(self) -> tuple[Point, bool, bool]:
        return self.point, self.newest is not None, self.role.is_action

    def samples(
        self, log_index: np.ndarray, t_ns: np.ndarray, values: np.ndarray, absent: np.ndarray | None = None
    ) -> Samples:
        """(N, R) numbers of the topic's messages as (n, F) samples; `log_index` and `t_ns` are (N,) as in Samples.

        `absent` (N, R) bool tells which numbers a message lacks; None: none does.
        """
        if self.newest is not None and len(t_ns):
            made, t_ns, values = self.newest.complete(t_ns, values, absent)
            log_index = log_index[made]
        if not len(t_ns):
            return self.nothing()
        return Samples(log_index, t_ns, values if self.transforms is None else self.transforms(t_ns, values))

    def nothing(self) -> Samples:
        return Samples.empty(len(self.observed) if self.transforms is None else self.transforms.width)

    @property
    def observed(self) -> tuple[str, ...]:
        """The fields without the stamps of transforms, which are only read to tell their age."""
        return self.fields if self.newest is None else self.fields[: self.newest.width]

    def stamps(self, stamps: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(N,) stamps of the samples of messages with these stamps and numbers (N, R): of tf, those of a transform."""
        return self.newest.stamps(values) if isinstance(self.newest, NewestTransforms) else stamps

    def makes_sample(self, absent: np.ndarray | None) -> np.ndarray | slice:
        """Which messages have the first field, whose time is the sample's; only of tf are the others left out."""
        return slice(None) if absent is None or self.type != TF else ~absent[:, 0]

    def reset(self) -> None:
        """Forget the last sample, before another pass over the log."""
        if self.transforms is not None:
            self.transforms.reset()
        if self.newest is not None:
            self.newest.reset()

    def check_complete(self, joints: Collection[str]) -> None:
        """Raises MessageError where none of the messages, which named these joints, had one of the fields."""
        if self.newest is not None and len(never := self.newest.never):
            fields = [self.fields[i] for i in never.tolist()]
            if self.type == TF:
                raise MessageError(f"topic '{self.topic}': {no_transform(pairs_of(fields), joints)}")
            lacking = dict.fromkeys(field.partition(".")[2] for field in fields)
            raise MessageError(
                f"topic '{self.topic}': no message has the joint {', '.join(lacking)}; they have "
                f"{', '.join(sorted(joints)) or 'no joints at all'}; correct the contract or the driver"
            )


def sources(contract: Contract, check: bool = True) -> list[Source]:
    """Everything that a contract reads: observation streams, action, and reward if a topic carries it.

    Raises MessageError where a topic is given two types, unless `check` is False.
    """
    found = []
    for index, stream in enumerate(contract.observation):
        transforms = None if stream.transforms.is_plain else stream.transforms
        where, newest = _spread(stream.topic, stream.type, stream.fields, stream.clock, stream.max_age_s)
        found.append(Source(observed(index), *where, transforms, stream.point, newest))
    for i, action in enumerate(contract.action.parts):
        found.append(Source(commanded(i), action.topic, action.type, action.fields, action.clock, None, action.point))
    reward = contract.reward
    if reward.topic is not None and reward.type is not None and reward.field is not None:
        where, newest = _spread(reward.topic, reward.type, (reward.field,), reward.clock, math.inf)
        newest = None if reward.type == JOINT_STATE else newest
        found.append(Source(REWARD, *where, None, None, newest))
    types: dict[str, str] = {}
    for source in found if check else ():
        if types.setdefault(source.topic, source.type) != source.type:
            both = f"{types[source.topic]}, {source.type}"
            raise MessageError(f"topic '{source.topic}': the contract gives it the types {both}; keep one")
    return found


def _spread(
    topic: str, type_name: str, fields: tuple[str, ...], clock: str, max_age_s: float
) -> tuple[tuple[str, str, tuple[str, ...], str], NewestValues | None]:
    """((topic, type, fields, clock) of a Source, what completes its messages where they may hold some fields each)."""
    if type_name == JOINT_STATE:
        return (topic, type_name, fields, clock), NewestValues(len(fields), max_age_s)
    if type_name != TF:
        return (topic, type_name, fields, clock), None
    read = (*fields, *stamp_fields(fields))
    if is_static(topic, type_name):
        return (topic, type_name, read, "receive"), StaticTransforms(fields)
    return (topic, type_name, read, clock), NewestTransforms(fields, max_age_s, clock == "header")


@dataclasses.dataclass(frozen=True)
class Shape:
    """Properties that messages of one layout share."""

    present: tuple[int, ...] = ()  # indices of the fields that they have
    joints: tuple[str, ...] = ()  # or transforms, as 'parent->child'
    lengths: tuple[int, ...] = ()  # of the arrays that go with the joints, in the order of JOINT_ARRAYS
    problem: str = ""  # why they cannot be read; joints that are absent show in `joints` and `lengths` instead
    surplus: int = 0  # bytes more than their definition says, which ROS 2 does not read
    points: int = 1  # of a trajectory

    @property
    def fits(self) -> bool:
        """Whether the bytes are a message of the type, to the last of them."""
        return not self.surplus and self.problem != DAMAGED and not self.problem.endswith(FOREIGN)


class ColumnReader:
    """Reads the values of FieldReader and stamp_ns from many messages of a topic at a time.

    `fields` are the requested ones; `shapes` those of the messages read so far; `error` is that of the first message in
    the log that lacks a field or is damaged. Joints are read by name, whichever a message has.
    """

    def __init__(
        self,
        typestore: Typestore,
        type_name: str,
        fields: Sequence[str] | None,
        where: str,
        point: Point = None,
        partial: bool = False,
        whole: bool = False,
    ) -> None:
        """Without `fields`, all numbers of a state that occur in the messages. The rest is as in FieldReader.

        Raises MessageError for fields that the type cannot have.
        """
        self.typestore, self.type_name, self.where = typestore, type_name, where
        try:
            typestore.get_msgdef(type_name)
        except KeyError as error:
            raise MessageError(
                f"topic '{where}': no definition of the type {error}, neither in the bag nor in ROS 2 Jazzy; give the "
                f"folder of its package, with msg/*.msg, or record again"
            ) from None
        self.has_stamp = has_stamp(typestore, type_name)
        self.shapes: dict[Shape, int] = {}
        self.error: MessageError | None = None
        self._arrays = JOINT_ARRAYS.get(type_name, ())
        self._named = bool(self._arrays) or type_name == TF
        self._reader = None if fields is None else FieldReader(type_name, fields, where, point, partial, whole)
        self._is_open = fields is None
        self._decisive = decisive_fields(type_name)
        self._layouts: dict[Layout, Shape] = {}

    @property
    def fields(self) -> tuple[str, ...]:
        return self._reader.fields if self._reader else ()

    def read(self, column: RawColumn) -> tuple[np.ndarray, np.ndarray]:
        """Stamps, (N,) int64 ns, 0 where unset or without a header; values, (N, F) float64, NaN passed on.

        Raises the MessageError of the first message in the log that has one.
        """
        return self.read_partial(column)[:2]

    def read_partial(self, column: RawColumn) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """As read(); also (N, F) bool, which fields a message lacks, or None where no message lacks any."""
        stamps, values, shapes = self.read_all(column)
        if self.error is not None:
            error, self.error = self.error, None
            self._layouts.clear()  # some may be of messages with an error
            raise error
        return stamps, values, self.absent(shapes)

    def absent(self, shapes: np.ndarray) -> np.ndarray | None:
        """(N, F) bool, which fields the messages of these (N,) `shapes` lack; None where none lacks any."""
        present = np.zeros((max(1, len(self.shapes)), len(self.fields)), bool)
        for i, shape in enumerate(self.shapes):
            present[i, list(shape.present)] = True
        return None if not self.shapes or present.all() else ~present[shapes]

    @property
    def joints(self) -> set[str]:
        """All joints, or transforms, that the messages have named."""
        return {joint for shape in self.shapes for joint in shape.joints}

    def read_all(self, column: RawColumn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As read(), with NaN for missing fields instead of an error; also (N,) int32 indices in `shapes`."""
        with np.errstate(invalid="ignore"):  # widening a signalling NaN
            return self._read(Block(column.buffer, column.start, column.size, len(self.fields)), column)

    def _read(self, block: Block, column: RawColumn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shapes = np.zeros(len(column), np.int32)
        found: dict[Layout, int] = {}

        def decode(layout: Layout, shape: Shape) -> None:
            rows = block.decode(layout)
            found[layout] = len(rows)
            if number := self.shapes[shape]:  # else it is there already
                shapes[rows] = number
            if len(shape.present) < block.values.shape[1]:
                absent = np.setdiff1d(np.arange(block.values.shape[1]), shape.present)
                block.values[np.ix_(rows, absent)] = math.nan

        for layout, shape in self._layouts.items():
            decode(layout, shape)
        useless = 0
        while len(block.left):
            row = int(block.left[0])
            shape = self._read_one(block, column, row)
            shapes[row] = self.shapes.setdefault(shape, len(self.shapes))
            may_learn = useless < MAX_LAYOUTS and (shape.fits or shape.surplus > 0)
            layout = self._learn(block, row, shape) if may_learn else None
            if layout is not None:
                self._layouts[layout] = shape
                decode(layout, shape)
            useless += layout is None or found[layout] < WORTHWHILE
        best = sorted(reversed(found), key=lambda layout: found[layout], reverse=True)[:MAX_LAYOUTS]
        self._layouts = {layout: self._layouts[layout] for layout in best}
        return block.stamps, block.values, shapes

    def _read_one(self, block: Block, column: RawColumn, row: int) -> Shape:
        """Deserialise the first message left and store its numbers."""
        try:
            message, surplus = read_row(self.typestore, column, row, self.type_name, self.where)
        except BytesError as error:
            self.error = self.error or error
            block.put(row, 0, np.full(block.values.shape[1], math.nan))
            return Shape(problem=error.problem)
        shape, numbers, problem = self._take(message, surplus)
        if problem and self.error is None:
            self.error = MessageError(problem)
        block.widen(len(self.fields))
        block.put(row, (stamp_ns(message) or 0) if self.has_stamp else 0, np.array(numbers, float))  # None becomes NaN
        return shape

    def misfits(self, shapes: np.ndarray) -> int:
        """How many messages are not of the type, of (N,) indices in `shapes`."""
        wrong = [number for shape, number in self.shapes.items() if not shape.fits]
        return int(np.isin(shapes, wrong).sum())

    @property
    def surplus(self) -> int:
        """The most bytes that a message had more than its definition says."""
        return max((shape.surplus for shape in self.shapes), default=0)

    def _take(self, message: Any, surplus: int) -> tuple[Shape, list[Any], str]:
        """A message's shape, its numbers (None for missing fields), and its first problem."""
        reader = self._fitting_reader(message)
        try:
            numbers, problem = reader.find(message) if reader.fields or not self._is_open else ([], "")
            joints, lengths = self._joints_of(message) if self._named else ((), ())
        except (AttributeError, TypeError, ValueError) as error:
            problem = (
                f"topic '{self.where}': the bag defines {self.type_name} in another way than ROS 2 ({error}); "
                f"its definition may be damaged, record again"
            )
            numbers, joints, lengths = [None] * len(reader.fields), (), ()
            return Shape(problem=problem.partition(": ")[2], surplus=surplus), numbers, problem
        present = tuple(i for i, number in enumerate(numbers) if number is not None)
        described = "" if self._named else problem.removeprefix(f"topic '{self.where}': ")
        points = len(message.points) if self.type_name == JOINT_TRAJECTORY else 1
        return Shape(present, joints, lengths, described, surplus, points), numbers, problem

    def _fitting_reader(self, message: Any) -> FieldReader:
        """The reader of the requested fields, or of those of the first message and what was named later."""
        reader = self._reader
        if reader is None or (self._is_open and self._named):
            known = self.fields
            found = state_fields(self.typestore, self.type_name, message)
            added = [field for field in found if field not in known]
            if reader is None or added:
                reader = self._reader = FieldReader(self.type_name, (*known, *added), self.where, "last")
        return reader

    def _joints_of(self, message: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Names of a message's joints or transforms, and lengths of the arrays that go with joints."""
        if self.type_name == TF:
            return tuple(pair_name(transform) for transform in message.transforms), ()
        names = message.joint_names if self.type_name == JOINT_TRAJECTORY else message.name
        holders = message.points if self.type_name == JOINT_TRAJECTORY else [message]
        lengths = (len(getattr(holders[0], array, ())) if len(holders) else 0 for array in self._arrays)
        return tuple(names), tuple(lengths)

    def _learn(self, block: Block, row: int, shape: Shape) -> Layout | None:
        """The layout of a message just deserialised; None where bulk reading would differ."""
        if self._reader is not None and self._reader.by_value:
            return None
        data = block.message(row)
        try:
            walk = Walk(self.typestore, self.type_name, data, self._decisive)
            stamp = walk.places.header.stamp if self.has_stamp else None
            same_shape, places, _ = self._take(walk.places, walk.surplus)
            layout = make_layout(walk, places, () if stamp is None else (stamp.sec, stamp.nanosec))
        except LayoutError:
            return None
        stamps, values = np.zeros(1, np.int64), np.full((1, block.values.shape[1]), math.nan)
        layout.decode(np.frombuffer(data, np.uint8), np.zeros(1, np.int64), stamps, values)
        same = np.array_equal(values[0], block.values[row], equal_nan=True) and stamps[0] == block.stamps[row]
        return layout if same and same_shape == shape else None


def decisive_fields(type_name: str) -> frozenset[str]:
    """Fields of a type whose strings locate its numbers: joint names, labels."""
    return NAMES.get(type_name, frozenset({"layout"}) if type_name.endswith("MultiArray") else frozenset())


def has_stamp(typestore: Typestore, type_name: str) -> bool:
    """Whether messages of a type have header.stamp.sec and nanosec, of 32 bits."""
    for part in ("header", "stamp"):
        description = dict(typestore.fielddefs[type_name][1]).get(part)
        if description is None or description[0] != Nodetype.NAME:
            return False
        type_name = str(description[1])
    time = dict(typestore.fielddefs[type_name][1])
    wide = [(Nodetype.BASE, (kind, 0)) for kind in ("int32", "uint32")]
    return time.get("sec") in wide and time.get("nanosec") in wide
