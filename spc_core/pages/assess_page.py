# SPDX-License-Identifier: Apache-2.0
"""The self-contained HTML page of an assessment: would I let this policy drive?"""

from __future__ import annotations

from html import escape
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from spc_core.assessment.assess import Assessment
from spc_core.assessment.foresight import Foresight
from spc_core.assessment.identify import Identification
from spc_core.assessment.value import Values
from spc_core.pages.kit.html import draw, html_page, table
from spc_core.pages.kit.style import BLUE, GREEN, INK, ORANGE, PINK, SERIES, stacked, style
from spc_core.system.atomic_files import write_atomic

COLOURS = {"own": BLUE, "none": ORANGE, "other": PINK}
LABELS = {"own": "own z", "none": "no z", "other": "another task's z"}
CAPTIONS = {
    "value": "Mean reward of a step over an episode, later ones discounted. Each row is a task. What to look for: "
    "own z to the right of the recordings on nearly all tasks, and of another task's z. A model that is learnt from "
    "the recordings says so. Where the policy acts unlike them it may earn as much, or the least that was recorded: "
    "what lies between is in doubt, the points are in the middle, and the bars have both ends.",
    "told": "Share of episodes whose z is nearest to the mean z of their own task's other episodes; dashed: chance. "
    "Right: z of a task's first episode as transitions arrive, towards its task's mean (diamond).",
    "foresight": "Squared error over the variance in the recordings: 1 is no better than the mean. What to look for: "
    "own z below the others; else the model does not use its task.",
}


def write_assessment(assessment: Assessment, out: Path) -> str:
    """Write assess.json and assess.html into a folder; returns what to print.

    Raises OSError where they cannot be written, with the answers, which took a while.
    """
    try:
        write_atomic(out / "assess.json", assessment.to_json())
        write_atomic(out / "assess.html", assess_page(assessment))
    except OSError as error:
        raise OSError(f"{assessment.text()}\n{out}: cannot be written ({error}); give another folder, --out") from None
    return f"{assessment.text()}\npage: {out / 'assess.html'}"


def assess_page(assessment: Assessment) -> str:
    """The page."""
    verdict, recordings = assessment.verdict, assessment.recordings
    checks = [[escape(c.name), f"<b>{c.result}</b>", escape(c.text)] for c in verdict.checks]
    notes = "".join(f"<li>{escape(note)}</li>" for note in assessment.notes)
    config = assessment.judged.checkpoint.config
    body = [
        f"<h1>Assessment of {escape(assessment.run)}</h1>",
        f"<p class=lead>Would I let it drive? <b>{verdict.word}</b>.</p>",
        f"<p>Judged by {len(recordings.tasks)} tasks of {escape(str(recordings.root))}, without a simulation. Method "
        f"{escape(config.method.name)}, update {assessment.judged.checkpoint.metrics.get('update', '–')}.</p>",
        f"<ul>{notes}</ul>" if notes else "",
        table(["question", "answer", "because"], checks),
    ]
    if assessment.values is not None:
        body += _section("What it is worth", "value", _value_figure(assessment.values))
        body.append(_value_table(assessment.values))
    body.append(_actions_table(assessment))
    if assessment.identification is not None:
        body += _section("How well z tells tasks apart", "told", _told_figure(assessment.identification))
        body.append(_told_table(assessment.identification))
    if assessment.foresight is not None:
        body += _section("What the world model foresees", "foresight", _foresight_figure(assessment.foresight))
    return html_page(f"Assessment of {assessment.run}", body)


def _section(title: str, name: str, figure: go.Figure) -> list[str]:
    return [f"<h2>{title}</h2>", draw(figure, name), f"<p class=caption>{CAPTIONS[name]}</p>"]


def _value_figure(values: Values) -> go.Figure:
    figure = go.Figure()
    names = list(values.task_ids)
    figure.add_scatter(x=values.recorded, y=names, mode="markers", name="earned in the recordings",
                       marker={"color": INK, "symbol": "line-ns-open", "size": 14})  # fmt: skip
    figure.add_scatter(x=values.behaviour.mean(0), y=names, mode="markers",
                       name="recorded actions, in the judge's model",
                       marker={"color": GREEN, "size": 9})  # fmt: skip
    for kind, found in values.policy.items():
        spread = found.std(0) + values.in_doubt[kind].mean(0) / 2
        figure.add_scatter(x=found.mean(0), y=names, mode="markers", name=LABELS[kind],
                           marker={"color": COLOURS[kind], "size": 9},
                           error_x={"type": "data", "array": spread, "thickness": 1})  # fmt: skip
    figure.update_xaxes(title_text="reward of a step")
    return style(figure, max(160, 26 * len(names)))


def _value_table(values: Values) -> str:
    rows = [["recordings, earned", f"{values.recorded.mean():.4g}", "", "", "", ""]]
    rows.append(["recorded actions, in the judge's model", f"{values.behaviour.mean():.4g}", "", "", "", ""])
    for kind, found in values.policy.items():
        gain = values.better if kind == "own" else values.more(kind)
        ends = f"{gain.low:+.3g} to {gain.high:+.3g}"
        doubt = f"{values.in_doubt[kind].mean():.3g}"
        rows.append([LABELS[kind], f"{found.mean():.4g}", doubt, f"{gain.mean:+.3g}", ends, f"{gain.above:.0%}"])
    rows.append(["own z, fitted Q evaluation", "", "", f"{values.fitted.mean():+.3g}", "", ""])
    head = ["policy with", "reward of a step", "in doubt", "more than the recordings", "spread", "sure"]
    return table(head, rows, numbers=True)


def _actions_table(assessment: Assessment) -> str:
    actions = assessment.actions
    change = "–" if actions.change is None else f"{actions.change:.3f}"
    rows = [
        *([f"distance to the recorded action, {LABELS[kind]}", f"{value:.3f}", "–"]
          for kind, value in actions.distance.items()),
        ["change of the action by another task's z", change, "–"],
        ["unlike what was done in similar situations", f"{actions.outside:.1%}", f"{actions.outside_recorded:.1%}"],
        ["at a limit", f"{actions.at_limits:.1%}", f"{actions.at_limits_recorded:.1%}"],
        ["faster than the contract's rates", f"{actions.too_fast:.1%}", f"{actions.too_fast_recorded:.1%}"],
    ]  # fmt: skip
    caption = "Distances are root mean squares, actions on [-1, 1]. Shares are of recorded ticks."
    head = ["", "policy", "recordings"]
    return f"<h2>What it would do</h2>{table(head, rows, numbers=True)}<p class=caption>{caption}</p>"


def _told_figure(found: Identification) -> go.Figure:
    figure = make_subplots(rows=1, cols=2, subplot_titles=["right task, by transitions", "walks of z"])
    figure.add_scatter(x=found.counts, y=found.accuracy, mode="lines+markers", line={"color": BLUE}, showlegend=False,
                       row=1, col=1)  # fmt: skip
    figure.add_hline(found.chance, line={"color": INK, "width": 1, "dash": "dash"}, row=1, col=1)  # type: ignore[arg-type]
    for number, ((name, walk), mean) in enumerate(zip(found.walks, found.means, strict=True)):
        colour = SERIES[number % len(SERIES)]
        x, y = zip(*walk, strict=True)
        figure.add_scatter(x=x, y=y, mode="lines", line={"color": colour, "width": 1}, name=name, showlegend=False,
                           row=1, col=2)  # fmt: skip
        figure.add_scatter(x=[mean[0]], y=[mean[1]], mode="markers", marker={"color": colour, "symbol": "diamond"},
                           name=name, showlegend=False, row=1, col=2)  # fmt: skip
    ticks = list(found.counts)
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[str(tick) for tick in ticks], title_text="transitions",
                        row=1, col=1)  # fmt: skip
    figure.update_yaxes(range=[0, 1.05], row=1, col=1)
    return style(figure, 320, top=44)


def _told_table(found: Identification) -> str:
    calibration = "–" if found.calibration is None else f"{found.calibration:.0%} (90 % is right)"
    rows = [
        ["distance of an episode's z to its task's", f"{found.within:.3f}"],
        ["distance of two tasks' z", f"{found.between:.3f}"],
        ["within 1.645 of the stated standard errors", calibration],
        *([f"R² of {escape(name)} from z, on tasks left out", f"{value:.2f}"]
          for name, value in found.regression.items()),
    ]  # fmt: skip
    return table(["", ""], rows, numbers=True)


def _foresight_figure(found: Foresight) -> go.Figure:
    area, gap = stacked(2, panel=200, gap=50)
    titles = ["rewards", "latents"]
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=gap, subplot_titles=titles)
    for row, errors in enumerate((found.rewards, found.latents), 1):
        for kind, values in errors.items():
            figure.add_scatter(x=list(range(1, len(values) + 1)), y=values, mode="lines+markers", name=LABELS[kind],
                               line={"color": COLOURS[kind]}, showlegend=row == 1, row=row, col=1)  # fmt: skip
    figure.update_xaxes(title_text="steps ahead", row=2, col=1)
    return style(figure, area)
