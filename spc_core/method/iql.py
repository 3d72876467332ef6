# SPDX-License-Identifier: Apache-2.0
"""Implicit Q-learning (arXiv 2110.06169) on (c, z): value by expectile, actor by advantage-weighted regression."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spc_core.method.layers import ensemble_mlp, mlp

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


class Actor(nn.Module):
    """(c, z) to a Normal over actions in [-1, 1]: mean by tanh, log-std by tanh mapped to [-5, 2]."""

    def __init__(self, inputs: int, action_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.network = mlp(inputs, hidden, 2 * action_dim)

    def forward(self, latent: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = torch.tanh(self.network(torch.cat([latent, z], -1))).chunk(2, -1)
        return mean, LOG_STD_MIN + (log_std + 1) * (LOG_STD_MAX - LOG_STD_MIN) / 2


class Critic(nn.Module):
    """Two Q functions (c, a, z), their EMA copies, and V (c, z)."""

    def __init__(self, inputs: int, action_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.q = ensemble_mlp(2, inputs + action_dim, hidden, 1)
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)
        self.v = mlp(inputs, hidden, 1)

    def values(self, latent: Tensor, z: Tensor) -> Tensor:
        """(B, L), (B, Z) to V (B,)."""
        return self.v(torch.cat([latent, z], -1)).squeeze(-1)

    def action_values(self, latent: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """(B, L), (B, A), (B, Z) to both Q (2, B)."""
        return self.q(torch.cat([latent, action, z], -1)).squeeze(-1)

    @torch.no_grad()
    def target_action_value(self, latent: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """The smaller of the two target Q (B,)."""
        return self.worth(latent, action, z)

    def worth(self, latent: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """The same, whose gradient reaches the action, and no weight, since those of the target do not learn."""
        return self.target_q(torch.cat([latent, action, z], -1)).squeeze(-1).amin(0)


def expectile_loss(difference: Tensor, expectile: float, count: Tensor) -> Tensor:
    """Mean of |expectile - 1(difference < 0)| * difference^2, with difference = Q - V; a row counts `count` (B,)."""
    return (count * torch.where(difference < 0, 1 - expectile, expectile) * difference.square()).mean()


def bellman_loss(q: Tensor, target: Tensor, count: Tensor) -> Tensor:
    """Squared error of both Q (2, B) against the target (B,), mean over the batch, sum over Q."""
    return (count * (q - target).square()).mean(-1).sum()


def bellman_target(
    reward: Tensor, terminated: Tensor, next_value: Tensor, discount: float, terminal_value: float
) -> Tensor:
    """r + discount V(s'), where V of a terminal state is `terminal_value`."""
    return reward + discount * torch.where(terminated > 0, terminal_value, next_value)


def actor_loss(
    mean: Tensor, log_std: Tensor, action: Tensor, advantage: Tensor, temperature: float, clip: float, count: Tensor
) -> Tensor:
    """-min(exp(temperature * advantage), clip) * log Normal(action; mean, std), mean over the batch."""
    weight = count * torch.exp(temperature * advantage).clamp(max=clip)
    log_likelihood = -0.5 * ((action - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)
    return -(weight * log_likelihood.sum(-1)).mean()
