# SPDX-License-Identifier: Apache-2.0
"""Streams whose messages hold some of the fields each, such as joints of an arm and a gripper on one topic. No ROS."""

from __future__ import annotations

import math

import numpy as np

from spc_core.alignment import NO_TIME


class NewestValues:
    """Completes samples with the newest value of each field that a message lacks.

    A message makes a sample if it has the first field, whose driver so sets the times. A field that is older than the
    stream's `max_age_s`, or was never received, is NaN, which cuts.
    """

    def __init__(self, width: int, max_age_s: float) -> None:
        self._width, self._max_age_ns = width, max_age_s * 1e9  # infinite: no limit
        self.reset()

    def reset(self) -> None:
        """Forget all values, before another pass over the log."""
        self.incomplete = 0  # messages at which a field had not been received, or was too old
        self._t_ns = np.full(self._width, NO_TIME)
        self._values = np.full(self._width, math.nan)

    def note(self, t_ns: int, values: np.ndarray) -> None:
        """As complete(), of one message that has all fields (F,)."""
        self._t_ns.fill(t_ns)
        self._values = values

    @property
    def never(self) -> np.ndarray:
        """Indices of the fields that no message has had."""
        return np.flatnonzero(self._t_ns == NO_TIME)

    def complete(
        self, t_ns: np.ndarray, values: np.ndarray, absent: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(rows that make a sample, their (n, F) values) of messages at (N,) times with (N, F) values.

        `absent` (N, F) bool tells which fields a message lacks; None: none does.
        """
        if absent is None:
            self.note(int(t_ns[-1]), values[-1])
            return np.arange(len(t_ns)), values
        rows = np.where(absent, -1, np.arange(len(t_ns))[:, None])
        source = np.maximum.accumulate(rows, axis=0)  # (N, F), -1 for an earlier block
        times = np.where(source < 0, self._t_ns, t_ns[source])
        filled = np.where(source < 0, self._values, np.take_along_axis(values, source, axis=0))
        self._t_ns, self._values = times[-1].copy(), filled[-1].copy()
        stale = (times == NO_TIME) | (np.abs(t_ns[:, None] - times) > self._max_age_ns)
        self.incomplete += int((stale.any(axis=1) & ~absent.all(axis=1)).sum())
        made = np.flatnonzero(~absent[:, 0])
        return made, np.where(stale, math.nan, filled)[made]
