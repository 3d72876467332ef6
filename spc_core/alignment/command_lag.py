# SPDX-License-Identifier: Apache-2.0
"""The time from a state to the command that it caused, and the phase of the ticks that makes it shortest.

Where states come faster than the contract's rate, ticks are every n-th state. Which of the n is the phase: a controller
acts on one of them, and its command follows that one soonest.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEVELS = tuple(range(0, 101, 5))  # percentiles kept of a recording
FEW = 10  # transitions, fewer of which tell nothing
WATCHED = 200  # the newest transitions of a live robot
TOLERANCE = 0.5  # periods by which a robot may differ from the data


@dataclasses.dataclass(frozen=True)
class CommandLag:
    """Of the transitions of a dataset, from a tick to its command, in ms."""

    median_ms: float
    p95_ms: float

    def __str__(self) -> str:
        return f"median {self.median_ms:.1f} ms, 95 % within {self.p95_ms:.1f} ms"

    def as_dict(self) -> dict[str, float]:
        return {"median_ms": round(self.median_ms, 3), "p95_ms": round(self.p95_ms, 3)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CommandLag:
        """Raises ValueError for other contents."""
        try:
            return cls(float(data["median_ms"]), float(data["p95_ms"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"command_lag is {data!r}, without median_ms and p95_ms ({error})") from None

    @classmethod
    def of(cls, lags_ns: np.ndarray) -> CommandLag | None:
        """Of (N,) lags; None for too few."""
        if len(lags_ns) < FEW:
            return None
        median, p95 = np.percentile(lags_ns, (50, 95)) / 1e6
        return cls(float(median), float(p95))

    @classmethod
    def pooled(cls, recordings: Sequence[tuple[int, Sequence[float]]]) -> CommandLag | None:
        """Of several recordings, each its number of transitions and its percentiles in ms."""
        known = [(count, values) for count, values in recordings if values]
        if not known:
            return None
        values = np.concatenate([values for _, values in known])
        weights = np.concatenate([np.full(len(values), count / len(values)) for count, values in known])
        order = np.argsort(values, kind="stable")
        share = np.cumsum(weights[order]) / weights.sum()
        median, p95 = (float(values[order][np.searchsorted(share, level)]) for level in (0.5, 0.95))
        return cls(median, p95)


def percentiles_ms(lags_ns: np.ndarray) -> tuple[float, ...]:
    """Of (N,) lags at LEVELS; empty for too few."""
    if len(lags_ns) < FEW:
        return ()
    return tuple(round(float(value), 3) for value in np.percentile(lags_ns, LEVELS) / 1e6)


def skipped_states(lags_ns: np.ndarray, state_period_ns: float, period_ns: int) -> int:
    """How many states to skip at the start, so that the command follows its tick soonest; 0 where none is nearer."""
    if not state_period_ns > 0 or len(lags_ns) < FEW:
        return 0
    every = round(period_ns / state_period_ns)
    if every < 2:
        return 0
    return min(int((float(np.median(lags_ns)) - 1) // state_period_ns), every - 1)


class LagWatch:
    """The lag of a live robot, its phase, and whether it is that of the training data."""

    def __init__(self, period_ns: int) -> None:
        self._period_ns = period_ns
        self._data: CommandLag | None = None
        self._states_ns: deque[int] = deque(maxlen=WATCHED)
        self.clear()

    def clear(self) -> None:
        """The ticks begin again."""
        self._lags_ns: deque[int] = deque(maxlen=WATCHED)

    def compare_with(self, data: CommandLag | None) -> None:
        """The lag of the model's training data; None if the checkpoint has none."""
        self._data = data

    def state(self, t_ns: int) -> None:
        """A state of the first stream."""
        self._states_ns.append(t_ns)

    def add(self, lag_ns: int) -> None:
        """A transition."""
        self._lags_ns.append(lag_ns)

    def skip(self) -> int:
        """How many states to skip for a better phase; 0 for none."""
        if len(self._states_ns) < FEW or len(self._lags_ns) < FEW:
            return 0
        state_period_ns = float(np.median(np.diff(self._states_ns)))
        return skipped_states(np.array(self._lags_ns), state_period_ns, self._period_ns)

    @property
    def lag(self) -> CommandLag | None:
        return CommandLag.of(np.array(self._lags_ns))

    @property
    def warning(self) -> str:
        """How the lag differs from the data's; empty while it does not, or is unknown."""
        lag, data, allowed_ms = self.lag, self._data, TOLERANCE * self._period_ns / 1e6
        if lag is None or data is None or abs(lag.median_ms - data.median_ms) <= allowed_ms:
            return ""
        return (
            f"commands follow their state after {lag.median_ms:.0f} ms, and after {data.median_ms:.0f} ms in the "
            f"training data, allowed {allowed_ms:.0f} ms apart: record data on this robot, or bring its controller's "
            "timing to theirs"
        )
