# SPDX-License-Identifier: Apache-2.0
"""Streaming statistics of columns, without all rows in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spc_core.method.normalize import Moments

SAMPLE_ROWS = 65_536  # quantiles are exact up to this many rows, then from a random sample of half to all of it


class RowSample:
    """Rows drawn evenly from all that were added: all of them up to `limit`, then a random share of them."""

    def __init__(self, limit: int = SAMPLE_ROWS, seed: int = 0) -> None:
        self._limit, self._share = limit, 1.0
        self._random = np.random.default_rng(seed)
        self._rows: list[np.ndarray] = []
        self._marks: list[np.ndarray] = []  # uniform in [0, 1), one for each kept row; kept while below the share
        self._count = 0

    def add(self, rows: np.ndarray) -> None:
        """(N, D), or (N,)."""
        marks = self._random.random(len(rows))
        self._keep(rows, marks)
        while self._count > self._limit:
            self._share /= 2
            rows, marks = np.concatenate(self._rows), np.concatenate(self._marks)
            self._rows, self._marks, self._count = [], [], 0
            self._keep(rows, marks)

    def _keep(self, rows: np.ndarray, marks: np.ndarray) -> None:
        below = marks < self._share
        self._rows.append(rows[below])
        self._marks.append(marks[below])
        self._count += int(below.sum())

    def rows(self) -> np.ndarray:
        """(M, D) or (M,), in the order in which they came."""
        if len(self._rows) > 1:
            self._rows, self._marks = [np.concatenate(self._rows)], [np.concatenate(self._marks)]
        return self._rows[0] if self._rows else np.zeros(0)


class ColumnStats:
    """Count, extremes, mean, standard deviation and quantiles of each column of (N, D) rows."""

    def __init__(self, limit: int = SAMPLE_ROWS) -> None:
        self.count = 0
        self._moments = Moments()
        self._sample = RowSample(limit)
        self.low = self.high = np.zeros(0)

    def add(self, rows: np.ndarray) -> None:
        """(N, D), at least one row, of any number type."""
        rows = np.asarray(rows, np.float64)
        low, high = rows.min(0), rows.max(0)
        self.low = low if not self.count else np.minimum(self.low, low)
        self.high = high if not self.count else np.maximum(self.high, high)
        self.count += len(rows)
        self._moments.add(rows)
        self._sample.add(rows)

    @property
    def mean(self) -> np.ndarray:
        return self._moments.mean

    @property
    def std(self) -> np.ndarray:
        return self._moments.std

    def quantiles(self, shares: Sequence[float]) -> np.ndarray:
        """(len(shares), D)."""
        return np.quantile(self._sample.rows(), shares, axis=0)

    def sample(self) -> np.ndarray:
        """(M, D): the rows that the quantiles are taken from."""
        return self._sample.rows()
