# SPDX-License-Identifier: Apache-2.0
"""The latent world model: discrete codes c of an observation, their dynamics and reward given action and z."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spc_core.config import LossConfig, ModelConfig
from spc_core.layers import FSQ, mlp


class WorldModel(nn.Module):
    """Encoder s -> c, dynamics (c, a, z) -> logits of the next codes, reward (c, a, z) -> r."""

    def __init__(self, observation_dim: int, action_dim: int, config: ModelConfig) -> None:
        super().__init__()
        self.groups, self.channels = config.groups, len(config.levels)
        self.fsq = FSQ(config.levels)
        self.codes = len(self.fsq.codebook)
        inputs = config.latent_dim + action_dim + config.context_dim
        self.encoder = mlp(observation_dim, config.encoder_hidden, config.latent_dim, config.encoder_init)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.dynamics = mlp(inputs, config.dynamics_hidden, config.groups * self.codes)
        self.reward = mlp(inputs, config.dynamics_hidden, 1)

    def encode(self, observation: Tensor) -> Tensor:
        """(..., O) to codes (..., L), all groups' channels in a row."""
        return self.fsq(self._grouped(self.encoder(observation))).flatten(-2)

    @torch.no_grad()
    def target_indices(self, observation: Tensor) -> Tensor:
        """(..., O) to the EMA encoder's code indices (..., G)."""
        return self.fsq.indices(self.fsq(self._grouped(self.target_encoder(observation))))

    def next_logits(self, latent: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """(B, L), (B, A), (B, Z) to logits (B, codes, G) of the next code of each group.

        Codes come before groups: a softmax over the last, odd-sized dimension is some forty times slower on a CPU.
        """
        return self.dynamics(torch.cat([latent, action, z], -1)).unflatten(-1, (self.codes, self.groups))

    def next_reward(self, latent: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """(B, L), (B, A), (B, Z) to rewards (B,)."""
        return self.reward(torch.cat([latent, action, z], -1)).squeeze(-1)

    def sample(self, logits: Tensor, temperature: float) -> Tensor:
        """A draw of the next codes (B, L) from logits (B, codes, G), hard forward and soft backward."""
        noise = -torch.log(-torch.log(torch.rand_like(logits).clamp_(min=1e-20)))  # Gumbel
        return StraightThroughCodes.apply((logits + noise) / temperature, self.fsq.codebook).flatten(-2)  # type: ignore

    def _grouped(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.groups, self.channels))


class StraightThroughCodes(torch.autograd.Function):
    """Codes (B, G, C) of the largest of perturbed logits (B, codes, G); the gradient is that of a softmax.

    Same as `gumbel_softmax(hard=True)` times the codebook, without its one-hot and difference tensors.
    """

    @staticmethod
    def forward(ctx, perturbed: Tensor, codebook: Tensor) -> Tensor:  # type: ignore[override]
        soft = torch.softmax(perturbed, 1)
        ctx.save_for_backward(soft, codebook)
        hard = (soft == soft.amax(1, keepdim=True)).to(soft.dtype)
        return hard.transpose(1, 2) @ codebook

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        soft, codebook = ctx.saved_tensors
        by_code = codebook @ gradient.transpose(1, 2)  # (B, codes, G)
        return soft * (by_code - (by_code * soft).sum(1, keepdim=True)), None


def world_model_losses(
    model: WorldModel, latent: Tensor, observations: Tensor, actions: Tensor, rewards: Tensor, z: Tensor,
    config: LossConfig,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Temporal consistency and reward loss of an open-loop rollout.

    latent (B, L) = codes of s_0; observations (B, H, O) = s_1 .. s_H; actions (B, H, A); rewards (B, H); z (B, Z).
    Both are means over steps of discount^t times the mean over the batch (and groups).
    """
    targets = model.target_indices(observations)
    consistency, reward = latent.new_zeros(()), latent.new_zeros(())
    horizon = actions.shape[1]
    for t in range(horizon):
        weight = config.horizon_discount**t / horizon
        logits = model.next_logits(latent, actions[:, t], z)
        consistency = consistency + weight * consistency_loss(logits, targets[:, t])
        reward = reward + weight * F.mse_loss(model.next_reward(latent, actions[:, t], z), rewards[:, t])
        if t + 1 < horizon:
            latent = model.sample(logits, config.gumbel_temperature)
    return consistency, reward


def consistency_loss(logits: Tensor, indices: Tensor) -> Tensor:
    """Cross-entropy of logits (B, codes, G) against code indices (B, G), mean over batch and groups."""
    return F.cross_entropy(logits, indices)
