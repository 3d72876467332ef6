# SPDX-License-Identifier: Apache-2.0
"""The latent world model: latent c of an observation, its dynamics and reward given action and z."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spc_core.method.config import TrainConfig
from spc_core.method.latents import make_latent
from spc_core.method.layers import mlp
from spc_core.method.losses import Consistency


class Rollout(NamedTuple):
    """What a model predicts for each of H steps."""

    outputs: list[Tensor]  # (B, outputs) of the dynamics network
    latents: list[Tensor]  # (B, L) after the step
    rewards: list[Tensor]  # (B,)


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
            self.dynamics = mlp(inputs, model.dynamics_hidden, self.latent.outputs)
            self.reward = mlp(inputs, model.dynamics_hidden, 1)
            self.consistency = Consistency(self.latent, observation_dim, config)

    def encode(self, observation: Tensor) -> Tensor:
        """(..., O) to latents (..., L)."""
        return self.latent.encode(self.encoder(observation))

    @torch.no_grad()
    def encode_target(self, observation: Tensor) -> Tensor:
        """(..., O) to the EMA encoder's latents (..., L), without gradient."""
        return self.latent.encode(self.target_encoder(observation))

    def predict(self, latent: Tensor, action: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L), (B, A), (B, Z) to what `latent.step` makes the next latent of (B, outputs), and to rewards (B,)."""
        inputs = torch.cat([latent, action, z], -1)
        return self.dynamics(inputs), self.reward(inputs).squeeze(-1)

    def mode(self, latent: Tensor, output: Tensor) -> Tensor:
        """The most likely next latents (B, L), without noise."""
        return self.latent.mode(latent, output)

    def rollout(
        self, observations: Tensor, actions: Tensor, z: Tensor, open_loop: bool = True,
        step: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Rollout:  # fmt: skip
        """Predictions from s_0 on, with the recorded actions: observations (B, H + 1, O), actions (B, H, A), z (B, Z).

        Open loop: each step starts from the latent that the step before predicted; else from the real one. `step`
        stands in for `latent.step`.
        """
        predicted = Rollout([], [], [])
        latents = self.encode(observations[:, :1] if open_loop else observations[:, :-1])
        for t, action in enumerate(actions.unbind(1)):
            latent = latents[:, t] if t == 0 or not open_loop else predicted.latents[-1]
            latent = latent.view_as(latent)  # sums the gradients of later steps first, so that rounding is reproducible
            output, reward = self.predict(latent, action, z)
            predicted.outputs.append(output)
            predicted.latents.append((step or self.latent.step)(latent, output))
            predicted.rewards.append(reward)
        return predicted
