# SPDX-License-Identifier: Apache-2.0
"""The parts that all networks are made of: blocks, a Q ensemble, and finite scalar quantisation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INIT_STD = 0.02


NARROW = 64  # a product with so few inputs or outputs costs little, so it is never rounded to bfloat16


class Linear(nn.Linear):
    """A linear layer that stays in full precision under autocast where it is narrow: observations, values, rewards."""

    def forward(self, x: Tensor) -> Tensor:
        if min(self.weight.shape) > NARROW or not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class Mish(nn.Module):
    """x tanh(softplus(x)), from one sigmoid t: with u = t (2 - t), tanh(softplus(x)) = u / (2 - u).

    Several times faster on a CPU than the library's, which takes an exponential, a logarithm and a tanh.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _Mish.apply(x)  # type: ignore[return-value]


class _Mish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[override]
        t = torch.sigmoid(x)
        gate = (2 - t).mul_(t)
        gate /= 2 - gate
        ctx.save_for_backward(gate, t.mul_(x))
        return x * gate

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gate, swish = ctx.saved_tensors  # d mish / dx = gate + x t (1 - gate^2)
        slope = (gate * gate).neg_().add_(1).mul_(swish).add_(gate)
        return slope.mul_(gradient)


def mlp(inputs: int, hidden: Sequence[int], outputs: int, last_std: float = INIT_STD) -> nn.Sequential:
    """Linear -> LayerNorm -> Mish blocks and a plain Linear; weights truncated normal 0.02, biases 0."""
    sizes = [inputs, *hidden]
    layers: list[nn.Module] = []
    for i, o in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [Linear(i, o), nn.LayerNorm(o), Mish()]
    network = nn.Sequential(*layers, Linear(sizes[-1], outputs))
    for module in network:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=last_std if module is network[-1] else INIT_STD)
            nn.init.zeros_(module.bias)
    return network


class EnsembleLinear(nn.Module):
    """`members` linear layers side by side: (E, B, I) or (B, I) in, (E, B, O) out."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(members, inputs, outputs), std=INIT_STD))
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(len(self.weight), *x.shape[-2:])
        if min(self.weight.shape[1:]) > NARROW or not torch.is_autocast_enabled(x.device.type):
            return torch.baddbmm(self.bias, x, self.weight)
        with torch.autocast(x.device.type, enabled=False):
            return torch.baddbmm(self.bias, x.float(), self.weight)


class EnsembleNorm(nn.Module):
    """LayerNorm with own gain and offset for each member: (E, B, D) in and out."""

    def __init__(self, members: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, 1, dim))
        self.bias = nn.Parameter(torch.zeros(members, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * self.weight + self.bias


def ensemble_mlp(members: int, inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """The same blocks as `mlp`, `members` times with own weights, evaluated as one batched product."""
    sizes = [inputs, *hidden]
    layers: list[nn.Module] = []
    for i, o in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [EnsembleLinear(members, i, o), EnsembleNorm(members, o), Mish()]
    return nn.Sequential(*layers, EnsembleLinear(members, sizes[-1], outputs))


class FSQ(nn.Module):
    """Finite scalar quantisation (arXiv 2309.15505) of groups of channels to a small fixed set of codes.

    Levels must be odd, so that zero is a code. A group's index counts the first channel fastest.
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
        """(len(levels),), the largest value before rounding; the margin lets the outermost codes be reached."""
        return self.steps * (1 + 1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(..., groups, channels) to codes of the same shape; the gradient passes the rounding unchanged."""
        bounded = torch.tanh(x) * self.bounds
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / self.steps

    def indices(self, codes: Tensor) -> Tensor:
        """(..., groups, channels) codes to (..., groups) indices."""
        return ((codes * self.steps + self.steps).round().long() * self.basis).sum(-1)


COMPILED_NUMBERS = 2**20  # a function over fewer numbers is not worth the seconds that compiling takes
_compiled: dict[Callable[..., Any], Callable[..., Any]] = {}


def compiled(function: Callable[..., Any], like: Tensor) -> Callable[..., Any]:
    """`function` fused into few passes over memory, where `like` is large and a compiler is there; else as it is."""
    if like.numel() < COMPILED_NUMBERS:
        return function
    if function not in _compiled:
        _compiled[function] = _with_fallback(function)
    return _compiled[function]


def _with_fallback(function: Callable[..., Any]) -> Callable[..., Any]:
    fused = torch.compile(function, dynamic=False)

    def run(*args: Any) -> Any:
        try:
            return fused(*args)
        except Exception as error:  # a missing or broken compiler raises anything
            warnings.warn(f"{function.__name__} runs uncompiled, which is slower: {error}", stacklevel=2)
            _compiled[function] = function
            return function(*args)

    return run


@torch.no_grad()
def ema_(targets: Iterable[Tensor], sources: Iterable[Tensor], rate: float) -> None:
    """Move each target towards its source by `rate`, in place."""
    moved = list(targets)
    if moved:
        torch._foreach_lerp_(moved, list(sources), rate)
