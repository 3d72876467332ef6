# SPDX-License-Identifier: Apache-2.0
"""Reads the messages of a rosbag2 sqlite3 file in bulk, and the reachable ones of a damaged file."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import Executor
from itertools import islice
from pathlib import Path
from typing import Any

import apsw
import numpy as np
from rosbags.interfaces import MessageDefinition

from spc_ros.bags.blocks import LATEST_NS, Channel, DamageError, Messages, MessageSource, join
from spc_ros.bags.mcap.records import FORMATS, NO_DEFINITION
from spc_ros.bags.sqlite.file import SqliteFile

SEGMENT_BYTES = 4 << 20
SEGMENT_ROWS = 4096
TOPICS_AT_ONCE = 400  # SQLite returns at most 2,000 columns
CACHED_ROWS = 512  # rows at a time that stay in the processor's cache: 1.5 times as fast as thousands
Row = tuple[int, int, bytes]  # topic id, timestamp, data


class SqliteStorage(SqliteFile):
    """The messages of one database. Raises DamageError where nothing in it can be read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.start_ns, self.end_ns = 0, 0
        self.distro = ""
        self.salvaged: np.ndarray | None = None  # (N, 4) topic id, timestamp, rowid, size of a damaged database
        self._counts: dict[int, int] = {}
        self._largest: dict[int, int] = {}  # bytes of a message, by topic id
        with self.closed_on_failure():
            self._ids, self.channels = self._read_topics()
            self._count()
        self.counts = [self._counts.get(key, 0) for key in self._ids]

    def sources(self, wanted: Collection[int], first: int) -> list[MessageSource]:
        """Sources of the wanted channels, which are indices in `channels`; their messages count from `first`."""
        index_of = {self._ids[index]: first + index for index in wanted}
        rows = sum(self._counts.get(key, 0) for key in index_of)
        return [_RowSource(self, index_of, rows)] if rows else []

    def segment_rows(self, ids: Collection[int]) -> int:
        """Rows per segment, so that it stays within SEGMENT_BYTES whatever their order."""
        largest = max(1, *(self._largest.get(key, 0) for key in ids))
        return max(1, min(SEGMENT_ROWS, 2 * SEGMENT_BYTES // largest))

    def salvage(self) -> np.ndarray:
        """(N, 4) topic id, timestamp, rowid, size of all reachable rows, in log order."""
        if self.salvaged is None:
            rows = [row for row in self._reachable_rows() if all(isinstance(value, int) for value in row)]
            table = np.array(rows, np.int64).reshape(-1, 4)
            table = table[np.isin(table[:, 0], self._ids)]
            self.salvaged = table[np.lexsort((table[:, 2], table[:, 1]))]
            n = len(table)
            lost = int(table[:, 2].max()) - n if n else 0
            more = f", about {lost:,} lost between them" if lost > 0 else ", those after them, if any, lost"
            self.losses[f"the database is damaged: {n:,} messages read{more}"] = None
        return self.salvaged

    def _read_topics(self) -> tuple[list[int], list[Channel]]:
        execute = self.execute
        tables = {name for (name,) in execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if missing := {"topics", "messages"} - tables:
            raise DamageError(f"has no table '{min(missing)}'")
        definitions = self._read_definitions() if "message_definitions" in tables else {}
        self.distro = self._read_distro() if "schema" in tables else ""
        ids, channels = [], []
        for key, topic, kind, form in execute("SELECT id, name, type, serialization_format FROM topics ORDER BY id"):
            if not (isinstance(key, int) and isinstance(topic, str) and isinstance(kind, str)):
                raise DamageError(f"topic {key} has no name or no type")
            ids.append(key)
            channels.append(Channel(topic, kind, str(form), definitions.get(kind, NO_DEFINITION)))
        return ids, channels

    def _read_definitions(self) -> dict[str, MessageDefinition]:
        query = "SELECT topic_type, encoding, CAST(encoded_message_definition AS BLOB) FROM message_definitions"
        try:
            rows: Any = self.execute(query).fetchall()
        except apsw.Error as error:
            self.losses[f"message definitions cannot be read ({error}); those of ROS 2 are used"] = None
            return {}
        return {
            name: MessageDefinition(FORMATS[kind], text.decode("utf-8", "replace"))
            for name, kind, text in rows
            if kind in FORMATS and text
        }

    def _read_distro(self) -> str:
        """The distribution of ROS 2 that recorded the bag; '' where it is not named."""
        try:
            row: Any = self.execute("SELECT CAST(ros_distro AS BLOB) FROM schema").fetchone()
        except apsw.Error:
            return ""
        return row[0].decode("utf-8", "replace") if row and row[0] else ""

    def _count(self) -> None:
        """Count messages by topic in a full pass, which also reveals most damage. Grouping would make SQLite sort."""
        try:
            total, numbers = 0, []
            for begin in range(0, len(self._ids), TOPICS_AT_ONCE):
                keys = self._ids[begin : begin + TOPICS_AT_ONCE]
                which = (f"FILTER (WHERE topic_id = {key})" for key in keys)
                sums = ", ".join(f"count(*) {own}, max(length(data)) {own}" for own in which)
                found: Any = self.execute(f"SELECT count(*), {sums} FROM messages NOT INDEXED").get
                total, numbers = found[0], [*numbers, *found[1:]]
            ends: Any = self.execute("SELECT count(*), min(timestamp), max(timestamp) FROM messages").get
            indexed, start_ns, end_ns = ends
            if indexed != total:
                raise apsw.Error("table and index differ")
            counts, largest = numbers[::2], [number or 0 for number in numbers[1::2]]
            if total and not all(isinstance(value, int) for value in (*largest, start_ns, end_ns)):
                raise apsw.Error("values of a wrong kind")
        except apsw.Error:
            table = self.salvage()
            sizes = [table[table[:, 0] == key, 3] for key in self._ids]
            counts, largest = [len(size) for size in sizes], [int(size.max(initial=0)) for size in sizes]
            start_ns, end_ns = (int(table[0, 1]), int(table[-1, 1])) if len(table) else (0, 0)
        self._counts = dict(zip(self._ids, counts, strict=True))
        self._largest = dict(zip(self._ids, largest, strict=True))
        self.start_ns, self.end_ns = start_ns or 0, end_ns or 0

    def _reachable_rows(self) -> Iterator[tuple[int, int, int, int]]:
        """Rows before the damage, then those after it: found by growing steps, then backwards from the first hit."""
        after, floor, step = -1, -1, 1
        while after <= LATEST_NS - step:
            found, damaged = self._rows("rowid > ? ORDER BY rowid", 1, after)
            if found:
                first, last = found[0][2], found[-1][2]
                if step > 1:
                    yield from self._rows("rowid > ? AND rowid < ? ORDER BY rowid DESC", -1, floor, first)[0]
                yield from found
                after, floor, step = last, last, 1
            if not damaged:
                return
            after, step = after + step, 2 * step

    def _rows(self, where: str, direction: int, *limits: int) -> tuple[list[tuple[int, int, int, int]], bool]:
        """(rows, whether damage ends them); rowids must grow (`direction` 1) or fall (-1)."""
        rows = []
        try:
            query = f"SELECT topic_id, timestamp, rowid, length(data) FROM messages NOT INDEXED WHERE {where}"
            for row in self.execute(query, limits):
                if rows and direction * row[2] <= direction * rows[-1][2]:
                    return rows, True
                rows.append(row)
        except apsw.Error:
            return rows, True
        return rows, False


class _RowSource:
    """The wanted messages of a database, some thousand rows per segment."""

    def __init__(self, storage: SqliteStorage, index_of: dict[int, int], rows: int) -> None:
        self.start_ns, self.rank, self.cost, self.share = storage.start_ns, 0, storage.size, 0.0
        self._row_count = rows
        self._storage, self._index_of = storage, index_of
        self._segment_rows = storage.segment_rows(index_of)
        self._segment: tuple[Messages, list[bytes]] | None = None
        self._ties = 0  # messages delivered with the time start_ns
        self._damaged = storage.salvaged is not None
        self._segments = self._salvaged_segments() if self._damaged else self._sorted_segments()

    def prefetch(self, pool: Executor) -> None:
        """Nothing: SQLite's cursors stay in one thread."""

    def prepare(self) -> int:
        try:
            self._segment = next(self._segments, None)
        except apsw.Error:
            if self._damaged:
                raise
            self._damaged = True
            self._segments = self._salvaged_segments()
            self._segment = next(self._segments, None)
        if self._segment is None:
            return -1
        self.share = len(self._segment[0]) / self._row_count
        return sum(map(len, self._segment[1]))

    def load(self, buffer: np.ndarray) -> tuple[Messages, int]:
        if self._segment is None:
            raise RuntimeError("load() before prepare()")
        (messages, parts), used = self._segment, 0
        self._segment = None
        for data in parts:
            buffer[used : used + len(data)] = np.frombuffer(data, np.uint8)
            used += len(data)
        last_ns = int(messages.log_ns[-1])
        ties = len(messages) - int(np.searchsorted(messages.log_ns, last_ns))
        self._ties = ties + (self._ties if self.start_ns == last_ns and ties == len(messages) else 0)
        self.start_ns = last_ns
        return messages, used

    def abandon(self, error: DamageError) -> None:
        self._storage.losses[f"messages are lost ({error})"] = None

    def _sorted_segments(self) -> Iterator[tuple[Messages, list[bytes]]]:
        marks = ", ".join("?" * len(self._index_of))
        where = "" if len(self._index_of) == len(self._storage.channels) else f"WHERE topic_id IN ({marks})"
        query = f"SELECT topic_id, timestamp, data FROM messages {where} ORDER BY timestamp, rowid"
        cursor = self._storage.execute(query, list(self._index_of) if where else [])
        rows_at_once, more = min(CACHED_ROWS, self._segment_rows), True
        while more:
            parts: list[tuple[Messages, bytes]] = []
            used = 0
            for _ in range(self._segment_rows // rows_at_once):
                rows = list(islice(cursor, rows_at_once))
                more = len(rows) > 0
                if not more:
                    break
                messages, data = self._columns(rows)
                parts.append((messages.shifted(used), data))
                used += len(data)
            messages = join([messages for messages, _ in parts])
            if len(messages):
                log_ns = messages.log_ns
                if log_ns[0] < self.start_ns or bool((log_ns[1:] < log_ns[:-1]).any()):
                    raise apsw.Error("its index is out of order")
                yield messages, [data for _, data in parts]

    def _columns(self, rows: list[Row]) -> tuple[Messages, bytes]:
        """Rows as messages of one buffer, without those of unwanted or unknown topics and those without bytes."""
        ids, times, data = zip(*rows, strict=True)
        try:
            if len(self._index_of) == 1:
                channel = np.full(len(rows), next(iter(self._index_of.values())), np.int32)
                known = ids.count(next(iter(self._index_of))) == len(ids)
            else:
                channel = np.fromiter(map(self._index_of.__getitem__, ids), np.int32, len(rows))
                known = True
            joined = b"".join(data)
        except (TypeError, KeyError):
            known, channel, joined = False, np.empty(0, np.int32), b""
        if not known:
            kept = [row for row in rows if row[0] in self._index_of and type(row[2]) is bytes]
            return self._columns(kept) if kept else (join([]), b"")
        size = np.fromiter(map(len, data), np.int64, len(rows))
        return Messages(channel, np.array(times, np.int64), np.cumsum(size) - size, size), joined

    def _salvaged_segments(self) -> Iterator[tuple[Messages, list[bytes]]]:
        """The messages after those delivered, row by row, since any of them may be damaged."""
        table = self._storage.salvage()
        table = table[np.isin(table[:, 0], list(self._index_of))]
        done = int(np.searchsorted(table[:, 1], self.start_ns)) + self._ties
        execute = self._storage.execute
        lost = 0
        for begin in range(done, len(table), self._segment_rows):
            rows: list[Row] = []
            for key, t_ns, rowid, size in table[begin : begin + self._segment_rows].tolist():
                try:
                    (data,) = execute("SELECT data FROM messages WHERE rowid = ?", (rowid,)).fetchone() or (None,)
                except apsw.Error:
                    data = None
                if type(data) is bytes and len(data) == size:
                    rows.append((key, t_ns, data))
                else:
                    lost += 1
            if rows:
                messages, data = self._columns(rows)
                yield messages, [data]
        if lost:
            self._storage.losses[f"{lost:,} messages are damaged and left out"] = None
