# SPDX-License-Identifier: Apache-2.0
"""One pass over a CDR message: where its numbers are, or what they are. It accepts the bytes that ROS 2 accepts.

rosbags is stricter: it refuses the bytes that a serialiser reserved and did not need, text that is not UTF-8, and
strings without their terminating NUL.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.serde import SerdeError
from rosbags.typesys.store import Typestore

HEADER_BYTES = 4  # encapsulation; alignment counts from its end
PADDING = 3  # bytes after the end, of middlewares that send multiples of four
KINDS = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
WIDTHS = [np.dtype(kind).itemsize for kind in KINDS]
_ALIASES = {"byte": "uint8", "char": "uint8"}
_CDR = (b"\0\0", b"\0\1")  # big-endian, little-endian
_OTHERS = {2: "a parameter list of XCDR1", 3: "a parameter list of XCDR1", **dict.fromkeys(range(6, 12), "XCDR2")}


class LayoutError(ValueError):
    """A message whose layout cannot be determined; it has to be deserialised."""


class RepresentationError(SerdeError):
    """A message in another representation than plain CDR (XCDR1)."""


class Walk:
    """One pass over a complete message.

    `places` looks like the message, with the position of each number in its stead: an int that `located` decodes.
    `checks` are (offset, bytes, mask) of everything that fixes the layout. `surplus` counts bytes after the end that no
    serialiser leaves there; ROS 2 does not look at them.
    """

    def __init__(self, typestore: Typestore, type_name: str, data: bytes, decisive: frozenset[str]) -> None:
        """`decisive`: fields of the type whose strings have to be equal. Raises LayoutError."""
        if data[:2] not in _CDR or len(data) < HEADER_BYTES:
            raise LayoutError(f"{type_name}: begins with {data[:2].hex(' ')}, not as CDR does")
        self.typestore, self.data = typestore, data
        self.checks: list[tuple[int, bytes, int]] = [(0, data[:2], 0xFF)]
        self.endian: Literal["<", ">"] = "<" if data[1] else ">"
        self._pos = self._reserved = HEADER_BYTES
        self._exact = False
        definition = typestore.get_msgdef(type_name)
        values = []
        for name, description in definition.fields:
            self._exact = name in decisive
            values.append(self._value(description))
        self.places: Any = definition.cls(*values)
        self.surplus = max(0, len(data) - max(self._pos, self._reserved) - PADDING)

    def _value(self, description: Any) -> Any:
        node, what = description
        if node == Nodetype.NAME:
            definition = self.typestore.get_msgdef(what)
            return definition.cls(*[self._value(part) for _, part in definition.fields])
        if node == Nodetype.BASE:
            return self._string() if what[0] == "string" else self._number(what[0])
        element, count = what
        if node == Nodetype.SEQUENCE:
            count = self._prefix()
        if element[0] == Nodetype.BASE and element[1][0] != "string":
            return self._numbers(element[1][0], count)
        return [self._value(element) for _ in range(count)]

    def _next(self, width: int, size: int) -> int:
        """The place of the next `size` bytes, aligned to `width`."""
        begin = self._pos + (HEADER_BYTES - self._pos) % width
        self._pos = begin + size
        self._reserved += (HEADER_BYTES - self._reserved) % width + size
        if self._pos > len(self.data):
            raise LayoutError(f"byte {self._pos} of {len(self.data)} would be needed")
        return begin

    def _prefix(self) -> int:
        """A length prefix, which becomes a check."""
        begin = self._next(4, 4)
        raw = self.data[begin : begin + 4]
        self.checks.append((begin, raw, 0xFF))
        count = int.from_bytes(raw, "little" if self.endian == "<" else "big")
        if count > len(self.data):
            raise LayoutError(f"a length of {count} at byte {begin} of {len(self.data)}")
        return count

    def _string(self) -> str:
        """Up to the first NUL, as ROS 2 has it."""
        length = self._prefix()
        begin = self._next(1, length)
        raw = self.data[begin : begin + length]
        text, end = raw[:-1], raw[-1:]
        if text:
            free = text.isascii() and not self._exact
            self.checks.append((begin, bytes(len(text)) if free else text, 0x80 if free else 0xFF))
        self.checks.append((begin + len(text), end, 0xFF))
        return raw.partition(b"\0")[0].decode("utf-8", "replace")

    def _number(self, name: str) -> Any:
        return self._numbers(name, 1)[0]

    def _numbers(self, name: str, count: int) -> Any:
        """The positions of `count` consecutive numbers."""
        name = _ALIASES.get(name, name)
        if name not in KINDS:
            raise LayoutError(f"numbers of type {name}")
        kind = KINDS.index(name)
        width = WIDTHS[kind]
        if not count:  # ROS 2 reserves the bytes to align an empty array, and writes none
            self._reserved += (HEADER_BYTES - self._reserved) % width
            return range(0)
        first = self._next(width, count * width)
        return range(first * 16 + kind, self._pos * 16 + kind, width * 16)


class _Reading(Walk):
    """`places` is the message itself."""

    def _number(self, name: str) -> Any:
        return self._numbers(name, 1)[0].item()

    def _numbers(self, name: str, count: int) -> np.ndarray:
        places = super()._numbers(name, count)
        if not count:
            return np.empty(0, _ALIASES.get(name, name))
        offset, kind = located(places[0])
        if KINDS[kind] == "bool":
            return np.frombuffer(self.data, np.uint8, count, offset) != 0
        dtype = np.dtype(KINDS[kind])
        return np.frombuffer(self.data, dtype.newbyteorder(self.endian), count, offset).astype(dtype)


def read_message(typestore: Typestore, type_name: str, data: bytes) -> tuple[Any, int]:
    """(a message as ROS 2 reads it, its surplus). Raises SerdeError for bytes that are not one of this type."""
    try:
        return typestore.deserialize_cdr(data, type_name), 0
    except SerdeError as error:
        if data[:1] == b"\0" and len(data) >= HEADER_BYTES and (what := _OTHERS.get(data[1])):
            raise RepresentationError(f"it begins with {data[:2].hex(' ')}: {what}, not plain CDR") from None
        try:
            reading = _Reading(typestore, type_name, data, frozenset())
        except LayoutError:
            raise error from None
        return reading.places, reading.surplus


def located(place: float) -> tuple[int, int]:
    """(offset in the message, index in KINDS) of a number of `Walk.places`. Raises LayoutError for others."""
    offset, kind = divmod(int(place), 16)
    if offset < HEADER_BYTES or kind >= len(KINDS):
        raise LayoutError(f"{place} is not the position of a number")
    return offset, kind
