# SPDX-License-Identifier: Apache-2.0
"""The drift test: the task changes during an episode, and the steps that the context needs to adapt are counted.

Three strategies are compared. `kept`: the change is not announced, and the context stays a mean over all transitions.
`noticed`: not announced, but the tracker looks for changes. `reset`: the change is announced, and the context starts
again from the prior. With a half-life also `fading`: not announced, but older transitions count less. Runs in one
process; the node `trial` does the same over ROS.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from spc_core.alignment.streaming import Transition
from spc_core.deploy.context_tracker import ContextTracker
from spc_core.deploy.deployable import Policy
from spc_core.deploy.safety import SafetyFilter
from spc_core.system.atomic_files import write_atomic
from spc_core.tasks import Task, make_env

if TYPE_CHECKING:
    from spc_core.deploy.checkpoint import Checkpoint

BEFORE, AFTER = 100, 500  # steps on the first and on the second task
WINDOW = 25  # steps over which rewards are averaged
HALF, FOLLOWED = 0.5, 0.3  # of the distance at the change
NOTICED = "noticed"
STRATEGIES = ("kept", NOTICED, "reset")
FADING = "fading"  # a fourth strategy, if a half-life is given
NO_DRIFT = "no drift test, which needs episodes that go on: they can end early here"
DRIFT = "drift.jsonl"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class DriftRun:
    """One change of task."""

    before: str  # task ids
    after: str
    strategy: str  # kept | noticed | reset | fading
    seed: int
    distance: tuple[float, ...]  # (AFTER + 1,) from z to the second task's settled z after the change, as a share
    rewards: tuple[float, ...]  # mean reward per step in each window, from the start
    steps_to_half: int | None  # after the change; None: not reached
    steps_to_follow: int | None
    bag: str = ""  # path, if one was recorded


def drift_run(
    before: str,
    after: str,
    strategy: str,
    seed: int,
    start: np.ndarray,
    contexts: Sequence[np.ndarray],
    target: np.ndarray,
    rewards_before: Sequence[float],
    rewards_after: Sequence[float],
) -> DriftRun:
    """Summarise a change: `start` (Z,) is the context at the change, `contexts` those after each later step."""
    scale = float(np.linalg.norm(start - target)) or 1.0
    path = np.linalg.norm(np.array([start, *contexts]) - target, axis=1) / scale
    parts = (rewards_before, rewards_after)
    windows = [float(np.mean(part[i : i + WINDOW])) for part in parts for i in range(0, len(part), WINDOW)]
    return DriftRun(
        before, after, strategy, seed, tuple(path.tolist()), tuple(windows),
        steps_until(path, HALF), steps_until(path, FOLLOWED),
    )  # fmt: skip


class DriftLog:
    """The finished changes of a trial, one JSON line each; a change is finished when it has all strategies."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / DRIFT
        self.runs = read_drift(self.path)

    def has(self, before: str, after: str, seed: int) -> bool:
        found = {run.strategy for run in self.runs if (run.before, run.after, run.seed) == (before, after, seed)}
        return found >= set(STRATEGIES)

    def append(self, runs: Sequence[DriftRun]) -> None:
        """Add lines and flush them to disk."""
        self.runs += runs  # written again in full, which drops an incomplete last line
        write_atomic(self.path, "".join(json.dumps(dataclasses.asdict(run)) + "\n" for run in self.runs))


def read_drift(path: str | Path) -> list[DriftRun]:
    """The changes in a drift.jsonl; none if the file does not exist."""
    lines = Path(path).read_text().splitlines() if Path(path).is_file() else []
    runs = [DriftRun(**json.loads(line)) for line in lines]
    return [dataclasses.replace(r, distance=tuple(r.distance), rewards=tuple(r.rewards)) for r in runs]


@dataclasses.dataclass(frozen=True)
class DriftScore:
    """One row of the table: medians of steps over all changes, means of rewards."""

    strategy: str
    changes: int
    followed: int  # changes to which the context adapted within the run
    steps_to_half: float | None  # None if fewer than half of the changes got there
    steps_to_follow: float | None
    reward_before: float  # per step in the last window before the change
    reward_after: float  # in the first window after it
    reward_end: float  # in the last window
    distance_end: float  # median share of the distance left at the end


def steps_until(distance: Sequence[float], share: float) -> int | None:
    """The first index from which the distance stays at most `share`; None if there is none."""
    above = np.flatnonzero(np.asarray(distance) > share)
    first = int(above[-1]) + 1 if len(above) else 0
    return first if first < len(distance) else None


class DriftTest:
    """Runs task changes for one checkpoint."""

    def __init__(
        self, checkpoint: Checkpoint, family: str, before: int = BEFORE, after: int = AFTER, half_life: float = 0.0
    ) -> None:
        """`half_life`: in steps, for the strategy `fading`; 0: without it."""
        self.before, self.after, self.half_life = before, after, half_life
        self.env = make_env(family)
        if self.env.terminates:
            raise ValueError(f"{self.env.family}: {NO_DRIFT}")
        self.policy, self.tracker = Policy(checkpoint), ContextTracker(checkpoint)
        self.safety = SafetyFilter(checkpoint.contract)
        self._reward = checkpoint.contract.reward_function()
        self._last_action: np.ndarray | None = None  # of this episode
        self._settled: dict[tuple[str, int], np.ndarray] = {}

    def run(self, first: Task, second: Task, strategy: str, seed: int = 0) -> DriftRun:
        """Run one episode whose task changes after `before` steps."""
        if strategy not in (known := strategies(self.half_life)):
            raise ValueError(f"strategy {strategy!r} is unknown; use one of: {', '.join(known)}")
        target = self._settled_context(second, seed)
        self.tracker.half_life = self.half_life if strategy == FADING else None
        self.tracker.detect_changes = strategy == NOTICED
        _, one = self._steps(self._start(first, seed), self.before)
        start = self.tracker.context
        self.env.set_task(second)
        if strategy == "reset":
            self.tracker.reset()
        contexts, two = self._steps(self._seen, self.after)
        return drift_run(first.task_id, second.task_id, strategy, seed, start, contexts, target, one, two)

    def _settled_context(self, task: Task, seed: int) -> np.ndarray:
        """The context (Z,) after an episode of this task alone."""
        key = (task.task_id, seed)
        if key not in self._settled:
            self.tracker.half_life, self.tracker.detect_changes = None, False
            self._steps(self._start(task, seed), self.after)
            self._settled[key] = self.tracker.context
        return self._settled[key]

    def _start(self, task: Task, seed: int) -> np.ndarray:
        self.tracker.reset()
        self.policy.reset()
        self.safety.reset()
        self._last_action = None
        return self.env.reset(seed=seed, options={"task": task})[0]

    def _steps(self, observation: np.ndarray, steps: int) -> tuple[list[np.ndarray], list[float]]:
        """Contexts and rewards of `steps` steps, beyond the time limit too; sets `_seen` to the last observation."""
        contexts, rewards = [], []
        for step in range(steps):
            action = self.safety.apply(self.policy.act(observation, self.tracker.context))
            next_observation, reward, *_ = self.env.step(action)
            if self._reward is not None:
                reward = self._reward.paid(observation, action, next_observation, self._last_action)
            self.tracker.update(Transition(step, observation, action, float(reward), next_observation))
            observation, self._last_action = next_observation, action
            contexts.append(self.tracker.context)
            rewards.append(float(reward))
        self._seen = observation
        return contexts, rewards


def run_drift(
    checkpoint: Checkpoint,
    family: str,
    tasks: Sequence[Task],
    seeds: Sequence[int] = (0,),
    progress: Callable[[int, int, str], None] | None = None,
    half_life: float = 0.0,
) -> list[DriftRun]:
    """Change from each task to the one half the list away, under all strategies; `half_life` in steps, or 0."""
    test = DriftTest(checkpoint, family, half_life=half_life)
    plan = [(*pair, strategy) for pair in drift_pairs(tasks, seeds) for strategy in strategies(half_life)]
    runs = []
    for done, (first, second, seed, strategy) in enumerate(plan, 1):
        runs.append(test.run(first, second, strategy, seed))
        if progress is not None:
            progress(done, len(plan), f"drift {first.task_id} to {second.task_id}")
    return runs


def strategies(half_life: float) -> tuple[str, ...]:
    """The strategies to compare."""
    return (*STRATEGIES, FADING) if half_life else STRATEGIES


def drift_pairs(tasks: Sequence[T], seeds: Sequence[int]) -> list[tuple[T, T, int]]:
    """(from, to, seed): each task changes into the one half the list away. Raises ValueError for fewer than two."""
    if len(tasks) < 2:
        raise ValueError(f"the drift test needs at least two tasks to change between, got {len(tasks)}")
    half = len(tasks) // 2
    return [(tasks[i], tasks[(i + half) % len(tasks)], seed) for i in range(len(tasks)) for seed in seeds]


def drift_scores(runs: Sequence[DriftRun], before: int = BEFORE) -> list[DriftScore]:
    """One line for each strategy."""
    change = -(-before // WINDOW)  # the first window after it
    lines = []
    for strategy in dict.fromkeys(run.strategy for run in runs):
        chosen = [run for run in runs if run.strategy == strategy]
        rewards = np.array([run.rewards for run in chosen])
        lines.append(
            DriftScore(
                strategy=strategy,
                changes=len(chosen),
                followed=sum(run.steps_to_follow is not None for run in chosen),
                steps_to_half=_median([run.steps_to_half for run in chosen]),
                steps_to_follow=_median([run.steps_to_follow for run in chosen]),
                reward_before=float(rewards[:, change - 1].mean()),
                reward_after=float(rewards[:, change].mean()),
                reward_end=float(rewards[:, -1].mean()),
                distance_end=float(np.median([run.distance[-1] for run in chosen])),
            )
        )
    return lines


def _median(steps: Sequence[int | None]) -> float | None:
    """The median, where "never" is above every number."""
    middle = float(np.median([np.inf if step is None else step for step in steps]))
    return middle if np.isfinite(middle) else None


def drift_table(scores: Sequence[DriftScore]) -> str:
    """The scores as text for a terminal."""
    head = f"{'context':8} {'changes':>7} {'followed':>8} {'half way':>9} {'70 %':>6} {'left':>6}"
    lines = [f"{head}   reward: before, after, end"]
    for s in scores:
        half, most = ("never" if v is None else f"{v:.0f}" for v in (s.steps_to_half, s.steps_to_follow))
        rewards = ", ".join(f"{v:.3f}" for v in (s.reward_before, s.reward_after, s.reward_end))
        lines.append(
            f"{s.strategy:8} {s.changes:7} {s.followed:8} {half:>9} {most:>6} {s.distance_end:6.0%}   {rewards}"
        )
    return "\n".join(lines)
