# SPDX-License-Identifier: Apache-2.0
"""Numbers straight from and into serialised messages, one message at a time, for nodes that are in a hurry.

To turn a message into Python objects and back costs more than a policy's answer. Messages of a topic are nearly always
laid out alike, so the layout is learnt from one of them and checked in each.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rosbags.serde import SerdeError
from rosbags.typesys.store import Typestore

from spc_ros.messages.cdr_walk import KINDS, LayoutError, Walk, located, read_message
from spc_ros.messages.columns import decisive_fields
from spc_ros.messages.fields import MessageError
from spc_ros.messages.message_types import distro_types

MAX_LAYOUTS = 4  # of one topic, such as those of two drivers that take turns
MAX_LESSONS = 32  # layouts learnt before a topic counts as irregular
MAX_BYTES = 1 << 16  # of a message; larger ones are not worth it
CODES = "?bBhHiIqQfd"  # of the module struct, as KINDS

Numbers = Callable[[Any], Sequence[float]]
"""Takes a message to the numbers wanted of it; also takes Walk.places, to where these numbers are."""

_BYTES = dict(zip(KINDS, (1, 1, 1, 2, 2, 4, 4, 8, 8, 4, 8), strict=True))


class LiveLayout:
    """The offsets of the wanted numbers in messages laid out like `data`."""

    def __init__(self, typestore: Typestore, type_name: str, data: bytes, numbers: Numbers) -> None:
        """Raises LayoutError or MessageError where they cannot be determined."""
        if len(data) > MAX_BYTES:
            raise LayoutError(f"{type_name}: {len(data)} bytes")
        walk = Walk(typestore, type_name, data, decisive_fields(type_name))
        mask, expected = bytearray(len(data)), bytearray(len(data))
        for offset, raw, bits in walk.checks:
            for place, byte in enumerate(raw, offset):
                mask[place], expected[place] = bits, byte & bits
        self._size = len(data)
        self._mask, self._expected = (int.from_bytes(part, "little") for part in (mask, expected))
        found = [located(place) for place in numbers(walk.places)]
        places = sorted(set(found))
        if not places:
            raise LayoutError(f"{type_name}: no numbers are wanted")
        self._first = places[0][0]
        self._struct = struct.Struct(walk.endian + _format(places))
        order = [places.index(place) for place in found]
        self._order = None if order == list(range(len(places))) else operator.itemgetter(*order)
        self._alone = len(order) == 1

    def read(self, data: bytes) -> tuple[Any, ...] | None:
        """The numbers of a message with this layout; else None."""
        if len(data) != self._size or int.from_bytes(data, "little") & self._mask != self._expected:
            return None
        numbers = self._struct.unpack_from(data, self._first)
        if self._order is None:
            return numbers
        return (self._order(numbers),) if self._alone else self._order(numbers)


def _format(places: Sequence[tuple[int, int]]) -> str:
    """The struct of numbers at (offset, index in KINDS), in the order of their offsets."""
    text, end = "", places[0][0]
    for offset, kind in places:
        text += f"{offset - end}x{CODES[kind]}" if offset > end else CODES[kind]
        end = offset + _BYTES[KINDS[kind]]
    return text


class LiveReader:
    """Reads the wanted numbers of one topic's serialised messages with a known layout."""

    def __init__(self, type_name: str, numbers: Numbers) -> None:
        self._type, self._numbers = type_name, numbers
        self._layouts: list[LiveLayout] = []
        self._lessons = 0

    def read(self, data: bytes) -> tuple[Any, ...] | None:
        """The exact numbers of the message; None for an unknown layout."""
        for layout in self._layouts:
            if (found := layout.read(data)) is not None:
                return found
        return None

    def learn(self, data: bytes, message: Any) -> None:
        """Learn the layout of this message, if reading by it gives the same numbers."""
        if self._lessons >= MAX_LESSONS:
            return
        self._lessons += 1
        try:
            layout = LiveLayout(distro_types(), self._type, data, self._numbers)
        except (LayoutError, MessageError, SerdeError, KeyError, AttributeError, TypeError, IndexError, ValueError):
            return  # deserialised each time: numpy's attributes as fields, types that Jazzy lacks, odd padding
        found = layout.read(data)
        if found is not None and np.array_equal(found, list(self._numbers(message)), equal_nan=True):
            self._layouts = [layout, *self._layouts[: MAX_LAYOUTS - 1]]


class LiveWriter:
    """Writes serialised messages that differ from a first one only in the wanted numbers."""

    def __init__(self, type_name: str, first: bytes, numbers: Numbers) -> None:
        """`first` is a serialised message. Raises LayoutError where numbers cannot be written into it."""
        data = trim_padding(type_name, first)
        try:
            walk = Walk(distro_types(), type_name, data, frozenset())
            places = [located(place) for place in numbers(walk.places)]
        except (MessageError, KeyError, AttributeError, TypeError, IndexError, ValueError) as error:
            raise LayoutError(f"{type_name}: {error}") from None
        if len(set(places)) != len(places):
            raise LayoutError(f"{type_name}: a number is wanted twice")
        self._buffer = bytearray(data)
        self._runs: list[tuple[struct.Struct, int, int, int]] = []  # and offset, first and end among the numbers
        begin = 0
        for end in range(1, len(places) + 1):
            offset, kind = places[end - 1]
            if end == len(places) or places[end][0] != offset + _BYTES[KINDS[kind]]:
                self._runs.append(
                    (struct.Struct(walk.endian + _format(places[begin:end])), places[begin][0], begin, end)
                )
                begin = end

    def write(self, numbers: Sequence[float]) -> bytes:
        """The message with these numbers, in the order of `numbers` of the constructor."""
        for run, offset, begin, end in self._runs:
            run.pack_into(self._buffer, offset, *numbers[begin:end])
        return bytes(self._buffer)


def trim_padding(type_name: str, data: bytes) -> bytes:
    """A message without the arbitrary bytes that a serialiser may leave after its end.

    Raises LayoutError for bytes of another type.
    """
    store = distro_types()
    try:
        return bytes(store.serialize_cdr(read_message(store, type_name, data)[0], type_name))
    except (SerdeError, KeyError) as error:
        raise LayoutError(f"{type_name}: {error}") from None
