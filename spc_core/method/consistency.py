# SPDX-License-Identifier: Apache-2.0
"""Temporal consistency: losses that compare a predicted latent with a real one, chosen by config."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spc_core.method.config import ModelConfig, TrainConfig
from spc_core.method.latents import Codes, Continuous, SampledCodes, SimNorm, random_bits, uniform
from spc_core.method.layers import compiled, mlp

Space = Continuous | Codes


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
    noisy = e / -torch.log(uniform(bits))
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

    def forward(self, space: Space, head: Tensor, predicted: Tensor, target: Tensor, observation: Tensor) -> Tensor:
        """Head (B, H), predicted latent and its target (B, L), the real observation (B, O), to a loss for each (B,)."""
        return predicted.new_zeros(len(predicted))

    def advance(
        self, space: Space, latent: Tensor, head: Tensor, target: Tensor, observation: Tensor, last: bool
    ) -> tuple[Tensor, Tensor]:
        """The next latent (B, L) and the loss of it (B,); where `last`, nobody asks for the latent any more."""
        following = space.step(latent, head)
        return following, self(space, head, following, target, observation)


class CodeCrossEntropy(NoConsistency):
    """Cross-entropy of the codes' logits against the target's codes, mean over groups."""

    def forward(self, space: Space, head: Tensor, predicted: Tensor, target: Tensor, observation: Tensor) -> Tensor:
        assert isinstance(space, SampledCodes)
        return code_cross_entropy(space.logits(head), space.indices(target))

    def advance(
        self, space: Space, latent: Tensor, head: Tensor, target: Tensor, observation: Tensor, last: bool
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(space, SampledCodes)
        logits = space.logits(head)
        bits = torch.zeros_like(logits, dtype=torch.int16) if last else random_bits(logits)
        following, loss = SampleAndCompare.apply(  # type: ignore[misc]
            logits, bits, space.indices(target), space.fsq.codebook, space.temperature
        )
        return following.flatten(-2), loss


class SimplexCrossEntropy(NoConsistency):
    """Cross-entropy between simplices, mean over groups."""

    def forward(self, space: Space, head: Tensor, predicted: Tensor, target: Tensor, observation: Tensor) -> Tensor:
        assert isinstance(space, SimNorm)
        shape = (-1, space.size)
        return simplex_cross_entropy(head.unflatten(-1, shape), target.unflatten(-1, shape))


class SquaredError(NoConsistency):
    """Mean squared difference of latents."""

    def forward(self, space: Space, head: Tensor, predicted: Tensor, target: Tensor, observation: Tensor) -> Tensor:
        return space.difference(predicted, target).square().mean(-1)


class Cosine(NoConsistency):
    """One minus the cosine of the angle between latents."""

    def forward(self, space: Space, head: Tensor, predicted: Tensor, target: Tensor, observation: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(predicted, target, dim=-1)


class Reconstruction(NoConsistency):
    """A decoder must give the observation back from the predicted latent: the older way to learn latents."""

    def __init__(self, latent_dim: int, observation_dim: int, config: ModelConfig) -> None:
        super().__init__()
        self.decoder = mlp(latent_dim, config.encoder_hidden, observation_dim)

    def forward(self, space: Space, head: Tensor, predicted: Tensor, target: Tensor, observation: Tensor) -> Tensor:
        return (self.decoder(predicted) - observation).square().mean(-1)


def code_cross_entropy(logits: Tensor, indices: Tensor) -> Tensor:
    """Cross-entropy of logits (B, codes, G) against code indices (B, G), mean over groups: (B,)."""
    return F.cross_entropy(logits, indices, reduction="none").mean(-1)


def simplex_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum target log softmax(logits) over the last dimension of (B, groups, size), mean over groups: (B,)."""
    return -(target * torch.log_softmax(logits, -1)).sum(-1).mean(-1)


def make_consistency(latent: Space, observation_dim: int, config: TrainConfig) -> NoConsistency:
    """The comparison that `config.method.consistency` names."""
    kind = config.method.consistency
    if kind == "cross_entropy":
        return CodeCrossEntropy() if config.method.latent == "discrete" else SimplexCrossEntropy()
    if kind == "mse":
        return SquaredError()
    if kind == "cosine":
        return Cosine()
    if kind == "reconstruction":
        return Reconstruction(latent.dim, observation_dim, config.model)
    return NoConsistency()
