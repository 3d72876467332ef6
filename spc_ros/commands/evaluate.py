# SPDX-License-Identifier: Apache-2.0
"""Score trained runs on held-out tasks in this process, without ROS."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import tyro

from spc_core.system.atomic_files import write_atomic
from spc_core.trials.protocol import LIVE_PROTOCOLS
from spc_ros.progress_bar import Bar


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score trained runs on held-out tasks in this process, without ROS: with the same table as `spc trial`.

    examples:
      spc evaluate run-0 run-1 --json episodes.jsonl
      spc evaluate run-0 --splits id --drift
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]  # training runs or checkpoints of one family, one per seed
    family: str = ""  # task family, or the path of a family.yaml; default: the name of the checkpoint's contract
    splits: tuple[str, ...] = ("id", "ood")  # held-out tasks: id, ood; val to choose settings by
    protocols: tuple[str, ...] = LIVE_PROTOCOLS  # any of no_context, zero_shot, few_shot, offline
    few_shot_sizes: tuple[int, ...] = (25, 100, 200)  # transitions collected before a few-shot episode
    episodes: int = 3  # scored episodes of each task and protocol
    seed: int = 0  # seed of the first scored episode
    planning: bool = False  # plan with the world model instead of acting by the actor network
    one_by_one: bool = False  # one robot after the other instead of side by side: slower, the same episodes
    drift: bool = False  # instead: change the task in mid-episode and measure how fast the context adapts
    half_life: float = 0.0  # with --drift: also test a context that halves its weights in this many steps; 0: none
    recordings: Path | None = None  # for offline: a dataset; default: simulated behaviour data
    json: Path | None = None  # also write the episodes here, one JSON line each


def run(options: Evaluate) -> int:
    from spc_core.deploy.checkpoint import load_checkpoint
    from spc_core.method.planner import PlannerConfig
    from spc_core.tasks import family_of, tasks
    from spc_core.trials.evaluate import run_in_process
    from spc_core.trials.protocol import Trial
    from spc_core.trials.recordings import dataset_transitions
    from spc_core.trials.scores import expert_returns, score, table

    if options.drift:
        return _drift(options)
    if options.json is None and "no_context" not in options.protocols:
        raise ValueError("--protocols lacks no_context, the zero of the table's scale; add it, or give --json")
    recorded = None if options.recordings is None else functools.partial(dataset_transitions, options.recordings)
    results = {}
    chosen = []
    for number, folder in enumerate(options.runs):
        checkpoint = load_checkpoint(folder)
        family = options.family or family_of(checkpoint.contract.name).name
        chosen = [task for split in options.splits for task in tasks(family, split)]
        trial = Trial(chosen, options.protocols, options.episodes, options.seed, options.few_shot_sizes)
        planning = PlannerConfig() if options.planning else None
        with Bar(f"evaluate {folder}", "episode") as bar:
            results[number] = run_in_process(checkpoint, trial, family, bar, planning, recorded, options.one_by_one)
    if options.json is not None:
        rows = [row.to_json() + "\n" for rows in results.values() for row in rows]
        write_atomic(options.json, "".join(rows))
    if "no_context" not in options.protocols:
        print(f"no table, whose zero would be the protocol no_context; episodes: {options.json}")
        return 0
    seeds = range(options.seed, options.seed + options.episodes)
    print(table(score(results, expert_returns(chosen, seeds))))
    return 0


def _drift(options: Evaluate) -> int:
    """Run the drift test of each run."""
    from spc_core.deploy.checkpoint import load_checkpoint
    from spc_core.tasks import family_of, tasks
    from spc_core.trials.drift import drift_scores, drift_table, run_drift

    runs = []
    for folder in options.runs:
        checkpoint = load_checkpoint(folder)
        family = options.family or family_of(checkpoint.contract.name).name
        for split in options.splits:
            with Bar(f"drift {folder} {split}", "change") as bar:
                runs += run_drift(checkpoint, family, tasks(family, split), (options.seed,), bar, options.half_life)
    if options.json is not None:
        write_atomic(options.json, "".join(json.dumps(dataclasses.asdict(run)) + "\n" for run in runs))
    print(drift_table(drift_scores(runs)))
    return 0
