# SPDX-License-Identifier: Apache-2.0
"""Trials in this process, without ROS, and what any trial's episodes add up to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from spc_core.adaptation import COLLECT, EpisodeRequest, EpisodeResult, Outcome, Trial
from spc_core.checkpoint import Checkpoint
from spc_core.frames import Transition
from spc_core.runtime import ContextTracker, Policy
from spc_core.safety import SafetyFilter
from spc_core.tasks import Task, find_task, make_env


class InProcessDriver:
    """Runs a trial's episodes in MuJoCo with the same tracker, policy and safety filter as the nodes."""

    def __init__(self, checkpoint: Checkpoint, family: str) -> None:
        self.env = make_env(family)
        self.policy, self.tracker = Policy(checkpoint), ContextTracker(checkpoint)
        self.safety = SafetyFilter(checkpoint.contract)

    def run(self, request: EpisodeRequest) -> Outcome:
        """One episode; the tracker carries the context from one request to the next."""
        tracker = self.tracker
        if request.reset_context:
            tracker.reset()
        tracker.mode, tracker.limit = request.mode, request.limit
        self.safety.reset()
        self.safety.counts.clear()
        observation, _ = self.env.reset(seed=request.seed, options={"task": find_task(request.task.task_id)})
        total, steps, ended = 0.0, 0, False
        while not ended:
            action = self.safety.apply(self.policy.act(observation, tracker.context))
            following, reward, terminated, truncated, _ = self.env.step(action)
            tracker.update(Transition(steps * 20_000_000, observation, action, float(reward), following))
            observation, total, steps, ended = (
                following,
                total + float(reward),
                steps + 1,
                terminated or truncated,
            )
        return Outcome(
            return_=total, steps=steps, context=tracker.context.tolist(), context_count=tracker.count,
            reason="terminated" if terminated else "time limit", interventions=dict(self.safety.counts),
        )  # fmt: skip


def run_in_process(
    checkpoint: Checkpoint, trial: Trial, family: str, progress: Callable[[int, int, str], None] | None = None
) -> list[EpisodeResult]:
    """The whole trial in this process; `progress` is called with scored episodes done, all, and the newest one."""
    driver = InProcessDriver(checkpoint, family)
    done = 0
    for request in trial.requests():
        result = trial.record(request, driver.run(request))
        done += result.scored
        if progress is not None:
            progress(done, len(trial), f"{result.task_id} {result.protocol}")
    return trial.results


def expert_returns(tasks: Iterable[Task], seeds: Sequence[int]) -> dict[tuple[str, int], float]:
    """Returns of the privileged expert, by task id and seed: what a policy that knows the task can reach."""
    returns = {}
    for task in tasks:
        env = make_env(task.family, task)
        for seed in seeds:
            observation, _ = env.reset(seed=seed)
            total, ended = 0.0, False
            while not ended:
                observation, reward, terminated, truncated, _ = env.step(env.expert(observation))
                total, ended = total + float(reward), terminated or truncated
            returns[task.task_id, seed] = total
    return returns


@dataclasses.dataclass(frozen=True)
class Score:
    """One line of the table: a split and protocol over all tasks and training seeds."""

    split: str
    protocol: str
    k: int  # transitions of context collected first; 0 where none are
    mean: float  # return of an episode
    stderr: float  # over tasks, each averaged over its episodes and training seeds
    normalised: float  # 0 is no_context, 1 is the privileged expert
    normalised_by_seed: tuple[float, ...]  # the same for each training seed alone
    tasks: int
    seeds: int
    episodes: int


def score(runs: dict[int, list[EpisodeResult]], experts: dict[tuple[str, int], float]) -> list[Score]:
    """Scores of the trials of several training seeds (`runs` by seed), experts first.

    normalised = (return - no_context) / (expert - no_context), of means over tasks, episodes and seeds.
    Raises ValueError where the trials lack the protocol no_context, which is the zero of the scale.
    """
    rows = [(seed, row) for seed, results in runs.items() for row in results if row.protocol != COLLECT]
    scores = []
    for split in sorted({row.split for _, row in rows}, key=("train", "id", "ood").index):
        mine = [(seed, row) for seed, row in rows if row.split == split]
        expert = {seed: np.mean([experts[r.task_id, r.seed] for s, r in mine if s == seed]) for seed in runs}
        floor = {
            seed: _mean(r.return_ for s, r in mine if s == seed and r.protocol == "no_context")
            for seed in runs
        }
        groups = dict.fromkeys((row.protocol, row.k) for _, row in mine)
        pairs = {
            ("expert", 0): [
                (s, r.task_id, experts[r.task_id, r.seed]) for s, r in mine if r.protocol == "no_context"
            ]
        }
        for protocol, k in groups:
            pairs[protocol, k] = [
                (s, r.task_id, r.return_) for s, r in mine if (r.protocol, r.k) == (protocol, k)
            ]
        for (protocol, k), values in pairs.items():
            by_seed = [
                (_mean(v for s, _, v in values if s == seed) - floor[seed]) / (expert[seed] - floor[seed])
                for seed in runs
            ]
            by_task = [
                _mean(v for _, t, v in values if t == task) for task in dict.fromkeys(t for _, t, _ in values)
            ]
            low, high, mean = _mean(floor.values()), _mean(expert.values()), _mean(v for *_, v in values)
            spread = float(np.std(by_task, ddof=1) / math.sqrt(len(by_task))) if len(by_task) > 1 else 0.0
            scores.append(
                Score(
                    split,
                    protocol,
                    k,
                    mean,
                    spread,
                    (mean - low) / (high - low),
                    tuple(map(float, by_seed)),
                    len(by_task),
                    len(runs),
                    len(values),
                )  # fmt: skip
            )
    return scores


def table(scores: Sequence[Score]) -> str:
    """The scores as text for a terminal."""
    lines = [
        f"{'split':6} {'protocol':16} {'return':>9} {'+- s.e.':>8} {'normalised':>10}   tasks x seeds x episodes"
    ]
    for s in scores:
        name = f"{s.protocol}({s.k})" if s.protocol == "few_shot" else s.protocol
        per = s.episodes // (s.tasks * s.seeds)
        lines.append(
            f"{s.split:6} {name:16} {s.mean:9.2f} {s.stderr:8.2f} {s.normalised:10.2f}   {s.tasks} x {s.seeds} x {per}"
        )
    return "\n".join(lines)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    if not values:
        raise ValueError("a score needs the protocol no_context in every trial; add it")
    return float(np.mean(values))
