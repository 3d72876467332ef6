# SPDX-License-Identifier: Apache-2.0
"""The figure of the policy's latency from a state's arrival to its command."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import plotly.graph_objects as go

from spc_core.deploy.latency_bins import PER_DECADE, quantile_us
from spc_core.pages.figures import FamilyRun
from spc_core.pages.kit.style import style

SHARES = {"median": 0.5, "99 %": 0.99}
NAME_DECADES = 0.35  # of the axis: about the width of a name
BLUE, RED = "#0072B2", "#D55E00"


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
