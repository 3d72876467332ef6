# SPDX-License-Identifier: Apache-2.0
"""Measure a comparison of methods and seeds."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from spc_core.trials.protocol import SIM_PROTOCOLS
from spc_ros.commands.bench import show
from spc_ros.progress_bar import status_line

if TYPE_CHECKING:
    from spc_core.comparison.plan import Run


@dataclasses.dataclass(frozen=True)
class BenchCompare:
    """Measure `spc compare` on this machine, against the same comparison seed by seed, uncompiled, robot by robot.

    Three times with few updates: stacked with nothing compiled before, one by one, and stacked again.

    examples:
      spc bench compare
      spc bench compare --dataset dataset --methods spc focal --seeds 3
    """

    dataset: Path | None = None  # default: simulated behaviour of arm_reach
    size: str = "quick"  # preset: quick, small, or a YAML file
    methods: tuple[str, ...] = ("spc_paper", "focal", "no_context", "oracle")  # names in config/methods, or YAML files
    seeds: int = 5  # how many
    updates: int = 400  # of each run
    splits: tuple[str, ...] = ("id", "ood")  # held-out tasks that are evaluated
    protocols: tuple[str, ...] = SIM_PROTOCOLS  # any of no_context, zero_shot, few_shot, offline
    episodes: int = 3  # of each task and protocol
    jobs: int = 2  # processes at a time, each with one thread
    json: Path | None = None  # also write the numbers here


def run(options: BenchCompare) -> int:
    from spc_core.comparison.bench_compare import bench_compare
    from spc_core.pages.comparison_report import CompareReport
    from spc_core.training.vote_fit import LEAST_UPDATES

    for name in ("seeds", "jobs", "episodes"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} has {getattr(options, name)}; use a number of at least 1")
    trial = {name: getattr(options, name) for name in ("splits", "protocols", "episodes")}
    with tempfile.TemporaryDirectory() as folder, status_line("bench") as status:
        report = bench_compare(
            Path(folder), options.dataset, options.size, options.methods, options.seeds, options.updates, options.jobs,
            [sys.executable, "-m", "spc_ros.cli"], lambda plan: CompareReport(plan).write,
            (LEAST_UPDATES, _learn_votes), status, **trial,
        )  # fmt: skip
    return show(report.text(), report.numbers(), options.json)


def _learn_votes(run: Run, updates: int) -> None:
    """As at the end of a run's training of so many updates."""
    from spc_core.data.packed import load_dataset
    from spc_core.deploy.checkpoint import load_checkpoint
    from spc_core.training.belief_fit import write_task_belief
    from spc_core.training.threads import torch_threads
    from spc_core.training.vote_fit import write_vote_model

    checkpoint, data = load_checkpoint(run.folder), load_dataset(run.plan.dataset)
    with torch_threads(1):
        folder, learnt = run.folder / "checkpoint", (checkpoint.agent, checkpoint.stats, data, run.seed)
        write_vote_model(folder, *learnt, updates)
        write_task_belief(folder, *learnt)
