# SPDX-License-Identifier: Apache-2.0
"""The report's figures of training losses, of the policy's latency, and of the drift test."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from spc_core.deploy.latency_bins import PER_DECADE, quantile_us
from spc_core.pages.figures import FamilyRun
from spc_core.pages.kit.style import BLUE, GREEN, RED, band, stacked, style
from spc_core.trials.drift import BEFORE, FOLLOWED, WINDOW, DriftRun


def read_log(path: Path) -> dict[str, list[float]]:
    """Columns of a training log, empty if it does not exist; NaN stays NaN."""
    if not path.is_file():
        return {}
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {name: [float(row[name] or math.nan) for row in rows] for name in rows[0]} if rows else {}


def training_curves(run: FamilyRun) -> go.Figure | None:
    """Every loss against updates, one panel each, one thin line for each training seed."""
    logs = {seed: log for seed, path in run.logs.items() if (log := read_log(path))}
    names = list(dict.fromkeys(n for log in logs.values() for n in log if n not in ("update", "seconds")))
    if not names:
        return None
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    area, gap = stacked(rows, panel=150, gap=75)
    figure = make_subplots(rows=rows, cols=columns, subplot_titles=names, vertical_spacing=gap, horizontal_spacing=0.07)
    shades = sample_colorscale("Viridis", [0.1 + 0.7 * i / max(1, len(logs) - 1) for i in range(len(logs))])
    for number, name in enumerate(names):
        row, column = number // columns + 1, number % columns + 1
        for shade, (seed, log) in zip(shades, logs.items(), strict=True):
            figure.add_scatter(
                x=log["update"], y=[v if math.isfinite(v) else None for v in log.get(name, [])], mode="lines",
                line={"width": 1.2, "color": shade}, name=f"training seed {seed}", legendgroup=str(seed),
                connectgaps=True,  # lines of a score have no loss, and the other way round
                showlegend=number == 0, row=row, col=column,
            )  # fmt: skip
        values = np.array([v for log in logs.values() for v in log.get(name, []) if math.isfinite(v)])
        if values.size and values.min() > 0 and values.max() > 20 * values.min():
            ticks = log_ticks(values.min(), values.max())
            figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{v:g}" for v in ticks], row=row, col=column)
        figure.update_xaxes(title="updates" if number + columns >= len(names) else None, row=row, col=column)
    return style(figure, area)


def log_ticks(low: float, high: float) -> list[float]:
    """Round values between low and high, both positive: 1, 2 and 5 within two decades, else powers of ten."""
    low_power, high_power = math.floor(math.log10(low)), math.ceil(math.log10(high))
    digits = (1, 2, 5) if math.log10(high / low) < 2 else (1,)
    every = max(1, round((high_power - low_power) / 5))
    ticks = [digit * 10.0**power for power in range(low_power, high_power + 1, every) for digit in digits]
    return [tick for tick in ticks if low <= tick <= high]


SHARES = {"median": 0.5, "99 %": 0.99}
NAME_DECADES = 0.35  # of the axis: about the width of a name


def all_latency(run: FamilyRun) -> Counter[str]:
    """Ticks by the upper edge of their bin in us, over all episodes, including collection."""
    counts: Counter[str] = Counter()
    for row in (row for rows in run.results.values() for row in rows):
        counts.update(row.latency)
    return counts


def latency_figure(run: FamilyRun) -> go.Figure | None:
    """A histogram over bins of equal ratio, with median, 99 % and the control period; None without data."""
    counts = all_latency(run)
    if not counts:
        return None
    edges = sorted(int(edge) for edge in counts)
    ratio = 10 ** (1 / PER_DECADE)
    figure = go.Figure()
    figure.add_bar(
        x=[edge / 1000 / ratio**0.5 for edge in edges], y=[counts[str(edge)] for edge in edges],
        width=[edge / 1000 * (1 - 1 / ratio) for edge in edges], marker={"color": BLUE}, showlegend=False,
        text=[f"{edge / 1000 / ratio:.3g} to {edge / 1000:.3g} ms" for edge in edges], textposition="none",
        hovertemplate="%{text}: %{y} ticks<extra></extra>",
    )  # fmt: skip
    marks = {name: (quantile_us(counts, share) or 0.0) / 1000 for name, share in SHARES.items()}
    marks = {f"{name} {value:.2g} ms": value for name, value in marks.items()}
    if run.rate_hz:
        marks |= {f"period {1000 / run.rate_hz:.3g} ms": 1000 / run.rate_hz}
    _draw(figure, marks)
    ticks = [base * 10**power for power in range(-2, 4) for base in (1, 2, 5)]
    figure.update_xaxes(
        title="from state to command, ms", type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks]
    )  # fmt: skip
    figure.update_yaxes(title="ticks", rangemode="tozero")
    return style(figure, 240, top=60)


def _draw(figure: go.Figure, marks: Mapping[str, float]) -> None:
    """Vertical lines with their names above the plot; of two close names, the right one is placed higher."""
    before, level = -math.inf, 0
    for name, value in sorted(marks.items(), key=lambda mark: mark[1]):
        position = math.log10(value)
        before, level = position, level + 1 if position - before < NAME_DECADES else 0
        line = {"width": 1.5, "dash": "dot", "color": RED if name.startswith("period") else "#444"}
        figure.add_vline(x=value, line=line)
        figure.add_annotation(
            x=position, y=1.0, yref="y domain", yshift=2 + 17 * level, text=name, showarrow=False,
            yanchor="bottom", xanchor="left",
        )  # fmt: skip


COLOURS = {
    "kept": (BLUE, "rgba(0,114,178,0.16)"),
    "noticed": ("#CC79A7", "rgba(204,121,167,0.16)"),
    "reset": (RED, "rgba(213,94,0,0.16)"),
    "fading": (GREEN, "rgba(0,158,115,0.16)"),
}


def drift_figure(runs: Sequence[DriftRun]) -> go.Figure | None:
    """Distance to the new task's settled context, and reward, by strategy; None without runs."""
    if not runs:
        return None
    titles = ["distance to the new task's context", "reward of a step"]
    figure = make_subplots(cols=2, subplot_titles=titles, horizontal_spacing=0.09)
    for strategy in dict.fromkeys(run.strategy for run in runs):
        chosen = [run for run in runs if run.strategy == strategy]
        colour, pale = COLOURS[strategy]
        distance = np.array([run.distance for run in chosen])
        low, middle, high = np.quantile(distance, (0.25, 0.5, 0.75), axis=0)
        steps = list(range(len(middle)))
        band(figure, steps, list(low), list(high), pale, showlegend=False, legendgroup=strategy, row=1, col=1)
        line = {"width": 3, "color": colour}
        figure.add_scatter(
            x=steps, y=middle, mode="lines", line=line, name=strategy, legendgroup=strategy, row=1, col=1,
            hovertemplate=f"{strategy}, %{{x}} steps after: %{{y:.2f}}<extra></extra>",
        )  # fmt: skip
        rewards = np.mean([run.rewards for run in chosen], axis=0)
        figure.add_scatter(
            x=[WINDOW * (i + 0.5) - BEFORE for i in range(len(rewards))], y=rewards, mode="lines+markers", line=line,
            name=strategy, legendgroup=strategy, showlegend=False, row=1, col=2,
            hovertemplate=f"{strategy}: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    dotted = {"width": 1.5, "dash": "dot", "color": "#888"}
    figure.add_shape(type="line", x0=0, x1=1, xref="x domain", y0=FOLLOWED, y1=FOLLOWED, yref="y", line=dotted)
    figure.add_shape(type="line", x0=0, x1=0, xref="x2", y0=0, y1=1, yref="y2 domain", line=dotted)
    figure.update_xaxes(title="steps after the change")
    figure.update_yaxes(title="share of the distance at the change", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title="mean reward", row=1, col=2)
    return style(figure, 290)
