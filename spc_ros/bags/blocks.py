# SPDX-License-Identifier: Apache-2.0
"""Merges the messages of chunks, files and databases into one log, block by block, in bounded memory."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Protocol

import numpy as np
from rosbags.interfaces import MessageDefinition

from spc_ros.messages.columns import RawColumn

BLOCK_BYTES = 4 << 20
PREFETCHED, PREFETCH_THREADS = 4, 2
LATEST_NS = 2**63 - 1


class DamageError(ValueError):
    """Bytes that contradict the format; the message names their position."""


class UnclosedError(DamageError):
    """A recording that was never closed and holds nothing readable."""


@dataclasses.dataclass(frozen=True)
class Channel:
    """One topic of a storage file."""

    topic: str
    type: str
    serialization: str  # cdr
    definition: MessageDefinition


@dataclasses.dataclass(frozen=True)
class Messages:
    """N messages; message i is buffer[start[i] : start[i] + size[i]] of a separate buffer."""

    channel: np.ndarray  # (N,) int32, index in the list of channels
    log_ns: np.ndarray  # (N,) int64
    start: np.ndarray  # (N,) int64
    size: np.ndarray  # (N,) int64

    def __len__(self) -> int:
        return len(self.log_ns)

    def pick(self, which: np.ndarray | slice) -> Messages:
        return Messages(self.channel[which], self.log_ns[which], self.start[which], self.size[which])

    def shifted(self, by: int) -> Messages:
        return dataclasses.replace(self, start=self.start + by) if by else self

    def in_log_order(self) -> Messages:
        """Sorted by time, stably."""
        if len(self) < 2 or bool((self.log_ns[1:] >= self.log_ns[:-1]).all()):
            return self
        return self.pick(np.argsort(self.log_ns, kind="stable"))


def join(parts: list[Messages]) -> Messages:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Messages(np.empty(0, np.int32), *(np.empty(0, np.int64) for _ in range(3)))
    names = ("channel", "log_ns", "start", "size")
    return Messages(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclasses.dataclass(frozen=True)
class LogBlock:
    """Consecutive messages of the wanted topics, each topic of one type within the block."""

    topics: tuple[tuple[str, str], ...]  # names and types
    topic_of: np.ndarray  # (N,) index in `topics`
    messages: Messages
    buffer: np.ndarray
    first: int  # index of the first message in the log

    def columns(self) -> dict[str, RawColumn]:
        """The messages by topic."""
        order = np.argsort(self.topic_of, kind="stable")
        begin = np.searchsorted(self.topic_of[order], np.arange(len(self.topics) + 1))
        columns: dict[str, RawColumn] = {}
        for i, (topic, type_name) in enumerate(self.topics):
            which = order[begin[i] : begin[i + 1]]
            if len(which):
                found = self.messages.pick(which)
                log_index = self.first + which
                columns[topic] = RawColumn(
                    topic, type_name, found.log_ns, log_index, self.buffer, found.start, found.size
                )
        return columns

    def rows(self) -> Iterator[tuple[str, str, int, bytes]]:
        """(topic, type, receive_ns, CDR bytes) in log order."""
        view, found = self.buffer.data, self.messages
        columns = (self.topic_of, found.log_ns, found.start, found.start + found.size)
        for index, t_ns, begin, end in zip(*(column.tolist() for column in columns), strict=True):
            yield *self.topics[index], t_ns, bytes(view[begin:end])


def type_changes(topic_of: np.ndarray, topics: Sequence[tuple[str, str]]) -> list[int]:
    """Where blocks have to end so that each topic has one type in each."""
    types: dict[str, int] = {}
    ends = []
    for i, index in enumerate(topic_of.tolist()):
        if types.setdefault(topics[index][0], index) != index:
            ends.append(i)
            types = {topics[index][0]: index}
    return ends


class MessageSource(Protocol):
    """Messages that arrive in segments, each in log order and not earlier than the one before."""

    start_ns: int  # no later message is earlier
    rank: int  # decides between equal times; no two sources have the same
    cost: int  # bytes of the file that all segments take together
    share: float  # of the cost, for the prepared segment

    def prefetch(self, pool: Executor) -> None:
        """Start to read the first segment in another thread, where that is worthwhile."""
        ...

    def prepare(self) -> int:
        """Read the next segment and return the buffer size that it needs, bytes; -1 at the end. Raises DamageError."""
        ...

    def load(self, buffer: np.ndarray) -> tuple[Messages, int]:
        """(messages, bytes used of the buffer) of the prepared segment. Raises DamageError."""
        ...

    def abandon(self, error: DamageError) -> None:
        """Note that the rest of the source is lost."""
        ...


class _Pending:
    """A buffer that fills up, and its messages that were not delivered yet."""

    def __init__(self, size: int) -> None:
        self.buffer = np.empty(size, np.uint8)
        self.used = 0
        self.ranks: list[np.ndarray] = []
        self.parts: list[Messages] = []

    def fits(self, size: int) -> bool:
        return self.used + size <= len(self.buffer)

    def load(self, source: MessageSource) -> None:
        messages, used = source.load(self.buffer[self.used :])
        self.add(messages.shifted(self.used), np.full(len(messages), source.rank, np.int64))
        self.used += used

    def add(self, messages: Messages, rank: np.ndarray) -> None:
        if len(messages):
            self.parts.append(messages)
            self.ranks.append(rank)

    def sort(self) -> tuple[Messages, np.ndarray]:
        """All messages and the ranks of their sources, by time, then by rank."""
        messages = join(self.parts)
        rank = np.concatenate(self.ranks) if self.ranks else np.empty(0, np.int64)
        step = np.diff(messages.log_ns)
        if not bool(((step > 0) | ((step == 0) & (rank[1:] >= rank[:-1]))).all()):
            order = np.lexsort((rank, messages.log_ns))
            messages, rank = messages.pick(order), rank[order]
        return messages, rank


def merge(
    sources: Iterable[MessageSource], advance: Callable[[int], None], block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[Messages, np.ndarray]]:
    """(messages, buffer): all messages of the sources in log order, in blocks of about `block_bytes`.

    `advance` receives the bytes read, in units of the sources' cost. Where sources overlap in time, messages wait
    for the later source, and a block can be larger.
    """
    heap = sorted((source.start_ns, source.rank, source) for source in sources)  # sorted, so also a heap
    pending = _Pending(0)
    with _Prefetcher([source for _, _, source in heap]) as prefetcher:
        while heap:
            start_ns, rank, source = heap[0]
            prefetcher.step(source)
            try:
                size = source.prepare()
                if size >= 0 and not pending.fits(size):
                    ready, pending = _split_ready(pending, start_ns, rank, size, block_bytes)
                    if ready is not None:
                        yield ready
                if size >= 0:
                    pending.load(source)
                    advance(int(source.cost * source.share))
            except DamageError as error:
                source.abandon(error)
                size = -1
            if size < 0:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (source.start_ns, source.rank, source))
    messages, _ = pending.sort()
    if len(messages):
        yield messages, pending.buffer[: pending.used]


class _Prefetcher:
    """Unpacks the next few sources in threads while the caller works on the current one."""

    def __init__(self, sources: list[MessageSource]) -> None:
        self._sources = sources
        self._started, self._opened = 0, 0
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> _Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def step(self, source: MessageSource) -> None:
        """`source` is the current one: the next of the list, or one opened before."""
        if self._opened < len(self._sources) and source is self._sources[self._opened]:
            self._opened += 1
        self._started = max(self._started, self._opened)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(PREFETCH_THREADS)  # starts no thread before it has work
        while self._started < min(len(self._sources), self._opened + PREFETCHED):
            self._sources[self._started].prefetch(self._pool)
            self._started += 1


def _split_ready(
    full: _Pending, start_ns: int, rank: int, size: int, block_bytes: int
) -> tuple[tuple[Messages, np.ndarray] | None, _Pending]:
    """The messages that no later one can precede, and a new buffer with the rest and `size` free bytes."""
    messages, ranks = full.sort()
    late = int(np.searchsorted(messages.log_ns, start_ns, "left"))
    ties = int(np.searchsorted(messages.log_ns, start_ns, "right"))
    late += int(np.searchsorted(ranks[late:ties], rank, "right"))
    rest = messages.pick(np.s_[late:])
    kept = int(rest.size.sum())
    pending = _Pending(max(block_bytes, 2 * kept + size))
    if kept or len(rest):
        pending.add(copy_messages(full.buffer, rest, pending.buffer), ranks[late:])
        pending.used = kept
    ready = (messages.pick(np.s_[:late]), full.buffer[: full.used]) if late else None
    return ready, pending


def copy_messages(source: np.ndarray, messages: Messages, target: np.ndarray) -> Messages:
    """Pack the messages at the beginning of `target`, which may be the same buffer where they are in order."""
    view = source.data
    ends = messages.start + messages.size
    data = b"".join([view[begin:end] for begin, end in zip(messages.start.tolist(), ends.tolist(), strict=True)])
    target[: len(data)] = np.frombuffer(data, np.uint8)
    return dataclasses.replace(messages, start=np.cumsum(messages.size) - messages.size)
