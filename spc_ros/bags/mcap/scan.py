# SPDX-License-Identifier: Apache-2.0
"""Reads an mcap file that is damaged, unfinished or unchunked: record by record, skipping what makes no sense."""

from __future__ import annotations

import dataclasses
import os
import struct
from array import array
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Executor

import numpy as np

from spc_ros.bags.blocks import LATEST_NS, DamageError, Messages, UnclosedError
from spc_ros.bags.mcap.records import (
    CHANNEL,
    CHUNK,
    DATA_END,
    FOOTER,
    HEAD_BYTES,
    LONGEST_CHUNK_HEAD,
    MAGIC,
    MESSAGE,
    MESSAGE_INDEX,
    RECORD,
    SCHEMA,
    ChunkEntry,
    ChunkHead,
    Directory,
    McapFile,
    plausible,
    read_chunk_head,
    records,
)

SEGMENT_BYTES = 4 << 20
EVERY_CHANNEL = np.arange(1 << 16, dtype=np.int32)
WINDOW_BYTES = 1 << 18
_HEAD = np.dtype([("channel", "<u2"), ("sequence", "<u4"), ("log", "<u8")])


@dataclasses.dataclass
class Scan:
    """The contents of a file's data section."""

    chunks: list[ChunkEntry] = dataclasses.field(default_factory=list)
    unchunked: array = dataclasses.field(default_factory=lambda: array("q"))  # channel id, log_ns, offset, size; ...
    gaps: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # byte ranges without a valid record
    end: int = 0  # where the records end
    closed: bool = False


class Scanner:
    """One pass over the records of a file; schemas and channels outside chunks go to the directory."""

    def __init__(self, file: McapFile, directory: Directory) -> None:
        self._descriptor, self._size, self._directory = file.descriptor, file.size, directory
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
        """Register the record at `position`; returns its end, or 0 where there is no complete record."""
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
        entry = ChunkEntry(position, end - position, fields.start_ns, fields.end_ns, complete=end <= self._size)
        entry.compressed = bool(fields.compression)
        self._found.chunks.append(entry)
        return end if entry.complete else 0

    def _message(self, position: int, length: int) -> bool:
        if length < HEAD_BYTES - RECORD.size:
            return False
        channel, _, log_ns = np.frombuffer(self._bytes(position + RECORD.size, _HEAD.itemsize), _HEAD)[0].item()
        offset, size = position + HEAD_BYTES, length - HEAD_BYTES + RECORD.size
        self._found.unchunked.extend((channel, min(log_ns, LATEST_NS), offset, size))
        return True

    def _index(self, head: bytes, length: int) -> None:
        """Count the messages that a message index after a chunk lists."""
        if not self._found.chunks:
            return
        entry = self._found.chunks[-1]
        entry.index_length += RECORD.size + length
        entry.counts = entry.counts or {}
        channel = int.from_bytes(head[RECORD.size : RECORD.size + 2], "little")
        entry.counts[channel] = entry.counts.get(channel, 0) + max(0, length - 6) // 16

    def _distrust_last_index(self) -> None:
        """Message indexes may be missing where records break off."""
        if self._found.chunks:
            self._found.chunks[-1].index_length = 0
            self._found.chunks[-1].counts = None

    def _next_chunk(self, position: int) -> int:
        """The first byte from `position` on where a complete chunk can begin; 0 where there is none."""
        while position < self._size:
            data = self._bytes(position, WINDOW_BYTES + LONGEST_CHUNK_HEAD)
            view = np.frombuffer(data, np.uint8)
            first = view[: max(0, len(view) - 8)]
            here = np.flatnonzero(first == CHUNK)
            here = here[(view[here + 6] == 0) & (view[here + 7] == 0) & (view[here + 8] == 0)]
            for offset in here[here < WINDOW_BYTES].tolist():
                fields = read_chunk_head(data[offset : offset + LONGEST_CHUNK_HEAD])
                if fields and position + offset + fields.head_length + fields.packed_size <= self._size:
                    return position + offset
            position += WINDOW_BYTES
        return 0

    def _bytes(self, position: int, size: int) -> bytes:
        """Up to `size` bytes at `position`, fewer at the end of the file."""
        size = max(0, min(size, self._size - position))
        begin = position - self._window_begin
        if begin < 0 or begin + size > len(self._window):
            self._window = os.pread(self._descriptor, max(size, WINDOW_BYTES), position)
            self._window_begin, begin = position, 0
        return self._window[begin : begin + size]


@dataclasses.dataclass(frozen=True)
class Recovered:
    """The messages of a file that was scanned."""

    chunks: list[ChunkEntry]
    unchunked: np.ndarray  # (N, 4) int64: channel id, log_ns, offset, size of messages outside chunks, in log order
    counts: Mapping[int, int]  # messages by channel id


def recover(file: McapFile, directory: Directory, closed: bool, stated: Mapping[int, int] | None) -> Recovered:
    """Scan a file; notes in its losses what cannot be read. Raises UnclosedError when nothing can.

    `closed`: the file ends as a finished one does. `stated`: messages by channel id according to its summary, if any.
    """
    scan = Scanner(file, directory).scan(len(MAGIC))
    counts: Counter[int] = Counter()
    chunks, unchunked, saved = [], np.empty((0, 4), np.int64), 0
    for entry in scan.chunks:
        try:
            if entry.counts is None or not directory.channels.keys() >= entry.counts.keys():
                entry.counts = _count_messages(file, entry, directory)
            chunks.append(entry)
            counts.update(entry.counts)
            saved = 0 if entry.complete else sum(entry.counts.values())
        except DamageError as error:
            file.lose_chunk(entry, error)
    if scan.unchunked:
        table = np.frombuffer(scan.unchunked, np.int64).reshape(-1, 4)
        counts.update(table[:, 0].tolist())
        table = table[np.isin(table[:, 0], list(directory.channels))]
        unchunked = table[np.argsort(table[:, 1], kind="stable")]
    if nameless := sum(n for key, n in counts.items() if key not in directory.channels):
        file.losses[f"{nameless:,} messages are of channels that the file does not describe, and left out"] = None
    known = {key: n for key, n in counts.items() if key in directory.channels}
    for begin, end in scan.gaps:
        file.losses[f"{end - begin:,} bytes at byte {begin:,} make no sense and are left out"] = None
    count = sum(known.values())
    _note_end(file, scan, closed, count, sum(entry.complete for entry in chunks), saved)
    if stated is not None and (missing := sum(stated.values()) - count) > 0:
        file.losses[f"{missing:,} of the {sum(stated.values()):,} messages that its summary counts are lost"] = None
    return Recovered(chunks, unchunked, known)


def _note_end(file: McapFile, scan: Scan, closed: bool, count: int, complete: int, saved: int) -> None:
    """Note how the file ends; `complete` chunks, and `saved` messages in the last, incomplete one."""
    lost = file.size - scan.end
    if scan.closed and not closed:
        file.losses[f"the end of the file is missing, behind the {count:,} messages, which are all read"] = None
    elif not scan.closed and not closed:
        tail = "nothing that was written is lost"
        if lost:
            tail = f"the last {lost:,} bytes ({lost / file.size:.1%}) ".replace("%", " %")
            tail += f"are cut off, {saved:,} messages in them saved unchecked" if saved else "cannot be read"
        if not count:
            raise UnclosedError(f"{lost:,} bytes in which no whole message is left" if lost else "no messages")
        text = f"recording was not closed: {complete:,} chunks and {count:,} messages read, {tail}"
        file.losses[text] = None
    elif not scan.closed:
        file.losses[f"{lost:,} bytes at byte {scan.end:,} make no sense and are left out"] = None


def _count_messages(file: McapFile, entry: ChunkEntry, directory: Directory) -> dict[int, int]:
    """Messages by channel id in a chunk, whose schemas and channels go to the directory. Raises DamageError."""
    head = file.chunk_head(entry)
    chunk = np.frombuffer(file.unpack_chunk(entry, head), np.uint8)
    messages = scan_messages(chunk, EVERY_CHANNEL, entry, head, directory)
    if len(messages):
        entry.start_ns, entry.end_ns = int(messages.log_ns[0]), int(messages.log_ns[-1])
    ids, counts = np.unique(messages.channel, return_counts=True)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def scan_messages(
    chunk: np.ndarray, index_of: np.ndarray, entry: ChunkEntry, head: ChunkHead, directory: Directory | None = None
) -> Messages:
    """A chunk's messages in log order, record by record; schemas and channels go to the directory.

    Of an incomplete chunk, whose checksum cannot be verified, those within its stated time. Raises DamageError in a
    complete one where the records end early.
    """
    data = chunk.data
    found = array("q")
    try:
        for opcode, begin, end in records(data):
            if opcode == MESSAGE:
                if end - begin < HEAD_BYTES - RECORD.size:
                    raise DamageError(f"a message is cut off at byte {begin}")
                channel, _, log_ns = struct.unpack_from("<HIQ", data, begin)
                if index_of[channel] >= 0:
                    start = begin + HEAD_BYTES - RECORD.size
                    found.extend((channel, min(log_ns, LATEST_NS), start, end - start))
            elif directory is not None:
                directory.read(opcode, data[begin:end])
    except DamageError:
        if entry.complete:
            raise
    table = np.frombuffer(found, np.int64).reshape(-1, 4) if found else np.empty((0, 4), np.int64)
    messages = Messages(index_of[table[:, 0]], table[:, 1], table[:, 2], table[:, 3]).in_log_order()
    if entry.complete:
        return messages
    return messages.pick((messages.log_ns >= head.start_ns) & (messages.log_ns <= head.end_ns))


class UnchunkedSource:
    """Messages outside chunks, in log order, some megabytes at a time."""

    def __init__(self, file: McapFile, table: np.ndarray, index_of: np.ndarray) -> None:
        self.start_ns, self.rank = int(table[0, 1]), int(table[:, 2].min())
        self.cost, self.share = int(table[:, 3].sum()), 1.0
        self._file = file
        channel, log_ns, offset, size = table.T
        self._all = Messages(index_of[channel], log_ns, offset, size)
        self._ends = np.cumsum(size)
        self._next, self._segment = 0, self._all

    def prefetch(self, pool: Executor) -> None:
        """Nothing: reading is fast enough."""

    def prepare(self) -> int:
        if self._next >= len(self._all):
            return -1
        before = int(self._ends[self._next - 1]) if self._next else 0
        end = max(self._next + 1, int(np.searchsorted(self._ends, before + SEGMENT_BYTES)))
        self._segment = self._all.pick(np.s_[self._next : end])
        self._next = end
        payload = int(self._segment.size.sum())
        self.share = payload / max(1, self.cost)
        begin, end = self._span()
        return max(end - begin if self._is_dense() else 0, payload)

    def load(self, buffer: np.ndarray) -> tuple[Messages, int]:
        segment, file = self._segment, self._file
        self.start_ns = int(segment.log_ns[-1])
        begin, end = self._span()
        if self._is_dense():
            file.read_into(buffer[: end - begin], begin)
            return segment.shifted(-begin), end - begin
        start = np.cumsum(segment.size) - segment.size
        for to, at, size in zip(start.tolist(), segment.start.tolist(), segment.size.tolist(), strict=True):
            file.read_into(buffer[to : to + size], at)
        return Messages(segment.channel, segment.log_ns, start, segment.size), int(segment.size.sum())

    def abandon(self, error: DamageError) -> None:
        self._file.losses[f"messages outside chunks are lost ({error})"] = None

    def _span(self) -> tuple[int, int]:
        return int(self._segment.start.min()), int((self._segment.start + self._segment.size).max())

    def _is_dense(self) -> bool:
        begin, end = self._span()
        return end - begin <= 4 * int(self._segment.size.sum()) + (1 << 16)
