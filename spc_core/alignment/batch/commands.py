# SPDX-License-Identifier: Apache-2.0
"""Which state a command answers, and how long it holds: the batch version of what streaming.py does."""

from __future__ import annotations

import dataclasses

import numpy as np

from spc_core.alignment import NO_TIME
from spc_core.alignment.batch.sampling import END, Frames, Samples


class Answers:
    """Recent samples of the first stream: the batch version of Answers in streaming.py."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.t_ns, self._log_index = np.zeros(0, np.int64), np.zeros(0, np.int64)

    def states(self, samples: Samples, admitted: np.ndarray) -> None:
        """Further samples, of which the (N,) mask tells those that are used."""
        self.t_ns = np.concatenate([self.t_ns, samples.t_ns[admitted]])
        self._log_index = np.concatenate([self._log_index, samples.log_index[admitted]])

    def later_ns(self, commands: Samples) -> np.ndarray:
        """(N,) 1 for each command with the stamp of a state that was logged before it, else 0."""
        row = np.searchsorted(self.t_ns, commands.t_ns)
        same = np.append(self.t_ns, END)[row] == commands.t_ns
        return (same & (np.append(self._log_index, END)[row] < commands.log_index)).astype(np.int64)

    def forget(self, t_ns: int) -> None:
        begin = int(np.searchsorted(self.t_ns, t_ns))
        self.t_ns, self._log_index = self.t_ns[begin:], self._log_index[begin:]


@dataclasses.dataclass(frozen=True)
class HoldState:
    """The last tick with an observation, and the time up to which no command holds, since a pause came after it."""

    observed_ns: int = NO_TIME
    since_ns: int = NO_TIME

    def over(self, frames: Frames, gap_ns: float) -> Holds:
        """The states at (N,) ticks, of which the first one is that of this state."""
        observed_ns = np.where(frames.codes == 0, frames.t_ns, NO_TIME)
        observed_ns[0] = self.observed_ns
        observed_ns = np.maximum.accumulate(observed_ns)
        before_ns = np.append(NO_TIME, observed_ns[:-1])
        paused = (before_ns > NO_TIME) & (observed_ns - before_ns >= gap_ns)
        since_ns = np.where(paused, frames.t_ns, NO_TIME)
        since_ns[0] = self.since_ns
        return Holds(observed_ns, np.maximum.accumulate(since_ns))


@dataclasses.dataclass(frozen=True)
class Holds:
    """HoldState of N ticks."""

    observed_ns: np.ndarray  # (N,)
    since_ns: np.ndarray  # (N,)

    def at(self, tick: int) -> HoldState:
        return HoldState(int(self.observed_ns[tick]), int(self.since_ns[tick]))
