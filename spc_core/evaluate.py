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
from spc_core.planner import PlannerConfig
from spc_core.runtime import ContextTracker, Policy
from spc_core.safety import SafetyFilter
from spc_core.tasks import SPLITS, Task, find_task, make_env


class InProcessDriver:
    """Runs a trial's episodes in MuJoCo with the same tracker, policy and safety filter as the nodes."""

    def __init__(self, checkpoint: Checkpoint, family: str, planning: PlannerConfig | None = None) -> None:
        """`planning`: how to plan; None leaves the actions to the actor."""
        self.env = make_env(family)
        self.policy, self.tracker = Policy(checkpoint, planning), ContextTracker(checkpoint)
        self.safety = SafetyFilter(checkpoint.contract)
        self.reward_function = checkpoint.contract.reward_function()

    def run(self, request: EpisodeRequest) -> Outcome:
        """One episode; the tracker carries the context from one request to the next."""
        tracker = self.tracker
        if request.reset_context:
            tracker.reset()
        tracker.mode, tracker.limit = request.mode, request.limit
        self.policy.reset()
        self.safety.reset()
        self.safety.counts.clear()
        observation, _ = self.env.reset(seed=request.seed, options={"task": find_task(request.task.task_id)})
        total, steps, ended, terminated = 0.0, 0, False, False
        while not ended:
            action = self.safety.apply(self.policy.act(observation, tracker.context))
            following, reward, terminated, truncated, _ = self.env.step(action)
            if self.reward_function is not None:
                reward = self.reward_function(observation, action, following)
            tracker.update(Transition(steps, observation, action, float(reward), following))
            observation, total, steps = following, total + float(reward), steps + 1
            ended = terminated or truncated
        return Outcome(
            return_=total, steps=steps, context=tracker.context.tolist(), context_count=tracker.count,
            reason="terminated" if terminated else "time limit", interventions=dict(self.safety.counts),
        )  # fmt: skip


def run_in_process(
    checkpoint: Checkpoint,
    trial: Trial,
    family: str,
    progress: Callable[[int, int, str], None] | None = None,
    planning: PlannerConfig | None = None,
) -> list[EpisodeResult]:
    """The whole trial in this process; `progress` is called with scored episodes done, all, and the newest one."""
    driver = InProcessDriver(checkpoint, family, planning)
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

    normalised = (return - no_context) / (expert - no_context), of means over tasks, episodes and seeds; NaN where the
    expert is no better than no_context. Raises ValueError where a split lacks no_context, the zero of the scale.
    """
    rows = [(seed, row) for seed, results in runs.items() for row in results if row.protocol != COLLECT]
    scores = []
    for split in sorted({row.split for _, row in rows}, key=lambda name: (SPLITS + (name,)).index(name)):
        groups: dict[tuple[str, int], _Returns] = {("expert", 0): []}
        for seed, row in rows:
            if row.split == split:
                groups.setdefault((row.protocol, row.k), []).append((seed, row.task_id, row.return_))
                if row.protocol == "no_context":
                    groups["expert", 0].append((seed, row.task_id, experts[row.task_id, row.seed]))
        if not groups["expert", 0]:
            raise ValueError(
                f"the trial of split '{split}' lacks the protocol no_context, the zero of the scale; add it"
            )
        for (protocol, k), returns in groups.items():
            scores.append(_score(split, protocol, k, returns, groups["no_context", 0], groups["expert", 0]))
    return scores


_Returns = list[tuple[int, str, float]]  # training seed, task id, return of an episode


def _score(split: str, protocol: str, k: int, returns: _Returns, floor: _Returns, expert: _Returns) -> Score:
    seeds = sorted({seed for seed, _, _ in returns})
    tasks = sorted({task for _, task, _ in returns})
    by_task = [_mean(returns, task=task) for task in tasks]
    return Score(
        split=split,
        protocol=protocol,
        k=k,
        mean=_mean(returns),
        stderr=float(np.std(by_task, ddof=1) / math.sqrt(len(tasks))) if len(tasks) > 1 else 0.0,
        normalised=_share(_mean(returns), _mean(floor), _mean(expert)),
        normalised_by_seed=tuple(_share(*(_mean(group, seed) for group in (returns, floor, expert))) for seed in seeds),
        tasks=len(tasks),
        seeds=len(seeds),
        episodes=len(returns),
    )


def _mean(returns: _Returns, seed: int | None = None, task: str | None = None) -> float:
    return float(np.mean([r for s, t, r in returns if seed in (None, s) and task in (None, t)]))


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else math.nan


def table(scores: Sequence[Score]) -> str:
    """The scores as text for a terminal."""
    lines = [f"{'split':6} {'protocol':16} {'return':>9} {'+- s.e.':>8} {'normalised':>10}   tasks x seeds x episodes"]
    for s in scores:
        name = f"{s.protocol}({s.k})" if s.protocol == "few_shot" else s.protocol
        per = s.episodes // (s.tasks * s.seeds)
        lines.append(
            f"{s.split:6} {name:16} {s.mean:9.2f} {s.stderr:8.2f} {s.normalised:10.2f}   {s.tasks} x {s.seeds} x {per}"
        )
    return "\n".join(lines)
