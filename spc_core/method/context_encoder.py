# SPDX-License-Identifier: Apache-2.0
"""The context encoder E: a few transitions in any order become the task vector z; and the losses on z alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from spc_core.method.config import ModelConfig
from spc_core.method.layers import mlp

FOCAL_FLOOR = 0.1  # of squared distances: bounds the push between two tasks


class ContextEncoder(nn.Module):
    """z = mean over the context of tanh(E(s, a, r, s' - s)), in [-1, 1]^Z; the empty context gives z = 0.

    The change of the observation stands for s': the same information, on a scale of its own.
    """

    def __init__(self, observation_dim: int, action_dim: int, config: ModelConfig) -> None:
        super().__init__()
        self.network = mlp(2 * observation_dim + action_dim + 1, config.context_hidden, config.context_dim)

    def embed(self, transitions: Tensor) -> Tensor:
        """(..., 2 O + A + 1) normalised transitions to (..., Z), each its vote for z."""
        return torch.tanh(self.network(transitions))

    def forward(self, transitions: Tensor, weight: Tensor) -> Tensor:
        """(..., N, 2 O + A + 1) and (..., N) of zeros and ones to z (..., Z)."""
        return pool(self.embed(transitions[weight > 0]), weight)


def pool(votes: Tensor, weight: Tensor) -> Tensor:
    """Votes (M, Z) of the M transitions with weight one, in order, and weights (..., N) to means z (..., Z).

    Padding is never embedded: more than half of a batch's places may be padding.
    """
    sizes = weight.sum(-1)
    owner = (weight > 0).reshape(-1, weight.shape[-1]).nonzero()[:, 0]
    sums = votes.new_zeros(sizes.numel(), votes.shape[-1]).index_add_(0, owner, votes)
    return sums.view(*sizes.shape, -1) / sizes[..., None].clamp(min=1)


def contrastive_loss(z: Tensor, means: Tensor, task: Tensor, temperature: float) -> Tensor:
    """InfoNCE between z (B, Z) and the running means (K, Z) of all tasks; `task` (B,) is the own one.

    -log softmax of -distance / temperature at the own task: the own mean is the positive, all others the negatives.
    """
    # squared distances plus a floor: the gradient of a norm is not defined at zero
    distance = ((z[:, None] - means[None]).square().sum(-1) + 1e-6).sqrt()
    return nn.functional.cross_entropy(-distance / temperature, task)


def focal_loss(z: Tensor, task: Tensor) -> Tensor:
    """FOCAL's distance metric on z (B, Z) of tasks (B,): d^2 over pairs of one task, 1 / (d^2 + 0.1) over the others.

    Each is a mean over its pairs, and 0 where there is none (arXiv 2010.01112, eq. 11, n = 2).
    """
    squared = (z[:, None] - z[None]).square().sum(-1)
    other = task[:, None] != task[None]
    same = ~other & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    pull = (squared * same).sum() / same.sum().clamp(min=1)
    push = (other / (squared + FOCAL_FLOOR)).sum() / other.sum().clamp(min=1)
    return pull + push


class ClubBound(nn.Module):
    """An upper bound on what votes for z tell about (s, a), and so about who acted (CLUB, arXiv 2006.12013).

    A network guesses the vote from (s, a); the bound is how much likelier it holds the real pairs than shuffled ones.
    """

    def __init__(self, inputs: int, config: ModelConfig) -> None:
        super().__init__()
        self.network = mlp(inputs, config.context_hidden, 2 * config.context_dim)

    def log_likelihood(self, acted: Tensor, votes: Tensor) -> Tensor:
        """(B, O + A) and (B, Z) to log Normal(votes; mean, std) of the guess, (B,)."""
        mean, log_std = self.network(acted).chunk(2, -1)
        log_std = 3 * torch.tanh(log_std)  # bounded: votes that do not vary must not become infinitely likely
        square = ((votes - mean) / log_std.exp()).square()
        return -(0.5 * square + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def forward(self, acted: Tensor, votes: Tensor) -> Tensor:
        """The bound, a scalar; votes of other transitions come from turning the batch by a random step."""
        turn = int(torch.randint(1, max(len(votes), 2), ()))
        return (self.log_likelihood(acted, votes) - self.log_likelihood(acted, votes.roll(turn, 0))).mean()
