# SPDX-License-Identifier: Apache-2.0
"""The page of one trial, OUT/report.html, and OUT/summary.json."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

from spc_core.deploy.adaptation import EpisodeResult
from spc_core.deploy.checkpoint import load_checkpoint
from spc_core.deploy.deployed import weights_sha256
from spc_core.pages.figures import FamilyRun
from spc_core.pages.report import summarise, write_report, write_summary
from spc_core.tasks import find_task
from spc_core.trials.drift import run_drift
from spc_core.trials.evaluate import expert_returns
from spc_core.trials.trial_log import PLAN
from spc_ros.trials.demo import PACKAGES, version

DRIFT_TASKS = 6  # tried tasks that change into one another


def report_trial(
    run: Path,
    family: str,
    out: Path,
    rows: Sequence[EpisodeResult],
    drift_progress: Callable[[int, int, str], None] | None = None,
) -> FamilyRun:
    """Write the page; `drift_progress`: also run the drift test and tell this how far it is."""
    checkpoint = load_checkpoint(run)
    tried = [find_task(task_id) for task_id in dict.fromkeys(row.task_id for row in rows)]
    drifting = tried[:DRIFT_TASKS] if drift_progress is not None and len(tried) > 1 else []
    log = run / "log.csv"
    found = FamilyRun(
        family=family,
        contract_sha256=checkpoint.contract.sha256,
        results={0: list(rows)},
        experts=expert_returns(tried, sorted({row.seed for row in rows if row.scored})),
        logs={0: log} if log.is_file() else {},
        rate_hz=checkpoint.contract.rate_hz,
        drift=run_drift(checkpoint, family, drifting, progress=drift_progress) if drifting else (),
    )
    plan = json.loads((out / PLAN).read_text())
    setup = {"checkpoint, SHA-256 of its weights": weights_sha256(run), "plan": json.dumps(plan, sort_keys=True)}
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    seconds = {"episodes": sum(row.seconds for row in rows)}
    summary = summarise([found], seed=plan["seed"], wall_time_s=seconds, versions=versions, figures={}, setup=setup)
    write_summary(out / "summary.json", summary)
    write_report(out / "report.html", [found], summary)
    return found
