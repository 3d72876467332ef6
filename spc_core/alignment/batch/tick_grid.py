# SPDX-License-Identifier: Apache-2.0
"""The choice of ticks from the first stream's stamps, as in streaming.py."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left, bisect_right

import numpy as np

from spc_core.alignment import NO_TIME
from spc_core.contract.contract import Contract


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
        self._array = stamps
        self._stamps: list[int] = stamps.tolist()
        self._stop = len(good)
        self._good = good.tobytes()
        self._follows = (good & self._in_grid(stamps[: self._stop])).tobytes()
        self._next = bisect_right(self._stamps, state.done_ns)  # the first sample that may be the next tick
        self._last_ns = state.done_ns if state.running else None
        self.rows: list[int] = []  # of each tick its sample, or ~h of held tick number h
        self.held_ns: list[int] = []
        self._held_at: list[int] = []  # index in `rows`

    def _in_grid(self, stamps: np.ndarray) -> np.ndarray:
        """(M,) bool: a tick if the previous sample is one."""
        gaps = np.diff(stamps, prepend=stamps[:1])
        nearest = np.abs(gaps - self._period_ns) <= np.abs(2 * gaps - self._period_ns)
        return (gaps >= self._early_ns) & (gaps <= self._late_ns) & nearest

    def run(self, max_held: int) -> bool:
        """Find ticks until no more can be decided, or until `max_held` held ones; returns whether there are more."""
        stamps, rows, stop = self._stamps, self.rows, self._stop
        j, last = self._next, self._last_ns
        max_held += len(self.held_ns)
        while len(self.held_ns) < max_held:
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
        else:
            self._next, self._last_ns = j, last
            return True
        self._next, self._last_ns = j, last
        return False

    @property
    def state(self) -> GridState:
        """The state after the last tick."""
        if not self.rows:
            return self._start
        row = self.rows[-1]
        done_ns = self._stamps[row] if row >= 0 else self.held_ns[~row]
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
        self._held_at.append(len(self.rows))
        self.rows.append(~len(self.held_ns))
        self.held_ns.append(due_ns)
        return None if due_ns - self._stamps[k - 1] > self._max_age_ns else due_ns

    def is_stale(self, held_ns: np.ndarray) -> np.ndarray:
        """(H,) bool: the first stream is too old at these ticks, so that the grid restarts after them."""
        newest = np.searchsorted(self._array, held_ns, "right") - 1
        return held_ns - self._array[newest] > self._max_age_ns

    def rewind(self, held: int) -> None:
        """Return to held tick number `held`, which is faulty; the grid restarts after it."""
        del self.rows[self._held_at[held] + 1 :], self._held_at[held + 1 :], self.held_ns[held + 1 :]
        self._next, self._last_ns = bisect_right(self._stamps, self.held_ns[held]), None
