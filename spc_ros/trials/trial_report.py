# SPDX-License-Identifier: Apache-2.0
"""The page of one trial, OUT/report.html, and OUT/summary.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from spc_core.deploy.adaptation import EpisodeResult
from spc_core.deploy.checkpoint import load_checkpoint
from spc_core.pages.figures import FamilyRun
from spc_core.pages.report import summarise, write_report, write_summary
from spc_core.tasks import families, find_task
from spc_core.trials.drift import DRIFT, read_drift
from spc_core.trials.evaluate import expert_returns
from spc_core.trials.trial_log import PLAN, TrialLog
from spc_core.trials.trial_plan import checkpoint_name
from spc_ros.trials.bag_stills import trial_stills
from spc_ros.trials.provenance import setup, versions


def report_trial(run: Path, family: str, out: Path, rows: Sequence[EpisodeResult], command: str = "") -> FamilyRun:
    """Write the page of what is in `out`; `command` is how the trial was asked for."""
    checkpoint, log = load_checkpoint(run), run / "log.csv"
    plan = json.loads((out / PLAN).read_text())
    simulated = plan.get("sim", True) and family in families()
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
