# SPDX-License-Identifier: Apache-2.0
"""Building blocks of all networks: MLPs, a Q ensemble, and finite scalar quantisation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INIT_STD = 0.02


def mlp(inputs: int, hidden: Sequence[int], outputs: int, last_std: float = INIT_STD) -> nn.Sequential:
    """Linear -> LayerNorm -> Mish blocks and a plain Linear; weights truncated normal 0.02, biases 0."""
    sizes = [inputs, *hidden]
    layers: list[nn.Module] = []
    for i, o in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(i, o), nn.LayerNorm(o), nn.Mish()]
    network = nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))
    for module in network:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=last_std if module is network[-1] else INIT_STD)
            nn.init.zeros_(module.bias)
    return network


class EnsembleLinear(nn.Module):
    """`members` parallel linear layers: (E, B, I) or (B, I) in, (E, B, O) out."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(members, inputs, outputs), std=INIT_STD))
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x.expand(len(self.weight), *x.shape[-2:]), self.weight)


class EnsembleNorm(nn.Module):
    """LayerNorm with a gain and an offset for each member: (E, B, D) in and out."""

    def __init__(self, members: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, 1, dim))
        self.bias = nn.Parameter(torch.zeros(members, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * self.weight + self.bias


def ensemble_mlp(members: int, inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """An ensemble of `members` networks with the blocks of `mlp`, evaluated as batched products."""
    sizes = [inputs, *hidden]
    layers: list[nn.Module] = []
    for i, o in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [EnsembleLinear(members, i, o), EnsembleNorm(members, o), nn.Mish()]
    return nn.Sequential(*layers, EnsembleLinear(members, sizes[-1], outputs))


class FSQ(nn.Module):
    """Finite scalar quantisation (arXiv 2309.15505) of groups of channels to a small fixed set of codes.

    Levels must be odd, so that zero is a code. The first channel varies fastest in a group's index.
    """

    codebook: Tensor  # (prod(levels), len(levels)), the codes in the order of their indices
    steps: Tensor  # (len(levels),), codes on each side of zero
    basis: Tensor  # (len(levels),)

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if any(level < 3 or level % 2 == 0 for level in levels):
            raise ValueError(f"FSQ levels must be odd and at least 3, got {list(levels)}")
        sizes = torch.tensor(levels)
        basis = torch.cumprod(torch.tensor([1, *levels[:-1]]), 0)
        digits = torch.arange(int(sizes.prod()))[:, None] // basis % sizes
        self.register_buffer("steps", sizes // 2, persistent=False)
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("codebook", (digits - sizes // 2) / (sizes // 2), persistent=False)

    @property
    def bounds(self) -> Tensor:
        """(len(levels),), the largest value before rounding; the margin makes the outermost codes reachable."""
        return self.steps * (1 + 1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(..., groups, channels) to codes of the same shape; the gradient passes the rounding unchanged."""
        bounded = torch.tanh(x) * self.bounds
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / self.steps

    def indices(self, codes: Tensor) -> Tensor:
        """(..., groups, channels) codes to (..., groups) indices."""
        return ((codes * self.steps + self.steps).round().long() * self.basis).sum(-1)


@torch.no_grad()
def ema_(targets: Iterable[Tensor], sources: Iterable[Tensor], rate: float) -> None:
    """Move each target towards its source by `rate`, in place."""
    moved = list(targets)
    if moved:
        torch._foreach_lerp_(moved, list(sources), rate)
