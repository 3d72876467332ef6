# SPDX-License-Identifier: Apache-2.0
"""Reads an mcap file from its beginning where it has no summary that can be trusted, around damage too."""

from __future__ import annotations

import dataclasses
import os
from array import array

import numpy as np

from spc_ros.bags.blocks import LATEST_NS, DamageError
from spc_ros.bags.mcap.records import (
    CHANNEL,
    CHUNK,
    DATA_END,
    FOOTER,
    LONGEST_CHUNK_HEAD,
    MESSAGE,
    MESSAGE_INDEX,
    RECORD,
    SCHEMA,
    ChunkEntry,
    Directory,
    plausible,
    read_chunk_head,
)
from spc_ros.bags.mcap.sources import HEAD_BYTES

WINDOW_BYTES = 1 << 18
_HEAD = np.dtype([("channel", "<u2"), ("sequence", "<u4"), ("log", "<u8")])


@dataclasses.dataclass
class Scan:
    """What an mcap file's data section holds."""

    chunks: list[ChunkEntry] = dataclasses.field(default_factory=list)
    loose: array = dataclasses.field(default_factory=lambda: array("q"))  # channel id, log_ns, offset, size; repeated
    gaps: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # bytes that make no sense
    end: int = 0  # where the records end
    closed: bool = False


class Scanner:
    """One pass over the records of a file; schemas and channels outside chunks go to the directory."""

    def __init__(self, descriptor: int, size: int, directory: Directory) -> None:
        self._descriptor, self._size, self._directory = descriptor, size, directory
        self._window, self._window_begin = b"", 0
        self._found = Scan()

    def scan(self, begin: int) -> Scan:
        """All records from byte `begin` to the end of the data, or of the file."""
        found, position = self._found, begin
        while not found.closed:
            end = self._record(position)
            if end:
                position = end
                continue
            after = self._next_chunk(position + 1) if position < self._size else 0
            self._distrust_last_index()
            if not after:
                break
            found.gaps.append((position, after))
            position = after
        found.end = position
        return found

    def _record(self, position: int) -> int:
        """Take in the record at `position`; where it ends, or 0 where there is no whole record."""
        head = self._bytes(position, LONGEST_CHUNK_HEAD)
        if len(head) < RECORD.size:
            return 0
        opcode, length = RECORD.unpack_from(head)
        end = position + RECORD.size + length
        if not plausible(opcode) or end > self._size + (length if opcode == CHUNK else 0):
            return 0
        if opcode == CHUNK:
            return self._chunk(position, head, end)
        if opcode == MESSAGE:
            return end if self._message(position, length) else 0
        if opcode == MESSAGE_INDEX:
            self._index(head, length)
        elif opcode in (SCHEMA, CHANNEL):
            try:
                self._directory.read(opcode, self._bytes(position + RECORD.size, length))
            except DamageError:
                return 0
        self._found.closed = opcode in (DATA_END, FOOTER)
        return end

    def _chunk(self, position: int, head: bytes, end: int) -> int:
        fields = read_chunk_head(head)
        if fields is None:
            return 0
        entry = ChunkEntry(position, end - position, fields.start_ns, fields.end_ns, whole=end <= self._size)
        entry.compressed = bool(fields.compression)
        self._found.chunks.append(entry)
        return end if entry.whole else 0

    def _message(self, position: int, length: int) -> bool:
        if length < HEAD_BYTES - RECORD.size:
            return False
        channel, _, log_ns = np.frombuffer(self._bytes(position + RECORD.size, _HEAD.itemsize), _HEAD)[0].item()
        place, size = position + HEAD_BYTES, length - HEAD_BYTES + RECORD.size
        self._found.loose.extend((channel, min(log_ns, LATEST_NS), place, size))
        return True

    def _index(self, head: bytes, length: int) -> None:
        """Count the messages that an index behind a chunk lists."""
        if not self._found.chunks:
            return
        entry = self._found.chunks[-1]
        entry.index_length += RECORD.size + length
        entry.counts = entry.counts or {}
        channel = int.from_bytes(head[RECORD.size : RECORD.size + 2], "little")
        entry.counts[channel] = entry.counts.get(channel, 0) + max(0, length - 6) // 16

    def _distrust_last_index(self) -> None:
        """Where records break off, indexes may be missing."""
        if self._found.chunks:
            self._found.chunks[-1].index_length = 0
            self._found.chunks[-1].counts = None

    def _next_chunk(self, position: int) -> int:
        """The first byte at or behind `position` where a whole chunk can begin; 0 where there is none."""
        while position < self._size:
            data = self._bytes(position, WINDOW_BYTES + LONGEST_CHUNK_HEAD)
            view = np.frombuffer(data, np.uint8)
            first = view[: max(0, len(view) - 8)]
            here = np.flatnonzero(first == CHUNK)
            here = here[(view[here + 6] == 0) & (view[here + 7] == 0) & (view[here + 8] == 0)]
            for place in here[here < WINDOW_BYTES].tolist():
                fields = read_chunk_head(data[place : place + LONGEST_CHUNK_HEAD])
                if fields and position + place + fields.head_length + fields.packed_size <= self._size:
                    return position + place
            position += WINDOW_BYTES
        return 0

    def _bytes(self, position: int, size: int) -> bytes:
        """The file's bytes there, fewer at its end."""
        size = max(0, min(size, self._size - position))
        begin = position - self._window_begin
        if begin < 0 or begin + size > len(self._window):
            self._window = os.pread(self._descriptor, max(size, WINDOW_BYTES), position)
            self._window_begin, begin = position, 0
        return self._window[begin : begin + size]
