# SPDX-License-Identifier: Apache-2.0
"""The context encoder (transitions to z) and the latent world model (latents, their dynamics, rewards)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spc_core.method.config import ModelConfig, TrainConfig
from spc_core.method.latents import make_latent
from spc_core.method.layers import mlp
from spc_core.method.losses import Consistency


class ContextEncoder(nn.Module):
    """z = mean over the context of tanh(E(s, a, r, s' - s)), in [-1, 1]^Z; the empty context gives z = 0.

    The change s' - s carries the same information as s', on its own scale.
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


class Prediction(NamedTuple):
    """One step of a rollout."""

    output: Tensor  # (B, outputs) of the dynamics network
    latent: Tensor  # (B, L) after the step
    reward: Tensor  # (B,)


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
        """(B, L), (B, A), (B, Z) to the dynamics' outputs (B, outputs) and rewards (B,)."""
        inputs = torch.cat([latent, action, z], -1)
        return self.dynamics(inputs), self.reward(inputs).squeeze(-1)

    def mode(self, latent: Tensor, output: Tensor) -> Tensor:
        """The most likely next latents (B, L), without noise."""
        return self.latent.mode(latent, output)

    def rollout(
        self, observations: Tensor, actions: Tensor, z: Tensor, open_loop: bool,
        step: Callable[[Tensor, Tensor], Tensor],
    ) -> Iterator[Prediction]:  # fmt: skip
        """Predictions from s_0 on, with the recorded actions: observations (B, H + 1, O), actions (B, H, A), z (B, Z).

        Open loop: each step starts from the latent that the step before predicted; else from the real one. `step`
        turns a latent and the dynamics' output for it into the next, as `latent.step` does.
        """
        latents = self.encode(observations[:, :1] if open_loop else observations[:, :-1])
        latent = latents[:, 0]
        for t, action in enumerate(actions.unbind(1)):
            if not open_loop:
                latent = latents[:, t]
            output, reward = self.predict(latent, action, z)
            latent = step(latent, output)
            yield Prediction(output, latent, reward)  # its losses come before the next step: rounding depends on it
