# SPDX-License-Identifier: Apache-2.0
"""Uncertainty of returns: stratified bootstrap intervals, and the probability of improvement.

After Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (arXiv 2108.13264).
Reimplemented in numpy, since the paper's package `rliable` needs arch, pandas, statsmodels and seaborn.

Returns are grids (S, N): a row for each training seed, a column for each task, episodes already averaged.
The paper's runs are independent in every cell. Ours are not: one trained agent fills a row. Where its returns on the
tasks are correlated, intervals that redraw each cell separately are too narrow, so whole rows can be redrawn too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

DRAWS = 2000  # bootstrap samples
CONFIDENCE = 0.95
UNKNOWN = (math.nan, math.nan)  # the interval of a single seed

Interval = tuple[float, float]


def return_grid(returns: Mapping[tuple[int, str], Sequence[float]]) -> np.ndarray:
    """Returns of episodes by (training seed, task) as a grid (S, N) of means. Raises ValueError for an empty cell."""
    seeds, tasks = sorted({seed for seed, _ in returns}), sorted({task for _, task in returns})
    for seed in seeds:
        for task in tasks:
            if not returns.get((seed, task)):
                raise ValueError(f"training seed {seed} has no episode of task '{task}'; evaluate it on the same tasks")
    return np.array([[np.mean(returns[seed, task]) for task in tasks] for seed in seeds])


def redraw(
    grid: np.ndarray,
    rng: np.random.Generator,
    whole_rows: bool = False,
    redraw_tasks: bool = False,
    draws: int = DRAWS,
) -> np.ndarray:
    """Bootstrap samples (draws, S, N) of a grid (S, N): seeds redrawn with replacement, separately for each task.

    With `whole_rows` all tasks of a sample share the redrawn seeds; with `redraw_tasks` tasks are redrawn as well.
    """
    seeds, tasks = grid.shape
    rows = rng.integers(seeds, size=(draws, seeds, 1 if whole_rows else tasks))
    columns = rng.integers(tasks, size=(draws, 1, tasks)) if redraw_tasks else np.arange(tasks)
    return grid[rows, columns]


def mean_interval(grid: np.ndarray, whole_rows: bool = False, redraw_tasks: bool = False) -> Interval:
    """The 95 % percentile interval of the mean of a grid (S, N), whose missing cells are NaN.

    Unknown (NaN) for a single seed, unless tasks are redrawn.
    """
    if len(grid) < 2 and not redraw_tasks:
        return UNKNOWN
    samples = redraw(grid, np.random.default_rng(0), whole_rows, redraw_tasks)
    samples = samples[np.isfinite(samples).any(axis=(1, 2))]
    return _percentiles(np.nanmean(samples, axis=(1, 2)))


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> float:
    """P(X > Y) of two grids (S, N) and (R, N): the share of pairs of seeds in which x wins, averaged over tasks.

    Ties count half: for each task the Mann-Whitney U statistic divided by S R.
    """
    return float(_wins(x[None], y[None])[0])


def probability_interval(x: np.ndarray, y: np.ndarray, whole_rows: bool = False) -> Interval:
    """The 95 % percentile interval of P(X > Y); unknown (NaN) where either has a single seed."""
    if min(len(x), len(y)) < 2:
        return UNKNOWN
    rng = np.random.default_rng(0)
    return _percentiles(_wins(redraw(x, rng, whole_rows), redraw(y, rng, whole_rows)))


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(D, S, N) and (D, R, N) to (D,): mean over pairs of seeds and tasks of 1 for x > y, 1/2 for a tie, else 0."""
    wins = np.zeros(len(x))
    for row in range(y.shape[1]):  # one row at a time, for memory
        wins += ((np.sign(x - y[:, row : row + 1]) + 1) / 2).mean(axis=(1, 2))
    return wins / y.shape[1]


def _percentiles(values: np.ndarray) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)
