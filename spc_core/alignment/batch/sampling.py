# SPDX-License-Identifier: Apache-2.0
"""Ticks and their observations from blocks of samples: the batch version of ObservationAligner in streaming.py."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left, bisect_right
from collections import Counter

import numpy as np

from spc_core.alignment import NO_TIME
from spc_core.alignment.faults import Fault, FaultKind, stale
from spc_core.contract.contract import Contract

END = 2**62  # a log index, or a stamp, after all others
MISSING, STALE, NOT_FINITE = range(3)
MAX_HELD = 256  # held ticks whose faults are looked up together


@dataclasses.dataclass(frozen=True)
class Samples:
    """N samples of one topic in log order."""

    log_index: np.ndarray  # (N,) int64, number in the log among the messages of all topics, increasing
    t_ns: np.ndarray  # (N,) int64, stamps as recorded: they may repeat or decrease
    values: np.ndarray  # (N, F) float64

    def __len__(self) -> int:
        return len(self.t_ns)

    def part(self, which: slice | np.ndarray) -> Samples:
        return Samples(self.log_index[which], self.t_ns[which], self.values[which])

    @classmethod
    def empty(cls, width: int) -> Samples:
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, width)))


class SampleBuffer:
    """The samples of one topic that are still needed, their stamps increasing."""

    def __init__(self, name: str, width: int) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        self._nothing = Samples.empty(width)
        self.clear()

    def clear(self) -> None:
        self.newest_ns = NO_TIME
        self.log_index, self.t_ns, self.values = self._nothing.log_index, self._nothing.t_ns, self._nothing.values
        self.finite = np.zeros(0, np.bool_)

    def newest_before(self, t_ns: np.ndarray) -> np.ndarray:
        """(N,) the newest stamp before each of the next N samples."""
        return np.maximum.accumulate(np.concatenate([[self.newest_ns], t_ns]))[:-1]

    def admit(self, samples: Samples, later_ns: np.ndarray | None = None) -> np.ndarray:
        """Store the samples newer than all before, count the others; returns the (N,) bool mask of those stored.

        `later_ns` (N,): how much later than its stamp each one counts.
        """
        newest_ns = self.newest_before(samples.t_ns)
        newer = samples.t_ns > newest_ns
        if not newer.all():
            duplicates = int(np.sum(samples.t_ns == newest_ns))
            late = int(np.sum(~newer)) - duplicates
            self.counts.update({kind: n for kind, n in (("duplicate", duplicates), ("late", late)) if n})
            samples, later_ns = samples.part(newer), None if later_ns is None else later_ns[newer]
        if len(samples):
            counts_ns = samples.t_ns if later_ns is None else samples.t_ns + later_ns
            self.log_index = np.concatenate([self.log_index, samples.log_index])
            self.t_ns = np.concatenate([self.t_ns, counts_ns])
            self.values = np.concatenate([self.values, samples.values])
            self.finite = np.concatenate([self.finite, np.isfinite(samples.values).all(axis=1)])
            self.newest_ns = int(samples.t_ns[-1])
        return newer

    def forget(self, t_ns: int) -> None:
        """Keep only the newest sample at or before `t_ns` and all newer ones."""
        begin = int(np.searchsorted(self.t_ns, t_ns, "right")) - 1
        if begin > 0:
            self.log_index, self.t_ns = self.log_index[begin:], self.t_ns[begin:]
            self.values, self.finite = self.values[begin:], self.finite[begin:]


@dataclasses.dataclass(frozen=True)
class Frames:
    """N ticks of the observation streams."""

    t_ns: np.ndarray  # (N,) int64
    codes: np.ndarray  # (N,) int64, 0 where there is an observation, else a code for ObservationSampler.fault
    observations: np.ndarray  # (N, O) float64, NaN where there is a fault

    def part(self, begin: int) -> Frames:
        return Frames(self.t_ns[begin:], self.codes[begin:], self.observations[begin:])

    def append(self, other: Frames) -> Frames:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Frames(*map(np.concatenate, pairs))

    @classmethod
    def initial(cls, contract: Contract) -> Frames:
        """One tick before all others, without an observation."""
        return cls(np.array([NO_TIME]), np.ones(1, np.int64), np.full((1, contract.observation_dim), np.nan))


@dataclasses.dataclass(frozen=True)
class GridState:
    """The last tick, and whether the next one is due a period later."""

    done_ns: int = NO_TIME
    running: bool = False  # False before the first tick and after a faulty one, where the next sample is the next tick


class TickGrid:
    """Advances from tick to tick as ObservationAligner does.

    Where the first stream skips a period, the tick there is held: it has no sample, only a zero-order hold. It is
    assumed to be good unless the first stream itself is stale; `rewind` corrects that.
    """

    def __init__(
        self, contract: Contract, stamps: np.ndarray, good: np.ndarray, state: GridState, forced_ns: int, limit_ns: int
    ) -> None:
        """`stamps` (N,) increase; `good` (M,) is whether a tick there has no fault, for those up to `limit_ns`.

        Ticks later than `limit_ns` are not decided; no later sample of the stream is before `forced_ns`.
        """
        first = contract.observation[0]
        assert first.max_age_ns is not None  # checked by parse_contract
        self._max_age_ns = first.max_age_ns
        self._period_ns = contract.period_ns
        self._early_ns, self._late_ns = contract.tick_window_ns
        self._forced_ns, self._limit_ns = forced_ns, limit_ns
        self._start = state
        self._stamps: list[int] = stamps.tolist()
        self._stop = len(good)
        self._good = good.tobytes()
        sampled = stamps[: self._stop]
        gaps = np.diff(sampled, prepend=sampled[:1])
        nearest = np.abs(gaps - self._period_ns) <= np.abs(2 * gaps - self._period_ns)
        in_grid = (gaps >= self._early_ns) & (gaps <= self._late_ns) & nearest  # a tick if the previous sample is one
        self._follows = (good & in_grid).tobytes()
        self._next = bisect_right(self._stamps, state.done_ns)  # the first sample that may be the next tick
        self._last_ns = state.done_ns if state.running else None
        self.rows: list[int] = []  # of each tick its sample, or ~h of held tick number h
        self.held: list[tuple[int, bool, int]] = []  # time, whether the first stream is stale, index in `rows`

    def run(self, max_held: int) -> bool:
        """Find ticks until no more can be decided, or until `max_held` held ones; returns whether there are more."""
        stamps, rows, stop = self._stamps, self.rows, self._stop
        j, last = self._next, self._last_ns
        max_held += len(self.held)
        while len(self.held) < max_held:
            if last is None:  # each sample is a tick until one is good
                good = self._good.find(1, j)
                end = stop if good < 0 else good + 1
                rows.extend(range(j, end))
                j = max(j, end)
                if good < 0:
                    break
                last = stamps[good]
            elif j < stop and self._follows[j] and stamps[j - 1] == last:
                end = self._follows.find(0, j)
                end = stop if end < 0 else end
                rows.extend(range(j, end))
                j, last = end, stamps[end - 1]
            else:
                k = self._find(j, last)
                if k is None or k >= stop or (k < 0 and last + self._period_ns > self._limit_ns):
                    break
                if k < 0:
                    j, last = ~k, self._hold(~k, last + self._period_ns)
                else:
                    rows.append(k)
                    j, last = k + 1, stamps[k] if self._good[k] else None
        self._next, self._last_ns = j, last
        return len(self.held) >= max_held

    @property
    def state(self) -> GridState:
        """The state after the last tick."""
        if not self.rows:
            return self._start
        row = self.rows[-1]
        done_ns = self._stamps[row] if row >= 0 else self.held[~row][0]
        return GridState(done_ns, self._last_ns is not None)

    def _find(self, j: int, last_ns: int) -> int | None:
        """The sample that is the next tick, ~k if it is held before sample k, None if not yet known."""
        stamps, due_ns, late_ns = self._stamps, last_ns + self._period_ns, last_ns + self._late_ns
        for k in range(bisect_left(stamps, last_ns + self._early_ns, j), len(stamps)):
            t_ns = stamps[k]
            if t_ns > late_ns:
                return ~k
            if abs(t_ns - due_ns) <= abs(2 * t_ns - stamps[k - 1] - due_ns):
                return k
        return ~len(stamps) if self._forced_ns > late_ns else None

    def _hold(self, k: int, due_ns: int) -> int | None:
        is_stale = due_ns - self._stamps[k - 1] > self._max_age_ns  # the grid restarts after it
        self.rows.append(~len(self.held))
        self.held.append((due_ns, is_stale, len(self.rows) - 1))
        return None if is_stale else due_ns

    def rewind(self, held: int) -> None:
        """Return to held tick number `held`, which is faulty; the grid restarts after it."""
        t_ns, _, index = self.held[held]
        del self.rows[index + 1 :], self.held[held + 1 :]
        self._next, self._last_ns = bisect_right(self._stamps, t_ns), None


class ObservationSampler:
    """Turns blocks of samples of the observation streams into Frames."""

    def __init__(self, contract: Contract, patience_ns: int) -> None:
        self.contract = contract
        self.patience_ns = patience_ns
        self.buffers = [SampleBuffer(stream.topic, len(stream.names)) for stream in contract.observation]
        self._streams = list(zip(self.buffers, contract.observation, strict=True))
        self._latched = any(stream.max_age_ns is None for stream in contract.observation)
        self.note_horizon(np.zeros(0, np.int64), np.zeros(0, np.int64))

    def note_horizon(self, horizon_ns: np.ndarray, log_index: np.ndarray) -> None:
        """The newest stamp of all topics (N,) after each of the block's messages, and their log indices (N,)."""
        self._horizon_ns, self._horizon_index = horizon_ns, np.append(log_index, END)

    def reached_ns(self) -> int:
        """The time reached by every stream with a maximum age."""
        return min(buffer.newest_ns for buffer, stream in self._streams if stream.max_age_ns is not None)

    def frames(self, start: GridState, forced_ns: int, limit_ns: int) -> tuple[Frames, GridState]:
        """The ticks up to `limit_ns` that can be decided if no sample will come before `forced_ns`."""
        first = self.buffers[0]
        stop = int(np.searchsorted(first.t_ns, limit_ns, "right"))
        tables = [self._look_up(first.t_ns[:stop], first.log_index[:stop])]
        grid = TickGrid(self.contract, first.t_ns, tables[0][1] == 0, start, forced_ns, limit_ns)
        more, most, seen = True, MAX_HELD, 0
        while more:
            more = grid.run(most)
            new = grid.held[seen:]
            held = self._look_up_held(np.array([t_ns for t_ns, _, _ in new], np.int64))
            wrong = (held[1] != 0) & ~np.array([is_stale for _, is_stale, _ in new], bool)
            most = min(2 * most, MAX_HELD)
            if wrong.any():
                end = int(np.argmax(wrong)) + 1
                grid.rewind(seen + end - 1)
                held = held[:, :end]
                more, most = True, 1
            tables.append(held)
            seen += held.shape[1]
        rows = np.array(grid.rows, np.int64)
        table = np.concatenate(tables, axis=1) if grid.held else tables[0]  # without a copy where none is held
        return self._gather(table.take(np.where(rows < 0, stop + ~rows, rows), axis=1)), grid.state

    def fault(self, code: int) -> Fault:
        """The fault of a code in Frames, as in streaming.py."""
        rest, kind = divmod(code - 1, 3)
        detail, index = divmod(rest, len(self._streams))
        stream = self.contract.observation[index]
        if kind == STALE:
            return stale(index, stream, detail * 1_000_000)
        if kind == NOT_FINITE:
            return Fault(FaultKind.NOT_FINITE, stream.topic, index, stream.names[detail])
        return Fault(FaultKind.NO_MESSAGE, stream.topic, index)

    def _look_up_held(self, t_ns: np.ndarray) -> np.ndarray:
        """As `_look_up`, for ticks without a sample: known from the next sample, or once it is overdue by patience."""
        first = self.buffers[0]
        overdue_ns = t_ns - self.contract.period_ns + self.contract.tick_window_ns[1]
        next_index = np.append(first.log_index, END)[np.searchsorted(first.t_ns, overdue_ns, "right")]
        return self._look_up(t_ns, np.minimum(next_index, self._passed(overdue_ns)))

    def _look_up(self, t_ns: np.ndarray, known: np.ndarray) -> np.ndarray:
        """(2 + S, N) of ticks (N,) known as such from log indices (N,) on: times, codes, rows in the S buffers."""
        decided = self._decided(t_ns, known) if self._latched else known
        table = np.zeros((2 + len(self._streams), len(t_ns)), np.int64)
        table[0], codes = t_ns, table[1]
        for index, (buffer, stream) in reversed(list(enumerate(self._streams))):  # the first stream's fault wins
            row = np.searchsorted(buffer.t_ns, t_ns, "right") - 1
            if stream.max_age_ns is None:
                row = np.minimum(row, np.searchsorted(buffer.log_index, decided, "right") - 1)
            age_ns = t_ns - np.append(buffer.t_ns, END)[row]  # negative where there is no row
            table[2 + index] = row
            for kind, bad in (
                (NOT_FINITE, ~np.append(buffer.finite, True)[row]),
                (STALE, age_ns > (END if stream.max_age_ns is None else stream.max_age_ns)),
                (MISSING, row < 0),
            ):
                if bad.any():
                    detail = self._detail(kind, buffer, row[bad], age_ns[bad])
                    codes[bad] = 1 + 3 * (detail * len(self._streams) + index) + kind
        return table

    def _detail(self, kind: int, buffer: SampleBuffer, row: np.ndarray, age_ns: np.ndarray) -> np.ndarray | int:
        """The detail of a fault in its code: the first non-finite field, or the age in ms."""
        if kind == NOT_FINITE:
            return np.argmin(np.isfinite(buffer.values[row]), axis=1)
        return np.rint(age_ns / 1e6).astype(np.int64) if kind == STALE else 0

    def _decided(self, t_ns: np.ndarray, known: np.ndarray) -> np.ndarray:
        """(N,) the log index at which ObservationAligner decides on each tick."""
        reached = np.zeros(len(t_ns), np.int64)
        for buffer, stream in self._streams:
            if stream.max_age_ns is not None:
                log_index = np.append(buffer.log_index, END)
                reached = np.maximum(reached, log_index[np.searchsorted(buffer.t_ns, t_ns, "left")])
        return np.maximum(known, np.minimum(reached, self._passed(t_ns)))

    def _passed(self, t_ns: np.ndarray) -> np.ndarray:
        """(N,) the log index, in or after this block, from which `t_ns` is no longer waited for."""
        return self._horizon_index[np.searchsorted(self._horizon_ns, t_ns + self.patience_ns, "right")]

    def _gather(self, table: np.ndarray) -> Frames:
        """The frames of a table from `_look_up`."""
        t_ns, codes, *rows = table
        good = codes == 0 if codes.any() else slice(None)  # a slice copies nothing
        observations = np.full((len(t_ns), self.contract.observation_dim), np.nan)
        end = 0
        for (buffer, stream), row in zip(self._streams, rows, strict=True):
            begin, end = end, end + len(stream.names)
            observations[good, begin:end] = buffer.values[row[good]]
        return Frames(t_ns, codes, observations)
