# SPDX-License-Identifier: Apache-2.0
"""The doctor's figures: problems over time, ages, delays, coverage, commands and responses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from spc_core.alignment.faults import Fault
from spc_core.command_delay.correlogram import LAGS_S, Response
from spc_core.doctor.across_checks import Coverage
from spc_core.doctor.diagnosis import Finding, Span
from spc_core.doctor.traces import Trace
from spc_core.pages.kit.style import BLUE, FAINT, GREEN, INK, ORANGE, PINK, RED, SERIES, SKY, YELLOW, style

MARKS = {  # colour and name by check
    "gaps": (ORANGE, "gap"),
    "age at ticks": (YELLOW, "too old at ticks"),
    "presence": (ORANGE, "silent"),
    "rate": (SKY, "off its rate"),
    "jitter": (SKY, "jitter"),
    "delay": (SKY, "late to arrive"),
    "not finite": (PINK, "NaN or infinite"),
    "empty array": ("#666666", "empty array"),
    "joints": (BLUE, "other joints"),
    "clock jump": (RED, "clock jump"),
    "order": (RED, "duplicate or late"),
    "frozen stamps": (RED, "frozen stamp"),
    "unset stamps": (RED, "unset stamp"),
    "limits": (GREEN, "beyond limits"),
    "saturation": (GREEN, "at a limit"),
    "rate limit": (GREEN, "faster than max_rate"),
}
CUT = "#000000"
MAX_CUTS = 100  # drawn in a figure
ROW_TITLE = 34  # px, between two rows
MAX_ROWS = 12  # topics, commands or tasks in one figure


def timeline(
    traces: Sequence[Trace], findings: Sequence[Finding], cuts: Sequence[tuple[float, Fault]], duration_s: float
) -> go.Figure | None:
    """A row for each topic: the time from message to message, with problems shaded, and conversion's cuts."""
    rows = [(trace, trace.step_ms) for trace in traces if trace.step_ms is not None][:MAX_ROWS]
    if not rows:
        return None
    figure, area = _rows([trace.topic for trace, _ in rows], 70)
    shapes: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for row, (trace, steps) in enumerate(rows, 1):
        figure.add_scatter(
            x=_short(steps.at_s), y=_short(steps.y), mode="lines", showlegend=False, row=row, col=1,
            line={"width": 1, "color": BLUE, "shape": "vh"}, hovertemplate="%{x:.2f} s: %{y:.1f} ms<extra></extra>",
        )  # fmt: skip
        figure.update_yaxes(range=list(trace.step_range_ms), title_text="ms", row=row, col=1)
        for finding in findings:
            if finding.topic == trace.topic and finding.check in MARKS:
                colour, name = MARKS[finding.check]
                names[name] = colour
                shapes += [_band(span, row, colour, duration_s) for span in finding.times]
    drawn = [at_s for at_s, fault in cuts if not fault.is_end_of_recording][:MAX_CUTS]
    for at_s in drawn:
        line = {"color": CUT, "width": 1, "dash": "dot"}
        place = {"xref": "x", "yref": "paper", "x0": at_s, "x1": at_s, "y0": 0, "y1": 1}
        shapes.append({"type": "line", "line": line, **place})
    _legend(figure, names, bool(drawn))
    figure.update_layout(shapes=shapes)
    figure.update_xaxes(range=[0, 1.002 * duration_s])
    figure.update_xaxes(title_text="seconds since the bag began", row=len(rows), col=1)
    return _left_titles(style(figure, area, top=76 if names or drawn else 40))


def _rows(titles: Sequence[str], height: int) -> tuple[go.Figure, int]:
    """Rows of `height` px over one time axis, and the height of all of them."""
    area = len(titles) * height + (len(titles) - 1) * ROW_TITLE
    spacing = ROW_TITLE / area
    return make_subplots(len(titles), 1, shared_xaxes=True, vertical_spacing=spacing, subplot_titles=titles), area


def _left_titles(figure: go.Figure) -> go.Figure:
    figure.update_annotations(x=0, xanchor="left", selector={"yref": "paper"})
    return figure


def _band(span: Span, row: int, colour: str, duration_s: float) -> dict[str, Any]:
    least = 0.002 * duration_s  # so that a single message is visible
    middle, half = (span[0] + span[1]) / 2, max(span[1] - span[0], least) / 2
    axis = "" if row == 1 else str(row)
    return {
        "type": "rect", "xref": f"x{axis}", "yref": f"y{axis} domain", "x0": middle - half, "x1": middle + half,
        "y0": 0, "y1": 1, "fillcolor": colour, "opacity": 0.3, "line": {"width": 0}, "layer": "below",
    }  # fmt: skip


def _legend(figure: go.Figure, names: Mapping[str, str], cuts: bool) -> None:
    for name, colour in names.items():
        marker = {"color": colour, "opacity": 0.5, "size": 12, "symbol": "square"}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name=name, row=1, col=1)
    if cuts:
        figure.add_scatter(
            x=[None], y=[None], mode="lines", line={"color": CUT, "dash": "dot"}, name="cut by conversion", row=1, col=1
        )


def delay_figure(traces: Sequence[Trace], duration_s: float) -> go.Figure | None:
    """Delay from header to receive time, relative to each topic's smallest, since clocks may differ."""
    figure = go.Figure()
    known = [(trace.topic, trace.delay_ms) for trace in traces if trace.delay_ms is not None]
    for colour, (topic, delay) in zip(SERIES, known, strict=False):
        figure.add_scatter(
            x=_short(delay.at_s), y=_short(delay.y), mode="lines", name=topic, line={"width": 1.2, "color": colour},
            hovertemplate="%{x:.2f} s: %{y:.1f} ms<extra></extra>",
        )  # fmt: skip
    if not figure.data:
        return None
    figure.update_xaxes(title_text="seconds since the bag began", range=[0, 1.002 * duration_s])
    figure.update_yaxes(title_text="delay above its smallest, ms", rangemode="tozero")
    figure.update_layout(showlegend=True)
    return style(figure, 220)


def command_figure(
    trace: Trace, low: Sequence[float] | None, high: Sequence[float] | None, duration_s: float
) -> go.Figure | None:
    """Each command over time, with the contract's limits."""
    commands = trace.commands[:MAX_ROWS]
    if not commands:
        return None
    figure, area = _rows([field for field, _ in commands], 90)
    for i, (_, line) in enumerate(commands):
        figure.add_scatter(
            x=_short(line.at_s), y=_short(line.y), mode="lines", line={"width": 1, "color": BLUE, "shape": "hv"},
            showlegend=False, row=i + 1, col=1, hovertemplate="%{x:.2f} s: %{y:.4g}<extra></extra>",
        )  # fmt: skip
        shown = line.y[np.isfinite(line.y)].tolist()
        edges = [low[i], high[i]] if low is not None and high is not None else []
        bottom, top = min([*shown, *edges], default=0.0), max([*shown, *edges], default=1.0)
        margin = 0.08 * (top - bottom) or 1.0
        figure.update_yaxes(range=[bottom - margin, top + margin], row=i + 1, col=1)
        for limit in edges:
            figure.add_hline(y=limit, line={"color": RED, "width": 1.5, "dash": "dash"}, row=i + 1, col=1)  # pyright: ignore[reportArgumentType]
    figure.update_xaxes(range=[0, 1.002 * duration_s])
    figure.update_xaxes(title_text="seconds since the bag began", row=len(commands), col=1)
    return _left_titles(style(figure, area, top=40))


def age_figure(ages: Mapping[str, tuple[np.ndarray, np.ndarray]], max_age_s: Mapping[str, float]) -> go.Figure | None:
    """Histograms of each stream's age at the ticks, with max_age_s."""
    shown = [topic for topic, (counts, _) in ages.items() if counts.sum()][:MAX_ROWS]
    if not shown:
        return None
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    titles = [_age_title(topic, *ages[topic], max_age_s.get(topic, math.inf)) for topic in shown]
    figure = make_subplots(rows, columns, subplot_titles=titles, vertical_spacing=0.3 / rows)
    for index, topic in enumerate(shown):
        counts, edges = ages[topic]
        row, column = index // columns + 1, index % columns + 1
        figure.add_bar(
            x=(edges[:-1] + edges[1:]) / 2, y=100 * counts / counts.sum(), width=np.diff(edges), showlegend=False,
            marker={"color": np.where(edges[1:] > 1.001e3 * max_age_s.get(topic, math.inf), RED, BLUE).tolist()},
            row=row, col=column, hovertemplate="%{x:.1f} ms: %{y:.1f} %<extra></extra>",
        )  # fmt: skip
        if math.isfinite(max_age_s.get(topic, math.inf)):
            line: Any = {"color": RED, "width": 1.5, "dash": "dash"}
            figure.add_vline(x=max_age_s[topic] * 1e3, line=line, row=row, col=column)  # pyright: ignore[reportArgumentType]
        figure.update_xaxes(title_text="age, ms", row=row, col=column)
        figure.update_yaxes(title_text="% of ticks" if column == 1 else "", row=row, col=column)
    return style(figure, 190 * rows)


def _age_title(topic: str, counts: np.ndarray, edges: np.ndarray, max_age_s: float) -> str:
    """The topic and the share of ticks at which it was too old."""
    if not math.isfinite(max_age_s):
        return topic
    share = counts[edges[:-1] > 0.999e3 * max_age_s].sum() / counts.sum()
    return f"{topic}: {share:.1%} too old"


def coverage_figure(coverage: Coverage) -> go.Figure:
    """Share of each field's range that each task visits, as a heat map."""
    shares = np.concatenate((coverage.actions, coverage.states), axis=1)
    names = [f"action {name}" for name in coverage.action_names] + list(coverage.state_names)
    order = np.argsort(shares.mean(axis=1), kind="stable")[: 3 * MAX_ROWS][::-1]
    figure = go.Figure(
        go.Heatmap(
            z=100 * shares[order], x=names, y=[coverage.tasks[i] for i in order], zmin=0, zmax=100, xgap=1, ygap=1,
            colorscale=[[0, RED], [0.25, "#F4E3C8"], [1, BLUE]], colorbar={"title": {"text": "%"}},
            hovertemplate="%{y}<br>%{x}: %{z:.0f} %<extra></extra>", texttemplate="%{z:.0f}",
        )
    )  # fmt: skip
    style(figure, max(90, 26 * len(order)), top=30)
    figure.update_layout(margin={"l": 10, "b": 10}, height=max(90, 26 * len(order)) + 190)
    figure.update_yaxes(automargin=True, showgrid=False)
    figure.update_xaxes(automargin=True, showgrid=False, tickangle=40)
    return figure


def delay_curves(answers: Sequence[Response]) -> go.Figure:
    """Correlation of each command with the state that responds to it best, over the lag."""
    figure = go.Figure()
    for colour, answer in zip(SERIES, answers, strict=False):
        delay = "unknown" if answer.why_not else f"{answer.delay_s * 1e3:.1f} ms"
        figure.add_scatter(
            x=LAGS_S * 1e3, y=_short(answer.curve), mode="lines", line={"width": 1.5, "color": colour},
            name=f"{answer.command} → {answer.state}: {delay}", hovertemplate="%{x:.0f} ms: %{y:.2f}<extra></extra>",
        )  # fmt: skip
        if not answer.why_not:
            figure.add_vline(x=answer.delay_s * 1e3, line={"color": colour, "width": 1, "dash": "dash"})
    figure.add_vline(x=0, line={"color": INK, "width": 1})
    figure.add_hline(y=0, line={"color": FAINT, "width": 1})
    figure.update_xaxes(title_text="lag of the state behind the command, ms")
    figure.update_yaxes(title_text="correlation", range=[-1.05, 1.05])
    figure.update_layout(showlegend=True)
    return style(figure, 260, top=50 + 22 * min(len(SERIES), len(answers)))


def _short(values: np.ndarray) -> list[float | None]:
    """Numbers with five digits, so that the page stays small; gaps where they are not finite."""
    return [float(f"{v:.5g}") if math.isfinite(v) else None for v in values.tolist()]
