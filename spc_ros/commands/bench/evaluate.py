# SPDX-License-Identifier: Apache-2.0
"""Measure the speed of evaluation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from spc_ros.commands.bench import show
from spc_ros.progress_bar import status_line


@dataclasses.dataclass(frozen=True)
class BenchEvaluate:
    """Measure evaluation on this machine: many robots side by side, against one at a time in the same run.

    examples:
      spc bench evaluate
      spc bench evaluate --run runs/reach --tasks 10 --json evaluate.json
    """

    run: Path | None = None  # training run or checkpoint; default: random weights, which look for no change of task
    family: str = "arm_reach"  # task family
    tasks: int = 40  # held-out tasks first
    episodes: int = 3  # of each task and protocol
    rounds: int = 3  # measurements of each number
    json: Path | None = None  # also write the numbers here


def run(options: BenchEvaluate) -> int:
    from spc_core.trials.bench_evaluate import bench_evaluate

    counts = {"--tasks": options.tasks, "--episodes": options.episodes, "--rounds": options.rounds}
    for flag, value in counts.items():
        if value < 1:
            raise ValueError(f"{flag} has {value}; use a number of at least 1")
    with status_line("bench") as status:
        report = bench_evaluate(options.run, options.family, options.tasks, options.episodes, options.rounds, status)
    return show(report.text(), {**dataclasses.asdict(report), "ratio": report.ratio}, options.json)
