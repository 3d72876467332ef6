# SPDX-License-Identifier: Apache-2.0
"""The style of all figures."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

INK, FAINT = "#222222", "#e6e6e6"
# Okabe and Ito's colours, distinguishable by colour-blind readers
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, YELLOW = "#56B4E9", "#D55E00", "#F0E442"
SERIES = (BLUE, ORANGE, GREEN, PINK, SKY, RED, "#666666")


def stacked(rows: int, panel: int, gap: int) -> tuple[int, float]:
    """Height in pixels of `rows` panels with gaps between, and one gap as a share of it."""
    area = rows * panel + (rows - 1) * gap
    return area, gap / area


def style(figure: go.Figure, area: int, top: int = 76) -> go.Figure:
    """Apply the shared style; `area` is the height in pixels enclosed by the axes."""
    figure.update_layout(
        template="plotly_white", height=area + top + 64, margin={"l": 70, "r": 20, "t": top, "b": 64},
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 14, "color": INK},
        legend={"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top"},
        hoverlabel={"font_size": 13},
    )  # fmt: skip
    figure.update_annotations(font_size=14)
    figure.update_annotations(yshift=5, selector={"yref": "paper"})  # panel titles, clear of the panels
    figure.update_xaxes(
        showline=True, linecolor="#888", ticks="outside", tickcolor="#888", gridcolor=FAINT, zeroline=False
    )
    figure.update_yaxes(showline=True, linecolor="#888", gridcolor=FAINT, zerolinecolor="#888", title_font_size=14)
    figure.update_xaxes(title_font_size=14)
    return figure


def band(figure: go.Figure, xs: list, lows: list, highs: list, pale: str, **options: Any) -> None:
    """Fill the area between two lines over the same xs."""
    figure.add_scatter(
        x=xs + xs[::-1], y=[*highs, *lows[::-1]], fill="toself", fillcolor=pale, mode="lines", line={"width": 0},
        hoverinfo="skip", **options,
    )  # fmt: skip
