# SPDX-License-Identifier: Apache-2.0
"""The storage files of one bag as one log: opened, unpacked where they are packed, merged, and divided by topic."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from spc_ros.bags.blocks import BLOCK_BYTES, Channel, DamageError, Messages, Source, UnclosedError, merge
from spc_ros.bags.files import PACKED, BagError, BagFiles, storage_of
from spc_ros.bags.mcap.records import unpack, zstd
from spc_ros.bags.mcap.storage import McapStorage
from spc_ros.bags.sqlite.storage import SqliteStorage
from spc_ros.messages.columns import RawColumn

ZSTD_MAGIC = bytes.fromhex("28b52ffd")  # begins a message that rosbag2 compressed by itself; CDR begins with a zero


@dataclasses.dataclass(frozen=True)
class LogBlock:
    """Consecutive messages of the wanted topics, each topic of one type within the block."""

    topics: tuple[str, ...]
    types: tuple[str, ...]
    topic_of: np.ndarray  # (N,) place in `topics` and `types`
    found: Messages
    buffer: np.ndarray
    first: int  # place of the first message in the log

    def columns(self) -> dict[str, RawColumn]:
        order = np.argsort(self.topic_of, kind="stable")
        begin = np.searchsorted(self.topic_of[order], np.arange(len(self.topics) + 1))
        found: dict[str, RawColumn] = {}
        for i, (topic, type_name) in enumerate(zip(self.topics, self.types, strict=True)):
            which = order[begin[i] : begin[i + 1]]
            if len(which):
                messages = self.found.pick(which)
                found[topic] = RawColumn(
                    topic, type_name, messages.log_ns, self.first + which, self.buffer, messages.start, messages.size
                )
        return found

    def messages(self) -> Iterator[tuple[str, str, int, bytes]]:
        """(topic, type, receive_ns, CDR bytes) in log order."""
        whole = self.buffer.data
        found = self.found
        columns = (self.topic_of, found.log_ns, found.start, found.start + found.size)
        for topic, t_ns, begin, end in zip(*(column.tolist() for column in columns), strict=True):
            yield self.topics[topic], self.types[topic], t_ns, bytes(whole[begin:end])


class BagLog:
    """All parts of a bag, open."""

    def __init__(self, path: Path, files: BagFiles) -> None:
        self._path = path
        self._told: dict[str, None] = dict.fromkeys(files.losses)
        self._stack = contextlib.ExitStack()
        self._parts: list[McapStorage | SqliteStorage] = []
        self._sources: list[Source] = []
        self._done, self._cost, self._damaged_messages = 0, 1, 0
        self.size_bytes = sum(part.stat().st_size for part in files.parts)
        try:
            self._open(files.parts)
        except BaseException:
            self.close()
            raise
        self.channels: list[Channel] = [channel for part in self._parts for channel in part.channels]
        self.counts: list[int] = [count for part in self._parts for count in part.counts]

    def close(self) -> None:
        self._stack.close()

    def losses(self) -> tuple[str, ...]:
        several = len(self._parts) > 1
        found = [f"{part.path.name}: {loss}" if several else loss for part in self._parts for loss in part.losses]
        if self._damaged_messages:
            found.append(f"{self._damaged_messages:,} compressed messages are damaged and left out")
        return (*self._told, *found)

    def bytes_read(self) -> int:
        return self.size_bytes * self._done // self._cost

    def span_ns(self) -> tuple[int, int]:
        full = [part for part in self._parts if any(part.counts)]
        return min((part.start_ns for part in full), default=0), max((part.end_ns for part in full), default=0)

    def check_serialization(self) -> None:
        """Raises BagError where no topic is in CDR; notes topics that are not."""
        recorded = [c for c, n in zip(self.channels, self.counts, strict=True) if n]
        foreign = {c.topic: c.serialization for c in recorded if c.serialization != "cdr"}
        if foreign and all(c.topic in foreign for c in recorded):
            forms = ", ".join(sorted(set(foreign.values())))
            raise BagError(f"{self._path}: serialised as '{forms}', not as 'cdr'; record with a middleware for CDR")
        for topic, form in foreign.items():
            self._told[f"topic {topic} is serialised as '{form}', not as 'cdr', and left out"] = None

    def blocks(self, topics: Iterable[str] = ()) -> Iterator[LogBlock]:
        """All messages of the named topics, or of all, in log order. Raises DamageError where all are damaged."""
        names = set(topics)
        keys = [(c.topic, c.type) for c in self.channels]
        wanted = [(c.topic in names or not names) and c.serialization == "cdr" for c in self.channels]
        places = {key: i for i, key in enumerate(dict.fromkeys(k for k, w in zip(keys, wanted, strict=True) if w))}
        topic_of = np.array([places.get(key, 0) for key in keys], np.uint16)
        many_types = len({topic for topic, _ in places}) < len(places)
        first = self._damaged_messages = 0
        for messages, buffer in self._unpacked(merge(self._open_sources(wanted), self._advance)):
            topic = topic_of[messages.channel]
            ends = _type_changes(topic, list(places)) if many_types else []
            for begin, end in zip([0, *ends], [*ends, len(messages)], strict=True):
                some = messages.pick(np.s_[begin:end])
                names_, types = zip(*places, strict=True)
                yield LogBlock(names_, types, topic[begin:end], some, buffer, first)
                first += len(some)
        if not first and (count := sum(n for n, w in zip(self.counts, wanted, strict=True) if w)):
            raise DamageError(f"all {count:,} messages are damaged: {'; '.join(self.losses())}")
        self._done = self._cost

    def _open(self, paths: Iterable[Path]) -> None:
        """Open all parts; one that holds nothing costs the bag only when no other part holds anything."""
        failed: list[tuple[Path, DamageError]] = []
        for path in paths:
            try:
                file = self._unpack_file(path) if path.name.endswith(PACKED) else path
                part = (McapStorage if storage_of(file) == "mcap" else SqliteStorage)(file)
            except DamageError as error:
                failed.append((path, error))
                continue
            self._stack.callback(part.close)
            self._parts.append(part)
        if failed and not self._parts:
            raise failed[0][1]
        for path, error in failed:
            unclosed = "was not closed and " if isinstance(error, UnclosedError) else ""
            self._told[f"{path.name}: {unclosed}cannot be read ({error})"] = None

    def _unpack_file(self, path: Path) -> Path:
        """The file as it was before rosbag2 compressed it, in a folder that goes with the reader."""
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="spc-bag-"))
        target = Path(folder, path.name.removesuffix(PACKED))
        with zstd.open(path, "rb") as source, target.open("wb") as out:
            try:
                while data := source.read1(1 << 20):
                    out.write(data)
            except (zstd.ZstdError, EOFError) as error:
                self._told[f"{path.name}: damaged ({error}); what could be unpacked is read"] = None
        return target

    def _open_sources(self, wanted: list[bool]) -> list[Source]:
        """What holds messages of wanted channels in any part; channels count through all parts."""
        found: list[Source] = []
        first = 0
        for part in self._parts:
            places = [i for i in range(len(part.channels)) if wanted[first + i]]
            found += sorted(part.sources(places, first), key=lambda source: source.place)
            first += len(part.channels)
        for place, source in enumerate(found):
            source.place = place
        self._done, self._cost = 0, max(1, sum(source.cost for source in found))
        return found

    def _advance(self, cost: int) -> None:
        self._done += cost

    def _unpacked(self, blocks: Iterable[tuple[Messages, np.ndarray]]) -> Iterator[tuple[Messages, np.ndarray]]:
        """The blocks, with messages that rosbag2 compressed one by one unpacked; those that cannot be are left out."""
        for messages, buffer in blocks:
            packed = messages.size >= 4
            start = messages.start[packed]
            for i, letter in enumerate(ZSTD_MAGIC):
                packed[packed] = here = buffer[start + i] == letter
                start = start[here]
            if packed.any():
                yield from self._unpack_messages(messages, buffer, packed)
            else:
                yield messages, buffer

    def _unpack_messages(
        self, messages: Messages, buffer: np.ndarray, packed: np.ndarray
    ) -> Iterator[tuple[Messages, np.ndarray]]:
        whole, data, kept, size = buffer.data, [], [], 0
        columns = (messages.start, messages.start + messages.size, packed)
        for i, (begin, end, is_packed) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            try:
                data.append(unpack_message(whole[begin:end]) if is_packed else bytes(whole[begin:end]))
            except DamageError:
                self._damaged_messages += 1
                continue
            kept.append(i)
            size += len(data[-1])
            if size >= BLOCK_BYTES:
                yield _side_by_side(messages.pick(np.array(kept)), data)
                data, kept, size = [], [], 0
        if kept:
            yield _side_by_side(messages.pick(np.array(kept)), data)


def unpack_message(data: memoryview) -> bytes:
    """A message that rosbag2 compressed by itself. Raises DamageError."""
    return unpack(data, "zstd", None)


def _side_by_side(messages: Messages, data: list[bytes]) -> tuple[Messages, np.ndarray]:
    size = np.fromiter(map(len, data), np.int64, len(data))
    found = dataclasses.replace(messages, start=np.cumsum(size) - size, size=size)
    return found, np.frombuffer(b"".join(data), np.uint8)


def _type_changes(topic_of: np.ndarray, keys: list[tuple[str, str]]) -> list[int]:
    """Where blocks have to end so that each topic has one type in each."""
    types: dict[str, int] = {}
    ends = []
    for i, key in enumerate(topic_of.tolist()):
        if types.setdefault(keys[key][0], key) != key:
            ends.append(i)
            types = {keys[key][0]: key}
    return ends
