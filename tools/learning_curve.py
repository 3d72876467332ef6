# SPDX-License-Identifier: Apache-2.0
"""How many tasks and episodes are enough: `python tools/learning_curve.py OUT [--families arm_reach ...]`

For each family: recordings of its training tasks, one training run for each number of tasks and of episodes a task, and
few-shot returns on `val` tasks, 0 for the expert that knows only the family's mean task, 1 for the one that knows the
task. The same command goes on with the next run. docs/results.md has the table that it prints.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from spc_core.data.dataset import DatasetWriter  # noqa: E402
from spc_core.data.packed import load_dataset  # noqa: E402
from spc_core.data.reader import read_episodes  # noqa: E402
from spc_core.deploy.checkpoint import load_checkpoint  # noqa: E402
from spc_core.method.config import load_config  # noqa: E402
from spc_core.system.atomic_files import write_atomic  # noqa: E402
from spc_core.tasks import tasks  # noqa: E402
from spc_core.trials.direct_collection import collect_directly  # noqa: E402
from spc_core.trials.evaluate import run_in_process  # noqa: E402
from spc_core.trials.protocol import Trial  # noqa: E402
from spc_core.trials.scores import expert_returns, normalise  # noqa: E402

CONTEXT = 100  # transitions of own experience
SCORED = 2  # episodes of each val task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--families", nargs="+", default=["arm_reach"])
    parser.add_argument("--tasks", nargs="+", type=int, default=[2, 5, 10, 20])
    parser.add_argument("--episodes", nargs="+", type=int, default=[30, 10])
    parser.add_argument("--updates", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for family in options.families:
        whole = options.out / family / "recordings"
        if not whole.exists():
            collect_directly(family, whole, max(options.episodes), "train", processes=1)
        for episodes in options.episodes:
            for count in options.tasks:
                point(family, options.out / family, count, episodes, options.updates, options.seed)
        print(table(family, options), flush=True)


def point(family: str, folder: Path, count: int, episodes: int, updates: int, seed: int) -> None:
    """One number of tasks and episodes: dataset, run and score."""
    name = f"{count}-tasks-{episodes}-episodes"
    dataset, run = folder / "datasets" / name, folder / f"updates-{updates}-seed-{seed}" / name
    out = run.with_suffix(".json")
    if out.exists():
        return
    if not dataset.exists():
        take(folder / "recordings", dataset, count, episodes)
    began = time.process_time()
    if not run.exists():
        train(dataset, run, updates, seed)
    trained = time.process_time() - began
    scores = few_shot(family, run)
    write_atomic(out, json.dumps({"scores": scores, "cpu_s": trained}))
    print(f"{family}, {count} tasks of {episodes} episodes: {scores}, trained in {trained:.0f} s of CPU", flush=True)


def take(source: Path, out: Path, count: int, episodes: int) -> None:
    """A dataset of `count` evenly spaced tasks and the first `episodes` of each."""
    names = [task.task_id for task in load_dataset(source).tasks]
    left = {names[place * len(names) // count]: episodes for place in range(count)}
    with DatasetWriter(out, load_dataset(source).contract) as writer:
        for entry, episode in read_episodes(source):
            if left.get(entry.task_id, 0):
                left[entry.task_id] -= 1
                writer.add_episode(entry.task_id, entry.params, episode)
        if any(left.values()):
            sys.exit(f"{source}: has fewer than {episodes} episodes of a task; remove it, and it is made again")


def train(dataset: Path, out: Path, updates: int, seed: int) -> None:
    """The default method, as `spc train --preset quick` trains it, with z of votes alone: without a vote model."""
    from spc_core.training.distributed import join_group
    from spc_core.training.fitting import fit_batches
    from spc_core.training.run_state import TrainingRun
    from spc_core.training.train import data_stats

    data = load_dataset(dataset)
    config = load_config("quick", "spc", updates=updates, seed=seed, device="cpu", threads=1)
    with join_group("cpu") as group:
        run = TrainingRun(data, data_stats(data), out.with_name(f".{out.name}"), fit_batches(config, len(data.tasks)),
                          group)  # fmt: skip
        for number in range(updates):
            run.learner.update(run.sampler.batch(), number)
            run.progress.update += 1
        run.snapshot(out)


def few_shot(family: str, run: Path) -> dict[str, float]:
    """Normalised returns on val tasks, by protocol."""
    chosen, seeds = tasks(family, "val"), range(SCORED)
    trial = Trial(chosen, ("zero_shot", "few_shot"), SCORED, 0, (CONTEXT,))
    low, high = (float(np.mean(list(expert_returns(chosen, seeds, informed).values()))) for informed in (False, True))
    rows = run_in_process(load_checkpoint(run), trial, family)
    kinds = sorted({row.protocol for row in rows if row.scored})
    means = {kind: float(np.mean([r.return_ for r in rows if r.scored and r.protocol == kind])) for kind in kinds}
    return {kind: normalise(mean, low, high) for kind, mean in means.items()}


def table(family: str, options: argparse.Namespace) -> str:
    """Few-shot scores, zero-shot ones in brackets, a row for each number of episodes; a dash: not measured yet."""
    lines = [
        f"| {family}, {options.updates:,} updates | " + " | ".join(f"{count} tasks" for count in options.tasks) + " |",
        "|---" * (len(options.tasks) + 1) + "|",
    ]
    for episodes in options.episodes:
        cells = []
        for count in options.tasks:
            name = f"{count}-tasks-{episodes}-episodes.json"
            path = options.out / family / f"updates-{options.updates}-seed-{options.seed}" / name
            scores = json.loads(path.read_text())["scores"] if path.exists() else None
            cells.append("–" if scores is None else f"{scores['few_shot']:.2f} ({scores['zero_shot']:.2f})")
        lines.append(f"| {episodes} episodes a task | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
