# SPDX-License-Identifier: Apache-2.0
"""Reads an mcap file in bulk: by its summary where it has one, else from its beginning."""

from __future__ import annotations

import os
import struct
import zlib
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from spc_ros.bags.blocks import Channel, DamageError, Source, UnclosedError
from spc_ros.bags.mcap.records import (
    CHUNK_INDEX,
    FOOTER,
    FOOTER_BYTES,
    LONGEST_CHUNK_HEAD,
    MAGIC,
    RECORD,
    STATISTICS,
    ChunkEntry,
    ChunkHead,
    Directory,
    check_crc,
    read_chunk_head,
    read_chunk_index,
    read_statistics,
    records,
    unpack,
)
from spc_ros.bags.mcap.scan import Scan, Scanner
from spc_ros.bags.mcap.sources import ChunkSource, LooseSource, scan_messages, within_stated_time

SUMMARY_CAP = 1 << 28  # bytes; a summary of a million chunks
EVERY_CHANNEL = np.arange(1 << 16, dtype=np.int32)


class McapStorage:
    """One open mcap file. Raises DamageError where nothing in it can be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.losses: dict[str, None] = {}
        self.start_ns, self.end_ns = 0, 0
        self._directory = Directory()
        self._chunks: list[ChunkEntry] = []
        self._loose = np.empty((0, 4), np.int64)  # channel id, log_ns, offset, size: messages outside chunks
        self._counts: Mapping[int, int] = {}
        self.descriptor = os.open(path, os.O_RDONLY)
        try:
            self.size = os.fstat(self.descriptor).st_size
            self._open()
        except BaseException:
            self.close()
            raise
        self._ids = sorted(self._directory.channels)
        self.channels: list[Channel] = [self._directory.channels[key] for key in self._ids]
        self.counts = [self._counts.get(key, 0) for key in self._ids]

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def read(self, offset: int, size: int) -> bytes:
        """Raises DamageError at the file's end."""
        data = os.pread(self.descriptor, size, offset) if 0 <= offset <= self.size - size else b""
        if len(data) != size:
            raise DamageError(f"{size} bytes at byte {offset} are not there")
        return data

    def read_into(self, room: np.ndarray, offset: int) -> None:
        done = 0
        while done < len(room):
            got = os.preadv(self.descriptor, [room[done:].data], offset + done)
            if not got:
                raise DamageError(f"{len(room)} bytes at byte {offset} are not there")
            done += got

    def sources(self, wanted: Collection[int], first: int) -> list[Source]:
        """Where the messages of the wanted channels (places in `channels`, counted from `first`) are to be had."""
        place_of = np.full(1 << 16, -1, np.int32)
        for place in wanted:
            place_of[self._ids[place]] = first + place
        ids = {self._ids[place] for place in wanted}
        chunks = (entry for entry in self._chunks if entry.counts is None or not ids.isdisjoint(entry.counts))
        found: list[Source] = [ChunkSource(self, entry, place_of) for entry in chunks]
        loose = self._loose[place_of[self._loose[:, 0]] >= 0]
        return [*found, LooseSource(self, loose, place_of)] if len(loose) else found

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
            self._scan(closed, stated)
        if not stated:
            times = [(e.start_ns, e.end_ns) for e in self._chunks if e.counts]
            times += [(int(t.min()), int(t.max())) for t in [self._loose[:, 1]] if len(t)]
            self.start_ns = min((start for start, _ in times), default=0)
            self.end_ns = max((end for _, end in times), default=0)

    def _read_summary(self, footer: bytes) -> Mapping[int, int] | None:
        """Messages by channel id, as the statistics or the chunk indexes have it; None without a summary."""
        begin, _, crc = struct.unpack_from("<QQI", footer, RECORD.size)
        size = self.size - FOOTER_BYTES - begin
        if not begin:
            return None
        if begin < len(MAGIC) or not 0 <= size <= SUMMARY_CAP:
            raise DamageError(f"it would begin at byte {begin} of {self.size}")
        data = self.read(begin, size)
        if crc and zlib.crc32(footer[: RECORD.size + 16], zlib.crc32(data)) != crc:
            raise DamageError("its checksum is wrong")
        counts, statistics = None, None
        for opcode, start, end in records(data):
            if opcode == CHUNK_INDEX:
                self._chunks.append(read_chunk_index(data[start:end]))
            elif opcode == STATISTICS:
                statistics = read_statistics(data[start:end])
            else:
                self._directory.read(opcode, data[start:end])
        if statistics is not None:
            _, self.start_ns, self.end_ns, counts = statistics
        return counts

    def _is_complete(self, stated: Mapping[int, int]) -> bool:
        """Whether the summary names every message and every channel that has one."""
        self._counts = stated
        known = all(key in self._directory.channels and self._directory.channels[key].type for key in stated)
        if any(entry.counts is None for entry in self._chunks):
            return known
        indexed = sum((Counter(entry.counts) for entry in self._chunks), Counter())
        return known and indexed == Counter(stated)

    def _scan(self, closed: bool, stated: Mapping[int, int] | None) -> None:
        found = Scanner(self.descriptor, self.size, self._directory).scan(len(MAGIC))
        counts: Counter[int] = Counter()
        self._chunks, saved = [], 0
        for entry in found.chunks:
            try:
                if entry.counts is None or not self._directory.channels.keys() >= entry.counts.keys():
                    entry.counts = self._open_chunk(entry)
                self._chunks.append(entry)
                counts.update(entry.counts)
                saved = 0 if entry.whole else sum(entry.counts.values())
            except DamageError as error:
                self.lose_chunk(entry, error)
        if found.loose:
            table = np.frombuffer(found.loose, np.int64).reshape(-1, 4)
            counts.update(table[:, 0].tolist())
            table = table[np.isin(table[:, 0], list(self._directory.channels))]
            self._loose = table[np.argsort(table[:, 1], kind="stable")]
        if nameless := sum(n for key, n in counts.items() if key not in self._directory.channels):
            self.losses[f"{nameless:,} messages are of channels that the file does not describe, and left out"] = None
        self._counts = {key: n for key, n in counts.items() if key in self._directory.channels}
        self._tell(found, closed, saved, stated)

    def _tell(self, found: Scan, closed: bool, saved: int, stated: Mapping[int, int] | None) -> None:
        """Note what a scan could not read."""
        for begin, end in found.gaps:
            self.losses[f"{end - begin:,} bytes at byte {begin:,} make no sense and are left out"] = None
        count, whole = sum(self._counts.values()), sum(entry.whole for entry in self._chunks)
        lost = self.size - found.end
        if found.closed and not closed:
            self.losses[f"the end of the file is missing, behind the {count:,} messages, which are all read"] = None
        elif not found.closed and not closed:
            tail = "nothing that was written is lost"
            if lost:
                tail = f"the last {lost:,} bytes ({lost / self.size:.1%}) ".replace("%", " %")
                tail += f"are cut off, {saved:,} messages in them saved unchecked" if saved else "cannot be read"
            text = f"recording was not closed: {whole:,} chunks and {count:,} messages read, {tail}"
            if not count:
                raise UnclosedError(f"{lost:,} bytes in which no whole message is left" if lost else "no messages")
            self.losses[text] = None
        elif not found.closed:
            self.losses[f"{lost:,} bytes at byte {found.end:,} make no sense and are left out"] = None
        if stated is not None and (missing := sum(stated.values()) - count) > 0:
            self.losses[f"{missing:,} of the {sum(stated.values()):,} messages that its summary counts are lost"] = None

    def _open_chunk(self, entry: ChunkEntry) -> dict[int, int]:
        """Messages by channel id in a chunk, whose schemas and channels are noted. Raises DamageError."""
        head = self.chunk_head(entry)
        available = min(head.packed_size, self.size - entry.offset - head.head_length)
        packed = self.read(entry.offset + head.head_length, available)
        data = unpack(packed, head.compression, head.size, entry.whole)
        if entry.whole:
            check_crc(data, head.crc)
        chunk = np.frombuffer(data, np.uint8)
        messages = scan_messages(chunk, EVERY_CHANNEL, self._directory, entry.whole)
        messages = messages if entry.whole else within_stated_time(messages, head)
        if len(messages):
            entry.start_ns, entry.end_ns = int(messages.log_ns[0]), int(messages.log_ns[-1])
        ids, counts = np.unique(messages.channel, return_counts=True)
        return dict(zip(ids.tolist(), counts.tolist(), strict=True))

    def chunk_head(self, entry: ChunkEntry) -> ChunkHead:
        if not 0 <= entry.offset < self.size:
            raise DamageError("the file ends before it")
        head = read_chunk_head(os.pread(self.descriptor, LONGEST_CHUNK_HEAD, entry.offset))
        if head is None or head.head_length + head.packed_size != entry.length:
            raise DamageError("no chunk is there")
        if entry.whole and entry.offset + entry.length > self.size:
            raise DamageError("the file ends within it")
        return head

    def lose_chunk(self, entry: ChunkEntry, error: DamageError) -> None:
        count = sum(entry.counts.values()) if entry.counts else 0
        what = f" with {count:,} messages" if count else ""
        self.losses[f"the chunk at byte {entry.offset:,}{what} is damaged and left out ({error})"] = None
