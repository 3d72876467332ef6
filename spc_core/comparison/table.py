# SPDX-License-Identifier: Apache-2.0
"""The table of a comparison: one row for each method, split and protocol, as JSON and as Markdown."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from spc_core.comparison.statistics import (
    UNKNOWN,
    Interval,
    mean_interval,
    probability_interval,
    probability_of_improvement,
    return_grid,
)
from spc_core.tasks import SPLITS
from spc_core.trials.protocol import PROTOCOLS, EpisodeResult, protocol_label
from spc_core.trials.scores import NO_SCALE, normalise

FALLBACK = ("zero_shot", 0)  # protocol of methods with a fixed context

Key = tuple[str, str, int]  # split, protocol, transitions of a few-shot context


@dataclasses.dataclass(frozen=True)
class MethodResults:
    """All results of one method."""

    name: str
    fixed_context: bool  # all protocols give the same
    episodes: Mapping[int, Sequence[EpisodeResult]]  # by training seed
    training_s: Mapping[int, float]  # by training seed


@dataclasses.dataclass(frozen=True)
class References:
    """The two ends of the scale, independent of all methods: returns by (task id, episode seed).

    Empty for a family without an expert.
    """

    uninformed: Mapping[tuple[str, int], float]  # 0: the expert that does not know the task
    expert: Mapping[tuple[str, int], float]  # 1: the expert that knows the task


@dataclasses.dataclass(frozen=True)
class Row:
    """One method under one protocol on one split; intervals are of 95 %."""

    method: str
    split: str
    protocol: str
    k: int  # transitions of a few-shot context; 0 in other protocols
    mean: float  # return per episode, over tasks, seeds and episodes
    normalised: float  # 0: the expert that does not know the task; 1: the one that knows it
    interval: Interval  # of `normalised`; seeds redrawn separately for each task
    interval_by_seed: Interval  # the same with whole training seeds redrawn
    reference: str  # the method to compare with
    reference_better: float  # probability that it has the higher return
    better_interval: Interval
    better_interval_by_seed: Interval
    seeds: int
    tasks: int
    training_min: float  # of one seed

    @property
    def key(self) -> Key:
        return self.split, self.protocol, self.k


def compare_rows(methods: Sequence[MethodResults], references: References, reference: str) -> list[Row]:
    """Rows by split, protocol, and method in the given order; methods without a finished seed have none.

    A method with a fixed context has a row for every protocol, with the returns of its one protocol.
    """
    grids = {m.name: _grids(m) for m in methods if m.episodes}
    order = {split: number for number, split in enumerate(("id", "ood", *SPLITS))}
    keys = {key for found in grids.values() for key in found}
    rows = []
    for key in sorted(keys, key=lambda key: (order[key[0]], PROTOCOLS.index(key[1]), key[2])):
        shared = {}
        for method in methods:
            found = grids.get(method.name, {})
            grid = found.get(key, found.get((key[0], *FALLBACK)) if method.fixed_context else None)
            if grid is not None:
                shared[method.name] = grid
        low, high = (_reference_mean(methods, ends, key[0]) for ends in (references.uninformed, references.expert))
        for method in methods:
            if method.name in shared:
                rows.append(_row(method, key, shared[method.name], shared.get(reference), low, high, reference))
    return rows


def _grids(method: MethodResults) -> dict[Key, np.ndarray]:
    """Mean returns (S, N) by split and protocol."""
    returns: dict[Key, dict[tuple[int, str], list[float]]] = {}
    for seed, rows in method.episodes.items():
        for row in rows:
            if row.scored:
                cells = returns.setdefault((row.split, row.protocol, row.k), {})
                cells.setdefault((seed, row.task_id), []).append(row.return_)
    return {key: return_grid(cells) for key, cells in returns.items()}


def _reference_mean(methods: Sequence[MethodResults], ends: Mapping[tuple[str, int], float], split: str) -> float:
    """The mean over the split's scored episodes, each counted once; NaN for a family without an expert."""
    episodes = {(r.task_id, r.seed) for m in methods for rows in m.episodes.values() for r in rows
                if r.scored and r.split == split}  # fmt: skip
    return float(np.mean([ends[episode] for episode in sorted(episodes)])) if ends else math.nan


def _row(
    method: MethodResults, key: Key, grid: np.ndarray, other: np.ndarray | None, low: float, high: float, reference: str
) -> Row:
    def scaled(interval: Interval) -> Interval:
        return normalise(interval[0], low, high), normalise(interval[1], low, high)

    better, spans = math.nan, [UNKNOWN, UNKNOWN]
    if other is not None and method.name != reference:
        better = probability_of_improvement(other, grid)
        spans = [probability_interval(other, grid, rows) for rows in (False, True)]
    return Row(
        method.name, *key,
        mean=float(grid.mean()),
        normalised=normalise(float(grid.mean()), low, high),
        interval=scaled(mean_interval(grid)),
        interval_by_seed=scaled(mean_interval(grid, whole_rows=True)),
        reference=reference,
        reference_better=better,
        better_interval=spans[0],
        better_interval_by_seed=spans[1],
        seeds=len(grid),
        tasks=grid.shape[1],
        training_min=float(np.mean(list(method.training_s.values()))) / 60 if method.training_s else math.nan,
    )  # fmt: skip


def markdown(rows: Sequence[Row]) -> str:
    """The rows as Markdown tables, one for each split and protocol, best method first."""
    parts = [(SCALE if has_scale(rows) else f"{NO_SCALE}.") + NOTE.format(reference=rows[0].reference)]
    for key in dict.fromkeys(row.key for row in rows):
        chosen = ranked([row for row in rows if row.key == key])
        head = ["method", "return", "normalised", "95 %", "95 % by seed", f"P({chosen[0].reference} better)", "95 %",
                "seeds", "training, min"]  # fmt: skip
        lines = [head, ["---"] + ["--:"] * (len(head) - 1), *(_cells(row) for row in chosen)]
        title = f"### {key[0]}, {protocol_label(*key[1:])} ({chosen[0].tasks} tasks)"
        parts.append("\n".join([title, "", *("| " + " | ".join(line) + " |" for line in lines)]))
    return "\n\n".join(parts) + "\n"


def has_scale(rows: Sequence[Row]) -> bool:
    """Whether any return could be normalised."""
    return any(math.isfinite(row.normalised) for row in rows)


SCALE = """normalised: 1 is the expert that knows the task, 0 the one that does not: written by hand, it assumes the
family's mean task, learnt, it is told nothing; both are the same for all methods."""
NOTE = """ 95 %: percentile intervals of a bootstrap stratified by task, as in arXiv 2108.13264;
"by seed" redraws whole training seeds, which is wider where one agent is good or bad at all tasks.
P({reference} better): probability that a seed of {reference} has the higher return on a task, ties half."""


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The best method first."""
    return sorted(rows, key=lambda row: -row.mean)


def _cells(row: Row) -> list[str]:
    def known(value: float) -> str:
        return "–" if math.isnan(value) else f"{value:.2f}"

    return [
        row.method, f"{row.mean:.2f}", known(row.normalised), span(row.interval), span(row.interval_by_seed),
        known(row.reference_better),
        span(row.better_interval), str(row.seeds), f"{row.training_min:.1f}",
    ]  # fmt: skip


def span(interval: Interval, digits: int = 2) -> str:
    """An interval as text; a dash if it is unknown."""
    return "–" if math.isnan(interval[0]) else " … ".join(f"{end:.{digits}f}".replace("-", "−") for end in interval)
