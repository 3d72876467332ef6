# SPDX-License-Identifier: Apache-2.0
"""The judge's own model of the recorded tasks, and what a policy earns in it from the recorded first observations.

Change of the observation, reward and end of a step are regressed on random features of observation and action: a part
that all tasks share, and one of each task. Observations stay near the recorded ones, and rewards within theirs. Of a
step that is unlike the recorded ones the model only guesses, too kindly where a policy is bad and makes many.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spc_core.assessment.fitted_q import Features, Horizon
from spc_core.assessment.judged import evenly

SHARED_RIDGE, OWN_RIDGE = 1e-5, 1e-2  # of the Gram matrix's mean diagonal
BEYOND = 0.05  # of the recorded range of an observed field, that a rollout may leave it by
LEAST_END = 0.05  # probability of an end below which a step is not one: regression never says 0
MOST_KNOWN, MOST_TRIED = 3000, 1000  # recorded steps that others are compared with, and that say what is usual
USUAL = 0.7  # share of the recorded steps that are as near to one of another episode: docs/results.md
LEAST = 0.05  # quantile of a task's recorded rewards, which an unlike step may earn


@dataclasses.dataclass(frozen=True)
class Steps:
    """N recorded steps of one task on unit scale."""

    seen: Tensor  # (N, O)
    acted: Tensor  # (N, A)
    change: Tensor  # (N, O)
    rewards: Tensor  # (N,)
    terminated: Tensor  # (N,) 0 or 1
    starts: Tensor  # (E,) first steps of episodes
    lengths: Tensor  # (E,)

    @property
    def rows(self) -> Tensor:
        return torch.cat([self.seen, self.acted], -1)

    @property
    def episode(self) -> Tensor:
        """(N,) the number of each step's episode."""
        return torch.repeat_interleave(torch.arange(len(self.lengths)), self.lengths)


@dataclasses.dataclass(frozen=True)
class Known:
    """Recorded steps of all tasks, and how near a step is to one of another episode where it is like the others."""

    rows: Tensor  # (M, O + A)
    edge: float

    @classmethod
    def of(cls, tasks: Sequence[Steps]) -> Known:
        rows = torch.cat([task.rows for task in tasks])
        first = np.cumsum([0, *(len(task.lengths) for task in tasks[:-1])])
        episode = torch.cat([task.episode + int(number) for task, number in zip(tasks, first, strict=True)])
        kept, tried = evenly(len(rows), MOST_KNOWN), evenly(len(rows), MOST_TRIED)
        far = _distances(rows[tried], rows[kept])
        far[episode[tried][:, None] == episode[kept]] = torch.inf
        nearest = far.amin(-1)
        several = bool(torch.isfinite(nearest).all())  # else there is one episode, and everything is unlike
        return cls(rows[kept], float(nearest.quantile(USUAL)) if several else -1.0)

    def unlike(self, rows: Tensor) -> Tensor:
        """Whether steps (N, O + A) are further from all recorded ones, (N,)."""
        return _distances(rows, self.rows).amin(-1) > self.edge


@dataclasses.dataclass(frozen=True)
class TaskModels:
    """One model for each task, of the same features."""

    features: Features
    weights: tuple[Tensor, ...]  # (D, O + 2) of each task
    scale: Tensor  # (O + 2,) of what is predicted
    low: Tensor  # (O,) of observations
    high: Tensor
    reward_ends: tuple[tuple[float, float], ...]  # of each task
    least: tuple[float, ...]  # of each task, LEAST of its rewards
    known: Known
    ends: bool  # whether any task has ended in the recordings

    @classmethod
    def fit(cls, features: Features, tasks: Sequence[Steps], counts: Sequence[Tensor], known: Known) -> TaskModels:
        """`counts` (N,) for each task: how much a step counts."""
        inputs = [features(task.rows) for task in tasks]
        targets = [torch.cat([t.change, t.rewards[:, None], t.terminated[:, None]], -1) for t in tasks]
        scale = torch.cat(targets).std(0).clamp(min=1e-6)
        targets = [target / scale for target in targets]
        shared = _ridge(torch.cat(inputs), torch.cat(targets), torch.cat(list(counts)), SHARED_RIDGE)
        weights = [
            shared + _ridge(one, target - one @ shared, count, OWN_RIDGE)
            for one, target, count in zip(inputs, targets, counts, strict=True)
        ]
        seen = torch.cat([task.seen for task in tasks])
        low, high = seen.amin(0), seen.amax(0)
        room = BEYOND * (high - low)
        ends = tuple((float(task.rewards.min()), float(task.rewards.max())) for task in tasks)
        least = tuple(float(task.rewards.quantile(LEAST)) for task in tasks)
        some = any(bool(task.terminated.any()) for task in tasks)
        return cls(features, tuple(weights), scale, low - room, high + room, ends, least, known, some)

    def step(self, seen: Sequence[Tensor], acted: Sequence[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each task: (E, O) and (E, A) to the next observations (E, O), rewards (E,) and probabilities of an end."""
        known = self.features(torch.cat([torch.cat(list(seen)), torch.cat(list(acted))], -1)).split([*map(len, seen)])
        found = []
        for one, weights, before, (least, most) in zip(known, self.weights, seen, self.reward_ends, strict=True):
            said = (one @ weights) * self.scale
            after = torch.minimum(torch.maximum(before + said[:, :-2], self.low), self.high)
            end = said[:, -1].clamp(0, 1) * (said[:, -1] >= LEAST_END) * self.ends
            found.append((after, said[:, -2].clamp(least, most), end))
        return found


Act = Callable[[Sequence[Tensor], int], Sequence[Tensor]]  # observations (E, O) of each task, and the step


class Earned(NamedTuple):
    """Discounted rewards of E rollouts."""

    said: Tensor  # (E,) by the model
    in_doubt: Tensor  # (E,) how much less it is if every step that is unlike the recorded ones earns the least


def earned(
    models: TaskModels, starts: Sequence[Tensor], act: Act, horizon: Horizon, doubts: bool = True
) -> list[Earned]:
    """Of each task's rollouts from observations (E, O); without `doubts`, nothing is in doubt.

    An unlike step's end is doubted as well: the least is that of rollouts that end there, and of those that go on.
    """
    seen, sizes = list(starts), [len(one) for one in starts]
    said, ending, going_on = ([_Sum.none(size) for size in sizes] for _ in range(3))
    unlike: Sequence[Tensor] = [torch.zeros(size, dtype=torch.bool) for size in sizes]
    for step in range(horizon.steps):
        acted, weight = act(seen, step), horizon.discount**step
        if doubts:
            unlike = models.known.unlike(torch.cat([torch.cat(seen), torch.cat(list(acted))], -1)).split(sizes)
        for task, (after, reward, end) in enumerate(models.step(seen, acted)):
            least = torch.where(unlike[task], reward.clamp(max=models.least[task]), reward)
            said[task] = said[task].add(weight, reward, end, horizon.nothing)
            ending[task] = ending[task].add(weight, least, end, horizon.nothing)
            going_on[task] = going_on[task].add(weight, least, end * ~unlike[task], horizon.nothing)
            seen[task] = after
    sums = zip(said, ending, going_on, strict=True)
    return [
        Earned(one.total, (one.total - torch.minimum(two.total, three.total)).clamp(min=0)) for one, two, three in sums
    ]


class _Sum(NamedTuple):
    """Discounted rewards of E rollouts so far, and with what probability each goes on."""

    total: Tensor  # (E,)
    alive: Tensor  # (E,)

    @classmethod
    def none(cls, size: int) -> _Sum:
        return cls(torch.zeros(size), torch.ones(size))

    def add(self, weight: float, reward: Tensor, end: Tensor, nothing: float) -> _Sum:
        """One step more; after an end each is worth `nothing`."""
        return _Sum(self.total + weight * (self.alive * reward + (1 - self.alive) * nothing), self.alive * (1 - end))


def _distances(rows: Tensor, others: Tensor) -> Tensor:
    """(N, I) and (M, I) to (N, M); equal rows are 0 apart, as they are not by a product of matrices."""
    return torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")


def _ridge(known: Tensor, targets: Tensor, counts: Tensor, ridge: float) -> Tensor:
    """(D, K) of the least squares of targets (N, K) on features (N, D)."""
    weighted = known.T * counts
    gram = (weighted @ known).double()
    gram.diagonal()[1:].add_(ridge * gram.diagonal().mean() + 1e-9)
    gram[0, 0] += 1e-6
    return torch.linalg.solve(gram, (weighted @ targets).double()).to(known.dtype)
