# SPDX-License-Identifier: Apache-2.0
"""The sets that latent states live on, and the losses that compare a predicted latent with a real one.

A set has three verbs: `encode` puts an encoder's output on it, `step` a dynamics network's, so that a rollout never
leaves the set; `features` and `head` are the sizes of those two outputs, and `dim` that of a latent.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spc_core.config import ModelConfig, TrainConfig
from spc_core.layers import FSQ, compiled, mlp


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

    On a CPU from 16 random bits each, four from one draw, since the generator is serial: values from 7.6e-6 to 11.8.
    """
    return -torch.log(_uniform(_random_bits(like)))


def _random_bits(like: Tensor) -> Tensor:
    """16 random bits for each number of `like`, int16."""
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device)
    return words.random_(-(2**63), None).view(torch.int16)[: like.numel()].view(like.shape)


def _uniform(bits: Tensor) -> Tensor:
    return (bits.float() + (2**15 + 0.5)) * 2**-16


def _largest(soft: Tensor, codebook: Tensor) -> Tensor:
    """(B, codes, G) to the code (B, G, C) of the largest entry."""
    hard = (soft == soft.amax(1, keepdim=True)).to(soft.dtype)
    return hard.transpose(1, 2) @ codebook.to(soft.dtype)


def _softmax_gradient(soft: Tensor, gradient: Tensor, codebook: Tensor) -> Tensor:
    """Gradient of codes (B, G, C) to that of what `soft` (B, codes, G) is the softmax of."""
    by_code = codebook.to(soft.dtype) @ gradient.to(soft.dtype).transpose(1, 2)  # (B, codes, G)
    return by_code.sub_((by_code * soft).sum(1, keepdim=True)).mul_(soft)


class StraightThroughCodes(torch.autograd.Function):
    """Codes (B, G, C) of the largest of perturbed logits (B, codes, G); the gradient is that of a softmax.

    Same as `gumbel_softmax(hard=True)` times the codebook, without its one-hot and difference tensors.
    """

    @staticmethod
    def forward(ctx, perturbed: Tensor, codebook: Tensor) -> Tensor:  # type: ignore[override]
        soft = torch.softmax(perturbed, 1)
        ctx.save_for_backward(soft, codebook)
        return _largest(soft, codebook)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        soft, codebook = ctx.saved_tensors
        return _softmax_gradient(soft, gradient, codebook), None


def sample_and_compare(
    logits: Tensor, bits: Tensor, indices: Tensor, codebook: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits (B, codes, G), random bits like them and target indices (B, G) to a drawn code (B, G, C), its
    cross-entropy (B,), and the softmaxes without and with noise, in the logits' own precision.

    With e = exp(logits) and exponential noise E, exp(logits + Gumbel) is e / E: one exponential serves both.
    """
    exact = logits.float()
    e = (exact - exact.amax(1, keepdim=True)).exp()
    likelihood = e / e.sum(1, keepdim=True)
    own = torch.arange(logits.shape[1], device=logits.device)[None, :, None] == indices[:, None]
    loss = -(likelihood * own).sum(1).clamp(min=1e-37).log().mean(-1)
    noisy = e / -torch.log(_uniform(bits))
    largest = noisy.amax(1, keepdim=True)
    hard = noisy == largest
    if temperature != 1:
        noisy = (noisy / largest) ** (1 / temperature)
    soft = noisy / noisy.sum(1, keepdim=True)
    codes = torch.stack([(hard * column[:, None]).sum(1) for column in codebook.unbind(1)], -1)
    return codes, loss, likelihood.to(logits.dtype), soft.to(logits.dtype)


def sample_and_compare_gradient(
    likelihood: Tensor, soft: Tensor, indices: Tensor, codebook: Tensor, temperature: float, of_codes: Tensor,
    of_loss: Tensor,
) -> Tensor:  # fmt: skip
    """Gradients of codes (B, G, C) and losses (B,) to that of the logits (B, codes, G)."""
    exact = soft.float()
    by_code = sum(column[:, None] * of_codes[:, None, :, c].float() for c, column in enumerate(codebook.unbind(1)))
    through = exact * (by_code - (by_code * exact).sum(1, keepdim=True)) / temperature
    own = torch.arange(soft.shape[1], device=soft.device)[None, :, None] == indices[:, None]
    share = (of_loss / indices.shape[1])[:, None, None]
    return (through + share * (likelihood.float() - own.float())).to(soft.dtype)


class SampleAndCompare(torch.autograd.Function):
    """StraightThroughCodes and code_cross_entropy of the same logits (B, codes, G), with one gradient for both.

    Nothing of the logits' size is kept but the two softmaxes, in the logits' own precision.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx, logits: Tensor, bits: Tensor, indices: Tensor, codebook: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        work = compiled(sample_and_compare, logits)
        codes, loss, likelihood, soft = work(logits, bits, indices, codebook, temperature)
        ctx.save_for_backward(likelihood, soft, indices, codebook)
        ctx.temperature = temperature
        return codes, loss

    @staticmethod
    def backward(ctx, of_codes: Tensor, of_loss: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved = ctx.saved_tensors
        work = compiled(sample_and_compare_gradient, saved[0])
        return work(*saved, ctx.temperature, of_codes, of_loss), None, None, None, None


class NoConsistency(nn.Module):
    """Predicted latents are not compared with anything: the reward alone teaches the latents."""

    def forward(self, head: Tensor, predicted: Tensor, target: Tensor, observation: Tensor) -> Tensor:
        """Head (B, H), predicted latent and its target (B, L), the real observation (B, O), to a loss for each (B,)."""
        return predicted.new_zeros(len(predicted))

    def advance(
        self, space: Continuous | Codes, latent: Tensor, head: Tensor, target: Tensor, observation: Tensor, last: bool
    ) -> tuple[Tensor, Tensor]:
        """The next latent (B, L) and the loss of it (B,); where `last`, nobody asks for the latent any more."""
        following = space.step(latent, head)
        return following, self(head, following, target, observation)


class CodeCrossEntropy(NoConsistency):
    """Cross-entropy of the codes' logits against the target's codes, mean over groups."""

    def __init__(self, latent: SampledCodes) -> None:
        super().__init__()
        self.latent = [latent]  # in a list: the world model owns it

    def forward(self, head: Tensor, predicted: Tensor, target: Tensor, observation: Tensor) -> Tensor:
        (latent,) = self.latent
        return code_cross_entropy(latent.logits(head), latent.indices(target))

    def advance(
        self, space: Continuous | Codes, latent: Tensor, head: Tensor, target: Tensor, observation: Tensor, last: bool
    ) -> tuple[Tensor, Tensor]:
        (codes,) = self.latent
        logits = codes.logits(head)
        bits = torch.zeros_like(logits, dtype=torch.int16) if last else _random_bits(logits)
        following, loss = SampleAndCompare.apply(  # type: ignore[misc]
            logits, bits, codes.indices(target), codes.fsq.codebook, codes.temperature
        )
        return following.flatten(-2), loss


class SimplexCrossEntropy(NoConsistency):
    """Cross-entropy between simplices, mean over groups."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, head: Tensor, predicted: Tensor, target: Tensor, observation: Tensor) -> Tensor:
        shape = (-1, self.size)
        return simplex_cross_entropy(head.unflatten(-1, shape), target.unflatten(-1, shape))


class SquaredError(NoConsistency):
    """Mean squared difference of latents."""

    def __init__(self, latent: Continuous | Codes) -> None:
        super().__init__()
        self.latent = [latent]

    def forward(self, head: Tensor, predicted: Tensor, target: Tensor, observation: Tensor) -> Tensor:
        return self.latent[0].difference(predicted, target).square().mean(-1)


class Cosine(NoConsistency):
    """One minus the cosine of the angle between latents."""

    def forward(self, head: Tensor, predicted: Tensor, target: Tensor, observation: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(predicted, target, dim=-1)


class Reconstruction(NoConsistency):
    """A decoder must give the observation back from the predicted latent: the older way to learn latents."""

    def __init__(self, latent_dim: int, observation_dim: int, config: ModelConfig) -> None:
        super().__init__()
        self.decoder = mlp(latent_dim, config.encoder_hidden, observation_dim)

    def forward(self, head: Tensor, predicted: Tensor, target: Tensor, observation: Tensor) -> Tensor:
        return (self.decoder(predicted) - observation).square().mean(-1)


def code_cross_entropy(logits: Tensor, indices: Tensor) -> Tensor:
    """Cross-entropy of logits (B, codes, G) against code indices (B, G), mean over groups: (B,)."""
    return F.cross_entropy(logits, indices, reduction="none").mean(-1)


def simplex_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum target log softmax(logits) over the last dimension of (B, groups, size), mean over groups: (B,)."""
    return -(target * torch.log_softmax(logits, -1)).sum(-1).mean(-1)


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


def make_consistency(latent: Continuous | Codes, observation_dim: int, config: TrainConfig) -> NoConsistency:
    """The comparison that `config.method.consistency` names."""
    kind = config.method.consistency
    if kind == "cross_entropy":
        return CodeCrossEntropy(latent) if isinstance(latent, SampledCodes) else SimplexCrossEntropy(latent.size)  # type: ignore
    if kind == "mse":
        return SquaredError(latent)
    if kind == "cosine":
        return Cosine()
    if kind == "reconstruction":
        return Reconstruction(latent.dim, observation_dim, config.model)
    return NoConsistency()
