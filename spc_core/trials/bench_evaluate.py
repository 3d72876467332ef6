# SPDX-License-Identifier: Apache-2.0
"""Benchmark of an evaluation: robots side by side against one at a time, in turn, with the same rows."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from spc_core.contract.contract import load_contract
from spc_core.deploy.checkpoint import Checkpoint, load_checkpoint
from spc_core.method.agent import Agent
from spc_core.method.config import load_config
from spc_core.method.normalize import Stats
from spc_core.tasks import SPLITS, contract_file, make_env, tasks
from spc_core.trials.evaluate import run_in_process
from spc_core.trials.protocol import LIVE_PROTOCOLS, EpisodeResult, Trial

PRESET = "small"  # of the weights that are drawn where no run is given
SIMULATED = 2000  # steps of the simulation alone


@dataclasses.dataclass(frozen=True)
class EvaluateBench:
    """The report of `spc bench evaluate`: processor time in seconds, medians of the rounds."""

    model: str
    family: str
    tasks: int
    episodes: int  # of each task and protocol
    steps: int  # of all episodes, those that collect contexts included
    one_by_one: dict[str, float]  # by protocol
    side_by_side: dict[str, float]
    simulation: float  # of as many steps, without policy and context

    @property
    def ratio(self) -> float:
        """Share of the time of one robot at a time that all protocols take side by side."""
        return sum(self.side_by_side.values()) / sum(self.one_by_one.values())

    def text(self) -> str:
        """The report for a terminal."""
        lines = [
            f"{self.model}, {self.family}, {self.tasks} tasks x {self.episodes} episodes, {self.steps} steps",
            f"{'processor time, s':24} {'one by one':>10} {'side by side':>12} {'ratio':>6}",
        ]
        for name, slow in self.one_by_one.items():
            fast = self.side_by_side[name]
            lines.append(f"  {name:22} {slow:10.2f} {fast:12.2f} {fast / slow:6.2f}")
        slow, fast = sum(self.one_by_one.values()), sum(self.side_by_side.values())
        lines.append(f"  {'all':22} {slow:10.2f} {fast:12.2f} {self.ratio:6.2f}")
        lines.append(f"  the simulation alone   {self.simulation:10.2f} {'':12} {self.simulation / slow:6.2f}")
        return "\n".join(lines)


def bench_evaluate(
    run: Path | None, family: str, count: int, episodes: int, rounds: int,
    progress: Callable[[str], None] = lambda text: None,
) -> EvaluateBench:  # fmt: skip
    """Measure the evaluation of `run`, or of random weights, on up to `count` tasks of `family`."""
    torch.set_num_threads(1)
    checkpoint = random_checkpoint(family) if run is None else load_checkpoint(run)
    chosen = [task for split in reversed(SPLITS) for task in tasks(family, split)][:count]
    slow: dict[str, list[float]] = {name: [] for name in LIVE_PROTOCOLS}
    fast: dict[str, list[float]] = {name: [] for name in LIVE_PROTOCOLS}
    simulations, steps = [], 0
    for number in range(rounds):
        rows: list[EpisodeResult] = []
        for name in LIVE_PROTOCOLS:
            progress(f"round {number + 1} of {rounds}, {name}")
            pair = []
            for one_by_one, seconds in ((True, slow), (False, fast)):
                began = time.process_time()
                trial = Trial(chosen, [name], episodes)
                pair.append(run_in_process(checkpoint, trial, family, one_by_one=one_by_one))
                seconds[name].append(time.process_time() - began)
            if pair[0] != pair[1]:
                raise RuntimeError(f"{name}: robots side by side have other rows than one at a time; please report it")
            rows += pair[0]
        steps = sum(row.steps for row in rows)
        simulations.append(_step_seconds(family) * steps)
    slow_medians, fast_medians = (
        {name: statistics.median(values) for name, values in seconds.items()} for seconds in (slow, fast)
    )
    return EvaluateBench(
        f"random weights, {PRESET} size" if run is None else str(run), family, len(chosen), episodes, steps,
        slow_medians, fast_medians, statistics.median(simulations),
    )  # fmt: skip


def _step_seconds(family: str) -> float:
    """Processor time of a step of the simulation."""
    env = make_env(family)
    env.reset(seed=0)
    action = 0 * env.action_high
    began = time.process_time()
    for _ in range(SIMULATED):
        env.step(action)
    return (time.process_time() - began) / SIMULATED


def random_checkpoint(family: str) -> Checkpoint:
    """An untrained policy of a family, whose context does not look for changes of the task."""
    contract, config = load_contract(contract_file("", family)), load_config(PRESET)
    params = [dict(task.params) for task in tasks(family, "train")]
    torch.manual_seed(0)
    agent = Agent(contract.observation_dim, contract.action_dim, params, config).eval().requires_grad_(False)
    ones = np.ones(contract.observation_dim, np.float32)
    low, high = (np.array(limit, np.float32) for limit in (contract.action.low, contract.action.high))
    stats = Stats(0 * ones, ones, 0.1 * ones, -0.5, 0.3, low, high)
    return Checkpoint(agent, config, contract, stats, {"tasks": []}, torch.device("cpu"))
