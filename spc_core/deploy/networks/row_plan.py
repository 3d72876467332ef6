# SPDX-License-Identifier: Apache-2.0
"""Agent.act and ContextEncoder.embed as plain arrays.

NumPy acting and the ONNX export are built from a RowPlan alone. Arrays of an agent on the CPU are shared, not copied.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from torch import Tensor, nn

from spc_core.deploy.networks.mlp import Block, Linear, Mlp
from spc_core.method.agent import Agent
from spc_core.method.latents import Continuous, FSQLatent, SimNorm
from spc_core.method.normalize import Stats


@dataclasses.dataclass(frozen=True)
class Rounding:
    """FSQ: round(tanh(x) * bounds) / steps; (L,) each."""

    bounds: np.ndarray
    steps: np.ndarray


@dataclasses.dataclass(frozen=True)
class Simplexes:
    """SimNorm: a softmax over each group of `size` numbers."""

    size: int


@dataclasses.dataclass(frozen=True)
class RowPlan:
    """action = tanh(actor(latent(encoder(s)), z)) and embedding = tanh(context_encoder(s, a, r, s' - s)).

    s, a, r and s' - s are on the scale of `stats`.
    """

    stats: Stats
    encoder: Mlp | None  # (O) to (L); None: the latent is s itself
    latent: Rounding | Simplexes | None  # None: the encoder's output itself
    latent_dim: int  # L
    actor: Mlp  # (L + Z) to (A)
    context_encoder: Mlp | None  # (2 O + A + 1) to (Z), or to (2 Z) with `precision`
    task_means: np.ndarray  # (K, Z)
    sees_both: bool = False  # the actor sees s beside the latent: (L + O + Z) to (A)
    precision: bool = False  # the second half of an embedding is softplus(x + ONE), the weights of the votes


def row_plan(agent: Agent, stats: Stats) -> RowPlan:
    """The plan of an agent whose data have the statistics `stats`."""
    model, context_encoder = agent.world_model, agent.context_encoder
    encodes = agent.config.method.sees != "observation"
    return RowPlan(
        stats=stats,
        encoder=mlp_of(model.encoder) if encodes else None,
        latent=_latent(model.latent) if encodes else None,
        latent_dim=model.latent.dim if encodes else agent.observation_dim,
        sees_both=agent.config.method.sees == "both",
        actor=mlp_of(agent.acting.network, agent.action_dim),
        context_encoder=None if context_encoder is None else mlp_of(context_encoder.network),
        task_means=_array(agent.task_means),
        precision=context_encoder is not None and context_encoder.precision,
    )


def mlp_of(network: nn.Module, outputs: int | None = None) -> Mlp:
    """The arrays of layers.mlp; only the first `outputs` of the last layer if given."""
    assert isinstance(network, nn.Sequential)
    *modules, last = list(network)
    blocks = []
    for linear, norm in zip(modules[::3], modules[1::3], strict=True):
        assert isinstance(linear, nn.Linear) and isinstance(norm, nn.LayerNorm)
        gain, offset = _array(norm.weight), _array(norm.bias)
        blocks.append(Block(_array(linear.weight), _array(linear.bias), gain, offset, norm.eps))
    assert isinstance(last, nn.Linear)
    return Mlp(tuple(blocks), Linear(_array(last.weight[:outputs]), _array(last.bias[:outputs])))


def _latent(latent: nn.Module) -> Rounding | Simplexes | None:
    if isinstance(latent, FSQLatent):
        bounds, steps = latent.fsq.bounds.repeat(latent.groups), latent.fsq.steps.float().repeat(latent.groups)
        return Rounding(_array(bounds), _array(steps))
    if isinstance(latent, SimNorm):
        return Simplexes(latent.size)
    assert isinstance(latent, Continuous)
    return None


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
