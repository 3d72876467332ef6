# SPDX-License-Identifier: Apache-2.0
"""Measures change detection of trained runs on held-out tasks, without ROS: `python tools/measure_changes.py RUN ...`

For each run: the drift test of `spc evaluate --drift`, then every task for long without a change. With --json, a line
for each task and for each change. docs/results.md says which runs its numbers are of.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from spc_core.deploy.checkpoint import load_checkpoint  # noqa: E402
from spc_core.tasks import tasks  # noqa: E402
from spc_core.trials.changes import HOUR, QuietTest, quiet_table  # noqa: E402
from spc_core.trials.drift import drift_scores, drift_table, run_drift  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--splits", nargs="+", default=["id", "ood"], help="held-out tasks; val to choose settings by")
    parser.add_argument("--hours", type=float, default=1.0, help="of each run without a change, at 50 Hz")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all rows here")
    options = parser.parse_args()
    rows, quiet, drift = [], [], []
    for folder in options.runs:
        checkpoint = load_checkpoint(folder)
        family = checkpoint.contract.name
        chosen = [task for split in options.splits for task in tasks(family, split)]
        changes = [c for split in options.splits for c in run_drift(checkpoint, family, tasks(family, split))]
        test = QuietTest(checkpoint, family)
        print(f"{folder}: {family}, detection {test.tracker.detection}")
        steps = round(options.hours * HOUR / len(chosen))
        calm = [test.run(task, steps, 10_000 + options.seed) for task in chosen]
        print(f"{drift_table(drift_scores(changes))}\n{quiet_table(calm)}\n", flush=True)
        rows += [json.dumps({"run": str(folder)} | dataclasses.asdict(row)) for row in (*changes, *calm)]
        quiet += calm
        drift += changes
    print(f"all {len(options.runs)} runs\n{drift_table(drift_scores(drift))}\n{quiet_table(quiet)}")
    if options.json is not None:
        options.json.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
