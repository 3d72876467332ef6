# SPDX-License-Identifier: Apache-2.0
"""Streams whose messages hold some of the fields each: joints of an arm and a gripper, transforms of tf. No ROS."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from spc_core.alignment import NO_TIME
from spc_core.contract.frames import pairs_of, split_field

NS_PER_S = 1_000_000_000
Made = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(n,) rows of the messages that make a sample, (n,) times of the samples, (n, F) their values."""


class NewestValues:
    """Completes samples with the newest value of each field that a message lacks.

    A message makes a sample if it has the first field, whose driver so sets the times. A field that is older than the
    stream's `max_age_s`, or was never received, is NaN, which cuts.
    """

    _timed_together = True  # all fields of a message

    def __init__(self, width: int, max_age_s: float) -> None:
        self.width, self._max_age_ns = width, max_age_s * 1e9  # infinite: no limit
        self.reset()

    def reset(self) -> None:
        """Forget all values, before another pass over the log."""
        self.incomplete = 0  # messages at which a field had not been received, or was too old
        self._t_ns = np.full(self.width, NO_TIME)
        self._values = np.full(self.width, math.nan)

    @property
    def never(self) -> np.ndarray:
        """Indices of the fields that no message has had."""
        return np.flatnonzero(self._t_ns == NO_TIME)

    def times(self, t_ns: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(N, F) or (N, 1): when each field of messages at (N,) times was measured."""
        return t_ns[:, None]

    def complete(self, t_ns: np.ndarray, values: np.ndarray, absent: np.ndarray | None) -> Made:
        """The samples that messages at (N,) times with (N, R) numbers make.

        `absent` (N, R) bool tells which numbers a message lacks; None: none does.
        """
        if absent is None and self._timed_together:
            self._t_ns.fill(t_ns[-1])
            self._values = values[-1]
            return np.arange(len(t_ns)), t_ns, values
        own_ns = np.broadcast_to(self.times(t_ns, values), (len(t_ns), self.width))
        values = values[:, : self.width]
        lacks = np.zeros(values.shape, bool) if absent is None else absent[:, : self.width]
        rows = np.where(lacks, -1, np.arange(len(t_ns))[:, None])
        source = np.maximum.accumulate(rows, axis=0)  # (N, F), -1 for an earlier block
        times = np.where(source < 0, self._t_ns, np.take_along_axis(own_ns, source, axis=0))
        filled = np.where(source < 0, self._values, np.take_along_axis(values, source, axis=0))
        self._t_ns, self._values = times[-1].copy(), filled[-1].copy()
        stale = (times == NO_TIME) | (np.abs(t_ns[:, None] - times) > self._max_age_ns)
        self.incomplete += int((stale.any(axis=1) & ~lacks.all(axis=1)).sum())
        return self._made(t_ns, np.where(stale, math.nan, filled), lacks, stale)

    def _made(self, t_ns: np.ndarray, values: np.ndarray, lacks: np.ndarray, stale: np.ndarray) -> Made:
        made = np.flatnonzero(~lacks[:, 0])
        return made, t_ns[made], values[made]


class NewestTransforms(NewestValues):
    """The newest of each transform of tf, each as old as its own stamp says.

    The numbers of a message end with the stamps of the transforms, two for each, as stamp_fields() names them.
    """

    _timed_together = False

    def __init__(self, fields: Sequence[str], max_age_s: float, own_stamps: bool) -> None:
        """`own_stamps`: else a transform is as old as its message."""
        super().__init__(len(fields), max_age_s)
        pairs = pairs_of(fields)
        self._pair = np.array([pairs.index(split_field(field)[0]) for field in fields])
        self._own_stamps = own_stamps

    def stamps(self, values: np.ndarray) -> np.ndarray:
        """(N,) stamps of the first field's transform, 0 where a message lacks it or its stamp is unset."""
        return self._stamps(values)[:, self._pair[0]]

    def _stamps(self, values: np.ndarray) -> np.ndarray:
        """(N, P) stamps of the transforms in (N, R) numbers."""
        parts = np.nan_to_num(values[:, self.width :]).astype(np.int64)
        return parts[:, 0::2] * NS_PER_S + parts[:, 1::2]

    def times(self, t_ns: np.ndarray, values: np.ndarray) -> np.ndarray:
        if not self._own_stamps:
            return t_ns[:, None]
        own_ns = self._stamps(values)[:, self._pair]
        return np.where(own_ns == 0, t_ns[:, None], own_ns)


class StaticTransforms(NewestTransforms):
    """Transforms that hold for all time, before and after their stamps.

    A sample is made when all have come, and again when one is sent anew. They count from before all other samples, in
    the order of their arrival.
    """

    def __init__(self, fields: Sequence[str]) -> None:
        super().__init__(fields, math.inf, own_stamps=False)

    def reset(self) -> None:
        super().reset()
        self._count = 0

    def _made(self, t_ns: np.ndarray, values: np.ndarray, lacks: np.ndarray, stale: np.ndarray) -> Made:
        made = np.flatnonzero(~lacks.all(axis=1) & ~stale.any(axis=1))
        times = np.arange(self._count, self._count + len(made), dtype=np.int64) + 1
        self._count += len(made)
        return made, times, values[made]
