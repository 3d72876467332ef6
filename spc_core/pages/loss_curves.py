# SPDX-License-Identifier: Apache-2.0
"""The figure of the training losses, from the log.csv of every training seed."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from spc_core.pages.figures import FamilyRun
from spc_core.pages.kit.style import stacked, style


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
