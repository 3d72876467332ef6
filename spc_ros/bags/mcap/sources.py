# SPDX-License-Identifier: Apache-2.0
"""The messages of an mcap file, chunk by chunk, and those outside chunks."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from typing import Protocol

import numpy as np

from spc_ros.bags.blocks import LATEST_NS, DamageError, Messages, copy_messages, join
from spc_ros.bags.mcap.records import (
    MESSAGE,
    MESSAGE_INDEX,
    RECORD,
    ChunkEntry,
    ChunkHead,
    Directory,
    check_crc,
    records,
    unpack,
)

PIECE_BYTES = 4 << 20
AHEAD_CAP = 8 << 20  # bytes of a compressed chunk that is unpacked before its turn
_message_head = np.dtype(
    [("opcode", "u1"), ("length", "<u8"), ("channel", "<u2"), ("sequence", "<u4"), ("log", "<u8"), ("publish", "<u8")]
)
HEAD_BYTES = _message_head.itemsize  # 31


class OpenFile(Protocol):
    """What a source needs of the file that it belongs to. All raise DamageError."""

    size: int  # bytes
    losses: dict[str, None]

    def read(self, offset: int, size: int) -> bytes: ...
    def read_into(self, room: np.ndarray, offset: int) -> None: ...
    def chunk_head(self, entry: ChunkEntry) -> ChunkHead: ...
    def lose_chunk(self, entry: ChunkEntry, error: DamageError) -> None: ...


class ChunkSource:
    """The wanted messages of one chunk, which is read, unpacked and checked when its turn comes."""

    def __init__(self, storage: OpenFile, entry: ChunkEntry, place_of: np.ndarray) -> None:
        self.start_ns, self.place = entry.start_ns, entry.offset
        self.cost, self.share = entry.length + entry.index_length, 1.0
        self._storage, self._entry, self._place_of = storage, entry, place_of
        self._head: ChunkHead | None = None
        self._data: bytes | None = None
        self._future: Future[tuple[ChunkHead, bytes | None]] | None = None

    def begin(self, pool: Executor) -> None:
        if self._entry.compressed and self.cost <= AHEAD_CAP:
            self._future = pool.submit(self._fetch)

    def prepare(self) -> int:
        if self._head is not None:
            return -1
        self._head, self._data = self._future.result() if self._future else self._fetch()
        self._future = None
        return self._head.size if self._data is None else len(self._data)

    def _fetch(self) -> tuple[ChunkHead, bytes | None]:
        """The chunk's head and, where it is compressed or cut off, its contents. Raises DamageError."""
        storage, entry = self._storage, self._entry
        head = storage.chunk_head(entry)
        if entry.whole and not head.compression:
            return head, None
        begin = entry.offset + head.head_length
        packed = storage.read(begin, min(head.packed_size, storage.size - begin))
        data = unpack(packed, head.compression, head.size, entry.whole)
        if entry.whole:
            check_crc(data, head.crc)
        return head, data

    def load(self, room: np.ndarray) -> tuple[Messages, int]:
        head, data, self._data = self._head, self._data, None
        if head is None:
            raise RuntimeError("load() before prepare()")
        if data is None:
            chunk = room[: head.size]
            self._storage.read_into(chunk, self._entry.offset + head.head_length)
            check_crc(chunk, head.crc)
        else:
            chunk = np.frombuffer(data, np.uint8)
        messages = self._keep_promised_time(self._messages(chunk, head))
        payload = int(messages.size.sum())
        if 4 * payload < len(chunk):  # most of it are other topics
            return copy_messages(chunk, messages, room), payload
        if data is not None:
            room[: len(chunk)] = chunk
        return messages, len(chunk)

    def lose(self, error: DamageError) -> None:
        self._storage.lose_chunk(self._entry, error)

    def _messages(self, chunk: np.ndarray, head: ChunkHead) -> Messages:
        entry, storage = self._entry, self._storage
        if 0 < entry.index_length < len(chunk) + (1 << 20):  # an index is half as long as the shortest messages
            try:
                index = storage.read(entry.offset + entry.length, entry.index_length)
                messages = indexed_messages(chunk, index, self._place_of)
            except DamageError:
                messages = None
            if messages is not None:
                return messages
        messages = scan_messages(chunk, self._place_of, whole=entry.whole)
        return messages if entry.whole else within_stated_time(messages, head)

    def _keep_promised_time(self, messages: Messages) -> Messages:
        early = int(np.searchsorted(messages.log_ns, self.start_ns))
        if not early:
            return messages
        where = f"the chunk at byte {self._entry.offset:,}"
        self._storage.losses[f"{early:,} messages of {where} are older than it says and left out"] = None
        return messages.pick(np.s_[early:])


class LooseSource:
    """Messages outside chunks, sorted by time before, read some megabytes at a time."""

    def __init__(self, storage: OpenFile, table: np.ndarray, place_of: np.ndarray) -> None:
        self.start_ns, self.place = int(table[0, 1]), int(table[:, 2].min())
        self.cost, self.share = int(table[:, 3].sum()), 1.0
        self._storage = storage
        channel, log_ns, offset, size = table.T
        self._all = Messages(place_of[channel], log_ns, offset, size)
        self._ends = np.cumsum(size)
        self._next, self._piece = 0, self._all

    def begin(self, pool: Executor) -> None:
        """Reading is fast as it is."""

    def prepare(self) -> int:
        if self._next >= len(self._all):
            return -1
        before = int(self._ends[self._next - 1]) if self._next else 0
        end = max(self._next + 1, int(np.searchsorted(self._ends, before + PIECE_BYTES)))
        self._piece = self._all.pick(np.s_[self._next : end])
        self._next = end
        self.share = int(self._piece.size.sum()) / max(1, self.cost)
        begin, end = self._span()
        return max(end - begin if self._is_dense() else 0, int(self._piece.size.sum()))

    def load(self, room: np.ndarray) -> tuple[Messages, int]:
        piece, storage = self._piece, self._storage
        self.start_ns = int(piece.log_ns[-1])
        begin, end = self._span()
        if self._is_dense():
            storage.read_into(room[: end - begin], begin)
            return piece.moved(-begin), end - begin
        start = np.cumsum(piece.size) - piece.size
        for to, at, size in zip(start.tolist(), piece.start.tolist(), piece.size.tolist(), strict=True):
            storage.read_into(room[to : to + size], at)
        return Messages(piece.channel, piece.log_ns, start, piece.size), int(piece.size.sum())

    def lose(self, error: DamageError) -> None:
        self._storage.losses[f"messages outside chunks are lost ({error})"] = None

    def _span(self) -> tuple[int, int]:
        return int(self._piece.start.min()), int((self._piece.start + self._piece.size).max())

    def _is_dense(self) -> bool:
        begin, end = self._span()
        return end - begin <= 4 * int(self._piece.size.sum()) + (1 << 16)


def indexed_messages(chunk: np.ndarray, index: bytes, place_of: np.ndarray) -> Messages | None:
    """A chunk's messages in log order by its message indexes; None where these do not fit the chunk.

    place_of (65536,): place of each channel id in the list of channels, -1 for what is not wanted.
    """
    try:
        listed = [(channel, entries) for channel, entries in read_message_index(index) if place_of[channel] >= 0]
    except DamageError:
        return None
    if not listed:
        return join([])
    entries = np.concatenate([entries for _, entries in listed])
    ids = np.repeat([channel for channel, _ in listed], [len(entries) for _, entries in listed])
    offset = entries[:, 1]
    if int(offset.max()) > len(chunk) - HEAD_BYTES:
        return None
    offset = offset.astype(np.int64)
    if bool((np.diff(offset) <= 0).any()):
        order = np.argsort(offset, kind="stable")
        entries, ids, offset = entries[order], ids[order], offset[order]
    heads = np.ndarray((len(chunk) - HEAD_BYTES + 1,), _message_head, chunk, strides=(1,))[offset]
    length = heads["length"]
    fits = (heads["opcode"] == MESSAGE) & (heads["channel"] == ids) & (heads["log"] == entries[:, 0])
    fits &= (length >= HEAD_BYTES - RECORD.size) & (length <= len(chunk))
    end = offset + RECORD.size + length.astype(np.int64)
    if not fits.all() or bool((end[:-1] > offset[1:]).any()) or int(end[-1]) > len(chunk):
        return None
    log_ns = np.minimum(entries[:, 0], LATEST_NS).astype(np.int64)
    start = offset + HEAD_BYTES
    return Messages(place_of[ids], log_ns, start, end - start).in_log_order()


def read_message_index(index: bytes | memoryview) -> Iterator[tuple[int, np.ndarray]]:
    """(channel id, (N, 2) uint64: log time and place in the chunk) of the message indexes behind a chunk."""
    for opcode, begin, end in records(index):
        if opcode != MESSAGE_INDEX or end - begin < 6:
            raise DamageError("a message index is missing")
        channel, size = struct.unpack_from("<HI", index, begin)
        if size != end - begin - 6 or size % 16:
            raise DamageError("a message index is cut off")
        if size:
            yield channel, np.frombuffer(index, "<u8", size // 8, begin + 6).reshape(-1, 2)


def scan_messages(
    chunk: np.ndarray, place_of: np.ndarray, directory: Directory | None = None, whole: bool = True
) -> Messages:
    """A chunk's messages in log order, record by record; schemas and channels go to the directory.

    Raises DamageError in a `whole` chunk where the records end early.
    """
    data = chunk.data
    found = array("q")
    try:
        for opcode, begin, end in records(data):
            if opcode == MESSAGE:
                if end - begin < HEAD_BYTES - RECORD.size:
                    raise DamageError(f"a message is cut off at byte {begin}")
                channel, _, log_ns = struct.unpack_from("<HIQ", data, begin)
                if place_of[channel] >= 0:
                    start = begin + HEAD_BYTES - RECORD.size
                    found.extend((channel, min(log_ns, LATEST_NS), start, end - start))
            elif directory is not None:
                directory.read(opcode, data[begin:end])
    except DamageError:
        if whole:
            raise
    table = np.frombuffer(found, np.int64).reshape(-1, 4) if found else np.empty((0, 4), np.int64)
    return Messages(place_of[table[:, 0]], table[:, 1], table[:, 2], table[:, 3]).in_log_order()


def within_stated_time(messages: Messages, head: ChunkHead) -> Messages:
    """Of a chunk that is cut off, whose checksum says nothing: the messages with a time that can be."""
    return messages.pick((messages.log_ns >= head.start_ns) & (messages.log_ns <= head.end_ns))
