# SPDX-License-Identifier: Apache-2.0
"""The latent world model: latent c of an observation, its dynamics and reward given action and z."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from spc_core.method.config import LossConfig, TrainConfig
from spc_core.method.consistency import make_consistency
from spc_core.method.latents import SampledCodes, make_latent
from spc_core.method.layers import mlp


class WorldModel(nn.Module):
    """Encoder s -> c, dynamics (c, a, z) -> next c, reward (c, a, z) -> r. Where c is s itself, there is no encoder."""

    def __init__(self, observation_dim: int, action_dim: int, context_dim: int, config: TrainConfig) -> None:
        super().__init__()
        model = config.model
        self.latent = make_latent(observation_dim, config)
        self.encoder: nn.Module = nn.Identity()
        if config.method.latent != "raw":
            self.encoder = mlp(observation_dim, model.encoder_hidden, self.latent.features, model.encoder_init)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.learnt = config.method.learns_model
        if self.learnt:
            inputs = self.latent.dim + action_dim + context_dim
            self.dynamics = mlp(inputs, model.dynamics_hidden, self.latent.head)
            self.reward = mlp(inputs, model.dynamics_hidden, 1)
            self.consistency = make_consistency(self.latent, observation_dim, config)

    def encode(self, observation: Tensor) -> Tensor:
        """(..., O) to latents (..., L)."""
        return self.latent.encode(self.encoder(observation))

    @torch.no_grad()
    def encode_target(self, observation: Tensor) -> Tensor:
        """(..., O) to the EMA encoder's latents (..., L), without gradient."""
        return self.latent.encode(self.target_encoder(observation))

    def predict(self, latent: Tensor, action: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L), (B, A), (B, Z) to what `latent.step` makes the next latent of (B, head), and to rewards (B,)."""
        inputs = torch.cat([latent, action, z], -1)
        return self.dynamics(inputs), self.reward(inputs).squeeze(-1)

    def likeliest(self, latent: Tensor, head: Tensor) -> Tensor:
        """The most likely next latent (B, L), without noise."""
        if isinstance(self.latent, SampledCodes):
            return self.latent.likeliest(head)
        return self.latent.step(latent, head)


def world_model_losses(
    model: WorldModel, observations: Tensor, actions: Tensor, rewards: Tensor, alive: Tensor, z: Tensor,
    config: LossConfig, open_loop: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Temporal consistency and reward loss of rollouts from s_0 with the recorded actions.

    observations (B, H + 1, O) = s_0 .. s_H; actions (B, H, A); rewards and alive (B, H), 0 in steps after a terminal;
    z (B, Z). Open loop: each step starts from the latent that the step before predicted; else from the real one.
    Both are means over steps of discount^t times the mean over the batch.
    """
    horizon = actions.shape[1]
    targets = model.encode_target(observations[:, 1:])
    latents = model.encode(observations[:, :1] if open_loop else observations[:, :-1])
    latent = latents[:, 0]
    consistency, reward = z.new_zeros(()), z.new_zeros(())
    for t in range(horizon):
        weight = config.horizon_discount**t / horizon
        head, predicted_reward = model.predict(latent, actions[:, t], z)
        following, compared = model.consistency.advance(
            model.latent, latent, head, targets[:, t], observations[:, t + 1], last=t + 1 == horizon
        )
        consistency = consistency + weight * (alive[:, t] * compared).mean()
        reward = reward + weight * (alive[:, t] * (predicted_reward - rewards[:, t]).square()).mean()
        latent = following if open_loop else latents[:, min(t + 1, horizon - 1)]
    return consistency, reward


def alive_steps(terminated: Tensor) -> Tensor:
    """(B, H) flags to 1 up to and with the first terminal step, 0 after: what follows is not the task's."""
    return 1 - (terminated.cumsum(-1) - terminated).clamp(max=1)
