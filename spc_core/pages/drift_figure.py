# SPDX-License-Identifier: Apache-2.0
"""The figure of the drift test: how the context and the reward recover from a change of task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from spc_core.pages.kit.style import style
from spc_core.trials.drift import BEFORE, FOLLOWED, WINDOW, DriftRun

COLOURS = {
    "kept": ("#0072B2", "rgba(0,114,178,0.16)"),
    "noticed": ("#CC79A7", "rgba(204,121,167,0.16)"),
    "reset": ("#D55E00", "rgba(213,94,0,0.16)"),
    "fading": ("#009E73", "rgba(0,158,115,0.16)"),
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
        figure.add_scatter(
            x=steps + steps[::-1], y=[*high, *low[::-1]], fill="toself", fillcolor=pale, mode="lines",
            line={"width": 0}, hoverinfo="skip", showlegend=False, legendgroup=strategy, row=1, col=1,
        )  # fmt: skip
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
