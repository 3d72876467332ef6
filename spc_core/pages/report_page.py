# SPDX-License-Identifier: Apache-2.0
"""The self-contained HTML page of the report: text, tables and figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from spc_core.pages.context_figures import context_path, context_space
from spc_core.pages.figures import (
    COLOURS,
    OTHER_COLOUR,
    UNITS,
    FamilyRun,
    adaptation_curve,
    task_bars,
    varying_params,
)
from spc_core.pages.kit.html import draw, html_page, number, table
from spc_core.pages.run_figures import drift_figure, latency_figure, training_curves
from spc_core.pages.stills import gallery
from spc_core.system.wording import plural
from spc_core.tasks import is_family, make_env
from spc_core.trials.drift import drift_scores
from spc_core.trials.protocol import protocol_label

PROTOCOL_TEXTS = {
    "no_context": "The context stays empty: the policy does not know its task. Score 0.",
    "zero_shot": "The context starts empty and grows with every step, while the episode is being scored.",
    "few_shot(K)": "First the robot collects K transitions, unscored, while it acts as if its task were one training "
    "task after the other. The resulting context is then frozen, and the following episodes are scored.",
    "offline": "The context is made of recorded data of the same task.",
    "baseline": "Not learnt: the robot's own controller drives, and the policy rests. Score 1.",
    "expert": "Not learnt: a hand-written controller that knows the hidden parameters. Score 1.",
}
CAPTIONS = {
    "curve": "What to look for: does the line rise from no_context towards the expert, and after how many "
    "transitions does it level off? The band is a 95 % interval of the mean, by bootstrap over tasks and "
    "training seeds; with few seeds it is rough. zero_shot is drawn as a horizontal line, since its context "
    "grows within the episode. The values of K are evenly spaced, not to scale.",
    "space": "Each mark is one task vector, seen along the two directions of largest variance (PCA), stretched to "
    "fill the panel: few_shot at the largest K, zero_shot at the end of each episode. Up to four training seeds are "
    "shown. Each learns its own space, so compare patterns, not positions. What to look for: colours in order mean "
    "that the context has found the hidden parameter, and marks of one colour close together mean that it finds it "
    "reliably.",
    "path": "Left: the path of the context in a zero_shot episode, from the prior (the cross, no transitions) to "
    "its final position (the dot), one line for each task of the first training seed, seen along its two "
    "directions of largest variance. Right: the remaining distance, as a share of the largest; the bold "
    "line is the median over tasks. What to look for: a line that falls fast needs few transitions.",
    "drift": "The task changes in mid-episode. “kept”: the change is not announced, the context stays a mean "
    "over all transitions, and the new task must outweigh the old one. “noticed”: not announced either, but the "
    "context encoder looks for changes and goes on from the transitions since. “reset”: the change is announced, and "
    "the context starts again from the prior. Left: distance from the context of an episode of the new task alone, "
    "as a share of the distance at the change; median, and the middle half of all changes. Right: mean reward of a "
    "step.",
    "latency": "Ticks by the time from a state’s arrival at the policy to its command, with the context in between; "
    "note the logarithmic axis. Dotted: median, 99 % and the control period. What to look for: a right end well below "
    "the period.",
    "bars": "What to look for: tasks where few_shot stays far from the expert. Bars start at zero; where "
    "returns are negative they hang down, and shorter is better. Error bars: ± one standard deviation over "
    "training seeds. Below the axis: the task's number and hidden parameters.",
    "training": "Mean loss of each logging interval, one line for each training seed. What to look for: lines "
    "that settle, and seeds that agree. The losses have different meanings, so heights do not compare between "
    "panels. Wide ranges have a logarithmic axis.",
}
STILLS = "Camera images at the start, in the middle and at the end of one episode of each task: the last with the "
STILLS += "largest context."


def page(families: Sequence[FamilyRun], summary: Mapping[str, Any]) -> str:
    """The page."""
    body = [introduction(families, summary), "<h2>Results</h2>"]
    body += [headline(run, summary["families"][run.family]) for run in families]
    body += [family_section(run, summary["families"][run.family]) for run in families]
    body.append(reproduction(summary))
    return html_page("Few-shot adaptation report", body)


def introduction(families: Sequence[FamilyRun], summary: Mapping[str, Any]) -> str:
    """The study in plain words."""
    entries = [e for f in summary["families"].values() for split in f["splits"].values() for e in split]
    used = {"few_shot(K)" if e["protocol"] == "few_shot" else e["protocol"] for e in entries}
    names = [*(name for name in PROTOCOL_TEXTS if name in used), *sorted(used - set(PROTOCOL_TEXTS))]
    texts = [[chip(name), PROTOCOL_TEXTS.get(name, "")] for name in names]
    about = "".join(f"<li><b>{escape(run.family)}</b>. {facts(run)}</li>" for run in families)
    return f"""<h1>Few-shot adaptation report</h1>
<p class=lead>Can a robot policy that was trained only on recordings adapt to a robot or a goal that it has
never met, from a few seconds of its own experience?</p>
<p>A <b>task family</b> is one robot in many variants, the <b>tasks</b>. They differ in <b>hidden parameters</b>
that no observation shows. The policy was trained on recordings of some tasks, once for each “training seed”.
Here it is evaluated on other tasks: <b>id</b> tasks lie between the training tasks, <b>ood</b> tasks lie outside
their range.</p><ul>{about}</ul>
<p>While the robot moves, a context encoder turns its transitions (observation, action, reward, next observation)
into a short <b>task vector</b>, the context, and the policy acts on it. No weight changes. The <b>protocols</b>
differ only in where the task vector comes from:</p>{table(["protocol", "source of the task vector"], texts)}
<p>The <b>return</b> is the sum of an episode's rewards; higher is better. The <b>normalised score</b> is</p>
<p class=formula>(return − no_context) / (expert − no_context)</p>
<p>of means over tasks, episodes and training seeds: 0 is a policy that does not know its task, 1 is the expert
that knows its task. Scores below 0 and above 1 are possible.</p>"""


def facts(run: FamilyRun) -> str:
    """The family, its hidden parameters, and the tasks that were tried."""
    described = run.description
    if not described and is_family(run.family):
        described = re.sub(r" \(\d+,\)", "", make_env(run.family).__doc__ or "")  # without array shapes
    tasks = {row.task_id: row for _, row in run.scored()}.values()
    params = {split: [t.params for t in tasks if t.split == split] for split in run.splits()}
    names = varying_params([t.params for t in tasks], [t.split for t in tasks])
    names += [name for name in sorted({n for t in tasks for n in t.params}) if _marks_split(name, params)]
    parts = []
    for split, chosen in params.items():
        ranges = ", ".join(_range(name, [p[name] for p in chosen if name in p]) for name in names)
        parts.append(plural(len(chosen), f"{split} task") + (f" with {ranges}" if ranges else ""))
    hidden = f"Hidden: {', '.join(names)}. " if names else ""
    return escape(f"{described} {hidden}Tried: {'; '.join(parts)}.")


def _marks_split(name: str, params: Mapping[str, Sequence[Mapping[str, float]]]) -> bool:
    """Whether the parameter is constant in each split, but differs between splits."""
    values = [{p.get(name) for p in chosen} for chosen in params.values()]
    return all(len(each) == 1 for each in values) and len(set().union(*values)) > 1


def _range(name: str, values: Sequence[float]) -> str:
    low, high = (f"{value:.2f}" for value in (min(values), max(values)))
    return f"{name} {low if low == high else f'{low} to {high}'} {UNITS.get(name, '')}".rstrip()


def headline(run: FamilyRun, family: Mapping[str, Any]) -> str:
    """One sentence, and one table with the splits side by side."""
    splits: Mapping[str, list[dict[str, Any]]] = family["splits"]
    largest, shares = max(run.sizes(), default=0), []
    for split, entries in splits.items():
        best = next((e for e in entries if (e["protocol"], e["k"]) == ("few_shot", largest)), None)
        if best and best["normalised"] is not None:
            shares.append(f"<b>{best['normalised']:.0%}</b> on {escape(split)} tasks")
    sentence = f"After {transitions(run, largest)} of its own experience the policy has closed this much of the "
    known = {entry["protocol"] for entries in splits.values() for entry in entries}
    highest = "expert" if "expert" in known else "robot's own controller"
    sentence += f"gap between no_context and the {highest}: {', '.join(shares)}." if shares else ""
    keys = dict.fromkeys((e["protocol"], e["k"]) for entries in splits.values() for e in entries)
    rows = []
    for protocol, k in sorted(keys, key=lambda key: key[0] == "expert"):  # the expert last
        found = [next((e for e in s if (e["protocol"], e["k"]) == (protocol, k)), None) for s in splits.values()]
        rows.append(f"<tr><td>{chip(protocol_label(protocol, k))}</td>{''.join(map(_score_cells, found))}</tr>")
    top = "".join(f"<th colspan=4 class=split>{escape(split)}</th>" for split in splits)
    below = "<th class='number first'>return ± s.e.</th><th class=number>normalised</th>"
    below = (below + "<th class=number>by seed</th><th class=number>success</th>") * len(splits)
    first = next(iter(splits.values()))[0]
    per = round(first["episodes"] / (first["tasks"] * first["seeds"]))
    counts = [plural(first["tasks"], "task"), plural(first["seeds"], "training seed"), plural(per, "episode")]
    return f"""<h3>{escape(run.family)}</h3><p>{sentence if shares else ""}</p><div class=scroll><table>
<thead><tr><th rowspan=2>protocol</th>{top}</tr><tr>{below}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>
<p class=caption>{", ".join(counts)} of each. s.e.: standard error over tasks. By seed: lowest and highest
normalised score of a single training seed. Success: share of the episodes that ended at their goal, by the task
family or the operator.</p>"""


def _score_cells(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "<td></td>" * 4
    seeds = [value for value in entry["normalised_by_seed"] if value is not None]
    spread = f"{number(min(seeds), 2)} … {number(max(seeds), 2)}" if len(seeds) > 1 else "–"
    if entry["protocol"] in ("no_context", "expert", "baseline"):
        spread = ""  # 0 and 1 by definition
    returns = f"{number(entry['mean'])} ± {number(entry['stderr'])}"
    score, share = number(entry["normalised"], 2), entry.get("success")
    success = "–" if share is None else f"{share:.0%}"
    return (
        f"<td class='number first'>{returns}</td><td class='number strong'>{score}</td><td class=number>{spread}</td>"
        f"<td class=number>{success}</td>"
    )


def family_section(run: FamilyRun, family: Mapping[str, Any]) -> str:
    """The figures of one family."""
    figures = [
        ("Adaptation: return against experience", adaptation_curve(run), "curve", ""),
        ("Context space: the task vectors", context_space(run), "space", "no task vectors to compare"),
        (
            "Context trajectory: from the prior to its final position",
            context_path(run),
            "path",
            "no zero_shot episode to follow",
        ),
        ("Drift: the task changes in mid-episode", drift_figure(run.drift), "drift", "not tested"),
        ("Task by task, against the privileged expert", task_bars(run), "bars", ""),
        ("Latency of the policy", latency_figure(run), "latency", "not measured"),
        ("Training losses", training_curves(run), "training", "no training log was found"),
    ]
    parts = [f"<h2>{escape(run.family)}</h2>"]
    for title, figure, name, missing in figures:
        drawn = f"None: {missing}." if figure is None else CAPTIONS[name]
        plot = "" if figure is None else draw(figure, f"{run.family}-{name}")
        below = _drift_table(run) if name == "drift" and run.drift else ""
        drawn += f" {_clock(run)}" if name == "latency" and figure is not None else ""
        parts.append(f"<h3>{title}</h3>{plot}<p class=caption>{drawn}</p>{below}")
        if name == "bars" and run.stills:
            parts.append(f"<h3>Stills</h3>{gallery(run.stills)}<p class=caption>{STILLS}</p>")
    parts.append(f"<h3>Interventions of the safety chain</h3>{_interventions(family['interventions'])}")
    return "".join(parts)


def _clock(run: FamilyRun) -> str:
    """A note on the meaning of a latency here."""
    if run.real_time:
        return "Measured in real time."
    return "Measured in lock-step: time waits, so this is computation and communication time, never a missed tick."


def _drift_table(run: FamilyRun) -> str:
    """Steps and rewards around the change."""
    head = ["context", "changes", "steps to half way", "steps to 70 %", "followed", "left at the end", "reward before",
            "after", "at the end"]  # fmt: skip
    rows = []
    for s in drift_scores(run.drift):
        steps = ["never" if v is None else f"{v:.0f}" for v in (s.steps_to_half, s.steps_to_follow)]
        rewards = [number(v, 3) for v in (s.reward_before, s.reward_after, s.reward_end)]
        counts = [f"{s.followed} of {s.changes}", f"{s.distance_end:.0%}"]
        rows.append([escape(s.strategy), str(s.changes), *steps, *counts, *rewards])
    note = "Steps, and the distance left at the end: the median change. Rewards: mean of a step in the 25 steps before "
    note += "and after the change, and the last."
    return f"{table(head, rows, numbers=True)}<p class=caption>{note}</p>"


def _interventions(counts: Mapping[str, Mapping[str, int]]) -> str:
    if not counts:
        return "<p>None.</p>"
    kinds = sorted({kind for entry in counts.values() for kind in entry})
    rows = [[chip(name), *(str(entry.get(kind, 0)) for kind in kinds)] for name, entry in counts.items()]
    caption = "How often the safety chain changed a command, by kind, over all episodes of a protocol."
    if any(name.startswith("collect") for name in counts):
        caption += " collect(K) are the unscored episodes that few_shot(K) learns from."
    return f"{table(['protocol', *kinds], rows, numbers=True)}<p class=caption>{caption}</p>"


def reproduction(summary: Mapping[str, Any]) -> str:
    """Facts needed to reproduce the numbers."""
    setup = [["random seed of the study", str(summary["seed"])]]
    for name, family in summary["families"].items():
        setup.append([f"contract of {escape(name)}, SHA-256", f"<code>{escape(family['contract_sha256'])}</code>"])
    setup += [[escape(name), f"<code>{escape(str(value))}</code>"] for name, value in summary.get("setup", {}).items()]
    setup += [[f"{escape(name)}, version", escape(str(value))] for name, value in summary["versions"].items()]
    parts = ["<h2>Reproduce</h2>", f"<div class=facts>{table(['what', 'value'], setup)}</div>"]
    if summary["figures"]:
        other = [[escape(n), "–" if v is None else f"{v:.4g}"] for n, v in summary["figures"].items()]
        parts.append("<h3>Other measurements</h3>" + table(["what", "value"], other, numbers=True))
    times = {name: seconds or 0.0 for name, seconds in summary["wall_time_s"].items()}
    if times:
        scale = 320 / (max(times.values()) or 1.0)  # px for each second
        bars = [
            [escape(name), f"{seconds:.0f} s", f"<span class=bar style='width:{scale * seconds:.0f}px'></span>"]
            for name, seconds in times.items()
        ]
        bars.append(["<b>total</b>", f"<b>{sum(times.values()):.0f} s</b>", ""])
        parts.append("<h3>Wall time</h3>" + table(["stage", "time", ""], bars))
    return "".join(parts)


def chip(name: str) -> str:
    """A protocol's name with its colour."""
    colour = COLOURS.get(name.split("(")[0], OTHER_COLOUR)
    return f"<span class=name><i style='background:{colour}'></i>{escape(name)}</span>"


def transitions(run: FamilyRun, k: int) -> str:
    """K transitions, and their duration if the rate is known."""
    rate_hz = run.rate_hz
    if not rate_hz and is_family(run.family):
        rate_hz = make_env(run.family).control_hz
    return plural(k, "transition") + (f" ({k / rate_hz:.1f} s)" if rate_hz else "")
