# SPDX-License-Identifier: Apache-2.0
"""Observations at ticks from blocks of samples: what ObservationAssembler does one by one, from arrays."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np

from spc_core.alignment.beats import BeatState, BeatWalk
from spc_core.alignment.faults import Fault, FaultKind, stale
from spc_core.alignment.frames import NO_TIME, beat_window_ns
from spc_core.alignment.ticks import Samples
from spc_core.contract.contract import Contract

END = 2**62  # a place in the log, or a stamp, after all others
MISSING, STALE, NOT_FINITE = range(3)
MOST_HELD = 256  # held ticks whose faults are looked up together


class SampleBuffer:
    """The samples of one topic that are still needed, their stamps increasing."""

    def __init__(self, name: str, width: int) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        self._nothing = Samples.none(width)
        self.clear()

    def clear(self) -> None:
        self.newest_ns = NO_TIME
        self.order, self.t_ns, self.values = self._nothing.order, self._nothing.t_ns, self._nothing.values
        self.finite = np.zeros(0, np.bool_)

    def newest_before(self, t_ns: np.ndarray) -> np.ndarray:
        """(N,) the newest stamp before each of N samples that come next."""
        return np.maximum.accumulate(np.concatenate([[self.newest_ns], t_ns]))[:-1]

    def admit(self, samples: Samples) -> np.ndarray:
        """Store what is newer than all before, count the rest; returns (N,) bool, what was stored."""
        newest_ns = self.newest_before(samples.t_ns)
        newer = samples.t_ns > newest_ns
        if not newer.all():
            duplicates = int(np.sum(samples.t_ns == newest_ns))
            late = int(np.sum(~newer)) - duplicates
            self.counts.update({kind: n for kind, n in (("duplicate", duplicates), ("late", late)) if n})
            samples = Samples(samples.order[newer], samples.t_ns[newer], samples.values[newer])
        if len(samples):
            self.order = np.concatenate([self.order, samples.order])
            self.t_ns = np.concatenate([self.t_ns, samples.t_ns])
            self.values = np.concatenate([self.values, samples.values])
            self.finite = np.concatenate([self.finite, np.isfinite(samples.values).all(axis=1)])
            self.newest_ns = int(samples.t_ns[-1])
        return newer

    def forget(self, t_ns: int) -> None:
        """Drop all but the newest sample at or before `t_ns`, and what is newer."""
        begin = int(np.searchsorted(self.t_ns, t_ns, "right")) - 1
        if begin > 0:
            self.order, self.t_ns = self.order[begin:], self.t_ns[begin:]
            self.values, self.finite = self.values[begin:], self.finite[begin:]


@dataclasses.dataclass(frozen=True)
class Frames:
    """N ticks of the observation streams."""

    t_ns: np.ndarray  # (N,) int64
    faults: np.ndarray  # (N,) int64, 0 where there is an observation, else a code for FrameSource.fault
    observations: np.ndarray  # (N, O) float64, NaN where there is a fault

    def part(self, begin: int) -> Frames:
        return Frames(self.t_ns[begin:], self.faults[begin:], self.observations[begin:])

    def followed_by(self, other: Frames) -> Frames:
        return Frames(
            np.concatenate([self.t_ns, other.t_ns]),
            np.concatenate([self.faults, other.faults]),
            np.concatenate([self.observations, other.observations]),
        )

    @classmethod
    def nothing(cls, contract: Contract) -> Frames:
        """One tick before all others, without an observation."""
        return cls(np.array([NO_TIME]), np.ones(1, np.int64), np.full((1, contract.observation_dim), np.nan))


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """Of N ticks what is in each stream: `rows` (S, N) places in the buffers, `faults` (N,) as in Frames."""

    t_ns: np.ndarray
    faults: np.ndarray
    rows: np.ndarray


class FrameSource:
    """Turns blocks of samples of the observation streams into Frames."""

    def __init__(self, contract: Contract, patience_ns: int) -> None:
        self.contract = contract
        self.patience_ns = patience_ns
        self.buffers = [SampleBuffer(stream.topic, len(stream.names)) for stream in contract.observation]
        self._streams = list(zip(self.buffers, contract.observation, strict=True))
        self._latched = any(stream.max_age_ns is None for stream in contract.observation)
        self.hear(np.zeros(0, np.int64), np.zeros(0, np.int64))

    def hear(self, horizon_ns: np.ndarray, order: np.ndarray) -> None:
        """Take note of the newest stamp of all topics (N,) after each of the block's messages, and their places."""
        self._horizon_ns, self._horizon_order = horizon_ns, np.append(order, END)

    def reached_ns(self) -> int:
        """The time that every stream has reached that is waited for."""
        return min(buffer.newest_ns for buffer, stream in self._streams if stream.max_age_ns is not None)

    def frames(self, beat: BeatState, forced_ns: int, limit_ns: int) -> tuple[Frames, BeatState]:
        """The ticks up to `limit_ns`, all that can be known where no sample will come before `forced_ns`."""
        stamps = self.buffers[0].t_ns
        stop = int(np.searchsorted(stamps, limit_ns, "right"))
        chosen = [self._choose(stamps[:stop], self.buffers[0].order[:stop])]
        walk = BeatWalk(self.contract, stamps, chosen[0].faults == 0, beat, forced_ns, limit_ns)
        more, most, seen = True, MOST_HELD, 0
        while more:
            more = walk.run(most)
            held = self._choose_held(np.array(walk.held_ns[seen:], np.int64))
            wrong = (held.faults != 0) & ~walk.is_stale(held.t_ns)
            most = min(2 * most, MOST_HELD)
            if wrong.any():
                end = int(np.argmax(wrong)) + 1
                walk.rewind(seen + end - 1)
                held = _Chosen(held.t_ns[:end], held.faults[:end], held.rows[:, :end])
                more, most = True, 1
            chosen.append(held)
            seen += len(held.t_ns)
        rows = np.array(walk.rows, np.int64)
        return self._gather(chosen, np.where(rows < 0, stop + ~rows, rows)), walk.state

    def fault(self, code: int) -> Fault:
        """The fault of a code in Frames, as in frames.py."""
        rest, kind = divmod(code - 1, 3)
        detail, index = divmod(rest, len(self._streams))
        stream = self.contract.observation[index]
        if kind == STALE:
            return stale(index, stream, detail * 1_000_000)
        if kind == NOT_FINITE:
            return Fault(FaultKind.NOT_FINITE, stream.topic, index, stream.names[detail])
        return Fault(FaultKind.NO_MESSAGE, stream.topic, index)

    def _choose_held(self, t_ns: np.ndarray) -> _Chosen:
        """Ticks where the beat is held: they are known from the next sample on, or once it is overdue by patience."""
        first = self.buffers[0]
        overdue_ns = t_ns - self.contract.period_ns + beat_window_ns(self.contract)[1]
        following = np.append(first.order, END)[np.searchsorted(first.t_ns, overdue_ns, "right")]
        return self._choose(t_ns, np.minimum(following, self._passed(overdue_ns)))

    def _choose(self, t_ns: np.ndarray, known: np.ndarray) -> _Chosen:
        """What stands in each stream at ticks (N,) that are known as such from a place in the log (N,) on."""
        decided = self._decided(t_ns, known) if self._latched else known
        faults, rows = np.zeros(len(t_ns), np.int64), np.empty((len(self._streams), len(t_ns)), np.int64)
        for index, (buffer, stream) in reversed(list(enumerate(self._streams))):  # the first stream's fault counts
            row = np.searchsorted(buffer.t_ns, t_ns, "right") - 1
            if stream.max_age_ns is None:
                row = np.minimum(row, np.searchsorted(buffer.order, decided, "right") - 1)
            age_ns = t_ns - np.append(buffer.t_ns, END)[row]  # of no row negative
            rows[index] = row
            for kind, bad in (
                (NOT_FINITE, ~np.append(buffer.finite, True)[row]),
                (STALE, age_ns > (END if stream.max_age_ns is None else stream.max_age_ns)),
                (MISSING, row < 0),
            ):
                if bad.any():
                    detail = self._detail(kind, buffer, row[bad], age_ns[bad])
                    faults[bad] = 1 + 3 * (detail * len(self._streams) + index) + kind
        return _Chosen(t_ns, faults, rows)

    def _detail(self, kind: int, buffer: SampleBuffer, row: np.ndarray, age_ns: np.ndarray) -> np.ndarray | int:
        """What a code holds of a fault: the first field that is not finite, or the age in ms."""
        if kind == NOT_FINITE:
            return np.argmin(np.isfinite(buffer.values[row]), axis=1)
        return np.rint(age_ns / 1e6).astype(np.int64) if kind == STALE else 0

    def _decided(self, t_ns: np.ndarray, known: np.ndarray) -> np.ndarray:
        """(N,) the place in the log at which ObservationAssembler decides on each tick."""
        reached = np.zeros(len(t_ns), np.int64)
        for buffer, stream in self._streams:
            if stream.max_age_ns is not None:
                order = np.append(buffer.order, END)
                reached = np.maximum(reached, order[np.searchsorted(buffer.t_ns, t_ns, "left")])
        return np.maximum(known, np.minimum(reached, self._passed(t_ns)))

    def _passed(self, t_ns: np.ndarray) -> np.ndarray:
        """(N,) the place in the log, in this block or after it, from which on patience with `t_ns` is over."""
        return self._horizon_order[np.searchsorted(self._horizon_ns, t_ns + self.patience_ns, "right")]

    def _gather(self, chosen: list[_Chosen], ticks: np.ndarray) -> Frames:
        """The frames at the places `ticks` (N,) of all that was chosen."""
        t_ns = np.concatenate([part.t_ns for part in chosen])[ticks]
        faults = np.concatenate([part.faults for part in chosen])[ticks]
        rows = np.concatenate([part.rows for part in chosen], axis=1)[:, ticks]
        sound = faults == 0
        observations = np.full((len(t_ns), self.contract.observation_dim), np.nan)
        end = 0
        for (buffer, stream), row in zip(self._streams, rows, strict=True):
            begin, end = end, end + len(stream.names)
            if sound.all():
                observations[:, begin:end] = buffer.values[row]
            else:
                observations[sound, begin:end] = buffer.values[row[sound]]
        return Frames(t_ns, faults, observations)
