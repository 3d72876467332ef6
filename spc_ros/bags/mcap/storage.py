# SPDX-License-Identifier: Apache-2.0
"""Reads an mcap file in bulk by its summary and chunk indexes; scan.py takes over where these cannot be trusted."""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np

from spc_ros.bags.blocks import (
    LATEST_NS,
    Channel,
    DamageError,
    Messages,
    MessageSource,
    UnclosedError,
    copy_messages,
    join,
)
from spc_ros.bags.mcap.records import (
    CHUNK_INDEX,
    FOOTER,
    FOOTER_BYTES,
    HEAD_BYTES,
    MAGIC,
    MESSAGE,
    MESSAGE_HEAD,
    MESSAGE_INDEX,
    METADATA,
    METADATA_INDEX,
    RECORD,
    STATISTICS,
    ChunkEntry,
    ChunkHead,
    Directory,
    McapFile,
    check_crc,
    read_chunk_index,
    read_statistics,
    records,
)
from spc_ros.bags.mcap.scan import UnchunkedSource, recover, scan_messages

DISTRO = re.compile(rb"(?:ROS_DISTRO....|ros_distro: *)([a-z]+)", re.DOTALL)  # rosbag2's, since Iron; since Jazzy
SUMMARY_CAP = 1 << 28  # bytes; a summary of a million chunks
PREFETCH_CAP = 8 << 20  # bytes of a compressed chunk that is unpacked before its turn


class McapStorage(McapFile):
    """The messages of one mcap file. Raises DamageError where nothing in it can be read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.start_ns, self.end_ns = 0, 0
        self._directory = Directory()
        self._metadata: list[tuple[int, int]] = []  # offset and length of records
        self._chunks: list[ChunkEntry] = []
        self._unchunked = np.empty((0, 4), np.int64)  # as in Recovered
        self._counts: Mapping[int, int] = {}
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        self._ids = sorted(self._directory.channels)
        self.channels: list[Channel] = [self._directory.channels[key] for key in self._ids]
        self.counts = [self._counts.get(key, 0) for key in self._ids]

    @property
    def distro(self) -> str:
        """The distribution of ROS 2 that recorded the bag; '' where it is not named."""
        for offset, length in self._metadata:
            try:
                opcode, begin, end = next(records(self.read(offset, length)))
                content = self.read(offset + begin, end - begin)
            except (DamageError, StopIteration):
                continue
            if opcode == METADATA and (found := DISTRO.search(content)):
                return found[1].decode()
        return ""

    def sources(self, wanted: Collection[int], first: int) -> list[MessageSource]:
        """Sources of the wanted channels, which are indices in `channels`; their messages count from `first`."""
        index_of = np.full(1 << 16, -1, np.int32)
        for index in wanted:
            index_of[self._ids[index]] = first + index
        ids = {self._ids[index] for index in wanted}
        chunks = (entry for entry in self._chunks if entry.counts is None or not ids.isdisjoint(entry.counts))
        found: list[MessageSource] = [ChunkSource(self, entry, index_of) for entry in chunks]
        unchunked = self._unchunked[index_of[self._unchunked[:, 0]] >= 0]
        return [*found, UnchunkedSource(self, unchunked, index_of)] if len(unchunked) else found

    def _open(self) -> None:
        begin = os.pread(self.descriptor, len(MAGIC), 0)
        if begin != MAGIC:
            unclosed = MAGIC.startswith(begin)
            raise UnclosedError("the file seems to be empty") if unclosed else DamageError("File magic is invalid.")
        footer = os.pread(self.descriptor, FOOTER_BYTES, max(0, self.size - FOOTER_BYTES))
        closed = footer[-len(MAGIC) :] == MAGIC and footer[: RECORD.size] == RECORD.pack(FOOTER, 20)
        stated = None
        if closed:
            try:
                stated = self._read_summary(footer)
            except DamageError as error:
                self.losses[f"the summary is damaged ({error}); read from the beginning instead"] = None
                self._directory, self._chunks = Directory(), []
        if stated is None or not self._is_complete(stated):
            found = recover(self, self._directory, closed, stated)
            self._chunks, self._unchunked, self._counts = found.chunks, found.unchunked, found.counts
        if not stated:
            times = [(e.start_ns, e.end_ns) for e in self._chunks if e.counts]
            times += [(int(t.min()), int(t.max())) for t in [self._unchunked[:, 1]] if len(t)]
            self.start_ns = min((start for start, _ in times), default=0)
            self.end_ns = max((end for _, end in times), default=0)

    def _read_summary(self, footer: bytes) -> Mapping[int, int] | None:
        """Messages by channel id, from the statistics; None without a summary."""
        begin, _, crc = struct.unpack_from("<QQI", footer, RECORD.size)
        size = self.size - FOOTER_BYTES - begin
        if not begin:
            return None
        if begin < len(MAGIC) or not 0 <= size <= SUMMARY_CAP:
            raise DamageError(f"it would begin at byte {begin} of {self.size}")
        data = self.read(begin, size)
        if crc and zlib.crc32(footer[: RECORD.size + 16], zlib.crc32(data)) != crc:
            raise DamageError("its checksum is wrong")
        counts = None
        for opcode, start, end in records(data):
            if opcode == CHUNK_INDEX:
                self._chunks.append(read_chunk_index(data[start:end]))
            elif opcode == METADATA_INDEX and end - start >= 16:
                self._metadata.append(struct.unpack_from("<QQ", data, start))
            elif opcode == STATISTICS:
                self.start_ns, self.end_ns, counts = read_statistics(data[start:end])
            else:
                self._directory.read(opcode, data[start:end])
        return counts

    def _is_complete(self, stated: Mapping[int, int]) -> bool:
        """Whether the summary names every message and every channel that has one."""
        self._counts = stated
        known = self._directory.complete >= stated.keys()
        if any(entry.counts is None for entry in self._chunks):
            return known
        indexed = sum((Counter(entry.counts) for entry in self._chunks), Counter())
        return known and indexed == Counter(stated)


class ChunkSource:
    """The wanted messages of one chunk, which is read, unpacked and checked when its turn comes."""

    def __init__(self, file: McapFile, entry: ChunkEntry, index_of: np.ndarray) -> None:
        self.start_ns, self.rank = entry.start_ns, entry.offset
        self.cost, self.share = entry.length + entry.index_length, 1.0
        self._file, self._entry, self._index_of = file, entry, index_of
        self._head: ChunkHead | None = None
        self._data: bytes | None = None
        self._future: Future[tuple[ChunkHead, bytes | None]] | None = None

    def prefetch(self, pool: Executor) -> None:
        if self._entry.compressed and self.cost <= PREFETCH_CAP:
            self._future = pool.submit(self._fetch)

    def prepare(self) -> int:
        if self._head is not None:
            return -1
        self._head, self._data = self._future.result() if self._future else self._fetch()
        self._future = None
        return self._head.size if self._data is None else len(self._data)

    def _fetch(self) -> tuple[ChunkHead, bytes | None]:
        """The chunk's head and, where it is compressed or incomplete, its contents. Raises DamageError."""
        head = self._file.chunk_head(self._entry)
        is_plain = self._entry.complete and not head.compression
        return head, None if is_plain else self._file.unpack_chunk(self._entry, head)

    def load(self, buffer: np.ndarray) -> tuple[Messages, int]:
        head, data, self._data = self._head, self._data, None
        if head is None:
            raise RuntimeError("load() before prepare()")
        if data is None:
            chunk = buffer[: head.size]
            self._file.read_into(chunk, self._entry.offset + head.head_length)
            check_crc(chunk, head.crc)
        else:
            chunk = np.frombuffer(data, np.uint8)
        messages = self._drop_early(self._messages(chunk, head))
        payload = int(messages.size.sum())
        if 4 * payload < len(chunk):  # most of it are other topics
            return copy_messages(chunk, messages, buffer), payload
        if data is not None:
            buffer[: len(chunk)] = chunk
        return messages, len(chunk)

    def abandon(self, error: DamageError) -> None:
        self._file.lose_chunk(self._entry, error)

    def _messages(self, chunk: np.ndarray, head: ChunkHead) -> Messages:
        entry = self._entry
        if 0 < entry.index_length < len(chunk) + (1 << 20):  # an index is half as long as the shortest messages
            try:
                index = self._file.read(entry.offset + entry.length, entry.index_length)
                messages = indexed_messages(chunk, index, self._index_of)
            except DamageError:
                messages = None
            if messages is not None:
                return messages
        return scan_messages(chunk, self._index_of, entry, head)

    def _drop_early(self, messages: Messages) -> Messages:
        """Drop messages from before the chunk's stated start: they could precede ones already delivered."""
        early = int(np.searchsorted(messages.log_ns, self.start_ns))
        if not early:
            return messages
        where = f"the chunk at byte {self._entry.offset:,}"
        self._file.losses[f"{early:,} messages of {where} are older than it says and left out"] = None
        return messages.pick(np.s_[early:])


def indexed_messages(chunk: np.ndarray, index: bytes, index_of: np.ndarray) -> Messages | None:
    """A chunk's messages in log order, by its message indexes; None where these do not match the chunk.

    index_of: (65536,) index of each channel id in the list of channels, -1 for unwanted ones. Raises DamageError.
    """
    listed = [(channel, entries) for channel, entries in read_message_index(index) if index_of[channel] >= 0]
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
    heads = np.ndarray((len(chunk) - HEAD_BYTES + 1,), MESSAGE_HEAD, chunk, strides=(1,))[offset]
    length = heads["length"]
    fits = (heads["opcode"] == MESSAGE) & (heads["channel"] == ids) & (heads["log"] == entries[:, 0])
    fits &= (length >= HEAD_BYTES - RECORD.size) & (length <= len(chunk))
    end = offset + RECORD.size + length.astype(np.int64)
    if not fits.all() or bool((end[:-1] > offset[1:]).any()) or int(end[-1]) > len(chunk):
        return None
    log_ns = np.minimum(entries[:, 0], LATEST_NS).astype(np.int64)
    start = offset + HEAD_BYTES
    return Messages(index_of[ids], log_ns, start, end - start).in_log_order()


def read_message_index(index: bytes | memoryview) -> Iterator[tuple[int, np.ndarray]]:
    """(channel id, (N, 2) uint64 log time and offset in the chunk) of the message indexes that follow a chunk."""
    for opcode, begin, end in records(index):
        if opcode != MESSAGE_INDEX or end - begin < 6:
            raise DamageError("a message index is missing")
        channel, size = struct.unpack_from("<HI", index, begin)
        if size != end - begin - 6 or size % 16:
            raise DamageError("a message index is cut off")
        if size:
            yield channel, np.frombuffer(index, "<u8", size // 8, begin + 6).reshape(-1, 2)
