# SPDX-License-Identifier: Apache-2.0
"""The context encoder E: a few transitions in any order become the task vector z."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spc_core.config import ModelConfig
from spc_core.layers import mlp


class ContextEncoder(nn.Module):
    """z = mean over the context of tanh(E(s, a, r, s' - s)), in [-1, 1]^Z; the empty context gives z = 0.

    The change of the observation stands for s': the same information, on a scale of its own.
    """

    def __init__(self, observation_dim: int, action_dim: int, config: ModelConfig) -> None:
        super().__init__()
        self.network = mlp(2 * observation_dim + action_dim + 1, config.context_hidden, config.context_dim)

    def embed(self, transitions: Tensor) -> Tensor:
        """(..., 2 O + A + 1) normalised transitions to (..., Z), each its vote for z."""
        return torch.tanh(self.network(transitions))

    def forward(self, transitions: Tensor, weight: Tensor) -> Tensor:
        """(..., N, 2 O + A + 1) and (..., N) of zeros and ones to z (..., Z): a mean over those with weight one."""
        votes = self.embed(transitions) * weight[..., None]
        return votes.sum(-2) / weight.sum(-1, keepdim=True).clamp(min=1)


def contrastive_loss(z: Tensor, means: Tensor, task: Tensor, temperature: float) -> Tensor:
    """InfoNCE between z (B, Z) and the running means (K, Z) of all tasks; `task` (B,) is the own one.

    -log softmax of -distance / temperature at the own task: the own mean is the positive, all others the negatives.
    """
    # squared distances plus a floor: the gradient of a norm is not defined at zero
    distance = ((z[:, None] - means[None]).square().sum(-1) + 1e-6).sqrt()
    return nn.functional.cross_entropy(-distance / temperature, task)
