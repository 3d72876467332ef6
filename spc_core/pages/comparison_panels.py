# SPDX-License-Identifier: Apache-2.0
"""The panels of a comparison's figures, as data for the page and for the SVG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spc_core.comparison.statistics import Interval
from spc_core.comparison.table import Key, Row
from spc_core.pages.figures import SPLIT_NAMES
from spc_core.trials.protocol import protocol_label


@dataclass(frozen=True)
class Mark:
    """One method in a panel: a dot with a thick interval, and a thin one with whole seeds redrawn."""

    name: str
    value: float
    interval: Interval
    interval_by_seed: Interval
    accent: bool  # the reference method


@dataclass(frozen=True)
class Panel:
    """All methods under one protocol on one split, best first."""

    split: str
    protocol: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Picture:
    """Panels in columns by split and rows by protocol, all on the same scale and in the same order of methods."""

    name: str
    x_title: str
    lines: tuple[tuple[float, str], ...]  # reference values and their meanings
    panels: tuple[Panel, ...]
    low: float  # ends of the scale
    high: float

    @property
    def splits(self) -> list[str]:
        return list(dict.fromkeys(panel.split for panel in self.panels))

    @property
    def protocols(self) -> list[str]:
        return list(dict.fromkeys(panel.protocol for panel in self.panels))

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(mark.name for panel in self.panels for mark in panel.marks))


def score_picture(rows: Sequence[Row], keys: Sequence[Key]) -> Picture:
    """Normalised returns with their intervals."""
    shown = [row for row in rows if row.key in keys and math.isfinite(row.normalised)]
    marks = {id(row): (row.normalised, row.interval, row.interval_by_seed) for row in shown}
    lines = ((0.0, "expert that does not know the task"), (1.0, "expert that knows the task"))
    return _picture("scores", "normalised return", lines, shown, marks)


def improvement_picture(rows: Sequence[Row], keys: Sequence[Key]) -> Picture:
    """Probability that the reference method is better than each other one."""
    shown = [row for row in rows if row.key in keys and math.isfinite(row.reference_better)]
    marks = {id(row): (row.reference_better, row.better_interval, row.better_interval_by_seed) for row in shown}
    lines = ((0.5, "equally good"),)
    reference = rows[0].reference
    return _picture("improvement", f"P({reference} has the higher return)", lines, shown, marks, (0.0, 1.0))


def headline_keys(rows: Sequence[Row]) -> list[Key]:
    """Protocols in which methods can adapt: all but no_context, with the largest few-shot size."""
    largest = max((row.k for row in rows), default=0)
    keys = dict.fromkeys(row.key for row in rows)
    return [key for key in keys if key[1] != "no_context" and key[2] in (0, largest)] or list(keys)


def _picture(
    name: str,
    x_title: str,
    lines: tuple[tuple[float, str], ...],
    rows: Sequence[Row],
    marks: dict[int, tuple[float, Interval, Interval]],
    ends: tuple[float, float] | None = None,
) -> Picture:
    order = method_order(rows)
    panels = []
    for key in dict.fromkeys(row.key for row in rows):
        chosen = sorted((row for row in rows if row.key == key), key=lambda row: order.index(row.method))
        dots = tuple(Mark(row.method, *marks[id(row)], accent=row.method == row.reference) for row in chosen)
        panels.append(Panel(key[0], protocol_label(*key[1:]), dots))
    values = [v for row in rows for m in [marks[id(row)]] for v in (m[0], *m[1], *m[2]) if math.isfinite(v)]
    low, high = ends or (min([0.0, *values]), max([1.0, *values]))
    margin = 0.04 * (high - low)
    return Picture(name, x_title, lines, tuple(panels), low - margin, high + margin)


def method_order(rows: Sequence[Row]) -> list[str]:
    """The best method first, by the mean of its normalised returns."""
    scores = {name: [r.normalised for r in rows if r.method == name] for name in dict.fromkeys(r.method for r in rows)}
    return sorted(scores, key=lambda name: -float(np.mean(scores[name])))


def split_title(split: str) -> str:
    return SPLIT_NAMES.get(split, split)
