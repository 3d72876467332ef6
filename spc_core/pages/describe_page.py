# SPDX-License-Identifier: Apache-2.0
"""The self-contained HTML page that describes a dataset."""

from __future__ import annotations

from html import escape

from spc_core.data.describe import Description
from spc_core.pages.describe_figures import (
    MAX_DOTS,
    MAX_POINTS,
    MAX_TASKS,
    at_limits,
    coverage,
    earned,
    lengths,
    returns,
    sample_episodes,
    task_counts,
)
from spc_core.pages.kit.html import draw, html_page, number, table
from spc_core.system.wording import plural

CAPTIONS = {
    "counts": "What to look for: tasks with far fewer data than others, and a kind of behaviour or end that only some "
    "tasks have.",
    "returns": "One dot for each episode, and the median of each task. What to look for: does the data hold good "
    "episodes and bad ones for every task? Offline learning needs both to tell them apart.",
    "earned": "The mean of a step, by the terms of the contract's reward. What to look for: a term beside which the "
    "others do not count, and one that earns the same in every task.",
    "lengths": "<b>terminated</b>: the task ended; <b>truncated</b>: a time limit or the operator ended it; "
    "<b>cut</b>: the data have a gap there. Only terminated says something about the value of the last state.",
    "coverage": "A panel for each field, a group of bars for each task. What to look for: a field that hardly moves, "
    "tasks whose data lie apart from the rest, and actions that never leave a corner of their limits (dashed).",
    "limits": "The share of transitions whose action is at its lower or upper limit. A large share means that the "
    "limits, not the policy, decided, or that commands were clipped.",
    "samples": "One episode for each end and behaviour, from the first tasks that have them. The vertical line is the "
    "episode's end: green for terminated, blue for truncated, orange for cut.",
}


def describe_page(description: Description) -> str:
    """The page."""
    figures = [
        ("Episodes and transitions", "counts", task_counts),
        ("Returns", "returns", returns),
        *([("What each term of the reward earned", "earned", earned)] if description.whole.earned else []),
        ("Lengths", "lengths", lengths),
        ("Coverage of the observation and action space", "coverage", coverage),
        ("Actions at their limits", "limits", at_limits),
        ("Sample episodes", "samples", sample_episodes),
    ]
    body = [introduction(description)]
    for title, name, make in figures:
        caption = CAPTIONS[name] + _omissions(description, name)
        body.append(f"<h2>{title}</h2>{draw(make(description), name)}<p class=caption>{caption}</p>")
    body.append(_tables(description))
    return html_page(f"Dataset {description.root.name}", body)


def introduction(description: Description) -> str:
    """Facts about the dataset, and notes that need attention."""
    whole, contract = description.whole, description.contract
    counts = [
        plural(len(description.tasks), "task"),
        plural(whole.episodes, "episode"),
        f"{whole.transitions:,} transitions",
        f"{whole.hours:.2f} hours",
    ]
    acted = [f"{count} {escape(name or 'not known')}" for name, count in whole.behaviours.items()]
    cuts = [f"{escape(reason)} ({count})" for reason, count in sorted(description.cuts.items(), key=lambda c: -c[1])]
    facts = [
        ["contract", f"{escape(contract.name)}, SHA-256 <code>{contract.sha256}</code>"],
        ["rate", f"{contract.rate_hz:g} Hz"],
        ["observation", escape(", ".join(contract.observation_names))],
        ["action", escape(", ".join(contract.action.fields))],
        ["reward", escape(str(contract.reward))],
        ["ends", ", ".join(f"{count} {end}" for end, count in whole.ends.items())],
        *([["cut because of", "<br>".join(cuts)]] if cuts else []),
        *([["behaviours", ", ".join(acted)]] if set(whole.behaviours) != {""} else []),
        ["sources", plural(description.sources, "recording")],
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in description.notes())
    notes = f"<h3>Worth a look before training</h3><ul>{notes}</ul>" if notes else ""
    return f"""<h1>Dataset {escape(description.root.name)}</h1>
<p class=lead>{", ".join(counts)}.</p>{table(["what", "value"], facts)}{notes}"""


def _omissions(description: Description, name: str) -> str:
    """A note on data that a figure omits."""
    texts = []
    if name not in ("lengths", "samples") and len(description.tasks) > MAX_TASKS:
        texts.append(f"{MAX_TASKS} of {len(description.tasks)} tasks are shown, evenly spaced.")
    if name == "returns" and description.whole.episodes > MAX_DOTS:
        texts.append(f"At most {MAX_DOTS} episodes are drawn, at random; the medians are of all.")
    if name == "samples" and any(len(episode) > MAX_POINTS for _, episode in description.samples):
        texts.append(f"Lines have at most {MAX_POINTS} points.")
    return "".join(f" {text}" for text in texts)


def _tables(description: Description) -> str:
    """All tasks in numbers."""
    names = sorted({name for task in description.tasks for name in task.params})
    head = [
        "task",
        *names,
        "episodes",
        "transitions",
        "terminated",
        "truncated",
        "cut",
        "return: low",
        "median",
        "high",
    ]
    rows = [
        [
            escape(task.task_id),
            *(number(task.params.get(name), 3) for name in names),
            str(task.episodes),
            f"{task.transitions:,}",
            *(str(count) for count in task.ends.values()),
            *(number(value, 2) for value in (task.returns.low, task.returns.median, task.returns.high)),
        ]
        for task in description.tasks
    ]
    return f"<h2>All tasks</h2>{table(head, rows, numbers=True)}"
