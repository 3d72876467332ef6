# SPDX-License-Identifier: Apache-2.0
"""Puts what many sources hold (chunks, files, databases) into one log, block after block, in bounded memory."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Protocol

import numpy as np
from rosbags.interfaces import MessageDefinition

BLOCK_BYTES = 4 << 20
AHEAD, AHEAD_THREADS = 4, 2
LATEST_NS = 2**63 - 1


class DamageError(ValueError):
    """Bytes that are not what the format says; the message says where."""


class UnclosedError(DamageError):
    """A recording that was never closed, in which nothing can be read."""


@dataclasses.dataclass(frozen=True)
class Channel:
    """What a storage file says about one of its topics."""

    topic: str
    type: str
    serialization: str  # cdr
    definition: MessageDefinition


@dataclasses.dataclass(frozen=True)
class Messages:
    """N messages; message i is buffer[start[i] : start[i] + size[i]] of a buffer known from elsewhere."""

    channel: np.ndarray  # (N,) int32, place in the list of channels
    log_ns: np.ndarray  # (N,) int64
    start: np.ndarray  # (N,) int64
    size: np.ndarray  # (N,) int64

    def __len__(self) -> int:
        return len(self.log_ns)

    def pick(self, which: np.ndarray | slice) -> Messages:
        return Messages(self.channel[which], self.log_ns[which], self.start[which], self.size[which])

    def moved(self, by: int) -> Messages:
        return dataclasses.replace(self, start=self.start + by) if by else self

    def in_log_order(self) -> Messages:
        """By time, ties as they are."""
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


class Source(Protocol):
    """Messages that come in pieces, each piece in log order and after the one before."""

    start_ns: int  # nothing that is still to come is earlier
    place: int  # decides between equal times; no two sources have the same
    cost: int  # bytes of the file that all pieces together take
    share: float  # of the cost, for the piece prepared

    def begin(self, pool: Executor) -> None:
        """Start to get hold of the first piece in another thread, where that is worth it."""
        ...

    def prepare(self) -> int:
        """Get hold of the next piece and say what room it needs, bytes; -1 when there is none. Raises DamageError."""
        ...

    def load(self, room: np.ndarray) -> tuple[Messages, int]:
        """(messages, bytes of the room that they take) of the piece prepared. Raises DamageError."""
        ...

    def lose(self, error: DamageError) -> None:
        """Note that the rest of the source cannot be had."""
        ...


class _Pending:
    """A buffer that fills up, and its messages that have not been handed on."""

    def __init__(self, room: int) -> None:
        self.buffer = np.empty(room, np.uint8)
        self.used = 0
        self.places: list[np.ndarray] = []
        self.parts: list[Messages] = []

    def fits(self, need: int) -> bool:
        return self.used + need <= len(self.buffer)

    def load(self, source: Source) -> None:
        messages, used = source.load(self.buffer[self.used :])
        self.add(messages.moved(self.used), np.full(len(messages), source.place, np.int64))
        self.used += used

    def add(self, messages: Messages, place: np.ndarray) -> None:
        if len(messages):
            self.parts.append(messages)
            self.places.append(place)

    def sort(self) -> tuple[Messages, np.ndarray]:
        """All messages and their sources' places, by time and, where that is equal, by place."""
        messages = join(self.parts)
        place = np.concatenate(self.places) if self.places else np.empty(0, np.int64)
        step = np.diff(messages.log_ns)
        if not bool(((step > 0) | ((step == 0) & (place[1:] >= place[:-1]))).all()):
            order = np.lexsort((place, messages.log_ns))
            messages, place = messages.pick(order), place[order]
        return messages, place


def merge(
    sources: Iterable[Source], advance: Callable[[int], None], block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[Messages, np.ndarray]]:
    """(messages, buffer): all messages of the sources in log order, in blocks of about `block_bytes`.

    `advance` is told what has been read, in bytes of the sources' cost. Where sources overlap in time, what
    overlaps is held back and a block can be larger.
    """
    heap = sorted((source.start_ns, source.place, source) for source in sources)  # a heap, too
    pending = _Pending(0)
    with _Ahead([source for _, _, source in heap]) as ahead:
        while heap:
            start_ns, place, source = heap[0]
            ahead.step(source)
            try:
                need = source.prepare()
                if need >= 0 and not pending.fits(need):
                    ready, pending = _hand_on(pending, start_ns, place, need, block_bytes)
                    if ready is not None:
                        yield ready
                if need >= 0:
                    pending.load(source)
                    advance(int(source.cost * source.share))
            except DamageError as error:
                source.lose(error)
                need = -1
            if need < 0:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (source.start_ns, source.place, source))
    messages, _ = pending.sort()
    if len(messages):
        yield messages, pending.buffer[: pending.used]


class _Ahead:
    """Unpacks the next few sources in threads while the caller is busy with the present one."""

    def __init__(self, order: list[Source]) -> None:
        self._order = order
        self._begun, self._opened = 0, 0
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def step(self, source: Source) -> None:
        """`source` is the one at hand, in the order given or opened before."""
        if self._opened < len(self._order) and source is self._order[self._opened]:
            self._opened += 1
        self._begun = max(self._begun, self._opened)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(AHEAD_THREADS)  # starts no thread before it has work
        while self._begun < min(len(self._order), self._opened + AHEAD):
            self._order[self._begun].begin(self._pool)
            self._begun += 1


def _hand_on(
    full: _Pending, start_ns: int, place: int, need: int, block_bytes: int
) -> tuple[tuple[Messages, np.ndarray] | None, _Pending]:
    """What no later message can precede, and a new buffer that holds the rest and has `need` bytes of room."""
    messages, places = full.sort()
    late = int(np.searchsorted(messages.log_ns, start_ns, "left"))
    ties = int(np.searchsorted(messages.log_ns, start_ns, "right"))
    late += int(np.searchsorted(places[late:ties], place, "right"))
    rest = messages.pick(np.s_[late:])
    kept = int(rest.size.sum())
    pending = _Pending(max(block_bytes, 2 * kept + need))
    if kept or len(rest):
        pending.add(copy_messages(full.buffer, rest, pending.buffer), places[late:])
        pending.used = kept
    ready = (messages.pick(np.s_[:late]), full.buffer[: full.used]) if late else None
    return ready, pending


def copy_messages(buffer: np.ndarray, messages: Messages, room: np.ndarray) -> Messages:
    """The messages side by side at the beginning of `room`, which may be the same buffer where they are in order."""
    whole = buffer.data
    ends = messages.start + messages.size
    data = b"".join([whole[begin:end] for begin, end in zip(messages.start.tolist(), ends.tolist(), strict=True)])
    room[: len(data)] = np.frombuffer(data, np.uint8)
    return dataclasses.replace(messages, start=np.cumsum(messages.size) - messages.size)
