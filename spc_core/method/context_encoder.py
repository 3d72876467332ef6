# SPDX-License-Identifier: Apache-2.0
"""The context encoder E: a few transitions in any order become the task vector z."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spc_core.method.config import ModelConfig
from spc_core.method.layers import mlp


class ContextEncoder(nn.Module):
    """z = mean over the context of tanh(E(s, a, r, s' - s)), in [-1, 1]^Z; the empty context gives z = 0.

    The change of the observation stands for s': the same information, on a scale of its own.
    """

    def __init__(self, observation_dim: int, action_dim: int, config: ModelConfig) -> None:
        super().__init__()
        self.network = mlp(2 * observation_dim + action_dim + 1, config.context_hidden, config.context_dim)

    def embed(self, transitions: Tensor) -> Tensor:
        """Normalised transitions (..., 2 O + A + 1) to their embeddings (..., Z)."""
        return torch.tanh(self.network(transitions))

    def forward(self, transitions: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(..., N, 2 O + A + 1) and (..., N) of zeros and ones to embeddings (M, Z) of the ones, in order, and z."""
        embeddings = self.embed(transitions)
        z = (embeddings * weight[..., None]).sum(-2) / weight.sum(-1, keepdim=True).clamp(min=1)
        return embeddings[weight > 0], z
