# SPDX-License-Identifier: Apache-2.0
"""The figures of the context: task vectors in two dimensions, and the way of one through an episode."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from spc_core.pages.figures import CYCLIC, SYMBOLS, UNITS, FamilyRun, varying_params
from spc_core.pages.kit.style import INK, stacked, style
from spc_core.trials.protocol import EpisodeResult

MAX_SEEDS = 4  # panels in a row
MIN_COLUMNS = 3  # fewer panels leave a blank instead of widening
KINDS = {"few_shot": "few_shot", "zero_shot": "zero_shot", "train": "training task"}


@dataclass(frozen=True)
class Point:
    """One task vector."""

    kind: str  # few_shot | zero_shot | train
    split: str
    task_id: str
    params: Mapping[str, float]
    vector: tuple[float, ...]


def points_of(run: FamilyRun, seed: int) -> list[Point]:
    """Task vectors of a training seed: few_shot at the largest K, zero_shot at the end, training means."""
    largest = max(run.sizes(), default=0)

    def shown(row: EpisodeResult) -> bool:
        return bool(row.context) and (row.protocol, row.k) in (("few_shot", largest), ("zero_shot", 0))

    rows = [row for row in run.results[seed] if shown(row)]
    points = [Point(r.protocol, r.split, r.task_id, r.params, tuple(r.context)) for r in rows]
    points += [Point("train", "train", "training task", p, tuple(v)) for p, v in run.task_means.get(seed, ())]
    # A frozen context appears once for each of its episodes.
    return list({(p.kind, p.task_id, p.vector): p for p in points}.values())


def project(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (N, Z) on their two principal axes (N, 2), and each axis's share of the variance (2,)."""
    centred = vectors - vectors.mean(axis=0)
    _, scales, axes = np.linalg.svd(centred, full_matrices=False)
    axes *= np.where(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)] < 0, -1, 1)[:, None]  # one sign
    kept = min(2, len(axes))
    flat, shares = np.zeros((len(vectors), 2)), np.zeros(2)
    flat[:, :kept] = centred @ axes[:kept].T
    shares[:kept] = scales[:kept] ** 2 / max(float((scales**2).sum()), 1e-300)  # 0 without any spread
    return flat, shares


def context_space(run: FamilyRun) -> go.Figure | None:
    """Task vectors in two dimensions: a column for each training seed, a row for each task parameter."""
    clouds = {seed: points_of(run, seed) for seed in run.results}
    clouds = {seed: points for seed, points in list(clouds.items())[:MAX_SEEDS] if len(points) > 1}
    rows = [row for _, row in run.scored()]
    tasks = {row.task_id: row for row in rows}.values()
    names = varying_params([t.params for t in tasks], [t.split for t in tasks])
    if not clouds or not names:
        return None
    flats = {seed: project(np.array([p.vector for p in points])) for seed, points in clouds.items()}
    titles = [f"training seed {seed}<br>{a:.0%} + {b:.0%} of the variance" for seed, (_, (a, b)) in flats.items()]
    columns = max(MIN_COLUMNS, len(clouds))
    specs = [[{}] * len(clouds) + [None] * (columns - len(clouds))] * len(names)
    area, gap = stacked(len(names), panel=270, gap=40)
    figure = make_subplots(
        rows=len(names), cols=columns, specs=specs, subplot_titles=titles, vertical_spacing=gap, horizontal_spacing=0.05
    )
    for number, name in enumerate(names, 1):
        _color_axis(figure, number, len(clouds), name, [p for points in clouds.values() for p in points])
        for column, (seed, points) in enumerate(clouds.items(), 1):
            _panel(figure, points, flats[seed][0], name, number, column)
            figure.update_xaxes(title="axis 1" if number == len(names) else None, row=number, col=column)
    figure.update_yaxes(title="axis 2", col=1)
    _legend(figure, [p for points in clouds.values() for p in points])
    style(figure, area, top=90)
    bare = {"showticklabels": False, "ticks": "", "showgrid": False, "zeroline": False, "mirror": True}
    figure.update_xaxes(**bare)
    return figure.update_yaxes(**bare)


def _panel(figure: go.Figure, points: Sequence[Point], flat: np.ndarray, name: str, row: int, column: int) -> None:
    groups: dict[tuple[str, str], list[int]] = {}
    for i, point in enumerate(points):
        if name in point.params:
            groups.setdefault((point.kind, point.split), []).append(i)
    for (kind, split), members in groups.items():
        chosen = [points[i] for i in members]
        values = [p.params[name] % math.tau if name == CYCLIC else p.params[name] for p in chosen]
        marker = {"symbol": _symbol(kind, split), "color": values, "coloraxis": f"coloraxis{row}"}
        solid = {"size": 12, "line": {"width": 0.5, "color": INK}}
        figure.add_scatter(
            x=flat[members, 0].tolist(), y=flat[members, 1].tolist(), mode="markers", showlegend=False,
            marker=marker | (solid if kind == "few_shot" else {"size": 9, "line": {"width": 2}}),
            text=[f"{p.task_id}, {KINDS[kind]}: {name} {p.params[name]:.2f}" for p in chosen],
            hovertemplate="%{text}<extra></extra>", row=row, col=column,
        )  # fmt: skip


def _symbol(kind: str, split: str) -> str:
    if kind == "train":
        return "x-thin-open"
    symbol = SYMBOLS.get(split, "square")
    return symbol if kind == "few_shot" else f"{symbol}-open"


def _color_axis(figure: go.Figure, row: int, columns: int, name: str, points: Sequence[Point]) -> None:
    """The colour bar of a row of `columns` panels; an angle's colours are cyclic."""
    values = [p.params[name] for p in points if name in p.params]
    text = f"{name} [{UNITS[name]}]" if name in UNITS else name
    low, high = next(iter(figure.select_yaxes(row=row, col=1))).domain
    right = next(iter(figure.select_xaxes(row=row, col=columns))).domain[1]
    bar = {
        "title": {"text": text, "side": "right", "font": {"size": 14}},
        **{"thickness": 14, "x": right + 0.01, "y": (low + high) / 2, "len": high - low},
    }
    axis = {"colorscale": "Viridis", "cmin": min(values), "cmax": max(values)}
    if name == CYCLIC:
        bar |= {"tickvals": [i * math.pi / 2 for i in range(5)], "ticktext": ["0", "π/2", "π", "3π/2", "2π"]}
        axis = {"colorscale": "Phase", "cmin": 0, "cmax": math.tau}
    figure.update_layout({f"coloraxis{row}": {**axis, "colorbar": bar}})


def _legend(figure: go.Figure, points: Sequence[Point]) -> None:
    """The meaning of the shapes, in grey, since colours belong to the colour bar."""
    shapes = {(p.kind, p.split) for p in points}
    for kind, split in sorted(shapes, key=lambda shape: (shape[0] == "train", shape[1], shape[0])):
        name = KINDS[kind] if kind == "train" else f"{split}, {KINDS[kind]}"
        line = {"width": 0 if kind == "few_shot" else 2}
        marker = {"symbol": _symbol(kind, split), "size": 11, "color": "#666", "line": line}
        figure.add_scatter(x=[None], y=[None], mode="markers", name=name, marker=marker, row=1, col=1)


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
