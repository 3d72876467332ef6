# SPDX-License-Identifier: Apache-2.0
"""The figure of the context's way: from the prior through the context space to its place, over an episode."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from spc_core.pages.context_space import project
from spc_core.pages.figures import CYCLIC, FamilyRun, varying_params
from spc_core.pages.kit.style import INK, style
from spc_core.trials.protocol import EpisodeResult

MAX_TASKS = 24  # lines that still can be told apart


def context_path(run: FamilyRun) -> go.Figure | None:
    """zero_shot episodes of the first training seed, one of each task; None where none was followed."""
    rows = next(iter(run.results.values()), [])
    found = {row.task_id: row for row in reversed(rows) if row.protocol == "zero_shot" and len(row.trajectory) > 2}
    chosen = [found[task] for task in sorted(found)[:MAX_TASKS]]
    if not chosen:
        return None
    ways_there = [_with_end(row) for row in chosen]
    paths = [np.array([z for _, z in way], dtype=float) for way in ways_there]
    flat, shares = project(np.concatenate(paths))
    ends = np.cumsum([len(path) for path in paths])
    titles = [f"through the context space, {shares[0]:.0%} + {shares[1]:.0%} of the variance", "share of the way left"]
    figure = make_subplots(cols=2, subplot_titles=titles, horizontal_spacing=0.09)
    ways = []
    parts = zip(chosen, ways_there, paths, np.split(flat, ends[:-1]), _colours(chosen), strict=True)
    for row, there, path, places, colour in parts:
        counts = [count for count, _ in there]
        far = np.linalg.norm(path - path[-1], axis=1)
        way = far / (far.max() or 1.0)
        ways.append(dict(zip(counts, way.tolist(), strict=True)))
        about = [f"{row.task_id}, {count} transitions" for count in counts]
        _add_episode(figure, about, places, counts, way, colour)
    counts = sorted(set().union(*ways))
    middle = [float(np.median([way[count] for way in ways if count in way])) for count in counts]
    figure.add_scatter(
        x=counts, y=middle, mode="lines", line={"width": 3, "color": INK}, showlegend=False,
        hovertemplate="median: %{y:.0%}<extra></extra>", row=1, col=2,
    )  # fmt: skip
    figure.update_xaxes(title="axis 1", showticklabels=False, ticks="", showgrid=False, row=1, col=1)
    figure.update_yaxes(title="axis 2", showticklabels=False, showgrid=False, zeroline=False, row=1, col=1)
    figure.update_xaxes(title="transitions seen", rangemode="tozero", row=1, col=2)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", row=1, col=2)
    return style(figure, 330, top=40)


def _add_episode(
    figure: go.Figure, about: list[str], places: np.ndarray, counts: list[int], way: np.ndarray, colour: str
) -> None:
    """One episode: its path on the left, with a cross where it begins; on the right how far it has still to go."""
    common = {"text": about, "showlegend": False, "row": 1}
    figure.add_scatter(
        x=places[:, 0], y=places[:, 1], mode="lines+markers", line={"width": 1.5, "color": colour},
        marker={"size": [*[3] * (len(places) - 1), 11], "color": colour, "line": {"width": 0}},
        hovertemplate="%{text}<extra></extra>", col=1, **common,
    )  # fmt: skip
    figure.add_scatter(
        x=counts, y=way, mode="lines", line={"width": 1, "color": colour}, opacity=0.5,
        hovertemplate="%{text}: %{y:.0%}<extra></extra>", col=2, **common,
    )  # fmt: skip
    figure.add_scatter(
        x=places[:1, 0], y=places[:1, 1], mode="markers", showlegend=False, hoverinfo="skip", row=1, col=1,
        marker={"symbol": "x-thin", "size": 12, "line": {"width": 2.5, "color": INK}},
    )  # fmt: skip


def _with_end(row: EpisodeResult) -> list[list]:
    """The trajectory, which is kept at a few counts only, up to the episode's last context."""
    more = [[row.context_count, row.context]] if row.context_count > row.trajectory[-1][0] else []
    return [*row.trajectory, *more]


def _colours(rows: list[EpisodeResult]) -> list[str]:
    """By the first parameter that tells the tasks apart; an angle's colours close into a ring."""
    names = varying_params([row.params for row in rows], [row.split for row in rows])[:1]
    values = np.array([row.params[names[0]] if names else i for i, row in enumerate(rows)], dtype=float)
    cyclic = bool(names) and names[0] == CYCLIC
    places = values % (2 * np.pi) / (2 * np.pi) if cyclic else (values - values.min()) / (np.ptp(values) or 1.0)
    return [str(colour) for colour in sample_colorscale("Phase" if cyclic else "Viridis", places.tolist())]
