# SPDX-License-Identifier: Apache-2.0
"""The sets of latent states: small classes behind one interface, chosen by config."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spc_core.method.config import ModelConfig, TrainConfig
from spc_core.method.layers import FSQ


class Latent(nn.Module):
    """A set of latents: `encode` maps encoder outputs onto it, `step` dynamics outputs, so that rollouts stay in it.

    `features` and `outputs` are the sizes of those outputs, and `dim` that of a latent.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = self.features = self.outputs = dim

    def encode(self, features: Tensor) -> Tensor:
        """The encoder's output (..., features) to latents (..., L)."""
        raise NotImplementedError

    def step(self, latent: Tensor, output: Tensor) -> Tensor:
        """Latents (B, L) and the dynamics' output for them (B, outputs) to the next latents (B, L)."""
        return self.encode(output)

    def mode(self, latent: Tensor, output: Tensor) -> Tensor:
        """The most likely next latents (B, L), for planning: noise would blur the comparison of plans."""
        return self.step(latent, output)

    def difference(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Predicted minus real latent (B, L), in units that make all entries comparable."""
        return predicted - target


class Continuous(Latent):
    """Any vector."""

    def encode(self, features: Tensor) -> Tensor:
        return features


class Raw(Continuous):
    """The observation itself; dynamics predict its change in units of `scale`."""

    scale: Tensor  # (O,), standard deviation of a change of observations with standard deviation 1

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.register_buffer("scale", torch.ones(dim))

    def step(self, latent: Tensor, output: Tensor) -> Tensor:
        return latent + output * self.scale

    def difference(self, predicted: Tensor, target: Tensor) -> Tensor:
        return (predicted - target) / self.scale


class SimNorm(Latent):
    """Groups of numbers, each on a simplex: not negative, with sum one."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__(dim)
        self.size = size

    def groups(self, values: Tensor) -> Tensor:
        """(..., L) to (..., groups, size)."""
        return values.unflatten(-1, (-1, self.size))

    def encode(self, features: Tensor) -> Tensor:
        return torch.softmax(self.groups(features), -1).flatten(-2)


class FSQLatent(Latent):
    """Groups of FSQ channels: a finite set of codes. Dynamics predict channels, which are rounded to codes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.groups * len(config.levels))
        self.groups, self.channels = config.groups, len(config.levels)
        self.fsq = FSQ(config.levels)
        self.codes = len(self.fsq.codebook)

    def encode(self, features: Tensor) -> Tensor:
        return self.fsq(features.unflatten(-1, (self.groups, self.channels))).flatten(-2)

    def indices(self, latent: Tensor) -> Tensor:
        """(..., L) to the groups' code indices (..., G)."""
        return self.fsq.indices(latent.unflatten(-1, (self.groups, self.channels)))


class CategoricalFSQLatent(FSQLatent):
    """The same codes. Dynamics predict logits of each code, (B, codes x G), and the next code is sampled from them.

    Codes come before groups: a softmax over the last, odd-sized dimension is some forty times slower on a CPU.
    """

    def __init__(self, config: ModelConfig, temperature: float) -> None:
        super().__init__(config)
        self.temperature = temperature
        self.outputs = self.groups * self.codes

    def logits(self, output: Tensor) -> Tensor:
        """(B, codes x G) to (B, codes, G)."""
        return output.unflatten(-1, (self.codes, self.groups))

    def step(self, latent: Tensor, output: Tensor) -> Tensor:
        """Sample by the Gumbel trick, hard forward and soft backward."""
        one_hot = F.gumbel_softmax(self.logits(output).transpose(1, 2), self.temperature, hard=True)  # (B, G, codes)
        return (one_hot @ self.fsq.codebook).flatten(-2)

    def mode(self, latent: Tensor, output: Tensor) -> Tensor:
        best = self.logits(output).max(1).indices  # four times as fast as argmax(1) on a CPU
        return self.fsq.codebook[best].flatten(-2)


def make_latent(observation_dim: int, config: TrainConfig) -> Latent:
    """The set named by `config.method.latent`."""
    model, method = config.model, config.method
    if method.latent == "raw":
        return Raw(observation_dim)
    if method.latent == "continuous":
        return Continuous(model.continuous_dim)
    if method.latent == "simnorm":
        return SimNorm(model.continuous_dim, model.simplex_size)
    if method.consistency in ("mse", "cosine"):  # comparing latents, not distributions over them
        return FSQLatent(model)
    return CategoricalFSQLatent(model, config.loss.gumbel_temperature)
