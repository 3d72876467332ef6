# SPDX-License-Identifier: Apache-2.0
"""Contract fields of many serialised messages at once; message by message only where the layout keeps changing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.serde import SerdeError
from rosbags.typesys.store import Typestore

from spc_ros.messages.cdr_layout import Layout, LayoutError, Walk, make_layout
from spc_ros.messages.fields import JOINT_STATE, JOINT_TRAJECTORY, FieldReader, MessageError, stamp_ns
from spc_ros.messages.raw_messages import RawColumn

MAX_LAYOUTS = 16  # remembered from one column to the next, and templates in vain before a column is read singly
WORTHWHILE = 32  # messages that a template must serve so as not to count as in vain
CHUNK_BYTES = 1 << 18  # worked on at a time, to stay in the processor's cache
NAMES = {JOINT_STATE: frozenset({"name"}), JOINT_TRAJECTORY: frozenset({"joint_names"})}


class ColumnReader:
    """Reads what FieldReader and stamp_ns would read from each message, errors included, many messages at a time."""

    def __init__(self, typestore: Typestore, type_name: str, fields: Sequence[str], where: str) -> None:
        """`where` is the topic, for errors. Raises MessageError for fields that the type cannot have."""
        self.typestore, self.type_name, self.where = typestore, type_name, where
        try:
            typestore.get_msgdef(type_name)
        except KeyError as error:
            raise MessageError(
                f"topic '{where}': no definition of the type {error}; correct the contract or record again"
            ) from None
        self._reader = FieldReader(type_name, fields, where)
        self._has_stamp = has_stamp(typestore, type_name)
        self._decisive = decisive_fields(type_name)
        self._layouts: list[Layout] = []

    def read(self, column: RawColumn) -> tuple[np.ndarray, np.ndarray]:
        """Stamps, (N,) int64 ns, 0 where unset or without a header; values, (N, F) float64, NaN passed on.

        Raises the MessageError of the first message in the log that has one.
        """
        with np.errstate(invalid="ignore"):  # widening a signalling NaN
            return self._read(Block(column, len(self._reader.fields)), column)

    def _read(self, block: Block, column: RawColumn) -> tuple[np.ndarray, np.ndarray]:
        found = {layout: len(block.decode(layout)) for layout in self._layouts}
        in_vain = 0
        while len(block.left):
            row = int(block.left[0])
            message = deserialize(self.typestore, column, row, self.type_name, self.where)
            values = self._read_one(message)
            block.put(row, self._stamp_ns(message), values)
            layout = self._learn(block, row) if in_vain < MAX_LAYOUTS else None
            if layout is not None:
                found[layout] = len(block.decode(layout))
            in_vain += layout is None or found[layout] < WORTHWHILE
        newest_first = list(reversed(found))
        self._layouts = sorted(newest_first, key=lambda layout: found[layout], reverse=True)[:MAX_LAYOUTS]
        return block.stamps, block.values

    def _read_one(self, message: Any) -> np.ndarray:
        """Raises MessageError too where the bag's own definition of a type is not what ROS 2 has by that name."""
        try:
            return self._reader.read(message)
        except MessageError:
            raise
        except (AttributeError, TypeError, ValueError) as error:
            raise MessageError(
                f"topic '{self.where}': the bag defines {self.type_name} in another way than ROS 2 ({error}); "
                f"its definition may be damaged, record again"
            ) from None

    def _stamp_ns(self, message: Any) -> int:
        return (stamp_ns(message) or 0) if self._has_stamp else 0

    def _learn(self, block: Block, row: int) -> Layout | None:
        """The layout of a message that has just been read singly; None where bulk reading would not agree."""
        data = block.message(row)
        try:
            walk = Walk(self.typestore, self.type_name, data, self._decisive)
            stamp = walk.places.header.stamp if self._has_stamp else None
            times = () if stamp is None else (stamp.sec, stamp.nanosec)
            layout = make_layout(walk, self._reader.read(walk.places).tolist(), times)
        except (LayoutError, MessageError):  # such as a path to an attribute of numpy's arrays
            return None
        stamps, values = np.zeros(1, np.int64), np.empty((1, block.values.shape[1]))
        layout.decode(np.frombuffer(data, np.uint8), np.zeros(1, np.int64), stamps, values)
        same = np.array_equal(values[0], block.values[row], equal_nan=True) and stamps[0] == block.stamps[row]
        return layout if same else None


def decisive_fields(type_name: str) -> frozenset[str]:
    """Fields of a type whose strings say where its numbers are: joint names, labels."""
    return NAMES.get(type_name, frozenset({"layout"}) if type_name.endswith("MultiArray") else frozenset())


class Block:
    """A column while it is read: what is decoded, and the messages that are left to do."""

    def __init__(self, column: RawColumn, fields: int) -> None:
        self.buffer = np.ascontiguousarray(column.buffer)
        self.start, self.size = column.start, column.size
        self.stamps = np.zeros(len(column), np.int64)
        self.values = np.empty((len(column), fields))
        self.left = np.arange(len(column))

    def message(self, row: int) -> bytes:
        return self.buffer[self.start[row] : self.start[row] + self.size[row]].tobytes()

    def put(self, row: int, t_ns: int, values: np.ndarray) -> None:
        """The first of those left, read singly."""
        self.stamps[row], self.values[row], self.left = t_ns, values, self.left[1:]

    def decode(self, layout: Layout) -> np.ndarray:
        """Decode the messages left that have this layout; (n,) which they were."""
        done = self.size[self.left] == layout.size
        rows = self.left[done]
        matched = np.ones(len(rows), bool)
        step = max(16, CHUNK_BYTES // layout.row_bytes)
        for begin in range(0, len(rows), step):
            part = rows[begin : begin + step]
            at = self.start[part]
            match = layout.matches(self.buffer, at)
            if match is not None:
                matched[begin : begin + step] = match
                part, at = part[match], at[match]
            if len(part):
                self._write(layout, part, at)
        done[done] = matched
        self.left = self.left[~done]
        return rows[matched]

    def _write(self, layout: Layout, rows: np.ndarray, at: np.ndarray) -> None:
        """Decode messages at `at` into the rows, which are increasing."""
        if rows[-1] - rows[0] == len(rows) - 1:
            place = slice(rows[0], rows[-1] + 1)
            layout.decode(self.buffer, at, self.stamps[place], self.values[place])
            return
        stamps, values = np.empty(len(rows), np.int64), self.values[rows]
        layout.decode(self.buffer, at, stamps, values)
        self.stamps[rows], self.values[rows] = stamps, values


def deserialize(typestore: Typestore, column: RawColumn, row: int, type_name: str, where: str) -> Any:
    """One message of a column. Raises MessageError for bytes that are not a message of the type."""
    begin = column.start[row]
    try:
        return typestore.deserialize_cdr(column.buffer[begin : begin + column.size[row]].tobytes(), type_name)
    except SerdeError as error:
        raise MessageError(
            f"topic '{where}': message {column.order[row]} of the log, received at {column.receive_ns[row]} ns, is "
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
