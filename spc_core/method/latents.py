# SPDX-License-Identifier: Apache-2.0
"""The sets that latent states live on: small classes behind one interface, chosen by config.

A set has three verbs: `encode` puts an encoder's output on it, `step` a dynamics network's, so that a rollout never
leaves the set; `features` and `head` are the sizes of those two outputs, and `dim` that of a latent.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spc_core.method.config import ModelConfig, TrainConfig
from spc_core.method.layers import FSQ


class Continuous(nn.Module):
    """Any vector."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = self.features = self.head = dim

    def encode(self, features: Tensor) -> Tensor:
        return features

    def step(self, latent: Tensor, head: Tensor) -> Tensor:
        return head

    def difference(self, predicted: Tensor, target: Tensor) -> Tensor:
        return predicted - target


class Raw(Continuous):
    """The observation itself; dynamics give its change, in units of the usual change of each field."""

    scale: Tensor  # (O,), the spread of a change where observations have spread one

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.register_buffer("scale", torch.ones(dim))

    def step(self, latent: Tensor, head: Tensor) -> Tensor:
        return latent + head * self.scale

    def difference(self, predicted: Tensor, target: Tensor) -> Tensor:
        return (predicted - target) / self.scale


class SimNorm(Continuous):
    """Groups of numbers, each on a simplex: not negative, with sum one."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__(dim)
        self.size = size

    def encode(self, features: Tensor) -> Tensor:
        return torch.softmax(features.unflatten(-1, (-1, self.size)), -1).flatten(-2)

    def step(self, latent: Tensor, head: Tensor) -> Tensor:
        return self.encode(head)


class Codes(nn.Module):
    """Groups of FSQ channels: a finite set of codes. Dynamics give channels, which are rounded to codes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.groups, self.channels = config.groups, len(config.levels)
        self.fsq = FSQ(config.levels)
        self.codes = len(self.fsq.codebook)
        self.dim = self.features = self.head = self.groups * self.channels

    def encode(self, features: Tensor) -> Tensor:
        return self.fsq(features.unflatten(-1, (self.groups, self.channels))).flatten(-2)

    def indices(self, latent: Tensor) -> Tensor:
        """(..., L) to the groups' code indices (..., G)."""
        return self.fsq.indices(latent.unflatten(-1, (self.groups, self.channels)))

    def step(self, latent: Tensor, head: Tensor) -> Tensor:
        return self.encode(head)

    def difference(self, predicted: Tensor, target: Tensor) -> Tensor:
        return predicted - target


class SampledCodes(Codes):
    """The same codes. Dynamics give logits of each code, (B, codes x G), and the next code is drawn from them.

    Codes come before groups: a softmax over the last, odd-sized dimension is some forty times slower on a CPU.
    """

    def __init__(self, config: ModelConfig, temperature: float) -> None:
        super().__init__(config)
        self.temperature = temperature
        self.head = self.groups * self.codes

    def logits(self, head: Tensor) -> Tensor:
        """(B, codes x G) to (B, codes, G)."""
        return head.unflatten(-1, (self.codes, self.groups))

    def step(self, latent: Tensor, head: Tensor) -> Tensor:
        """A draw by the Gumbel trick, hard forward and soft backward."""
        logits = self.logits(head)
        perturbed = (logits - torch.log(exponential_noise(logits))) / self.temperature
        return StraightThroughCodes.apply(perturbed, self.fsq.codebook).flatten(-2)  # type: ignore[union-attr]

    def likeliest(self, head: Tensor) -> Tensor:
        """The most likely next latent (B, L); for planning, where noise would blur the comparison of plans."""
        best = self.logits(head).max(1).indices  # four times as fast as argmax(1) on a CPU
        return self.fsq.codebook[best].flatten(-2)


def exponential_noise(like: Tensor) -> Tensor:
    """Standard exponential numbers, fp32, of the shape of `like`; minus their logarithm is Gumbel noise.

    From 16 random bits each, four from one draw, since a CPU's generator is serial: values from 7.6e-6 to 11.8.
    """
    return -torch.log(uniform(random_bits(like)))


def random_bits(like: Tensor) -> Tensor:
    """16 random bits for each number of `like`, int16."""
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device)
    return words.random_(-(2**63), None).view(torch.int16)[: like.numel()].view(like.shape)


def uniform(bits: Tensor) -> Tensor:
    """Random bits to numbers between 0 and 1, fp32."""
    return (bits.float() + (2**15 + 0.5)) * 2**-16


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
        return by_code.sub_((by_code * soft).sum(1, keepdim=True)).mul_(soft), None


def make_latent(observation_dim: int, config: TrainConfig) -> Continuous | Codes:
    """The set that `config.method.latent` names."""
    model, method = config.model, config.method
    if method.latent == "raw":
        return Raw(observation_dim)
    if method.latent == "continuous":
        return Continuous(model.continuous_dim)
    if method.latent == "simnorm":
        return SimNorm(model.continuous_dim, model.simplex_size)
    if method.consistency in ("mse", "cosine"):  # comparing latents, not distributions over them
        return Codes(model)
    return SampledCodes(model, config.loss.gumbel_temperature)
