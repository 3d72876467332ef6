# SPDX-License-Identifier: Apache-2.0
"""Checks `spc assess` against simulation: `python tools/check_assess.py OUT [--families arm_reach ...]`

For each family: recordings of training and of held-out tasks, checkpoints of several methods and numbers of updates, a
random one and one trained on shuffled task labels; the return of each in simulation, and what assess says from
recordings alone. The same command resumes. docs/results.md has the table that it prints.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from spc_core.data.dataset import DatasetWriter  # noqa: E402
from spc_core.data.packed import PackedDataset, load_dataset  # noqa: E402
from spc_core.data.reader import read_episodes  # noqa: E402
from spc_core.method.config import TrainConfig, load_config  # noqa: E402
from spc_core.trials.direct_collection import collect_directly  # noqa: E402

EPISODES = 9  # of each task, in training as well as held out
HELD_OUT_SEED = 1000
SNAPSHOTS = {  # updates of each method: those of a world model take longest
    "dora": (100, 400, 1500, 4000),
    "no_context": (100, 400, 1500),
    "focal": (100, 400, 1500),
    "spc_continuous": (100, 400, 1500),
}
BROKEN = {"random": 0, "shuffled": 1500}
SMALL = {
    "continuous_dim": 32, "context_dim": 8, "encoder_hidden": [64], "dynamics_hidden": [64, 64],
    "context_hidden": [64, 64], "policy_hidden": [64, 64],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--families", nargs="+", default=["arm_reach", "arm_payload", "base_drive"])
    parser.add_argument("--until", choices=("train", "simulate", "assess"), default="assess", help="the last stage")
    options = parser.parse_args()
    for family in options.families:
        folder = options.out / family
        make_recordings(family, folder)
        make_checkpoints(folder)


def make_recordings(family: str, folder: Path) -> None:
    """Datasets of training tasks, of the same with shuffled labels, and of held-out tasks."""
    if not (folder / "train").exists():
        collect_directly(family, folder / "train", EPISODES, "train", processes=1)
    if not (folder / "held_out").exists():
        collect_directly(family, folder / "held_out", EPISODES, "id", HELD_OUT_SEED, processes=1)
    if not (folder / "shuffled").exists():
        shuffle_labels(folder / "train", folder / "shuffled")


def shuffle_labels(root: Path, out: Path) -> None:
    """The same episodes, each under the name of a random task."""
    pairs = list(read_episodes(root))
    order = np.random.default_rng(0).permutation(len(pairs))
    with DatasetWriter(out, load_dataset(root).contract) as writer:
        for (entry, _), other in zip(pairs, order, strict=True):
            writer.add_episode(entry.task_id, entry.params, pairs[other][1])


def make_checkpoints(folder: Path) -> None:
    """Snapshots of each method's training, of one on shuffled labels, and one with random weights."""
    data, shuffled = load_dataset(folder / "train"), load_dataset(folder / "shuffled")
    train_snapshots(data, folder / "checkpoints", "dora", "random", (BROKEN["random"],))
    train_snapshots(shuffled, folder / "checkpoints", "dora", "shuffled", (BROKEN["shuffled"],))
    for method, updates in SNAPSHOTS.items():
        train_snapshots(data, folder / "checkpoints", method, method, updates)


def train_snapshots(data: PackedDataset, out: Path, method: str, name: str, updates: tuple[int, ...]) -> None:
    """Train without a file to resume from, and keep the checkpoint at each number of updates."""
    from spc_core.training.distributed import join_group
    from spc_core.training.run_state import TrainingRun
    from spc_core.training.train import data_stats

    if all((out / f"{name}-{number}").exists() for number in updates):
        return
    config = check_config(method, updates[-1])
    with join_group(config.device) as group:
        run = TrainingRun(data, data_stats(data), out / f".{name}", config, group)
        for number in range(updates[-1] + 1):
            if number in updates and not (out / f"{name}-{number}").exists():
                if not number:
                    scramble(run.agent)
                run.snapshot(out / f"{name}-{number}")
                print(f"{out}: {name}-{number}", flush=True)
            run.learner.update(run.sampler.batch(), number)
            run.progress.update += 1


def check_config(method: str, updates: int) -> TrainConfig:
    return load_config("small", method, updates=max(updates, 1), tasks_per_batch=10, windows_per_task=8,
                       contexts_per_task=2, horizon=3, device="cpu", threads=1, model=SMALL)  # fmt: skip


def scramble(agent) -> None:
    """Random weights, biases and last layers too."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for weights in agent.parameters():
            weights.normal_(0, 0.3)


if __name__ == "__main__":
    main()
