# SPDX-License-Identifier: Apache-2.0
"""Invented trials of a family, for reports and pages."""

import csv
import math
from pathlib import Path

import numpy as np

from spc_core.pages.report import FamilyRun
from spc_core.tasks import Task, tasks
from spc_core.training.run_log import LOSSES
from spc_core.trials.protocol import EpisodeResult

EPISODES = 3


def row(
    task: Task, protocol: str, k: int, episode: int, return_: float, context: list[float], **kinds: int
) -> EpisodeResult:
    return EpisodeResult(
        task_id=task.task_id, split=task.split, params=dict(task.params), protocol=protocol, k=k, episode=episode,
        seed=episode, return_=return_, steps=100, context=context, context_count=k, bag="", reason="time limit",
        seconds=0.1, interventions=kinds,
    )  # fmt: skip


def embed(task: Task, map_: np.ndarray) -> np.ndarray:
    """Where an imagined encoder puts a task: on a bent surface that follows its parameters."""
    p = task.params
    flat = [math.cos(p["angle"]), math.sin(p["angle"])] if "angle" in p else [p["payload"] - 0.8, p["strength"] - 1]
    return np.tanh(map_ @ np.array(flat) * 1.5)


def invented_run(
    family: str,
    logs: Path | None = None,
    *,
    seeds: int = 3,
    splits=("id", "ood"),
    sizes=(10, 50, 200),
    intervene: bool = False,
) -> FamilyRun:
    """Trials whose returns rise with K towards the expert's, less so out of distribution."""
    rng = np.random.default_rng(len(family))
    tried = [task for split in splits for task in tasks(family, split)]
    experts = {(t.task_id, e): -12 - 3 * rng.random() for t in tried for e in range(EPISODES)}
    results: dict[int, list[EpisodeResult]] = {}
    floors = {task.task_id: rng.uniform(-75, -45) for task in tried}
    for seed in range(seeds):
        map_, rows = rng.normal(size=(5, 2)), []
        skill = {"id": rng.uniform(0.85, 0.95), "ood": rng.uniform(0.55, 0.75)}
        runs = [
            ("no_context", 0),
            ("zero_shot", 0),
            *(("collect", k) for k in sizes),
            *(("few_shot", k) for k in sizes),
        ]
        for task in tried:
            for protocol, k in runs:
                noise = 0.5 / math.sqrt(k or 100)
                frozen = embed(task, map_) * (1 - math.exp(-(k or 100) / 30)) + noise * rng.normal(size=5)
                for episode in range(EPISODES):
                    share = {"no_context": 0, "collect": 0, "zero_shot": 0.7}.get(protocol, 1 - math.exp(-k / 30))
                    low, high = floors[task.task_id], experts[task.task_id, episode]
                    value = low + (high - low) * share * skill[task.split] + rng.normal(0, 2)
                    context = frozen if protocol == "few_shot" else frozen + 0.05 * rng.normal(size=5)
                    kinds = {"limit": 3, "rate": 12} if intervene and protocol == "few_shot" else {}
                    rows.append(row(task, protocol, k, episode, value, context.tolist(), **kinds))
        results[seed] = rows
    files = {seed: write_log(logs / f"{family}-{seed}.csv", seed) for seed in range(seeds)} if logs else {}
    return FamilyRun(family, "ab" * 32, results, experts, files)


def write_log(path: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["update", "seconds", *LOSSES])
        for update in range(200, 6001, 200):
            fall = math.exp(-update / 800)
            values = [(1 + i) * (fall + 0.03) * rng.uniform(0.9, 1.1) - (i == 5) for i in range(len(LOSSES))]
            writer.writerow([update, f"{update / 50:.1f}", *(f"{v:.6g}" for v in values)])
    return path
