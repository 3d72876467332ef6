# SPDX-License-Identifier: Apache-2.0
"""The figure of the context's path from the prior through the context space, over an episode."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from spc_core.pages.context_space import project
from spc_core.pages.figures import CYCLIC, FamilyRun, varying_params
from spc_core.pages.kit.style import INK, style
from spc_core.trials.protocol import EpisodeResult

MAX_TASKS = 24  # lines that are still distinguishable


def context_path(run: FamilyRun) -> go.Figure | None:
    """zero_shot episodes of the first training seed, one of each task; None without such an episode."""
    rows = next(iter(run.results.values()), [])
    found = {row.task_id: row for row in reversed(rows) if row.protocol == "zero_shot" and len(row.trajectory) > 2}
    chosen = [found[task] for task in sorted(found)[:MAX_TASKS]]
    if not chosen:
        return None
    trajectories = [_with_end(row) for row in chosen]
    paths = [np.array([z for _, z in trajectory], dtype=float) for trajectory in trajectories]
    flat, shares = project(np.concatenate(paths))
    ends = np.cumsum([len(path) for path in paths])
    titles = [f"through the context space, {shares[0]:.0%} + {shares[1]:.0%} of the variance", "remaining distance"]
    figure = make_subplots(cols=2, subplot_titles=titles, horizontal_spacing=0.09)
    remaining = []
    parts = zip(chosen, trajectories, paths, np.split(flat, ends[:-1]), _colours(chosen), strict=True)
    for row, trajectory, path, points, colour in parts:
        counts = [count for count, _ in trajectory]
        distance = np.linalg.norm(path - path[-1], axis=1)
        share = distance / (distance.max() or 1.0)
        remaining.append(dict(zip(counts, share.tolist(), strict=True)))
        about = [f"{row.task_id}, {count} transitions" for count in counts]
        _add_episode(figure, about, points, counts, share, colour)
    counts = sorted(set().union(*remaining))
    middle = [float(np.median([shares[count] for shares in remaining if count in shares])) for count in counts]
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
    figure: go.Figure, about: list[str], points: np.ndarray, counts: list[int], share: np.ndarray, colour: str
) -> None:
    """Draw one episode: its path on the left, with a cross at its start; its remaining distance on the right."""
    common = {"text": about, "showlegend": False, "row": 1}
    figure.add_scatter(
        x=points[:, 0], y=points[:, 1], mode="lines+markers", line={"width": 1.5, "color": colour},
        marker={"size": [*[3] * (len(points) - 1), 11], "color": colour, "line": {"width": 0}},
        hovertemplate="%{text}<extra></extra>", col=1, **common,
    )  # fmt: skip
    figure.add_scatter(
        x=counts, y=share, mode="lines", line={"width": 1, "color": colour}, opacity=0.5,
        hovertemplate="%{text}: %{y:.0%}<extra></extra>", col=2, **common,
    )  # fmt: skip
    figure.add_scatter(
        x=points[:1, 0], y=points[:1, 1], mode="markers", showlegend=False, hoverinfo="skip", row=1, col=1,
        marker={"symbol": "x-thin", "size": 12, "line": {"width": 2.5, "color": INK}},
    )  # fmt: skip


def _with_end(row: EpisodeResult) -> list[list]:
    """The trajectory, which is stored at a few counts only, and the episode's last context."""
    more = [[row.context_count, row.context]] if row.context_count > row.trajectory[-1][0] else []
    return [*row.trajectory, *more]


def _colours(rows: list[EpisodeResult]) -> list[str]:
    """By the first parameter that distinguishes the tasks; an angle's colours are cyclic."""
    names = varying_params([row.params for row in rows], [row.split for row in rows])[:1]
    values = np.array([row.params[names[0]] if names else i for i, row in enumerate(rows)], dtype=float)
    cyclic = bool(names) and names[0] == CYCLIC
    positions = values % (2 * np.pi) / (2 * np.pi) if cyclic else (values - values.min()) / (np.ptp(values) or 1.0)
    return [str(colour) for colour in sample_colorscale("Phase" if cyclic else "Viridis", positions.tolist())]
