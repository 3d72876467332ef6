# SPDX-License-Identifier: Apache-2.0
"""Stages that learn and score without ROS: train, evaluate, compare."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys

from spc_core.system.atomic_files import write_whole
from spc_ros.options import Compare, Evaluate, Train
from spc_ros.stages.bar import Bar


def train(args: Train) -> None:
    from spc_core.training.distributed import leads
    from spc_core.training.train import train as run

    checkpoint = run(args.dataset, args.out, args.config, args.overwrite)
    if leads():
        print(f"checkpoint: {checkpoint}")


def evaluate(args: Evaluate) -> None:
    from spc_core.deploy.checkpoint import load_checkpoint
    from spc_core.method.planner import PlannerConfig
    from spc_core.tasks import tasks
    from spc_core.trials.evaluate import expert_returns, run_in_process, score, table
    from spc_core.trials.protocol import Trial
    from spc_core.trials.recordings import dataset_transitions

    if args.drift:
        _drift(args)
        return
    if args.json is None and "no_context" not in args.protocols:
        raise ValueError("--protocols lacks no_context, the zero of the table's scale; add it, or give --json")
    recorded = None if args.recordings is None else functools.partial(dataset_transitions, args.recordings)
    results = {}
    chosen = []
    for number, folder in enumerate(args.runs):
        checkpoint = load_checkpoint(folder)
        family = args.family or checkpoint.contract.name
        chosen = [task for split in args.splits for task in tasks(family, split)]
        trial = Trial(chosen, args.protocols, args.episodes, args.seed, args.few_shot_sizes)
        planning = PlannerConfig() if args.planning else None
        with Bar(f"evaluate {folder}", "episode") as bar:
            results[number] = run_in_process(checkpoint, trial, family, bar, planning, recorded)
    if args.json is not None:
        rows = [row.to_json() + "\n" for rows in results.values() for row in rows]
        write_whole(args.json, "".join(rows))
    if "no_context" not in args.protocols:
        print(f"no table, whose zero would be the protocol no_context; episodes: {args.json}")
        return
    print(table(score(results, expert_returns(chosen, range(args.seed, args.seed + args.episodes)))))


def _drift(args: Evaluate) -> None:
    """The drift test of each run; the splits' tasks change into one another."""
    from spc_core.deploy.checkpoint import load_checkpoint
    from spc_core.tasks import tasks
    from spc_core.trials.drift import drift_scores, drift_table, run_drift

    runs = []
    for folder in args.runs:
        checkpoint = load_checkpoint(folder)
        family = args.family or checkpoint.contract.name
        for split in args.splits:
            with Bar(f"drift {folder} {split}", "change") as bar:
                runs += run_drift(checkpoint, family, tasks(family, split), (args.seed,), bar, args.half_life)
    if args.json is not None:
        write_whole(args.json, "".join(json.dumps(dataclasses.asdict(run)) + "\n" for run in runs))
    print(drift_table(drift_scores(runs)))


def compare(args: Compare) -> None:
    from spc_core.comparison.plan import make_plan
    from spc_core.comparison.report import CompareReport
    from spc_core.comparison.run import compare as run

    options = dataclasses.asdict(args)
    jobs = options.pop("jobs")
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}; use at least 1")
    plan = make_plan(**options)
    report = CompareReport(plan)
    try:
        run(plan, jobs, [sys.executable, "-m", "spc_ros.cli"], report.write)
    finally:
        if report.rows:
            print(f"{report.text()}\ntable: {args.out / 'table.md'}\npage:  {args.out / 'compare.html'}")
