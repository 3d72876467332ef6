# SPDX-License-Identifier: Apache-2.0
"""Fields of many serialised messages at once; message by message only where the layout keeps changing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.serde import SerdeError
from rosbags.typesys.store import Typestore

from spc_core.alignment.batch.sampling import Samples
from spc_core.contract.contract import Contract
from spc_core.contract.sections import ACTION, REWARD, Role, observed
from spc_core.contract.transforms import FieldTransforms
from spc_ros.messages.cdr_layout import Block, Layout, LayoutError, Walk, make_layout
from spc_ros.messages.fields import JOINT_ARRAYS, JOINT_STATE, JOINT_TRAJECTORY, FieldReader, MessageError, stamp_ns
from spc_ros.messages.numeric_fields import state_fields

MAX_LAYOUTS = 16  # kept from one column to the next; also useless templates before a column is read one by one
WORTHWHILE = 32  # messages that a template must decode, or it counts as useless
NAMES = {JOINT_STATE: frozenset({"name"}), JOINT_TRAJECTORY: frozenset({"joint_names"})}
DAMAGED = "the bytes are not a message of this type but damaged; record again, or cut these messages out of the bag"


@dataclasses.dataclass(frozen=True)
class RawColumn:
    """N messages of one topic and type in log order; message i is buffer[start[i] : start[i] + size[i]], CDR."""

    topic: str
    type: str
    receive_ns: np.ndarray  # (N,) int64, not decreasing
    log_index: np.ndarray  # (N,) int64, index in the log of all topics, increasing
    buffer: np.ndarray  # (bytes,) uint8
    start: np.ndarray  # (N,) int64
    size: np.ndarray  # (N,) int64

    def __len__(self) -> int:
        return len(self.receive_ns)

    def messages(self) -> Iterator[bytes]:
        """The messages one by one."""
        for begin, size in zip(self.start.tolist(), self.size.tolist(), strict=True):
            yield self.buffer[begin : begin + size].tobytes()


@dataclasses.dataclass(frozen=True)
class Source:
    """The fields that one role of the contract reads from a topic."""

    role: Role
    topic: str  # the contract's name
    type: str
    fields: tuple[str, ...]
    clock: str  # header | receive
    transforms: FieldTransforms | None  # None where the numbers are used as they are

    def samples(self, log_index: np.ndarray, t_ns: np.ndarray, values: np.ndarray) -> Samples:
        """(N, R) numbers of the topic's messages as (N, F) samples; `log_index` and `t_ns` are (N,) as in Samples."""
        if not len(t_ns):
            return self.nothing()
        return Samples(log_index, t_ns, values if self.transforms is None else self.transforms(t_ns, values))

    def nothing(self) -> Samples:
        return Samples.empty(len(self.fields) if self.transforms is None else self.transforms.width)

    def reset(self) -> None:
        """Forget the last sample, before another pass over the log."""
        if self.transforms is not None:
            self.transforms.reset()


def sources(contract: Contract, check: bool = True) -> list[Source]:
    """Everything that a contract reads: observation streams, action, and reward if a topic carries it.

    Raises MessageError where a topic is given two types, unless `check` is False.
    """
    found = []
    for index, stream in enumerate(contract.observation):
        transforms = None if stream.transforms.is_plain else stream.transforms
        found.append(Source(observed(index), stream.topic, stream.type, stream.fields, stream.clock, transforms))
    action, reward = contract.action, contract.reward
    found.append(Source(ACTION, action.topic, action.type, action.fields, action.clock, None))
    if reward.topic is not None and reward.type is not None and reward.field is not None:
        found.append(Source(REWARD, reward.topic, reward.type, (reward.field,), reward.clock, None))
    types: dict[str, str] = {}
    for source in found if check else ():
        if types.setdefault(source.topic, source.type) != source.type:
            both = f"{types[source.topic]}, {source.type}"
            raise MessageError(f"topic '{source.topic}': the contract gives it the types {both}; keep one")
    return found


@dataclasses.dataclass(frozen=True)
class Shape:
    """Properties that messages of one layout share."""

    present: tuple[int, ...] = ()  # indices of the fields that they have
    joints: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()  # of the arrays that go with the joints, in the order of JOINT_ARRAYS
    problem: str = ""  # why they cannot be read; joints that are absent show in `joints` and `lengths` instead


class ColumnReader:
    """Reads the values of FieldReader and stamp_ns from many messages of a topic at a time.

    `fields` are the requested ones; `shapes` those of the messages read so far; `error` is that of the first message in
    the log that lacks a field or is damaged. Joints are read by name, whichever a message has.
    """

    def __init__(
        self, typestore: Typestore, type_name: str, fields: Sequence[str] | None, where: str, whole: bool = False
    ) -> None:
        """Without `fields`, all numbers of a state that occur in the messages. `where`, `whole`: as for FieldReader.

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
        self._reader = None if fields is None else FieldReader(type_name, fields, where, whole)
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
        stamps, values, _ = self.read_all(column)
        if self.error is not None:
            error, self.error = self.error, None
            self._layouts.clear()  # some may be of messages with an error
            raise error
        return stamps, values

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
            may_learn = useless < MAX_LAYOUTS and shape.problem != DAMAGED
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
            message = deserialize(self.typestore, column, row, self.type_name, self.where)
        except MessageError as error:
            self.error = self.error or error
            block.put(row, 0, np.full(block.values.shape[1], math.nan))
            return Shape(problem=DAMAGED)
        shape, numbers, problem = self._take(message)
        if problem and self.error is None:
            self.error = MessageError(problem)
        block.widen(len(self.fields))
        block.put(row, (stamp_ns(message) or 0) if self.has_stamp else 0, np.array(numbers, float))  # None becomes NaN
        return shape

    def _take(self, message: Any) -> tuple[Shape, list[Any], str]:
        """A message's shape, its numbers (None for missing fields), and its first problem."""
        reader = self._fitting_reader(message)
        try:
            numbers, problem = reader.find(message) if reader.fields or not self._is_open else ([], "")
            joints, lengths = self._joints_of(message) if self._arrays else ((), ())
        except (AttributeError, TypeError, ValueError) as error:
            problem = (
                f"topic '{self.where}': the bag defines {self.type_name} in another way than ROS 2 ({error}); "
                f"its definition may be damaged, record again"
            )
            numbers, joints, lengths = [None] * len(reader.fields), (), ()
            return Shape(problem=problem.partition(": ")[2]), numbers, problem
        present = tuple(i for i, number in enumerate(numbers) if number is not None)
        described = "" if self._arrays else problem.removeprefix(f"topic '{self.where}': ")
        return Shape(present, joints, lengths, described), numbers, problem

    def _fitting_reader(self, message: Any) -> FieldReader:
        """The reader of the requested fields, or of those of the first message and joints that appeared later."""
        reader = self._reader
        if reader is None or (self._is_open and self._arrays):
            known = self.fields
            found = state_fields(self.typestore, self.type_name, message)
            added = [field for field in found if field not in known]
            if reader is None or added:
                reader = self._reader = FieldReader(self.type_name, (*known, *added), self.where)
        return reader

    def _joints_of(self, message: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Names of a message's joints, and lengths of the arrays that go with them."""
        names = message.joint_names if self.type_name == JOINT_TRAJECTORY else message.name
        holders = message.points if self.type_name == JOINT_TRAJECTORY else [message]
        lengths = (len(getattr(holders[0], array, ())) if len(holders) else 0 for array in self._arrays)
        return tuple(names), tuple(lengths)

    def _learn(self, block: Block, row: int, shape: Shape) -> Layout | None:
        """The layout of a message just deserialised; None where bulk reading would differ."""
        data = block.message(row)
        try:
            walk = Walk(self.typestore, self.type_name, data, self._decisive)
            stamp = walk.places.header.stamp if self.has_stamp else None
            same_shape, places, _ = self._take(walk.places)
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


def deserialize(typestore: Typestore, column: RawColumn, row: int, type_name: str, where: str) -> Any:
    """One message of a column. Raises MessageError for bytes that are not a message of the type."""
    begin = column.start[row]
    try:
        return typestore.deserialize_cdr(column.buffer[begin : begin + column.size[row]].tobytes(), type_name)
    except SerdeError as error:
        raise MessageError(
            f"topic '{where}': message {column.log_index[row]} of the log, received at {column.receive_ns[row]} ns, is "
            f"damaged: {str(error).rstrip('.')}; record again, or cut this message out of the bag"
        ) from None


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
