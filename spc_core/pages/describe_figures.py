# SPDX-License-Identifier: Apache-2.0
"""The figures of a dataset's description."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from spc_core.data.dataset import Episode
from spc_core.data.describe import ENDS, Description, EpisodeLine, Spread, end_of
from spc_core.pages.kit.style import BLUE, GREEN, INK, ORANGE, PINK, RED, SKY, stacked, style

END_COLOURS = {"terminated": GREEN, "truncated": BLUE, "cut": RED}
BEHAVIOUR_COLOURS = (BLUE, ORANGE, "#999999", PINK, GREEN, RED)
LINE_COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, RED, "#000000")
NO_BEHAVIOUR = "not known"
MAX_TASKS = 60  # on an axis; more are downsampled evenly
MAX_PANEL_LABELS = 20  # tasks named below a panel of half width
MAX_DOTS = 4000  # episodes drawn individually
MAX_POINTS = 600  # of a line of a sample episode
LEVEL_TITLE = 30  # px, between two rows of panels
LENGTH_BINS = 40


def shown_tasks(description: Description) -> list[int]:
    """Indices of the tasks shown on an axis."""
    count = len(description.tasks)
    return np.unique(np.linspace(0, count - 1, min(count, MAX_TASKS)).round().astype(int)).tolist()


def short_ids(description: Description) -> list[str]:
    """Task ids without the prefix that all of them share."""
    ids = [task.task_id for task in description.tasks]
    prefix = f"{description.contract.name}/"
    return [task_id.removeprefix(prefix) for task_id in ids] if all(i.startswith(prefix) for i in ids) else ids


def behaviour_colours(description: Description) -> dict[str, str]:
    """A colour for each behaviour, '' included."""
    names = sorted(description.whole.behaviours)
    return {name: BEHAVIOUR_COLOURS[i % len(BEHAVIOUR_COLOURS)] for i, name in enumerate(names)}


def task_counts(description: Description) -> go.Figure:
    """Episodes by who acted, and transitions by how their episodes ended, for each task."""
    tasks, ids = shown_tasks(description), short_ids(description)
    steps = {(number, end): 0 for number in tasks for end in ENDS}
    for line in description.episodes:
        if (line.task, line.end) in steps:
            steps[line.task, line.end] += line.steps
    area, gap = stacked(2, panel=170, gap=LEVEL_TITLE + 14)
    acted = ", by who acted" if set(description.whole.behaviours) != {""} else ""
    titles = [f"episodes{acted}", "transitions, by how their episode ended"]
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=gap, subplot_titles=titles)
    names = [ids[number] for number in tasks]
    for name, colour in behaviour_colours(description).items():
        counts = [description.tasks[number].behaviours.get(name, 0) for number in tasks]
        figure.add_bar(x=names, y=counts, name=name or NO_BEHAVIOUR, marker_color=colour, row=1, col=1)
    for end in (end for end in ENDS if description.whole.ends[end]):
        counts = [steps[number, end] for number in tasks]
        figure.add_bar(x=names, y=counts, name=end, marker_color=END_COLOURS[end], row=2, col=1, legend="legend2")
    figure.update_layout(barmode="stack", bargap=0.3)
    _task_axis(figure, 2, len(names))
    styled = style(figure, area, top=44)
    legend = {"orientation": "h", "traceorder": "normal", "x": 1, "xanchor": "right", "yanchor": "bottom"}
    above = [{**legend, "yref": "paper", "y": y + 0.005} for y in (1, (1 - gap) / 2)]
    return styled.update_layout(legend=above[0], legend2=above[1])


def returns(description: Description) -> go.Figure:
    """The return of every episode, by task and who acted, and each task's median."""
    tasks, ids = shown_tasks(description), short_ids(description)
    place = {number: x for x, number in enumerate(tasks)}
    lines = drawn_episodes(description, [line for line in description.episodes if line.task in place])
    figure = go.Figure()
    colours = behaviour_colours(description)
    for i, (name, colour) in enumerate(colours.items()):
        chosen = [line for line in lines if line.behaviour == name]
        shift = (i - (len(colours) - 1) / 2) * 0.6 / len(colours)  # behaviours side by side
        figure.add_scatter(
            x=[place[line.task] + shift for line in chosen], y=[line.return_ for line in chosen], mode="markers",
            marker={"size": 5, "color": colour, "opacity": 0.6}, name=name or NO_BEHAVIOUR,
            text=[f"{ids[line.task]}, {line.steps} steps, {line.end}" for line in chosen],
            hovertemplate="%{text}: %{y:.4g}",
        )  # fmt: skip
    medians = [description.tasks[number].returns.median for number in tasks]
    figure.add_scatter(
        x=list(range(len(tasks))), y=medians, mode="markers", name="median", hovertemplate="%{y:.4g}",
        marker={"symbol": "line-ew", "size": 16, "line": {"width": 2.5, "color": INK}},
    )  # fmt: skip
    about = {"ticktext": [ids[number] for number in tasks], "range": [-0.7, len(tasks) - 0.3]}
    figure.update_xaxes(tickvals=list(range(len(tasks))), **about)
    figure.update_yaxes(title="return (sum of rewards)")
    _task_axis(figure, 1, len(tasks))
    return style(figure, 300, top=44)


def earned(description: Description) -> go.Figure:
    """What each term of a computed reward earned in a step, on average, for each task."""
    tasks, ids = shown_tasks(description), short_ids(description)
    figure = go.Figure()
    for i, name in enumerate(description.whole.earned):
        figure.add_bar(
            x=[ids[number] for number in tasks], y=[description.tasks[number].earned[name] for number in tasks],
            name=name, marker_color=LINE_COLOURS[i % len(LINE_COLOURS)], hovertemplate=f"{name}: %{{y:.4g}}",
        )  # fmt: skip
    figure.update_layout(barmode="relative", bargap=0.3, showlegend=True)
    figure.update_yaxes(title="reward of a step, mean")
    _task_axis(figure, 1, len(tasks))
    return style(figure, 220, top=44)


def drawn_episodes(description: Description, lines: Sequence[EpisodeLine]) -> list[EpisodeLine]:
    """All episodes, or a random sample if there are too many to draw."""
    if len(lines) <= MAX_DOTS:
        return list(lines)
    kept = np.random.default_rng(0).choice(len(lines), MAX_DOTS, replace=False)
    return [lines[i] for i in np.sort(kept)]


def lengths(description: Description) -> go.Figure:
    """Lengths of episodes, by how they ended."""
    steps = np.array([line.steps for line in description.episodes])
    low, high = int(steps.min()), int(steps.max())
    width = max(1, -(-(high - low + 1) // LENGTH_BINS))
    edges = np.arange(low, high + width + 1, width) - 0.5  # each bin holds the same number of whole steps
    figure = go.Figure()
    for end in (end for end in ENDS if description.whole.ends[end]):
        chosen = steps[[line.end == end for line in description.episodes]]
        counts, _ = np.histogram(chosen, edges)
        figure.add_bar(
            x=(edges[:-1] + edges[1:]) / 2, y=counts, width=width * 0.92, name=end, marker_color=END_COLOURS[end],
            hovertemplate="%{x:.0f} steps: %{y} episodes",
        )  # fmt: skip
    rate_hz = description.contract.rate_hz
    figure.update_layout(barmode="stack", showlegend=True, legend_traceorder="normal")
    pad = max(width, 0.05 * high)
    figure.update_xaxes(title=f"steps ({rate_hz:g} in a second)", range=[max(0, low - pad), high + pad])
    figure.update_yaxes(title="episodes", rangemode="tozero")
    return style(figure, 190, top=44)


def coverage(description: Description) -> go.Figure:
    """Where each task's data lie, a panel for each field: observations, actions with their limits, and the reward."""
    contract, tasks = description.contract, shown_tasks(description)
    parts = [description.tasks[number] for number in tasks]
    panels: list[tuple[str, list[Spread], tuple[float, ...]]] = []
    for i, name in enumerate(contract.observation_names):
        panels.append((name, [part.observation[i] for part in parts], ()))
    for i, name in enumerate(contract.action.fields):
        limits = (contract.action.low[i], contract.action.high[i])
        panels.append((f"action {name}", [part.action[i] for part in parts], limits))
    panels.append(("reward", [part.reward for part in parts], ()))
    rows = -(-len(panels) // 2)
    area, gap = stacked(rows, panel=130, gap=LEVEL_TITLE + 10)
    figure = make_subplots(
        rows=rows, cols=2, subplot_titles=[name for name, *_ in panels], horizontal_spacing=0.07,
        vertical_spacing=gap if rows > 1 else 0,
    )  # fmt: skip
    names = [short_ids(description)[number] for number in tasks]
    for i, (_, spreads, limits) in enumerate(panels):
        place = {"row": i // 2 + 1, "col": i % 2 + 1}
        _spread_panel(figure, names, spreads, place, first=i == 0)
        for limit in limits:
            figure.add_scatter(
                x=[-0.7, len(names) - 0.3], y=[limit, limit], mode="lines", name="limit of the action",
                line={"width": 1.2, "dash": "dash", "color": RED}, hoverinfo="skip", legendgroup="limit",
                showlegend=i == len(contract.observation_names) and limit == limits[0], **place,
            )  # fmt: skip
    labelled = range(0, len(names), -(-len(names) // MAX_PANEL_LABELS))
    bottom = {"tickvals": list(labelled), "ticktext": [names[x] for x in labelled], "range": [-0.7, len(names) - 0.3]}
    figure.update_xaxes(**bottom, showticklabels=False, showgrid=False)
    for column in (1, 2):
        last = rows if column <= len(panels) - 2 * (rows - 1) else rows - 1
        figure.update_xaxes(showticklabels=True, row=last, col=column)
    styled = style(figure, area, top=64).update_xaxes(ticks="", tickangle=_angle(len(names)), tickfont_size=11)
    return styled.update_yaxes(nticks=5, tickfont_size=12).update_layout(margin_b=90)


def _spread_panel(
    figure: go.Figure, names: Sequence[str], spreads: Sequence[Spread], place: dict[str, int], first: bool
) -> None:
    """Thin from lowest to highest, thicker 5 to 95 %, thickest 25 to 75 %, and the median; a group for each task."""
    layers = (("low", "high", 1, "#bbb", "lowest to highest"), ("q05", "q95", 3, SKY, "5 to 95 %"),
              ("q25", "q75", 6, BLUE, "25 to 75 %"))  # fmt: skip
    for low, high, width, colour, label in layers:
        xs: list[float | None] = []
        ys: list[float | None] = []
        for x, spread in enumerate(spreads):
            xs += [x, x, None]
            ys += [getattr(spread, low), getattr(spread, high), None]
        figure.add_scatter(
            x=xs, y=ys, mode="lines", line={"width": width, "color": colour}, hoverinfo="skip", name=label,
            showlegend=first, legendgroup=label, **place,
        )  # fmt: skip
    text = [
        f"{name}<br>median {s.median:.4g}<br>5 to 95 %: {s.q05:.4g} to {s.q95:.4g}<br>all: {s.low:.4g} to {s.high:.4g}"
        for name, s in zip(names, spreads, strict=True)
    ]
    figure.add_scatter(
        x=list(range(len(spreads))), y=[s.median for s in spreads], mode="markers", name="median", text=text,
        marker={"size": 5, "color": "white", "line": {"width": 1.2, "color": INK}}, showlegend=first,
        legendgroup="median", hovertemplate="%{text}<extra></extra>", **place,
    )  # fmt: skip


def at_limits(description: Description) -> go.Figure:
    """The share of each task's actions at a limit."""
    tasks, ids = shown_tasks(description), short_ids(description)
    fields = description.contract.action.fields
    rows = [f"{name} {side}" for name in fields for side in ("low", "high")]
    shares = [[getattr(description.tasks[number], f"at_{side}")[i] for number in tasks]
              for i in range(len(fields)) for side in ("low", "high")]  # fmt: skip
    highest = max(0.01, *(share for row in shares for share in row))
    figure = go.Figure()
    figure.add_heatmap(
        x=[ids[number] for number in tasks], y=rows, z=shares, zmin=0, zmax=highest, xgap=1, ygap=1,
        colorscale=[[0, "#f4f4f4"], [1, RED]], colorbar={"tickformat": ".1%", "thickness": 12, "nticks": 4},
        hovertemplate="%{x}, %{y}: %{z:.1%}<extra></extra>",
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(showgrid=False)
    _task_axis(figure, 1, len(tasks))
    left = 24 + 7.5 * max(len(row) for row in rows)
    return style(figure, 26 * len(rows) + 20, top=16).update_layout(margin_l=left, margin_b=90)


def sample_episodes(description: Description) -> go.Figure:
    """A few episodes over time: a column for each, a row for each kind of field, its end marked."""
    groups = field_groups(description.contract.observation_names, description.contract.action.fields)
    samples = description.samples
    area, gap = stacked(len(groups), panel=110, gap=16)
    figure = make_subplots(
        rows=len(groups), cols=len(samples), shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.02,
        vertical_spacing=gap if len(groups) > 1 else 0,
        column_titles=[_sample_title(description, task_id, episode) for task_id, episode in samples],
    )  # fmt: skip
    for row, (title, fields) in enumerate(groups, 1):
        for column, (_, episode) in enumerate(samples, 1):
            _sample_lines(figure, episode, fields, {"row": row, "col": column}, legend=column == 1)
        figure.update_yaxes(title={"text": title.replace(".", ".<br>"), "font": {"size": 12}}, row=row, col=1)
    for column, (_, episode) in enumerate(samples, 1):
        end = {"width": 2.5, "color": END_COLOURS[end_of(episode)]}
        seconds = float(episode.times_ns[-1] - episode.times_ns[0]) / 1e9
        figure.add_vline(x=seconds, line=end, col=column)  # type: ignore[arg-type]
        figure.update_xaxes(title="s", row=len(groups), col=column)
    _row_legends(figure, len(groups), gap)
    styled = style(figure, area, top=64)
    return styled.update_yaxes(nticks=4, tickfont_size=11).update_layout(margin_l=110, margin_r=150)


def field_groups(observation: Sequence[str], action: Sequence[str]) -> list[tuple[str, list[tuple[str, str, int]]]]:
    """Fields that share a panel, by the part before their last dot: title, and (name, array, column) of each."""
    groups: dict[str, list[tuple[str, str, int]]] = {}
    for array, names in (("observations", observation), ("actions", action)):
        for i, name in enumerate(names):
            group, _, last = name.rpartition(".")
            title = group if array == "observations" else f"action.{group}" if group else "action"
            groups.setdefault(title, []).append((last, array, i))
    return [*groups.items(), ("reward", [("reward", "rewards", 0)])]


def _sample_title(description: Description, task_id: str, episode: Episode) -> str:
    acted = f", {episode.behaviour}" if episode.behaviour else ""
    return f"{task_id.removeprefix(description.contract.name + '/')}{acted}<br>{end_of(episode)}"


def _sample_lines(
    figure: go.Figure, episode: Episode, fields: Sequence[tuple[str, str, int]], place: dict[str, int], legend: bool
) -> None:
    """Actions hold until the next, and rewards belong to the step that they end: both are drawn as steps."""
    t = (episode.times_ns - episode.times_ns[0]) / 1e9
    for i, (name, array, column) in enumerate(fields):
        values = getattr(episode, array)
        values = values if values.ndim == 1 else values[:, column]
        times = t if array == "observations" else t[1:] if array == "rewards" else t[:-1]
        keep = np.unique(np.linspace(0, len(values) - 1, min(len(values), MAX_POINTS)).round().astype(int))
        shape: Any = {"observations": "linear", "actions": "hv", "rewards": "vh"}[array]
        line = {"width": 1.3, "color": LINE_COLOURS[i % len(LINE_COLOURS)], "shape": shape}
        figure.add_scatter(
            x=times[keep], y=values[keep], mode="lines", line=line, name=name, showlegend=legend,
            legendgroup=f"{place['row']}-{name}", legend=f"legend{place['row'] + 1}",
            hovertemplate=f"{name}: %{{y:.4g}}<extra></extra>", **place,
        )  # fmt: skip


def _row_legends(figure: go.Figure, rows: int, gap: float) -> None:
    """A legend at the right of each row of panels."""
    height = (1 - (rows - 1) * gap) / rows
    for row in range(rows):
        top = 1 - row * (height + gap)
        about = {"x": 1.01, "y": top, "yref": "paper", "yanchor": "top", "orientation": "v", "font": {"size": 12}}
        figure.update_layout({f"legend{row + 2}": about})


def _task_axis(figure: go.Figure, row: int, count: int) -> None:
    """Tasks' names below the lowest panel, slanted if there are many."""
    figure.update_xaxes(tickangle=_angle(count), tickfont_size=11, automargin=True, showgrid=False)


def _angle(count: int) -> int:
    return 0 if count <= 10 else -60
