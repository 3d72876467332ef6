# SPDX-License-Identifier: Apache-2.0
"""The layout of a CDR message: the offsets of its numbers, and the bytes that fix them.

Two messages of a type have one layout when they are equally long and agree in every length prefix: by induction
from the first prefix, each next one is at the same offset. Of strings only the length counts, unless a field is found
by them (joint names, labels); their bytes must be ASCII or the template's, since CDR readers refuse bad UTF-8.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from spc_ros.messages.cdr_walk import KINDS, WIDTHS, Walk, located

NEAR = 32  # bytes; numbers closer than this are gathered together
CHUNK_BYTES = 1 << 19  # decoded at a time, to stay in the processor's cache
NS_PER_S = 1_000_000_000

_BOOL = KINDS.index("bool")


@dataclasses.dataclass(frozen=True)
class Check:
    """Masked bytes that must equal the template's, as words of eight bytes where they fit, else as bytes."""

    offset: int
    expected: np.ndarray  # (words,), the template's
    mask: np.ndarray  # (words,)


@dataclasses.dataclass(frozen=True)
class Span:
    """Adjacent numbers of one kind, and their indices in a vector."""

    offset: int
    kind: int
    count: int
    moves: tuple[tuple[int, int, int], ...]  # (first in the span, first in the vector, how many)


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """The offsets of F wanted numbers and the stamp in messages of `size` bytes that pass the checks."""

    size: int
    endian: Literal["<", ">"]
    checks: tuple[Check, ...]
    spans: tuple[Span, ...]
    stamp: tuple[Span, ...]  # seconds and nanoseconds; empty without a header

    @property
    def row_bytes(self) -> int:
        """The most bytes gathered of one message at a time, at least 64."""
        return max(64, *(check.mask.nbytes for check in self.checks), *(8 * span.count for span in self.spans))

    def matches(self, buffer: np.ndarray, at: np.ndarray) -> np.ndarray | None:
        """(N,) bool: the messages of `size` bytes at `at` that have this layout; None if all do."""
        wrong = None
        for check in self.checks:
            words = gather(buffer, at + check.offset, check.mask.dtype, len(check.mask))
            words ^= check.expected
            words &= check.mask
            if words.any():
                wrong = np.logical_or(words.any(axis=1), False if wrong is None else wrong)
        return None if wrong is None else np.logical_not(wrong)

    def decode(self, buffer: np.ndarray, at: np.ndarray, stamps: np.ndarray, values: np.ndarray) -> None:
        """Write (N,) int64 nanoseconds, 0 without a header, and (N, F) float64 of the messages at `at`."""
        stamps[:] = 0
        for span, scale in zip(self.stamp, (NS_PER_S, 1), strict=False):
            stamps += self._numbers(buffer, at, span)[:, 0].astype(np.int64) * scale
        for span in self.spans:
            numbers = self._numbers(buffer, at, span)
            for source, place, count in span.moves:
                values[:, place : place + count] = numbers[:, source : source + count]

    def _numbers(self, buffer: np.ndarray, at: np.ndarray, span: Span) -> np.ndarray:
        if span.kind == _BOOL:
            return gather(buffer, at + span.offset, np.dtype(np.uint8), span.count) != 0
        dtype = np.dtype(KINDS[span.kind]).newbyteorder(self.endian)
        return gather(buffer, at + span.offset, dtype, span.count)


def make_layout(walk: Walk, places: Sequence[float | None], stamp: Sequence[int]) -> Layout:
    """The layout of the walked message for numbers at `places`, in this order. Raises LayoutError.

    None stands for a number that the message lacks; it is not written.
    `stamp`: positions of seconds and nanoseconds, empty without a header.
    """
    times = [Span(*located(place), 1, ()) for place in stamp]
    checks = _merge_checks(walk.checks, len(walk.data))
    return Layout(len(walk.data), walk.endian, tuple(checks), tuple(_spans(places)), tuple(times))


def _spans(places: Sequence[float | None]) -> Iterator[Span]:
    """Wanted numbers by offset; those of one kind and near each other form one span."""
    wanted = sorted((*located(place), index) for index, place in enumerate(places) if place is not None)
    first, kind, count, moves = 0, -1, 0, []
    for offset, its_kind, place in wanted:
        width = WIDTHS[its_kind]
        source = (offset - first) // width  # exact: numbers of one kind are aligned alike
        if its_kind != kind or (source - count) * width > NEAR:
            if moves:
                yield Span(first, kind, count, tuple(moves))
            first, kind, source, moves = offset, its_kind, 0, []
        count = source + 1
        if moves and (source, place) == (moves[-1][0] + moves[-1][2], moves[-1][1] + moves[-1][2]):
            moves[-1] = (*moves[-1][:2], moves[-1][2] + 1)
        else:
            moves.append((source, place, 1))
    if moves:
        yield Span(first, kind, count, tuple(moves))


def _merge_checks(checks: Iterable[tuple[int, bytes, int]], size: int) -> Iterator[Check]:
    """Checks by offset; those near each other are merged."""
    begin, expected, mask = 0, bytearray(), bytearray()
    for offset, raw, bits in checks:
        gap = offset - begin - len(mask)
        if gap > NEAR:
            yield _check(begin, expected, mask, size)
            begin, gap, expected, mask = offset, 0, bytearray(), bytearray()
        expected += bytes(gap) + raw
        mask += bytes(gap) + bytes([bits]) * len(raw)
    yield _check(begin, expected, mask, size)


def _check(begin: int, expected: bytearray, mask: bytearray, size: int) -> Check:
    """A check of eight-byte words where they end within the message; excess bytes are masked out."""
    spare = -len(mask) % 8
    word = np.uint64 if begin + len(mask) + spare <= size else np.uint8
    spare = bytes(spare if word is np.uint64 else 0)
    return Check(begin, np.frombuffer(bytes(expected + spare), word), np.frombuffer(bytes(mask + spare), word))


def gather(buffer: np.ndarray, at: np.ndarray, dtype: np.dtype, count: int) -> np.ndarray:
    """(N, count) numbers from each of N places in a contiguous (bytes,) uint8 buffer, aligned or not."""
    width = count * dtype.itemsize
    if not len(at):
        return np.empty((0, count), dtype)
    windows = np.ndarray((max(0, len(buffer) - width + 1),), f"V{width}", buffer, 0, (1,))
    return windows[at].view(dtype).reshape(len(at), count)


class Block:
    """N messages being read: those decoded, and those left.

    Message i is buffer[start[i] : start[i] + size[i]]; `stamps` (N,) int64 ns, `values` (N, fields) float64.
    """

    def __init__(self, buffer: np.ndarray, start: np.ndarray, size: np.ndarray, fields: int) -> None:
        self.buffer = np.ascontiguousarray(buffer)
        self.start, self.size = start, size
        self.stamps = np.zeros(len(start), np.int64)
        self.values = np.empty((len(start), fields))
        self.left = np.arange(len(start))

    def message(self, row: int) -> bytes:
        return self.buffer[self.start[row] : self.start[row] + self.size[row]].tobytes()

    def put(self, row: int, t_ns: int, values: np.ndarray) -> None:
        """Store the first message left, which was deserialised."""
        self.stamps[row], self.values[row], self.left = t_ns, values, self.left[1:]

    def widen(self, fields: int) -> None:
        """Add columns of NaN on the right."""
        self.values = with_width(self.values, fields)

    def decode(self, layout: Layout) -> np.ndarray:
        """Decode the messages left that have this layout; returns their (n,) indices."""
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


def with_width(values: np.ndarray, width: int) -> np.ndarray:
    """(N, F) values with columns of NaN added on the right."""
    missing = width - values.shape[1]
    return np.pad(values, ((0, 0), (0, missing)), constant_values=math.nan) if missing else values
