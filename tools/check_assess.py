# SPDX-License-Identifier: Apache-2.0
"""Checks `spc assess` against simulation: `python tools/check_assess.py OUT [--families arm_reach ...] [--seed 1]`

For each family: recordings of training and of held-out tasks, checkpoints of several methods and numbers of updates, a
random one and one trained on shuffled task labels; the return of each in simulation, and what assess says from
recordings alone. The same command resumes. docs/results.md has the table that it prints.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from spc_core.assessment.assess import assess  # noqa: E402
from spc_core.assessment.settings import Settings  # noqa: E402
from spc_core.data.dataset import DatasetWriter  # noqa: E402
from spc_core.data.packed import PackedDataset, load_dataset  # noqa: E402
from spc_core.data.reader import read_episodes  # noqa: E402
from spc_core.deploy.checkpoint import load_checkpoint  # noqa: E402
from spc_core.method.config import TrainConfig, load_config  # noqa: E402
from spc_core.system.atomic_files import write_atomic  # noqa: E402
from spc_core.tasks import tasks  # noqa: E402
from spc_core.trials.direct_collection import collect_directly  # noqa: E402
from spc_core.trials.evaluate import InProcessDriver  # noqa: E402
from spc_core.trials.protocol import EpisodeRequest, Outcome, Trial  # noqa: E402
from spc_core.trials.recordings import dataset_transitions  # noqa: E402

EPISODES = 9  # of each task, in training as well as held out
HELD_OUT_SEED = 1000
SEEDS = 10_000  # from one --seed to the next
SIMULATED = 5  # episodes of each task
DISCOUNT = 0.99
FITS = 3
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
    parser.add_argument("--seed", type=int, default=0, help="of recordings and training; each needs an OUT of its own")
    options = parser.parse_args()
    known = options.out / "seed"
    if known.exists() and known.read_text() != str(options.seed):
        sys.exit(f"{options.out}: is of --seed {known.read_text()}, not of {options.seed}; give another folder")
    options.out.mkdir(parents=True, exist_ok=True)
    known.write_text(str(options.seed))
    for family in options.families:
        folder = options.out / family
        make_recordings(family, folder, options.seed)
        make_checkpoints(folder, options.seed)
        if options.until != "train":
            for checkpoint in checkpoints(folder):
                simulate(family, folder, checkpoint)
                if options.until == "assess":
                    judge(folder, checkpoint)
    if options.until == "assess":
        print(table([row for family in options.families for row in rows(options.out / family)]))


def make_recordings(family: str, folder: Path, seed: int) -> None:
    """Datasets of training tasks, of the same with shuffled labels, and of held-out tasks."""
    if not (folder / "train").exists():
        collect_directly(family, folder / "train", EPISODES, "train", SEEDS * seed, processes=1)
    if not (folder / "held_out").exists():
        collect_directly(family, folder / "held_out", EPISODES, "id", HELD_OUT_SEED + SEEDS * seed, processes=1)
    if not (folder / "shuffled").exists():
        shuffle_labels(folder / "train", folder / "shuffled")


def shuffle_labels(root: Path, out: Path) -> None:
    """The same episodes, each under the name of a random task."""
    pairs = list(read_episodes(root))
    order = np.random.default_rng(0).permutation(len(pairs))
    with DatasetWriter(out, load_dataset(root).contract) as writer:
        for (entry, _), other in zip(pairs, order, strict=True):
            writer.add_episode(entry.task_id, entry.params, pairs[other][1])


def make_checkpoints(folder: Path, seed: int) -> None:
    """Snapshots of each method's training, of one on shuffled labels, and one with random weights."""
    data, shuffled = load_dataset(folder / "train"), load_dataset(folder / "shuffled")
    train_snapshots(data, folder / "checkpoints", "dora", "random", (BROKEN["random"],), seed)
    train_snapshots(shuffled, folder / "checkpoints", "dora", "shuffled", (BROKEN["shuffled"],), seed)
    for method, updates in SNAPSHOTS.items():
        train_snapshots(data, folder / "checkpoints", method, method, updates, seed)


def train_snapshots(
    data: PackedDataset, out: Path, method: str, name: str, updates: tuple[int, ...], seed: int
) -> None:
    """Train without a file to resume from, and keep the checkpoint at each number of updates."""
    from spc_core.training.distributed import join_group
    from spc_core.training.run_state import TrainingRun
    from spc_core.training.train import data_stats

    if all((out / f"{name}-{number}").exists() for number in updates):
        return
    config = check_config(method, updates[-1], seed)
    with join_group(config.device) as group:
        run = TrainingRun(data, data_stats(data), out / f".{name}", config, group)
        for number in range(updates[-1] + 1):
            if number in updates and not (out / f"{name}-{number}").exists():
                if not number:
                    scramble(run.agent, seed)
                run.snapshot(out / f"{name}-{number}")
                print(f"{out}: {name}-{number}", flush=True)
            run.learner.update(run.sampler.batch(), number)
            run.progress.update += 1


def check_config(method: str, updates: int, seed: int) -> TrainConfig:
    return load_config("small", method, seed=seed, updates=max(updates, 1), tasks_per_batch=10, windows_per_task=8,
                       contexts_per_task=2, horizon=3, device="cpu", threads=1, model=SMALL)  # fmt: skip


def scramble(agent, seed: int) -> None:
    """Random weights, biases and last layers too."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for weights in agent.parameters():
            weights.normal_(0, 0.3)


def checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "checkpoints").iterdir() if not path.name.startswith("."))


def simulate(family: str, folder: Path, checkpoint: Path) -> None:
    """The truth: mean reward of a step by held-out task, plain and discounted, with z from the same recordings."""
    out = folder / "truth" / f"{checkpoint.name}.json"
    if out.exists():
        return
    loaded = load_checkpoint(checkpoint)
    trial = Trial(tasks(family, "id"), ("offline",), episodes=SIMULATED)
    driver = Rewards(loaded, family, None, functools.partial(dataset_transitions, folder / "held_out"))
    found: dict[str, list[tuple[float, float]]] = {}
    for request in trial.requests():
        trial.record(request, driver.run(request))
        discounts = DISCOUNT ** np.arange(len(driver.rewards))
        pair = float(np.mean(driver.rewards)), float(discounts @ driver.rewards / discounts.sum())
        found.setdefault(request.task.task_id, []).append(pair)
    write_atomic(out, json.dumps({name: np.mean(pairs, 0).tolist() for name, pairs in found.items()}))


class Rewards(InProcessDriver):
    """Also keeps the rewards of the last episode."""

    rewards: list[float]

    def run(self, request: EpisodeRequest) -> Outcome:
        self.policy.reset()
        self.robot.begin(request)
        self.rewards = []
        while not self.robot.ended:
            action = self.policy.act(self.robot.observation, self.tracker.context)
            transition = self.robot.step(self.robot.safety.apply(action))
            self.tracker.update(transition)
            self.rewards.append(transition.reward)
        return self.robot.outcome()


def judge(folder: Path, checkpoint: Path) -> None:
    """What assess says, from recordings alone."""
    out = folder / "judged" / f"{checkpoint.name}.json"
    if not out.exists():
        report = assess(checkpoint, folder / "held_out", Settings(discount=DISCOUNT, fits=FITS))
        write_atomic(out, report.to_json())
        print(f"{folder.name} {checkpoint.name}: {report.verdict.word}", flush=True)


@dataclasses.dataclass(frozen=True)
class Row:
    """One checkpoint: what simulation says, and what assess does."""

    family: str
    name: str
    return_: float  # simulated, mean reward of a step
    gain: float  # simulated, discounted, over what the recordings earned
    value: float  # by assess
    spread: tuple[float, float]  # of the gain, by assess
    verdict: str
    reasons: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return self.spread[0] <= self.gain <= self.spread[1]


def rows(folder: Path) -> list[Row]:
    """All checkpoints of a family that have been judged."""
    found = []
    for file in sorted((folder / "judged").glob("*.json")):
        said = json.loads(file.read_text())
        truth = json.loads((folder / "truth" / file.name).read_text())
        recorded = dict(zip(said["value"]["tasks"], said["value"]["recorded"], strict=True))
        gain = said["value"]["better"]
        found.append(
            Row(
                folder.name,
                file.stem,
                float(np.mean([pair[0] for pair in truth.values()])),
                float(np.mean([truth[task][1] - recorded[task] for task in recorded])),
                said["value"]["policy"]["own"],
                (gain["low"], gain["high"]),
                said["verdict"]["word"],
                tuple(check["name"] for check in said["verdict"]["checks"] if check["result"] == "failed"),
            )
        )
    return found


def table(found: Sequence[Row]) -> str:
    """All checkpoints, best first, and how well assess ranks them."""
    lines = [
        "| family | checkpoint | simulated reward | value by assess | simulated gain | spread by assess | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(found, key=lambda row: (row.family, -row.return_)):
        low, high = row.spread
        lines.append(
            f"| {row.family} | {row.name} | {row.return_:.3f} | {row.value:.3f} | {row.gain:+.3f} "
            f"| {low:+.3f} to {high:+.3f}{'' if row.holds else ' (misses)'} "
            f"| {row.verdict}{': ' + ', '.join(row.reasons) if row.reasons else ''} |"
        )
    for family in sorted({row.family for row in found}):
        own = [row for row in found if row.family == family]
        rank = spearman([row.return_ for row in own], [row.value for row in own])
        held = sum(row.holds for row in own)
        signs = sum(low * row.gain > 0 or high * row.gain > 0 for row in own for low, high in [row.spread])
        lines.append(
            f"\n{family}: Spearman {rank:.2f} over {len(own)} checkpoints; the spread holds the truth for {held}, "
            f"and allows its sign for {signs}"
        )
    return "\n".join(lines)


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Rank correlation of values without ties."""
    ranks = [np.argsort(np.argsort(values)).astype(float) for values in (one, other)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


if __name__ == "__main__":
    main()
