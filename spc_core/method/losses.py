# SPDX-License-Identifier: Apache-2.0
"""The losses of world model and context encoder, each a named function; those of actor and critic are in iql.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spc_core.method.config import ModelConfig, TrainConfig
from spc_core.method.latents import CategoricalFSQLatent, Latent, SimNorm
from spc_core.method.layers import mlp

FOCAL_FLOOR = 0.1  # of squared distances: bounds the push between two tasks


def mean_over_steps(values: Sequence[Tensor], mask: Tensor, discount: float) -> Tensor:
    """Mean over H steps of discount^t times the mean over the batch: H values (B,), mask (B, H) of zeros and ones."""
    total = mask.new_zeros(())
    for t, value in enumerate(values):
        total = total + discount**t / len(values) * (mask[:, t] * value).mean()
    return total


def step_mask(terminated: Tensor) -> Tensor:
    """(B, H) flags to 1 up to and including the first terminal step, 0 after it."""
    return 1 - (terminated.cumsum(-1) - terminated).clamp(max=1)


def code_cross_entropy(logits: Tensor, indices: Tensor) -> Tensor:
    """Cross-entropy of logits (B, codes, G) against code indices (B, G), mean over groups: (B,)."""
    return F.cross_entropy(logits, indices, reduction="none").mean(-1)


def simplex_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum target log softmax(logits) over the last dimension of (B, groups, size), mean over groups: (B,)."""
    return -(target * torch.log_softmax(logits, -1)).sum(-1).mean(-1)


class Consistency(nn.Module):
    """Temporal consistency of one step: the difference of predicted and real latents, by `method.consistency`."""

    def __init__(self, space: Latent, observation_dim: int, config: TrainConfig) -> None:
        super().__init__()
        self.kind = config.method.consistency
        if self.kind == "reconstruction":
            self.decoder = mlp(space.dim, config.model.encoder_hidden, observation_dim)

    def forward(self, space: Latent, output: Tensor, predicted: Tensor, target: Tensor, observation: Tensor) -> Tensor:
        """Loss (B,) of dynamics' outputs, predicted latents and their targets (B, L), and real observations (B, O)."""
        if self.kind == "cross_entropy" and isinstance(space, CategoricalFSQLatent):
            return code_cross_entropy(space.logits(output), space.indices(target))
        if self.kind == "cross_entropy" and isinstance(space, SimNorm):
            return simplex_cross_entropy(space.groups(output), space.groups(target))
        if self.kind == "mse":
            return space.difference(predicted, target).square().mean(-1)
        if self.kind == "cosine":
            return 1 - F.cosine_similarity(predicted, target, dim=-1)
        if self.kind == "reconstruction":  # latents as in an autoencoder
            return (self.decoder(predicted) - observation).square().mean(-1)
        assert self.kind == "none"  # latents learn from the reward alone
        return predicted.new_zeros(len(predicted))


def contrastive_loss(z: Tensor, means: Tensor, task: Tensor, temperature: float, known: Tensor) -> Tensor:
    """InfoNCE between z (B, Z) of tasks `task` (B,) and the running means (K, Z) of all tasks.

    -log softmax of -distance / temperature: the task's mean is the positive, all others are the negatives. The mean
    over `known` (B,); 0 without any.
    """
    # squared distances plus a floor: the gradient of a norm is not defined at zero
    distance = ((z[:, None] - means[None]).square().sum(-1) + 1e-6).sqrt()
    losses = F.cross_entropy(-distance / temperature, task, reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)


def focal_loss(z: Tensor, task: Tensor, known: Tensor) -> Tensor:
    """FOCAL's distance metric on z (B, Z) of tasks (B,): d^2 for pairs of one task, 1 / (d^2 + 0.1) for the others.

    Each term is the mean over its pairs of `known` (B,), or 0 without pairs (arXiv 2010.01112, eq. 11, n = 2).
    """
    squared = (z[:, None] - z[None]).square().sum(-1)
    pairs, equal = known[:, None] & known[None], task[:, None] == task[None]
    other = pairs & ~equal
    same = pairs & equal & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    pull = (squared * same).sum() / same.sum().clamp(min=1)
    push = (other / (squared + FOCAL_FLOOR)).sum() / other.sum().clamp(min=1)
    return pull + push


class ClubBound(nn.Module):
    """CLUB (arXiv 2006.12013): an upper bound on the information of embeddings about (s, a).

    A network predicts the embedding from (s, a); the bound is its log-likelihood of real pairs minus shuffled pairs.
    """

    def __init__(self, inputs: int, config: ModelConfig) -> None:
        super().__init__()
        self.network = mlp(inputs, config.context_hidden, 2 * config.context_dim)

    def log_likelihood(self, acted: Tensor, embeddings: Tensor) -> Tensor:
        """(B, O + A) and (B, Z) to log Normal(embeddings; mean, std) of the prediction, (B,)."""
        mean, log_std = self.network(acted).chunk(2, -1)
        log_std = 3 * torch.tanh(log_std)  # bounded: embeddings that do not vary must not become infinitely likely
        square = ((embeddings - mean) / log_std.exp()).square()
        return -(0.5 * square + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def forward(self, acted: Tensor, embeddings: Tensor, real: Tensor, shift: Tensor) -> Tensor:
        """The bound, a scalar, over the `real` (B,), which come first.

        Embeddings of other transitions come from rolling the real ones by `shift` rows.
        """
        count = real.sum().clamp(min=1)
        other = (torch.arange(len(embeddings), device=count.device) - shift) % count.long()
        gap = self.log_likelihood(acted, embeddings) - self.log_likelihood(acted, embeddings[other])
        return (gap * real).sum() / count
