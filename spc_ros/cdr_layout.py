# SPDX-License-Identifier: Apache-2.0
"""Where the numbers of a CDR message lie, and which of its bytes another message must share to be laid out alike.

Two messages of a type have one layout when they are equally long and agree in every length prefix: by induction
from the first prefix, each next one is at the same place. Strings count by length only, unless a field is found
by them (joint names, labels); their bytes must be ASCII or the template's, since CDR readers refuse bad UTF-8.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.typesys.store import Typestore

HEADER_BYTES = 4  # encapsulation; alignment counts from behind it
MERGE_GAP = 32  # bytes; checks closer than this are compared in one go
NS_PER_S = 1_000_000_000

KINDS = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
_ALIASES = {"byte": "int8", "char": "uint8"}
_WIDTHS = [np.dtype(kind).itemsize for kind in KINDS]
_BOOL = KINDS.index("bool")


class LayoutError(ValueError):
    """A message whose layout cannot be told; it has to be deserialised."""


class Walk:
    """One pass over a whole message that rosbags accepts.

    `places` looks like the message, with the place of a number instead of the number: an int that `located`
    takes apart. `checks` are (offset, bytes, mask) of all that fixes the layout.
    """

    def __init__(self, typestore: Typestore, type_name: str, data: bytes, decisive: frozenset[str]) -> None:
        """`decisive`: fields of the type whose strings have to be equal. Raises LayoutError."""
        self.typestore, self.data = typestore, data
        self.checks: list[tuple[int, bytes, int]] = [(0, data[:2], 0xFF)]
        self.endian: Literal["<", ">"] = "<" if data[1] else ">"
        self._pos, self._exact = HEADER_BYTES, False
        definition = typestore.get_msgdef(type_name)
        values = []
        for name, description in definition.fields:
            self._exact = name in decisive
            values.append(self._value(description))
        self.places: Any = definition.cls(*values)
        if not self._pos <= len(data) <= self._pos + 3:  # three bytes of padding, as rosbags has it
            raise LayoutError(f"{type_name}: {self._pos} bytes of {len(data)} have a meaning")

    def _value(self, description: Any) -> Any:
        node, what = description
        if node == Nodetype.NAME:
            definition = self.typestore.get_msgdef(what)
            return definition.cls(*[self._value(part) for _, part in definition.fields])
        if node == Nodetype.BASE:
            return self._string() if what[0] == "string" else self._numbers(what[0], 1)[0]
        element, count = what
        if node == Nodetype.SEQUENCE:
            count = self._prefix()
        if element[0] == Nodetype.BASE and element[1][0] != "string":
            return self._numbers(element[1][0], count)
        return [self._value(element) for _ in range(count)]

    def _align(self, width: int) -> None:
        self._pos += (HEADER_BYTES - self._pos) % width

    def _prefix(self) -> int:
        """A length; checked."""
        self._align(4)
        raw = self.data[self._pos : self._pos + 4]
        self.checks.append((self._pos, raw, 0xFF))
        self._pos += 4
        count = int.from_bytes(raw, "little" if self.endian == "<" else "big")
        if count > len(self.data):
            raise LayoutError(f"a length of {count} at byte {self._pos - 4} of {len(self.data)}")
        return count

    def _string(self) -> str:
        length = self._prefix()
        raw = self.data[self._pos : self._pos + length]
        text, end = raw[:-1], raw[-1:]
        if text:
            free = text.isascii() and not self._exact
            self.checks.append((self._pos, bytes(len(text)) if free else text, 0x80 if free else 0xFF))
        self.checks.append((self._pos + len(text), end, 0xFF))
        self._pos += length
        return text.decode()

    def _numbers(self, name: str, count: int) -> range:
        """The places of `count` numbers in a row."""
        name = _ALIASES.get(name, name)
        if name not in KINDS:
            raise LayoutError(f"numbers of type {name}")
        kind = KINDS.index(name)
        width = _WIDTHS[kind]
        if count:
            self._align(width)
        first = self._pos
        self._pos += count * width
        return range(first * 16 + kind, self._pos * 16 + kind, width * 16)


def located(place: float) -> tuple[int, int]:
    """(offset in the message, index in KINDS) of a number of `Walk.places`. Raises LayoutError for others."""
    offset, kind = divmod(int(place), 16)
    if offset < HEADER_BYTES or kind >= len(KINDS):
        raise LayoutError(f"{place} is no place of a number")
    return offset, kind


@dataclasses.dataclass(frozen=True)
class Check:
    """Bytes that are the template's where the mask says so."""

    offset: int
    expected: np.ndarray  # (bytes,) uint8, the template's under the mask
    mask: np.ndarray  # (bytes,) uint8


@dataclasses.dataclass(frozen=True)
class Span:
    """Numbers of one kind that lie side by side and go to neighbouring places of a vector."""

    offset: int
    kind: int
    first: int  # place of the first in the vector
    count: int

    def is_followed_by(self, offset: int, kind: int, place: int) -> bool:
        end = self.offset + self.count * _WIDTHS[self.kind]
        return (end, self.kind, self.first + self.count) == (offset, kind, place)


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Where F wanted numbers and the stamp are in messages of `size` bytes that pass the checks."""

    size: int
    endian: Literal["<", ">"]
    checks: tuple[Check, ...]
    spans: tuple[Span, ...]
    stamp: tuple[Span, Span] | None  # seconds and nanoseconds

    @property
    def row_bytes(self) -> int:
        """Roughly what one message takes while it is decoded."""
        widths = [len(check.expected) for check in self.checks]
        return max([64, *widths, *(8 * (span.first + span.count) for span in self.spans)])

    def matches(self, buffer: np.ndarray, at: np.ndarray) -> np.ndarray | None:
        """(N,) bool, which of the messages of `size` bytes at `at` have this layout; None for all of them."""
        wrong = None
        for check in self.checks:
            rows = gather(buffer, at + check.offset, np.dtype(np.uint8), len(check.expected))
            rows &= check.mask
            rows ^= check.expected
            if rows.any():
                wrong = np.logical_or(rows.any(axis=1), False if wrong is None else wrong)
        return None if wrong is None else np.logical_not(wrong)

    def stamps(self, buffer: np.ndarray, at: np.ndarray) -> np.ndarray:
        """(N,) int64 nanoseconds of the messages at `at`; 0 without a header."""
        if self.stamp is None:
            return np.zeros(len(at), np.int64)
        seconds, nanoseconds = (self._numbers(buffer, at, span)[:, 0].astype(np.int64) for span in self.stamp)
        return seconds * NS_PER_S + nanoseconds

    def values(self, buffer: np.ndarray, at: np.ndarray) -> np.ndarray:
        """(N, F) float64 of the messages at `at`."""
        values = np.empty((len(at), sum(span.count for span in self.spans)))
        for span in self.spans:
            values[:, span.first : span.first + span.count] = self._numbers(buffer, at, span)
        return values

    def _numbers(self, buffer: np.ndarray, at: np.ndarray, span: Span) -> np.ndarray:
        if span.kind == _BOOL:
            return gather(buffer, at + span.offset, np.dtype(np.uint8), span.count) != 0
        dtype = np.dtype(KINDS[span.kind]).newbyteorder(self.endian)
        return gather(buffer, at + span.offset, dtype, span.count)


def make_layout(walk: Walk, places: Sequence[float], stamp: tuple[int, int] | None) -> Layout:
    """The layout of the walked message for numbers at `places`, in this order. Raises LayoutError."""
    spans: list[Span] = []
    for first, place in enumerate(places):
        offset, kind = located(place)
        if spans and spans[-1].is_followed_by(offset, kind, first):
            spans[-1] = dataclasses.replace(spans[-1], count=spans[-1].count + 1)
        else:
            spans.append(Span(offset, kind, first, 1))
    times = None if stamp is None else (Span(*located(stamp[0]), 0, 1), Span(*located(stamp[1]), 0, 1))
    return Layout(len(walk.data), walk.endian, tuple(_merge(walk.checks)), tuple(spans), times)


def _merge(checks: Iterable[tuple[int, bytes, int]]) -> Iterable[Check]:
    """Checks in the order of their offsets, those close together as one."""
    begin, expected, mask = 0, bytearray(), bytearray()
    for offset, raw, bits in checks:
        gap = offset - begin - len(mask)
        if gap > MERGE_GAP:
            yield Check(begin, np.frombuffer(bytes(expected), np.uint8), np.frombuffer(bytes(mask), np.uint8))
            begin, gap, expected, mask = offset, 0, bytearray(), bytearray()
        expected += bytes(gap) + raw
        mask += bytes(gap) + bytes([bits]) * len(raw)
    yield Check(begin, np.frombuffer(bytes(expected), np.uint8), np.frombuffer(bytes(mask), np.uint8))


def gather(buffer: np.ndarray, at: np.ndarray, dtype: np.dtype, count: int) -> np.ndarray:
    """(N, count) numbers from each of N places in a contiguous (bytes,) uint8 buffer, aligned or not."""
    width = count * dtype.itemsize
    if not len(at):
        return np.empty((0, count), dtype)
    windows = np.ndarray((max(0, len(buffer) - width + 1),), f"V{width}", buffer, 0, (1,))
    return windows[at].view(dtype).reshape(len(at), count)
