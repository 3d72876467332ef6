# SPDX-License-Identifier: Apache-2.0
"""Fitted Q evaluation: what following a policy for some steps is worth, from recordings of others.

Q with k steps to go is regressed, k = 1, 2, ..., on r + discount Q(s', policy's action) with k - 1 to go (Le et al.,
arXiv 1903.08738). Q is linear in random features of observation and action, so that each regression is exact, and the
whole is a matter of seconds. Values stay within what the recorded rewards allow, which bounds extrapolation.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

RIDGE = 1e-4  # of the Gram matrix's mean diagonal
BOUND_EVERY = 5  # steps


@dataclasses.dataclass(frozen=True)
class Features:
    """Random Fourier features of a Gaussian kernel, with a constant and the inputs themselves."""

    frequencies: Tensor  # (I, D)
    phases: Tensor  # (D,)

    @classmethod
    def draw(cls, inputs: int, count: int, length: float, generator: torch.Generator) -> Features:
        """`length` of the kernel, in units of the inputs."""
        frequencies = torch.randn(inputs, count, generator=generator, dtype=torch.float32) / length
        return cls(frequencies, 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float32))

    def __call__(self, rows: Tensor) -> Tensor:
        """(..., I) to (..., 1 + I + D)."""
        waves = torch.cos(rows @ self.frequencies + self.phases) * math.sqrt(2)
        return torch.cat([torch.ones_like(rows[..., :1]), rows, waves], -1)


@dataclasses.dataclass(frozen=True)
class Horizon:
    """What a value counts: so many steps, discounted; after a terminal one, `nothing` each step."""

    steps: int
    discount: float
    nothing: float = 0.0  # no reward, on the scale of the rewards

    def weight(self, steps: int) -> float:
        """The sum of the discounts of so many steps."""
        if self.discount == 1:
            return float(steps)
        return (1 - self.discount**steps) / (1 - self.discount)


def ridge_solver(features: Tensor, weights: Tensor) -> Tensor:
    """(D, N): targets (N,) to the weights (D,) of the least squares that counts a row by `weights` (N,)."""
    weighted = features.T * weights
    gram = (weighted @ features).double()
    gram.diagonal()[1:].add_(RIDGE * gram.diagonal().mean() + 1e-9)  # the constant comes first, and is free
    return torch.linalg.solve(gram, weighted.double()).to(features.dtype)


def evaluate(
    features: Tensor, following: Tensor, rewards: Tensor, terminated: Tensor, weights: Tensor, horizon: Horizon
) -> Tensor:
    """Weights (C, D) of Q of C policies: features (N, D), features of what each does next (C, N, D), else (N,).

    Every BOUND_EVERY steps, what is ahead is bounded on the recorded transitions; the steps between are one matrix.
    """
    solver = ridge_solver(features, weights)
    counted, goes_on = weights > 0, (~terminated).to(features.dtype)
    low, high = (float(end) for end in torch.aminmax(rewards[counted]))
    low, high = min(low, horizon.nothing), max(high, horizon.nothing)
    now, end = solver @ rewards, solver @ terminated.to(features.dtype)
    then = horizon.discount * torch.matmul(solver * goes_on, following)  # (C, D, D)
    q = following.new_zeros(following.shape[0], features.shape[1])
    for steps in range(horizon.steps):
        span = horizon.weight(steps)
        nothing = horizon.discount * horizon.nothing * span
        if steps % BOUND_EVERY:
            q = now + nothing * end + (then @ q[..., None]).squeeze(-1)
        else:
            ahead = (following @ q[..., None]).squeeze(-1).clamp(low * span, high * span) * goes_on
            q = now + nothing * end + horizon.discount * (ahead @ solver.T)
    return q
