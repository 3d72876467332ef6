# SPDX-License-Identifier: Apache-2.0
"""The judge's own model of the recorded tasks, and what a policy earns in it from the recorded first observations.

Change of the observation, reward and end of a step are regressed on random features of observation and action: a part
that all tasks share, and one of each task. Observations stay near the recorded ones, and rewards within theirs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spc_core.assessment.fitted_q import Features, Horizon

SHARED_RIDGE, OWN_RIDGE = 1e-5, 1e-2  # of the Gram matrix's mean diagonal
BEYOND = 0.05  # of the recorded range of an observed field, that a rollout may leave it by
LEAST_END = 0.05  # probability of an end below which a step is not one: regression never says 0


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


@dataclasses.dataclass(frozen=True)
class TaskModels:
    """One model for each task, of the same features."""

    features: Features
    weights: tuple[Tensor, ...]  # (D, O + 2) of each task
    scale: Tensor  # (O + 2,) of what is predicted
    low: Tensor  # (O,) of observations
    high: Tensor
    reward_ends: tuple[tuple[float, float], ...]  # of each task
    ends: bool  # whether any task has ended in the recordings

    @classmethod
    def fit(cls, features: Features, tasks: Sequence[Steps], counts: Sequence[Tensor]) -> TaskModels:
        """`counts` (N,) for each task: how much a step counts."""
        known = [features(task.rows) for task in tasks]
        targets = [torch.cat([t.change, t.rewards[:, None], t.terminated[:, None]], -1) for t in tasks]
        scale = torch.cat(targets).std(0).clamp(min=1e-6)
        targets = [target / scale for target in targets]
        shared = _ridge(torch.cat(known), torch.cat(targets), torch.cat(list(counts)), SHARED_RIDGE)
        weights = [
            shared + _ridge(one, target - one @ shared, count, OWN_RIDGE)
            for one, target, count in zip(known, targets, counts, strict=True)
        ]
        seen = torch.cat([task.seen for task in tasks])
        low, high = seen.amin(0), seen.amax(0)
        room = BEYOND * (high - low)
        ends = tuple((float(task.rewards.min()), float(task.rewards.max())) for task in tasks)
        some = any(bool(task.terminated.any()) for task in tasks)
        return cls(features, tuple(weights), scale, low - room, high + room, ends, some)

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


def earned(models: TaskModels, starts: Sequence[Tensor], act: Act, horizon: Horizon) -> list[Tensor]:
    """(E,) discounted rewards of each task's rollouts from observations (E, O)."""
    seen = list(starts)
    total = [torch.zeros(len(one)) for one in seen]
    alive = [torch.ones(len(one)) for one in seen]
    for step in range(horizon.steps):
        for task, (after, reward, end) in enumerate(models.step(seen, act(seen, step))):
            worth = alive[task] * reward + (1 - alive[task]) * horizon.nothing
            total[task] = total[task] + horizon.discount**step * worth
            alive[task], seen[task] = alive[task] * (1 - end), after
    return total


def _ridge(known: Tensor, targets: Tensor, counts: Tensor, ridge: float) -> Tensor:
    """(D, K) of the least squares of targets (N, K) on features (N, D)."""
    weighted = known.T * counts
    gram = (weighted @ known).double()
    gram.diagonal()[1:].add_(ridge * gram.diagonal().mean() + 1e-9)
    gram[0, 0] += 1e-6
    return torch.linalg.solve(gram, (weighted @ targets).double()).to(known.dtype)
