# SPDX-License-Identifier: Apache-2.0
"""The report's data of a task family, and the figures of its returns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from spc_core.comparison.statistics import mean_interval
from spc_core.pages.kit.style import BLUE, GREEN, INK, ORANGE, PINK, RED, band, stacked, style
from spc_core.pages.stills import Stills
from spc_core.trials.drift import DriftRun
from spc_core.trials.protocol import EpisodeResult, protocol_label

COLOURS = {
    "no_context": "#999999",
    "zero_shot": ORANGE,
    "few_shot": BLUE,
    "offline": PINK,
    "expert": GREEN,
    "baseline": "#000000",
}
OTHER_COLOUR = RED  # any other protocol
SPLIT_ORDER = ("id", "ood", "val", "train")
SPLIT_NAMES = {
    "id": "id: between the training tasks",
    "ood": "ood: outside the training range",
    "val": "val: between them too, used to choose settings",
    "train": "train: seen in training",
}
SYMBOLS = {"id": "circle", "ood": "diamond", "val": "triangle-up", "train": "cross-thin"}
UNITS = {"angle": "rad", "payload": "kg", "mass": "kg"}  # of task parameters by name
CYCLIC = "angle"  # this parameter is in rad and wraps at 2 pi
MAX_PARAMS = 3  # panels of the context space
MAX_LABELLED = 12  # tasks in a row with room for their parameters


@dataclass(frozen=True)
class FamilyRun:
    """The trials of one task family."""

    family: str
    contract_sha256: str
    results: dict[int, list[EpisodeResult]]  # by training seed
    experts: dict[tuple[str, int], float]  # return of the privileged expert by task id and episode seed
    logs: Mapping[int, Path] = field(default_factory=dict)  # log.csv by training seed
    rate_hz: float | None = None  # of the contract; gives the duration of K transitions
    description: str = ""  # of the family; default: its environment's docstring
    # Mean task vectors of the training tasks, as (params, vector), by training seed
    task_means: Mapping[int, Sequence[tuple[Mapping[str, float], Sequence[float]]]] = field(default_factory=dict)
    drift: Sequence[DriftRun] = ()  # changes of task in mid-episode
    real_time: bool = False  # on a robot; else in lock-step
    stills: Sequence[Stills] = ()  # one episode for each task

    def scored(self) -> list[tuple[int, EpisodeResult]]:
        """(training seed, row) of every scored episode."""
        return [(seed, row) for seed, rows in self.results.items() for row in rows if row.scored]

    def splits(self) -> list[str]:
        """The splits on trial, in the order of the report."""
        present = {row.split for _, row in self.scored()}
        return [split for split in SPLIT_ORDER if split in present] + sorted(present - set(SPLIT_ORDER))

    def sizes(self) -> list[int]:
        """K of the few-shot episodes, ascending."""
        return sorted({row.k for _, row in self.scored() if row.protocol == "few_shot"})


def varying_params(params: Sequence[Mapping[str, float]], groups: Sequence[str]) -> list[str]:
    """Parameters that distinguish tasks, an angle first; `groups` are the tasks' splits.

    Omits parameters that are constant within each split, and those that follow from the others (a goal's coordinates
    from its angle): affine functions of them, and of sine and cosine of an angle, within each split.
    """
    names = sorted({name for p in params for name in p}, key=lambda name: (name != CYCLIC, name))
    members = [[i for i, g in enumerate(groups) if g == group] for group in dict.fromkeys(groups)]
    table = {name: np.array([p.get(name, math.nan) for p in params], dtype=float) for name in names}
    kept: list[str] = []
    for name in names:
        values = table[name]
        if not np.isfinite(values).all() or all(np.ptp(values[m]) < 1e-9 for m in members):
            continue
        known = [np.ones(len(values))]
        for other in kept:
            known += [np.sin(table[other]), np.cos(table[other])] if other == CYCLIC else [table[other]]
        basis = np.stack(known, axis=1)
        if not kept or not all(_explains(basis[m], values[m]) for m in members):
            kept.append(name)
    return kept[:MAX_PARAMS]


def _explains(basis: np.ndarray, values: np.ndarray) -> bool:
    if len(values) <= basis.shape[1]:
        return False  # with few tasks any values would fit
    rest = values - basis @ np.linalg.lstsq(basis, values, rcond=None)[0]
    return float(np.abs(rest).max()) < 1e-6 * (1 + float(np.abs(values).max()))


def cell_grid(cells: Mapping[tuple[int, str], float]) -> np.ndarray:
    """Values by (training seed, task) as a grid (S, N); NaN where a cell is missing."""
    seeds, tasks = dict.fromkeys(s for s, _ in cells), dict.fromkeys(t for _, t in cells)
    return np.array([[cells.get((seed, task), math.nan) for task in tasks] for seed in seeds])


def _cells(rows: Iterable[tuple[int, str, float]]) -> dict[tuple[int, str], float]:
    """Means of (seed, task, return) over episodes."""
    values: dict[tuple[int, str], list[float]] = {}
    for seed, task, value in rows:
        values.setdefault((seed, task), []).append(value)
    return {key: float(np.mean(v)) for key, v in values.items()}


def protocol_cells(run: FamilyRun, split: str, protocol: str, k: int = 0) -> dict[tuple[int, str], float]:
    """Mean returns by (training seed, task); "expert": the privileged expert, if known."""
    rows = [(seed, row) for seed, row in run.scored() if row.split == split]
    if protocol == "expert":
        known = [(seed, row) for seed, row in rows if (row.task_id, row.seed) in run.experts]
        return _cells((seed, row.task_id, run.experts[row.task_id, row.seed]) for seed, row in known)
    return _cells((s, r.task_id, r.return_) for s, r in rows if (r.protocol, r.k) == (protocol, k))


def adaptation_curve(run: FamilyRun) -> go.Figure:
    """Return against the number of context transitions, one panel for each split."""
    sizes = [k for k in run.sizes() if k > 0]  # few_shot(0) equals no_context
    points = [("no_context", 0), *(("few_shot", k) for k in sizes)]
    titles = [SPLIT_NAMES.get(split, split) for split in run.splits()]
    figure = make_subplots(cols=len(titles), shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=titles)
    for column, split in enumerate(run.splits(), 1):
        _curve(figure, run, split, points, column)
        _reference_lines(figure, run, split, column, len(points))
    figure.update_xaxes(
        tickvals=list(range(len(points))), ticktext=["0<br>no_context", *map(str, sizes)],
        range=[-0.4, len(points) - 0.1], title="context transitions K", showgrid=False,
    )  # fmt: skip
    figure.update_yaxes(title="return (sum of rewards)", col=1)
    return style(figure, 290)


def _curve(figure: go.Figure, run: FamilyRun, split: str, points: list[tuple[str, int]], column: int) -> None:
    """Mean, its interval, and each training seed's own mean, at x = 0, 1, 2, ... for `points`."""
    cells = [protocol_cells(run, split, *point) for point in points]
    shown = [(x, c) for x, c in enumerate(cells) if c]
    xs, means = [x for x, _ in shown], [float(np.mean(list(c.values()))) for _, c in shown]
    intervals = [mean_interval(cell_grid(c), whole_rows=True, redraw_tasks=True) for _, c in shown]
    lows, highs = zip(*intervals, strict=True)
    cell, first, blue = {"row": 1, "col": column}, column == 1, COLOURS["few_shot"]
    shown_as = {"name": "95 % interval of the mean", "showlegend": first, "legendgroup": "band"}
    band(figure, xs, list(lows), list(highs), "rgba(0,114,178,0.18)", **shown_as, **cell)
    for number, seed in enumerate(run.results if len(run.results) > 1 else ()):
        values = [[v for (s, _), v in c.items() if s == seed] for _, c in shown]
        figure.add_scatter(
            x=xs, y=[float(np.mean(v)) if v else None for v in values], mode="lines", opacity=0.45,
            line={"width": 1, "color": blue}, hovertemplate=f"training seed {seed}: %{{y:.1f}}<extra></extra>",
            name="one training seed", showlegend=first and number == 0, legendgroup="seed", **cell,
        )  # fmt: skip
    colours = [COLOURS[points[x][0]] for x in xs]
    dots = {"size": 10, "color": colours, "line": {"width": 1.5, "color": "white"}}
    figure.add_scatter(
        x=xs, y=means, mode="lines+markers", line={"width": 3, "color": blue}, marker=dots,
        text=[protocol_label(*points[x]) for x in xs], hovertemplate="%{text}: %{y:.1f}<extra></extra>",
        name="mean over tasks and seeds", showlegend=first, legendgroup="mean", **cell,
    )  # fmt: skip


def _reference_lines(figure: go.Figure, run: FamilyRun, split: str, column: int, points: int) -> None:
    """Lines of expert and zero_shot, named at the right; the higher line has its name above."""
    cells = {name: protocol_cells(run, split, name) for name in ("expert", "baseline", "zero_shot")}
    levels = {name: float(np.mean(list(c.values()))) for name, c in cells.items() if c}
    highest = max(levels, key=lambda name: levels[name], default="")
    for name, level in levels.items():
        figure.add_scatter(
            x=[-0.4, points - 0.1], y=[level, level], mode="lines", showlegend=False, row=1, col=column,
            line={"width": 2, "color": COLOURS[name], "dash": "dot" if name == "zero_shot" else "dash"},
            hovertemplate=f"{name}: %{{y:.1f}}<extra></extra>",
        )  # fmt: skip
        figure.add_annotation(
            x=points - 0.12, y=level, text=name, showarrow=False, xanchor="right",
            yanchor="bottom" if name == highest else "top", row=1, col=column,
        )  # fmt: skip


def task_bars(run: FamilyRun) -> go.Figure:
    """Return of every task under every protocol, next to the expert; a panel for each split."""
    sizes, titles = run.sizes(), [SPLIT_NAMES.get(split, split) for split in run.splits()]
    names = dict.fromkeys(row.protocol for _, row in run.scored())
    bars = [(name, sizes[-1] if name == "few_shot" else 0) for name in names]
    bars += [("expert", 0)] if run.experts else []
    area, gap = stacked(len(titles), panel=240, gap=105)
    figure = make_subplots(rows=len(titles), subplot_titles=titles, vertical_spacing=gap)
    for number, split in enumerate(run.splits(), 1):
        ticks = _task_ticks(run, split)
        for protocol, k in bars:
            cells = protocol_cells(run, split, protocol, k)
            seeds = [[v for (_, t), v in cells.items() if t == task] for task in ticks]
            spread = [float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for v in seeds]
            visible = max(spread) > 1e-9
            error = {"array": spread, "visible": visible, "thickness": 1.2, "width": 3, "color": INK}
            figure.add_bar(
                x=list(range(len(ticks))), y=[float(np.mean(v)) if v else None for v in seeds], error_y=error,
                marker={"color": COLOURS.get(protocol, OTHER_COLOUR)}, text=list(ticks), textposition="none",
                hovertemplate="%{text}: %{y:.1f}", name=protocol_label(protocol, k), legendgroup=protocol,
                showlegend=number == 1, row=number, col=1,
            )  # fmt: skip
        ticks_shown = {"tickvals": list(range(len(ticks))), "ticktext": list(ticks.values())}
        figure.update_xaxes(**ticks_shown, tickangle=0, tickfont_size=12.5, showgrid=False, row=number, col=1)
    figure.update_yaxes(title="return")
    figure.update_layout(bargap=0.25, bargroupgap=0.05, barmode="group")
    return style(figure, area)


def _task_ticks(run: FamilyRun, split: str) -> dict[str, str]:
    """Tasks in the order of their first parameter, and the label below each."""
    params = {row.task_id: row.params for _, row in run.scored() if row.split == split}
    shown = varying_params(list(params.values()), [split] * len(params))[:2]
    lines = shown if len(params) <= MAX_LABELLED else []
    order = sorted(params, key=lambda task: (*(params[task][name] for name in shown[:1]), task))
    return {
        task: "<br>".join([task.rsplit("/", 1)[-1], *(f"{name} {params[task][name]:.2f}" for name in lines)])
        for task in order
    }
