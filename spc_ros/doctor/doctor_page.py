# SPDX-License-Identifier: Apache-2.0
"""The doctor's page: the verdict, the findings, and where in time they are. One file, nothing from the network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from spc_core.doctor.diagnosis import SEVERITIES, Finding
from spc_core.doctor.topic_stats import TopicStats
from spc_core.pages.doctor_figures import (
    age_figure,
    command_figure,
    coverage_figure,
    delay_curves,
    delay_figure,
    timeline,
)
from spc_core.pages.kit.html import draw, html_page, number, table
from spc_core.system.wording import plural
from spc_ros.doctor.doctor import DoctorReport, View
from spc_ros.doctor.doctor_text import show_times

COLOURS = {"ok": "#009E73", "warn": "#E69F00", "fail": "#D55E00"}
SENTENCES = {
    "ok": "Nothing was found that would harm training.",
    "warn": "Usable, but look at the warnings first: each states its cost and its fix.",
    "fail": "Fix the failures before you convert: each states the problem, the place and the fix.",
}
MAX_BAGS = 200  # rows of the table of bags
CAPTIONS = {
    "timeline": "One row for each topic: the time from each message to the next, in ms. A level line is a steady "
    "topic; "
    "a spike is a gap. Shaded: the times that the findings name. Dotted lines: conversion cuts the episode there.",
    "delay": "How much longer than at best a message took from its stamp until it was recorded. What to look for: "
    "spikes (a busy network or disk) and slopes (clocks that drift, a queue that fills).",
    "commands": "The commands over time; dashed: the contract's limits. What to look for: commands beyond the "
    "limits, which a policy could never send, and commands at a limit.",
    "ages": "Age of the newest message of each stream at the ticks, over all bags; dashed: max_age_s. What is "
    "older "
    "cuts the episode. The last bar holds all that is older still.",
    "coverage": "Share of the range of each field that a task's data visit, in 20 steps: of an action's range, what "
    "the "
    "contract allows; of a state's, what all tasks together visit. The poorest tasks are shown, worst on top. A "
    "policy learns nothing about states that are never visited.",
    "answers": "Correlation between changes of a command and changes of the state that answers it best, for each lag. "
    "A "
    "clear peak is the delay from command to state. Correlation left of 0 would be a state that moves before the "
    "command; where it is as high as the peak, the delay is unknown.",
}


def page(report: DoctorReport) -> str:
    """The whole page."""
    body = [_head(report), _findings(report), _topics(report), _in_time(report), _over_all(report), _bags(report)]
    return html_page("Bag doctor", "".join(body))


def chip(severity: str, text: str = "") -> str:
    return f"<span class=name><i style='background:{COLOURS[severity]}'></i>{escape(text or severity)}</span>"


def _head(report: DoctorReport) -> str:
    verdicts = Counter(bag.verdict for bag in report.bags)
    counts = ", ".join(f"{verdicts[severity]} {severity}" for severity in SEVERITIES if verdicts[severity])
    contract = "no contract, so that topics alone were checked"
    made = ""
    if report.contract is not None:
        contract = f"contract <b>{escape(report.contract.name)}</b> at {report.contract.rate_hz:g} Hz"
        made = (
            f" Conversion would give {plural(len(report.tasks), 'task')}, {plural(report.episodes, 'episode')} and "
            f"{plural(report.transitions, 'transition')}."
        )
    verdict = f"<span style='color:{COLOURS[report.verdict]}'>{report.verdict}</span>"
    return f"""<h1>Bag doctor: {verdict}</h1><p class=lead>{SENTENCES[report.verdict]}</p>
<p>{plural(len(report.bags), "bag")} ({counts}), {contract}.{made}</p>"""


def _findings(report: DoctorReport) -> str:
    if not report.findings:
        return "<h2>Findings</h2><p>None.</p>"
    rows = [_finding_row(finding, len(report.bags)) for finding in report.findings]
    return "<h2>Findings</h2>" + table(["", "topic", "check", "what, and what to do", "where"], rows)


def _finding_row(finding: Finding, bag_count: int) -> list[str]:
    where = escape(show_times(finding, 4))
    if finding.bag and bag_count > 1:
        names = [f"<code>{escape(Path(bag).name)}</code>" for bag in finding.in_bags or (finding.bag,)]
        all_bags = f"<details><summary>{len(names)} bags</summary>{', '.join(names)}</details>"
        where = f"{names[0]}<br>{where}" + (all_bags if len(names) > 1 else "")
    text = escape(finding.text) + (f"<br><code>{escape(finding.next)}</code>" if finding.next else "")
    return [chip(finding.severity), escape(finding.topic), escape(finding.check), text, where]


def _topics(report: DoctorReport) -> str:
    head = ["topic", "messages", "rate", "jitter", "in gaps", "longest", "age at ticks", "header to receive", "NaN",
            "looked at"]  # fmt: skip
    caption = (
        "Rate: the median bag's, outside of gaps. Jitter: standard deviation of the interval, the worst bag's. Ages "
        "and "
        "delays: 50 / 95 / 99 % of the messages, the worst bag's."
    )
    rows = [_topic_row(topic) for topic in report.topics]
    rows += [[escape(t.topic), str(t.count), *["–"] * 7, escape(t.why)] for t in report.unchecked]
    return f"<h2>Topics</h2>{table(head, rows, numbers=True)}<p class=caption>{caption}</p>"


def _topic_row(topic: TopicStats) -> list[str]:
    def unit(value: float, name: str, digits: int = 1) -> str:
        return f"{number(value, digits)} {name}" if math.isfinite(value) else "–"

    def three(values: tuple[float, float, float]) -> str:
        if not math.isfinite(values[0]):
            return "–"
        if abs(values[0]) > 1e5:
            return "another clock"
        return " / ".join(number(value, 1) for value in values) + " ms"

    return [
        escape(topic.topic),
        str(topic.count),
        unit(topic.rate_hz, "Hz"),
        unit(topic.jitter_ms, "ms", 2),
        unit(topic.gap_share * 100, "%"),
        unit(topic.longest_gap_s, "s", 2),
        three(topic.age_ms),
        three(topic.delay_ms),
        unit(topic.nan_share * 100, "%"),
        topic.look,
    ]


def _in_time(report: DoctorReport) -> str:
    """The worst bags, drawn."""
    if not report.views:
        return ""
    views = [view for view in report.views if view.diagnosis.verdict != "ok"] or list(report.views[:1])
    note = f"<p>Drawn: {len(views)} of {plural(len(report.bags), 'bag')}, the worst first.</p>"
    explained: set[str] = set()
    return "<h2>Where in time</h2>" + note + "".join(_view(report, i, view, explained) for i, view in enumerate(views))


def _view(report: DoctorReport, i: int, view: View, explained: set[str]) -> str:
    """One bag; `explained` are the kinds of figures whose caption has been given, those of this bag are added."""
    bag, traces = view.diagnosis, view.data.traces
    lasts = max((trace.last_s for trace in traces), default=bag.duration_s)
    made = f", {plural(bag.episodes, 'episode')}, {plural(bag.transitions, 'transition')}" if report.contract else ""
    title = f"{chip(bag.verdict, Path(bag.path).name)}"
    parts = [f"<h3>{title}</h3><p class=caption>{bag.duration_s:.1f} s{made}{escape(_said(bag.findings))}</p>"]
    limits = {part.topic: (part.low, part.high) for part in report.contract.action.parts} if report.contract else {}
    figures = [
        ("timeline", timeline(traces, bag.findings, bag.cuts, lasts)),
        ("delay", delay_figure(traces, lasts) if any(f.check in ("delay", "drift") for f in bag.findings) else None),
    ]
    for trace in traces:
        if trace.commands:
            low, high = limits.get(trace.topic.partition(" (")[0], (None, None))
            figures.append(("commands", command_figure(trace, low, high, lasts)))
    for n, (name, figure) in enumerate(figures):
        if figure is not None:
            place = f"bag-{i}-{name}" + (f"-{n}" if n > 2 else "")  # more than one topic of commands
            parts.append(draw(figure, place) + ("" if name in explained else _caption(name)))
            explained.add(name)
    cuts = [cut for cut in bag.cuts if not cut[1].is_end_of_recording]
    if cuts:
        rows = [[f"{at_s:.2f} s", escape(str(fault))] for at_s, fault in cuts[:30]]
        more = f"<p class=caption>and {len(cuts) - 30} more</p>" if len(cuts) > 30 else ""
        parts.append(f"<p>Cuts:</p>{table(['at', 'reason'], rows)}{more}")
    return "".join(parts)


def _said(findings: Sequence[Finding]) -> str:
    """A bag's findings in a few words: the checks by severity, with their topics."""
    parts = []
    for severity in ("fail", "warn"):
        mine: dict[str, list[str]] = {}
        for finding in findings:
            if finding.severity == severity and finding.topic not in mine.setdefault(finding.check, []):
                mine[finding.check].append(finding.topic)
        checks = [check + (f" ({', '.join(filter(None, on))})" if any(on) else "") for check, on in mine.items()]
        parts += [f". {severity.capitalize()}: {', '.join(checks)}"] if checks else []
    return "".join(parts)


def _over_all(report: DoctorReport) -> str:
    """Measurements over all bags."""
    parts = []
    if report.contract is not None:
        limits = {stream.topic: stream.max_age_s for stream in report.contract.observation}
        ages = age_figure(report.ages, limits)
        if ages is not None:
            parts.append(f"<h3>Age at the ticks</h3>{draw(ages, 'ages')}{_caption('ages')}")
    if report.answers:
        figure = draw(delay_curves(report.answers), "answers")
        why_not = {answer.why_not for answer in report.answers if answer.why_not}
        unknown = f"<p>Not known for all commands: {escape('; '.join(sorted(why_not)))}.</p>" if why_not else ""
        parts.append(f"<h3>From command to state</h3>{unknown}{figure}{_caption('answers')}")
    if report.coverage is not None:
        parts.append(f"<h3>Coverage</h3>{draw(coverage_figure(report.coverage), 'coverage')}{_caption('coverage')}")
    cuts = Counter(fault.summary for bag in report.bags for _, fault in bag.cuts)
    dropped = Counter[str]()
    for bag in report.bags:
        dropped.update(bag.dropped)
    if cuts or dropped:
        rows = [[escape(r), str(cuts[r]), str(dropped[r])] for r in sorted(cuts | dropped, key=lambda r: -cuts[r])]
        parts.append(f"<h3>Cuts by reason</h3>{table(['reason', 'cuts', 'dropped ticks'], rows, numbers=False)}")
    return "<h2>Over all bags</h2>" + "".join(parts) if parts else ""


def _bags(report: DoctorReport) -> str:
    order = sorted(report.bags, key=lambda bag: -SEVERITIES.index(bag.verdict))
    rows = []
    for bag in order[:MAX_BAGS]:
        checks = Counter(finding.check for finding in bag.findings if finding.severity != "ok")
        names = ", ".join(checks) or "–"
        name = chip(bag.verdict, Path(bag.path).name)
        counts = [str(bag.episodes), str(bag.transitions), str(len(bag.cuts))]
        rows.append([name, escape(bag.task_id) or "–", f"{bag.duration_s:.1f} s", *counts, escape(names)])
    more = f"<p class=caption>and {len(order) - MAX_BAGS} more</p>" if len(order) > MAX_BAGS else ""
    head = ["bag", "task", "lasts", "episodes", "transitions", "cuts", "checks that found something"]
    return f"<h2>Bags</h2>{table(head, rows)}{more}"


def _caption(name: str) -> str:
    return f"<p class=caption>{CAPTIONS[name]}</p>"
