# SPDX-License-Identifier: Apache-2.0
"""What Agent.act and ContextEncoder.embed compute, as plain arrays and in the contract's units.

NumPy acting and the ONNX export are both built from a RowPlan; neither reads the agent's modules. CPU arrays of the
agent are shared, not copied.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from torch import Tensor, nn

from spc_core.method.agent import Agent
from spc_core.method.latents import Continuous, FSQLatent, SimNorm
from spc_core.method.normalize import Stats


@dataclasses.dataclass(frozen=True)
class UnitScale:
    """(value - mean) / spread, computed in float64 and rounded to float32 once, as Stats does."""

    mean: np.ndarray
    spread: np.ndarray

    @property
    def columns(self) -> list[tuple[float, float]]:
        """(mean, spread) of each field."""
        return list(zip(self.mean.tolist(), self.spread.tolist(), strict=True))


@dataclasses.dataclass(frozen=True)
class ActionLimits:
    """Actions in [low, low + span] correspond to [-1, 1]; (A,) each, in the contract's units."""

    low: np.ndarray
    high: np.ndarray
    span: np.ndarray  # the float32 difference, as in Stats


@dataclasses.dataclass(frozen=True)
class Linear:
    """weight (O, I) and bias (O,)."""

    weight: np.ndarray
    bias: np.ndarray


@dataclasses.dataclass(frozen=True)
class Block(Linear):
    """A linear layer, then LayerNorm with gain and offset (O,), then Mish."""

    gain: np.ndarray
    offset: np.ndarray
    eps: float


@dataclasses.dataclass(frozen=True)
class Mlp:
    """layers.mlp: blocks and a last linear layer."""

    blocks: tuple[Block, ...]
    last: Linear


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
    """action = limits(tanh(actor(latent(encoder(scaled observation)), z))), and the embedding of a transition.

    The embedding is tanh(context_encoder(s, a, r, s' - s)), each part on unit scale; see Stats.transition.
    """

    observation: UnitScale  # (O,)
    encoder: Mlp | None  # None: the latent is the scaled observation
    latent: Rounding | Simplexes | None  # None: the encoder's output itself
    latent_dim: int  # L
    actor: Mlp  # (L + Z) to the A means
    action: ActionLimits
    task_means: np.ndarray  # (K, Z)
    context_encoder: Mlp | None
    reward: UnitScale  # scalars
    change: UnitScale  # (O,) of s' - s


def row_plan(agent: Agent, stats: Stats) -> RowPlan:
    """The plan of an agent whose inputs are normalised by `stats`."""
    world_model, context_encoder = agent.world_model, agent.context_encoder
    return RowPlan(
        observation=UnitScale(stats.observation_mean, stats.observation_std),
        encoder=None if isinstance(world_model.encoder, nn.Identity) else _mlp(world_model.encoder),
        latent=_latent(world_model.latent),
        latent_dim=world_model.latent.dim,
        actor=_mlp(agent.actor.network, agent.action_dim),
        action=ActionLimits(stats.action_low, stats.action_high, stats.action_high - stats.action_low),
        task_means=_array(agent.task_means),
        context_encoder=None if context_encoder is None else _mlp(context_encoder.network),
        reward=UnitScale(np.array(stats.reward_mean), np.array(stats.reward_std)),
        change=UnitScale(np.zeros_like(stats.change_std), stats.change_std),
    )


def _mlp(network: nn.Module, outputs: int | None = None) -> Mlp:
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
