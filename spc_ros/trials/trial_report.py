# SPDX-License-Identifier: Apache-2.0
"""The page of one trial, OUT/report.html with stills from its bags, and OUT/summary.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spc_core.deploy.deployable import load_deployed
from spc_core.pages.figures import FamilyRun
from spc_core.pages.kit.html import number
from spc_core.pages.report import summarise, write_report, write_summary
from spc_core.pages.stills import MAX_TASKS, Stills
from spc_core.tasks import find_task, is_family
from spc_core.trials.drift import DRIFT, read_drift
from spc_core.trials.log import PLAN, TrialLog
from spc_core.trials.options import checkpoint_name
from spc_core.trials.protocol import EpisodeResult
from spc_core.trials.scores import expert_returns
from spc_ros.bags.files import BagError
from spc_ros.bags.reader import BagReader
from spc_ros.trials.provenance import setup, versions

IMAGE = "sensor_msgs/msg/Image"
ENCODING = "rgb8"


def report_trial(run: Path, family: str, out: Path, rows: Sequence[EpisodeResult], command: str = "") -> FamilyRun:
    """Write the page of the trial in `out`; `command` is its command line."""
    checkpoint, log = load_deployed(run), run / "log.csv"
    plan = json.loads((out / PLAN).read_text())
    simulated = plan.get("sim", True) and is_family(family)
    tried = [find_task(task_id) for task_id in dict.fromkeys(row.task_id for row in rows)] if simulated else []
    found = FamilyRun(
        family=family,
        contract_sha256=checkpoint.contract.sha256,
        results={0: list(rows)},
        experts=expert_returns(tried, sorted({row.seed for row in rows if row.scored})),
        logs={0: log} if log.is_file() else {},
        rate_hz=checkpoint.contract.rate_hz,
        drift=read_drift(out / DRIFT),
        description="" if simulated else "A robot, brought to its start by a human.",
        real_time=not plan.get("sim", True),
        stills=trial_stills(TrialLog(out), rows),
    )
    identity = {"checkpoint, SHA-256 of its weights": checkpoint_name(str(run)), **setup(command)}
    identity["plan"] = json.dumps(plan, sort_keys=True)
    seconds = {"episodes": sum(row.seconds for row in rows)}
    summary = summarise(
        [found], seed=plan["seed"], wall_time_s=seconds, versions=versions(), figures={}, setup=identity
    )  # fmt: skip
    write_summary(out / "summary.json", summary)
    write_report(out / "report.html", [found], summary)
    return found


def trial_stills(log: TrialLog, rows: Sequence[EpisodeResult]) -> list[Stills]:
    """Start, middle and end of each task's best informed episode; empty if no bag holds images."""
    chosen: dict[str, EpisodeResult] = {}
    for row in rows:
        if row.scored and row.bag and row.context_count >= getattr(chosen.get(row.task_id), "context_count", -1):
            chosen[row.task_id] = row
    found = []
    for row in list(chosen.values()):
        images = _images(log, row) if len(found) < MAX_TASKS + 1 else ()
        if not images and not found:
            return []  # no camera was recorded: skip the other bags
        k = f"({row.k})" if row.k else ""
        found.append(Stills(f"{row.task_id}, {row.protocol}{k}, return {number(row.return_)}", images))
    return [still for still in found if still.images]


def _images(log: TrialLog, row: EpisodeResult) -> tuple[tuple[float, np.ndarray], ...]:
    path = log.bag_of(row)
    if path is None:
        return ()
    try:
        with BagReader(path) as bag:
            topics = [name for name, topic in bag.info.topics.items() if topic.type == IMAGE and topic.count]
            messages = [message for _, _, message in bag.messages(topics[:1])] if topics else []
    except BagError:
        return ()
    messages = [m for m in messages if m.encoding == ENCODING]
    indices = sorted({0, len(messages) // 2, len(messages) - 1}) if messages else ()
    return tuple(((_stamp_ns(messages[i]) - _stamp_ns(messages[0])) / 1e9, _array(messages[i])) for i in indices)


def _stamp_ns(message: Any) -> int:
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def _array(message: Any) -> np.ndarray:
    height, width, step = message.height, message.width, message.step
    flat = np.asarray(message.data, np.uint8).reshape(height, step)
    return flat[:, : 3 * width].reshape(height, width, 3)
