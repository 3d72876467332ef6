# SPDX-License-Identifier: Apache-2.0
"""What the policy is worth on each task, with its own z, without one and with another task's, next to the recordings.

The judge knows the tasks by their recordings: each has a Q of its own, so that nothing of what is judged is trusted.
What drove the recordings is evaluated by the same regressions, so that their errors mostly cancel in the difference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from spc_core.assessment.fitted_q import Features, Horizon, evaluate
from spc_core.assessment.judged import Judged
from spc_core.assessment.recordings import Recordings, TaskRecording

FEATURES = 256
WIDTHS = (0.7, 1.0, 1.4)  # of the kernel, times the median distance of two recorded transitions
RESAMPLES = 4000  # of the tasks
KINDS = ("own", "none", "other")  # z that the policy is evaluated with
MOST_UNITS = 5.0  # an observation counts as at most so many spreads from the mean


@dataclasses.dataclass(frozen=True)
class Values:
    """Mean reward of a step over an episode, later ones discounted, by task; B fits of T tasks."""

    task_ids: tuple[str, ...]
    horizon: Horizon
    policy: dict[str, np.ndarray]  # (B, T) for each z
    behaviour: np.ndarray  # (B, T) of what drove the recordings, by the same fits
    recorded: np.ndarray  # (T,) what the recordings earned
    recorded_spread: float  # of single episodes, over all tasks
    episodes: tuple[int, ...]

    def gain(self, kind: str = "own") -> np.ndarray:
        """(B, T) what the policy is worth more than the recordings."""
        return self.policy[kind] - self.behaviour

    @property
    def judge_error(self) -> float:
        """Root mean square over tasks: the behaviour's value by the fits, against what it earned."""
        return float(np.sqrt(np.mean((self.behaviour.mean(0) - self.recorded) ** 2)))


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over tasks with its bootstrap interval of 90 %, over fits and tasks."""

    mean: float
    low: float
    high: float
    above: float  # share of the bootstrap that is above 0


def interval(differences: np.ndarray, seed: int = 0) -> Interval:
    """Of differences (B, T)."""
    rng = np.random.default_rng(seed)
    fits, tasks = differences.shape
    fit = rng.integers(fits, size=(RESAMPLES, 1))
    means = differences[fit, rng.integers(tasks, size=(RESAMPLES, tasks))].mean(1)
    low, high = np.quantile(means, [0.05, 0.95])
    return Interval(float(differences.mean()), float(low), float(high), float((means > 0).mean()))


def value(
    judged: Judged,
    recordings: Recordings,
    discount: float,
    seed: int = 0,
    fits: int = 12,
    progress: Callable[[int, int, str], None] | None = None,
) -> Values:
    """Evaluate by `fits` regressions, each with its own features, width of the kernel, and drawn episodes."""
    stats = judged.checkpoint.stats
    scale = stats.reward_std
    horizon = Horizon(recordings.horizon, discount, -stats.reward_mean / scale)
    tasks, weight = recordings.tasks, horizon.weight(recordings.horizon)
    sought = [_Sought.of(judged, task, zs) for task, zs in zip(tasks, zs_of(judged, tasks), strict=True)]
    width = _median_distance(torch.cat([task.rows for task in sought]), seed)
    found = np.zeros((fits, len(tasks), 1 + len(sought[0].starting)))
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    for fit in range(fits):
        features = Features.draw(sought[0].rows.shape[1], FEATURES, width * WIDTHS[fit % len(WIDTHS)], generator)
        for number, task in enumerate(sought):
            drawn = np.bincount(rng.integers(len(task.lengths), size=len(task.lengths)), minlength=len(task.lengths))
            found[fit, number] = task.values(features, torch.from_numpy(drawn), horizon)
        if progress is not None:
            progress(fit + 1, fits, "value")
    units = found / weight * scale + stats.reward_mean
    kinds = KINDS if units.shape[2] > 2 else KINDS[:1]
    earned = [_earned(task, horizon) for task in tasks]
    return Values(
        tuple(task.task_id for task in tasks),
        horizon,
        {kind: units[..., 1 + place] for place, kind in enumerate(kinds)},
        units[..., 0],
        np.array([one.mean() for one in earned]),
        float(np.concatenate(earned).std()),
        tuple(len(task.starts) for task in tasks),
    )


def zs_of(judged: Judged, tasks: Sequence[TaskRecording]) -> list[list[np.ndarray]]:
    """For each task: its own z, none, and that of the task whose z is farthest; its own alone where z is always 0."""
    own = np.array([judged.own_z(task) for task in tasks])
    if judged.context == "none":
        return [[z] for z in own]
    far = np.linalg.norm(own[:, None] - own[None], axis=-1).argmax(1)
    return [[z, judged.no_z, own[other]] for z, other in zip(own, far, strict=True)]


def _earned(task: TaskRecording, horizon: Horizon) -> np.ndarray:
    """(E,) mean reward of a step of each episode; a short one that goes on counts as long as it is."""
    ended = task.terminated[task.last]
    steps = np.where(ended, horizon.steps, np.minimum(task.lengths, horizon.steps))
    weights = np.array([horizon.weight(int(count)) for count in steps])
    return task.returns(horizon.steps, horizon.discount) / weights


@dataclasses.dataclass(frozen=True)
class _Sought:
    """What the fits of a task need: rows are observation and action on unit scale (I,)."""

    rows: Tensor  # (N, I) recorded
    following: Tensor  # (1 + C, N, I) next observations with the recorded next action, and with each policy's
    starting: Tensor  # (C, E, I) first observations with each policy's action
    rewards: Tensor  # (N,)
    terminated: Tensor  # (N,)
    episode: Tensor  # (N,)
    lengths: np.ndarray  # (E,)
    starts: np.ndarray  # (E,)
    counted: Tensor  # (N,) 0 for the last transition of an episode that goes on: the action after it is not known

    @classmethod
    def of(cls, judged: Judged, task: TaskRecording, zs: Sequence[np.ndarray]) -> _Sought:
        stats = judged.checkpoint.stats

        def row(observations: np.ndarray, actions: np.ndarray) -> Tensor:
            seen = np.clip(stats.observation(observations)[:, ~stats.ignored], -MOST_UNITS, MOST_UNITS)
            return torch.from_numpy(np.concatenate([seen, actions], -1).astype(np.float32))

        acted = stats.action(task.actions).astype(np.float64)
        after = np.append(acted[1:], acted[-1:], axis=0)
        first, then = task.observations[task.starts], task.next_observations
        return cls(
            rows=row(task.observations, acted),
            following=torch.stack([row(then, after), *(row(then, judged.act(then, z)) for z in zs)]),
            starting=torch.stack([row(first, judged.act(first, z)) for z in zs]),
            rewards=torch.from_numpy(np.asarray(stats.reward(task.rewards), np.float32)),
            terminated=torch.from_numpy(task.terminated),
            episode=torch.from_numpy(task.episode),
            lengths=task.lengths,
            starts=task.starts,
            counted=torch.from_numpy((~task.last | task.terminated).astype(np.float32)),
        )

    def values(self, features: Features, drawn: Tensor, horizon: Horizon) -> np.ndarray:
        """(1 + C,) of the behaviour and each policy, over first states of episodes, each drawn so many times (E,)."""
        known, weights = features(self.rows), self.counted * drawn[self.episode]
        q = evaluate(known, features(self.following), self.rewards, self.terminated, weights, horizon)
        begun = torch.cat([known[self.starts] @ q[:1].T, (features(self.starting) @ q[1:, :, None]).squeeze(-1).T], 1)
        return (begun.T.double() @ drawn.double() / drawn.sum()).numpy()


def _median_distance(rows: Tensor, seed: int, pairs: int = 4000) -> float:
    one, other = torch.from_numpy(np.random.default_rng(seed).integers(len(rows), size=(2, pairs)))
    return float((rows[one] - rows[other]).norm(dim=-1).median())
