# SPDX-License-Identifier: Apache-2.0
"""The self-contained HTML page of a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from spc_core.comparison.table import Row, has_scale, ranked, span
from spc_core.pages.comparison_panels import (
    Mark,
    Picture,
    improvement_picture,
    method_order,
    score_picture,
    split_title,
)
from spc_core.pages.figures import COLOURS, SPLIT_ORDER
from spc_core.pages.kit.html import draw, html_page, number, table
from spc_core.pages.kit.style import GREEN, INK, ORANGE, PINK, RED, SKY, band, stacked, style
from spc_core.pages.report_page import PROTOCOL_TEXTS
from spc_core.system.wording import plural
from spc_core.trials.protocol import PROTOCOLS, protocol_label
from spc_core.trials.scores import NO_SCALE

ACCENT = COLOURS["few_shot"]
OTHERS = (ORANGE, SKY, GREEN, RED, PINK, "#666666")  # without the accent
DASHES = ("solid", "dash", "dot")  # for more methods than colours
PANEL_TITLE = 34  # px, between two rows of panels
CAPTIONS = {
    "scores": "One dot for each method: its mean over tasks, training seeds and episodes. Thick: the 95 % interval of "
    "a bootstrap that redraws training seeds separately for each task. Thin: seeds redrawn for all tasks together, "
    "the right one if an agent is good or bad at all tasks at once. Methods are ordered by their mean over all panels.",
    "improvement": "The probability that one training seed of {reference} has a higher return on a task than one of "
    "the other method, averaged over tasks, ties half. Where even the thin interval excludes 0.5, more seeds "
    "would probably not reverse the difference.",
    "curves": "Normalised return against the size of a context that is collected first and then frozen. "
    "At 0 the context is empty. Methods whose context is not learnt are horizontal lines. The values of K are evenly "
    "spaced, not to scale.",
}


SCALE = """The <b>normalised</b> return is (return − low) / (high − low), the same for all methods: low is a
controller that does not know the task (written by hand, it assumes the family's mean task; learnt, it is told nothing),
high the one that knows it."""


def compare_page(rows: Sequence[Row], family: str, settings: Sequence[tuple[str, str]]) -> str:
    """The page; `settings` are names and values of the plan."""
    keys = list(dict.fromkeys(row.key for row in rows))
    reference = rows[0].reference
    pictures = (("Returns", score_picture(rows, keys)), (f"Is {reference} better?", improvement_picture(rows, keys)))
    figures = [(picture.name, title, picture_figure(picture)) for title, picture in pictures if picture.panels]
    if has_scale(rows) and len({row.k for row in rows if row.protocol == "few_shot"}) > 1:
        figures.append(("curves", "Return against the size of the context", curves(rows)))
    body = [_introduction(rows, family)]
    for name, title, figure in figures:
        caption = CAPTIONS[name].format(reference=escape(reference))
        body.append(f"<h2>{escape(title)}</h2>{draw(figure, name)}<p class=caption>{caption}</p>")
    values = [[escape(name), escape(value)] for name, value in settings]
    body += [_tables(rows), "<h2>Settings</h2>", table(["setting", "value"], values)]
    return html_page(f"Methods compared on {family}", body)


def _introduction(rows: Sequence[Row], family: str) -> str:
    seeds = {row.method: row.seeds for row in rows}
    few, many = min(seeds.values()), max(seeds.values())
    count = plural(many, "training seed") if few == many else f"{few} to {many} training seeds"
    used = [name for name in PROTOCOLS if any(row.protocol == name for row in rows)]
    texts = [[escape(name), PROTOCOL_TEXTS.get(name, PROTOCOL_TEXTS.get(f"{name}(K)", ""))] for name in used]
    texts = [[name, text.replace(" Score 0.", "")] for name, text in texts]
    return f"""<h1>Methods compared on {escape(family)}</h1>
<p class=lead>{plural(len(seeds), "method")}, {count} of each, the same data, the same held-out tasks.</p>
<p>All are trained on recordings of training tasks only. <b>id</b> tasks lie between the training tasks, <b>ood</b>
tasks beyond them. Protocols differ in where the context, the policy's only knowledge of its task, comes from:</p>
{table(["protocol", "where the context comes from"], texts)}
<p>{SCALE if has_scale(rows) else f"There are {NO_SCALE}."}</p>"""


def picture_figure(picture: Picture) -> go.Figure:
    """Dots with intervals, a column for each split and a row for each protocol."""
    splits, protocols, methods = picture.splits, picture.protocols, picture.methods
    area, gap = stacked(len(protocols), panel=20 * len(methods) + 14, gap=PANEL_TITLE)
    titles = [f"{split} · {protocol}" for protocol in protocols for split in splits]
    figure = make_subplots(
        rows=len(protocols), cols=len(splits), shared_xaxes=True, shared_yaxes=True, subplot_titles=titles,
        vertical_spacing=gap if len(protocols) > 1 else 0, horizontal_spacing=0.03,
    )  # fmt: skip
    for panel in picture.panels:
        cell: dict[str, Any] = {"row": protocols.index(panel.protocol) + 1, "col": splits.index(panel.split) + 1}
        for mark in panel.marks:
            _dot(figure, mark, cell)
        for value, _ in picture.lines:
            figure.add_vline(x=value, line={"width": 1.2, "dash": "dash", "color": "#777"}, **cell)
    figure.update_xaxes(range=[picture.low, picture.high])
    figure.update_xaxes(title=picture.x_title, row=len(protocols))
    figure.update_yaxes(categoryorder="array", categoryarray=methods[::-1], range=[-0.7, len(methods) - 0.3])
    left = 24 + 7.5 * max(len(name) for name in methods)
    return style(figure, area, top=40).update_layout(margin_l=left, showlegend=False)


def _dot(figure: go.Figure, mark: Mark, cell: dict[str, Any]) -> None:
    colour = ACCENT if mark.accent else INK
    for (low, high), width in ((mark.interval_by_seed, 1.2), (mark.interval, 4)):
        if math.isfinite(low):
            figure.add_scatter(x=[low, high], y=[mark.name] * 2, mode="lines", hoverinfo="skip",
                               line={"width": width, "color": colour}, **cell)  # fmt: skip
    text = f"{mark.name}: {mark.value:.2f}<br>95 %: {span(mark.interval)}<br>by seed: {span(mark.interval_by_seed)}"
    figure.add_scatter(
        x=[mark.value], y=[mark.name], mode="markers", hovertemplate=text + "<extra></extra>",
        marker={"size": 8, "color": colour}, **cell,
    )  # fmt: skip


def curves(rows: Sequence[Row]) -> go.Figure:
    """Normalised return of each method against the number of context transitions, a panel for each split."""
    kept = [row for row in rows if row.protocol in ("no_context", "few_shot")]
    sizes, present = sorted({row.k for row in kept}), {row.split for row in kept}
    splits = [split for split in SPLIT_ORDER if split in present]
    figure = make_subplots(
        cols=len(splits), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=[split_title(s) for s in splits]
    )
    reference = rows[0].reference
    names = [name for name in method_order(kept) if name != reference]
    for column, split in enumerate(splits, 1):
        for name in [*names, reference]:  # the reference on top
            chosen = sorted((r for r in kept if (r.method, r.split) == (name, split)), key=lambda row: row.k)
            n = names.index(name) if name != reference else -1
            line = {"width": 2, "color": OTHERS[n % len(OTHERS)], "dash": DASHES[n // len(OTHERS) % len(DASHES)]}
            if name == reference:
                line = {"width": 3.5, "color": ACCENT}
                _band(figure, chosen, sizes, column)
            figure.add_scatter(
                x=[sizes.index(row.k) for row in chosen], y=[row.normalised for row in chosen], mode="lines+markers",
                line=line, marker={"size": 7}, name=name, legendgroup=name, showlegend=column == 1,
                hovertemplate=f"{name}: %{{y:.2f}}<extra></extra>", row=1, col=column,
            )  # fmt: skip
    figure.update_xaxes(tickvals=list(range(len(sizes))), ticktext=[str(k) for k in sizes],
                        title="context transitions K", showgrid=False)  # fmt: skip
    figure.update_yaxes(title="normalised return", col=1)
    return style(figure, 380, top=96)


def _band(figure: go.Figure, rows: Sequence[Row], sizes: Sequence[int], column: int) -> None:
    known = [row for row in rows if np.isfinite(row.interval_by_seed[0])]
    xs = [sizes.index(row.k) for row in known]
    lows, highs = ([row.interval_by_seed[end] for row in known] for end in range(2))
    band(figure, xs, lows, highs, "rgba(0,114,178,0.15)", showlegend=False, row=1, col=column)


def _tables(rows: Sequence[Row]) -> str:
    """All numbers, best method first."""
    parts, reference = ["<h2>All numbers</h2>"], rows[0].reference
    head = ["method", "return", "normalised", "95 %", "95 % by seed", f"P({reference} better)", "95 %", "seeds",
            "training, min"]  # fmt: skip
    for key in dict.fromkeys(row.key for row in rows):
        chosen = ranked([row for row in rows if row.key == key])
        lines = [
            [escape(r.method), number(r.mean, 2), _known(r.normalised), span(r.interval), span(r.interval_by_seed),
             _known(r.reference_better), span(r.better_interval), str(r.seeds), _known(r.training_min, 1)]
            for r in chosen
        ]  # fmt: skip
        title = f"{key[0]}, {protocol_label(*key[1:])}, {plural(chosen[0].tasks, 'task')}"
        parts.append(f"<h3>{escape(title)}</h3>{table(head, lines, numbers=True)}")
    return "".join(parts)


def _known(value: float, digits: int = 2) -> str:
    return number(value if math.isfinite(value) else None, digits)
