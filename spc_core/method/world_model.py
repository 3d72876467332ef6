# SPDX-License-Identifier: Apache-2.0
"""The context encoder (transitions to z) and the latent world model (latents, their dynamics, rewards)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spc_core.method.config import ModelConfig, TrainConfig
from spc_core.method.latents import make_latent
from spc_core.method.layers import mlp
from spc_core.method.losses import Consistency
from spc_core.method.one_step import OneStep

ONE = 0.5413  # its softplus is 1: the first weight of a vote
LEAST_WEIGHT = 1e-8  # of a context in the division by its weight


class ContextEncoder(nn.Module):
    """z = mean over the context of votes tanh(E(s, a, r, s' - s)), in [-1, 1]^Z; the empty context gives z = 0.

    The change s' - s carries the same information as s', on its own scale. With `precision`, E also gives each vote a
    weight above 0 in each direction of z: votes that cannot know count little, and z is the weighted mean.
    """

    def __init__(self, observation_dim: int, action_dim: int, config: ModelConfig, precision: bool = False) -> None:
        super().__init__()
        self.precision = precision
        outputs = (1 + precision) * config.context_dim
        self.network = mlp(2 * observation_dim + action_dim + 1, config.context_hidden, outputs)

    def embed(self, transitions: Tensor) -> Tensor:
        """Normalised transitions (..., 2 O + A + 1) to their votes (..., Z), or votes and weights (..., 2 Z)."""
        outputs = self.network(transitions)
        if not self.precision:
            return torch.tanh(outputs)
        votes, weights = outputs.chunk(2, -1)
        return torch.cat([torch.tanh(votes), F.softplus(weights + ONE)], -1)

    def votes(self, embeddings: Tensor) -> Tensor:
        """The votes (..., Z) of embeddings."""
        return embeddings.chunk(2, -1)[0] if self.precision else embeddings

    def summands(self, embeddings: Tensor) -> Tensor:
        """What a context adds up: votes, or weighted votes and weights."""
        if not self.precision:
            return embeddings
        votes, weights = embeddings.chunk(2, -1)
        return torch.cat([votes * weights, weights], -1)

    def mean(self, sums: Tensor, sizes: Tensor) -> Tensor:
        """Sums of the summands of contexts of `sizes` (...) transitions to z (..., Z)."""
        if not self.precision:
            return sums / sizes[..., None].clamp(min=1)
        votes, weights = sums.chunk(2, -1)
        return votes / weights.clamp(min=LEAST_WEIGHT)

    def forward(self, transitions: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(..., N, 2 O + A + 1) and (..., N) of zeros and ones to the votes (M, Z) of the ones, in order, and z."""
        embeddings = self.embed(transitions)
        sums = (self.summands(embeddings) * weight[..., None]).sum(-2)
        return self.votes(embeddings)[weight > 0], self.mean(sums, weight.sum(-1))


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
        self.raw = config.method.latent == "raw"
        self.one_step = None
        if config.loss.one_step_weight:
            inputs = (0 if self.raw else self.latent.dim) + observation_dim + action_dim + context_dim
            self.one_step = OneStep(inputs, observation_dim, model.dynamics_hidden)

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

    def one_step_inputs(self, observation: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """(..., O), (..., A), (..., Z) to the inputs of the one-step heads."""
        return torch.cat([*([] if self.raw else [self.encode(observation)]), observation, action, z], -1)

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
