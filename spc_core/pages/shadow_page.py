# SPDX-License-Identifier: Apache-2.0
"""The self-contained HTML page of a shadow run: would I let this policy drive?"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from spc_core.contract.contract import Contract
from spc_core.deploy.shadow import NEAR, ShadowComparison, merged
from spc_core.pages.kit.html import draw, html_page, table
from spc_core.pages.kit.style import INK, stacked, style

OURS, THEIRS = "#0072B2", "#E69F00"  # Okabe and Ito's
DRAWN = 6  # recordings with a plot of their own
SHOWN = 600  # ticks of a recording in the plot of commands
CLOUD = 4000  # dots in a panel of pairs

Recording = tuple[str, ShadowComparison, int]  # name, comparison, transitions that the context was learnt from


def shadow_text(recordings: Sequence[Recording]) -> str:
    """For people, at a terminal."""
    whole = merged([comparison for _, comparison, _ in recordings])
    lines = [f"{name:12} {value}" for name, value, _ in _facts(recordings, whole)]
    width = max((len(field.name) for field in whole.fields()), default=5)
    lines += ["", f"{'action':{width}} {'bias':>10} {'mean':>10} {'95 %':>10} {'worst':>10} {'range':>10}"]
    for f in whole.fields():
        lines.append(f"{f.name:{width}} {f.bias:+10.3g} {f.mean:10.3g} {f.p95:10.3g} {f.worst:10.3g} {f.span:10.4g}")
    return "\n".join(lines)


def shadow_page(run: str, contract: Contract, recordings: Sequence[Recording]) -> str:
    """The page, from each recording's comparison, which has kept its pairs."""
    whole = merged([comparison for _, comparison, _ in recordings])
    facts = [[escape(name), escape(value), escape(meaning)] for name, value, meaning in _facts(recordings, whole)]
    fields = [
        [escape(f.name), *(f"{value:.3g}" for value in (f.bias, f.mean, f.p95, f.worst, f.span))]
        for f in whole.fields()
    ]
    body = [
        f"<h1>Shadow run of {escape(run)}</h1>"
        "<p class=lead>What the policy would have commanded, next to what the controller of the recordings did. The "
        "controller's states were shown to the policy, so this tells how the two differ in the same situation; it does "
        "not tell where the policy's own commands would have led.</p>",
        "<h2>Would I let it drive?</h2>",
        table(["", "", "what to look for"], facts),
        f"<p class=caption>Contract {escape(contract.name)}, SHA-256 <code>{contract.sha256}</code>.</p>",
    ]
    if fields:
        body += [
            "<h2>Differences</h2>",
            table(["action", "bias", "mean", "95 %", "worst", "range"], fields, numbers=True),
            "<p class=caption>Policy minus controller, in the unit of each field. A bias is a constant offset; a large "
            "worst difference with a small mean is a rare disagreement: look for its time below.</p>",
        ]
    for name, comparison, _ in recordings[:DRAWN]:
        if comparison.pairs:
            body += [f"<h3>{escape(name)}</h3>", draw(_commands(contract, comparison), f"commands-{name}")]
    if any(comparison.pairs for _, comparison, _ in recordings):
        body += [
            f"<p class=caption>The first {SHOWN} compared ticks of each of the first {DRAWN} recordings; dashed: the "
            "contract's limits.</p>",
            "<h2>Command against command</h2>",
            draw(_cloud(contract, recordings), "cloud"),
            "<p class=caption>One dot for each tick. On the line the two agree. A flat cloud: the policy ignores what "
            "the controller reacts to. A steeper one: it reacts more strongly.</p>",
        ]
    body.append(_interventions(recordings))
    return html_page(f"Shadow run of {run}", body)


def _facts(recordings: Sequence[Recording], whole: ShadowComparison) -> list[tuple[str, str, str]]:
    ticks, compared = max(whole.ticks, 1), whole.compared
    alike = f"{whole.near / compared:.1%} of {compared:,} compared ticks" if compared else "nothing was compared"
    learnt = sum(transitions for _, _, transitions in recordings)
    return [
        (
            "recordings",
            f"{len(recordings)}, {whole.ticks:,} ticks, {learnt:,} transitions",
            "is every situation in them?",
        ),
        ("alike", alike, f"all fields within {NEAR:.0%} of their range of the controller's"),
        ("own", f"{whole.own / ticks:.1%} of the ticks", "the others would have got the safe action: see why below"),
        ("within limits", f"{(whole.own - whole.clipped) / ticks:.1%} of the ticks", "else clipped in value or rate"),
        ("compared", f"{compared / ticks:.1%} of the ticks", "own commands with one of the controller in the period"),
    ]


def _commands(contract: Contract, comparison: ShadowComparison) -> go.Figure:
    """Both commands over time, a panel for each action field."""
    pairs = (comparison.pairs or [])[:SHOWN]
    seconds = [(t_ns - pairs[0][0]) / 1e9 for t_ns, _, _ in pairs]
    names = contract.action.fields
    area, gap = stacked(len(names), panel=150, gap=30)
    figure = make_subplots(rows=len(names), shared_xaxes=True, vertical_spacing=gap, subplot_titles=list(names))
    for i in range(len(names)):
        theirs, ours = [float(pair[2][i]) for pair in pairs], [float(pair[1][i]) for pair in pairs]
        for label, y, colour in (("controller", theirs, THEIRS), ("policy", ours, OURS)):
            figure.add_scatter(
                x=seconds, y=y, mode="lines", line={"color": colour, "width": 1.5}, name=label, legendgroup=label,
                showlegend=i == 0, row=i + 1, col=1,
            )  # fmt: skip
        for limit in (contract.action.low[i], contract.action.high[i]):
            figure.add_hline(limit, line={"color": INK, "width": 1, "dash": "dash"}, row=i + 1, col=1)  # type: ignore[arg-type]
    figure.update_xaxes(title_text="s", row=len(names), col=1)
    return style(figure, area, top=44)


def _cloud(contract: Contract, recordings: Sequence[Recording]) -> go.Figure:
    """The policy's command over the controller's, a panel for each action field."""
    pairs = [pair for _, comparison, _ in recordings for pair in comparison.pairs or ()]
    chosen = np.unique(np.linspace(0, len(pairs) - 1, min(len(pairs), CLOUD)).round().astype(int))
    ours, theirs = (np.array([pairs[k][place] for k in chosen]) for place in (1, 2))
    names = contract.action.fields
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    area, gap = stacked(rows, panel=260, gap=60)
    figure = make_subplots(rows=rows, cols=columns, vertical_spacing=gap, subplot_titles=list(names))
    for i in range(len(names)):
        row, col = i // columns + 1, i % columns + 1
        ends = [contract.action.low[i], contract.action.high[i]]
        figure.add_scatter(
            x=ends, y=ends, mode="lines", line={"color": INK, "width": 1}, showlegend=False, row=row, col=col
        )
        dots = {"size": 4, "color": OURS, "opacity": 0.4}
        figure.add_scatter(
            x=theirs[:, i], y=ours[:, i], mode="markers", marker=dots, showlegend=False, row=row, col=col
        )
        figure.update_xaxes(title_text="controller", row=row, col=col)
        figure.update_yaxes(title_text="policy" if i % columns == 0 else "", row=row, col=col)
    return style(figure, area, top=44)


def _interventions(recordings: Sequence[Recording]) -> str:
    rows: list[list[str]] = []
    for name, comparison, _ in recordings:
        begin_ns = comparison.begin_ns
        for kind, count in sorted(comparison.interventions.items()):
            times = [f"{(t_ns - begin_ns) / 1e9:.2f}" for t_ns, known in comparison.events if known == kind]
            rest = f" and {count - 12} more" if count > 12 else ""
            rows.append([escape(name), escape(kind), str(count), ", ".join(times[:12]) + rest])
    if not rows:
        return "<h2>Interventions</h2><p>The safety chain would have changed no command.</p>"
    caption = (
        "What the safety chain would have changed: <code>limit</code> and <code>rate</code> clip, the others send the "
        "safe action."
    )
    head = ["recording", "kind", "ticks", "s since the first tick"]
    return f"<h2>Interventions</h2>{table(head, rows)}<p class=caption>{caption}</p>"
