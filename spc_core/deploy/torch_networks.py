# SPDX-License-Identifier: Apache-2.0
"""The networks that a robot needs, with torch, for one row at a time: weights looked up once, inputs written in place.

The same equations as Agent.act and ContextEncoder.embed, which serve batches; here the modules' calls and the
gradient's records would take longer than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spc_core.alignment.frames import Transition
from spc_core.deploy.checkpoint import Checkpoint
from spc_core.method.agent import Agent
from spc_core.method.latents import Codes
from spc_core.method.planner import Planner

Vector = Callable[[Tensor], Tensor]


class TorchNetworks:
    """Actor and context encoder of a checkpoint. Weights are shared with its agent, not copied."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        agent = checkpoint.agent
        self._stats, self._device = checkpoint.stats, checkpoint.device
        self.context_dim = agent.context_dim
        self.task_means = agent.task_means.cpu().numpy()  # (K, Z)
        self.has_encoder = agent.context_encoder is not None
        self._row, self._row_numbers = _buffer(agent.observation_dim)
        self._z, self._z_numbers = _buffer(agent.context_dim)
        self._act = _actor(agent)
        if agent.context_encoder is not None:
            self._transition, self._transition_numbers = _buffer(2 * agent.observation_dim + agent.action_dim + 1)
            self._embed = _mlp(agent.context_encoder.network)

    @torch.inference_mode()
    def act(self, observation: np.ndarray, context: np.ndarray) -> np.ndarray:
        """(O,) in the contract's units and (Z,) to the actor's mean action (A,) in the contract's units, float64."""
        self._row_numbers[:] = self._stats.observation(observation)
        self._z_numbers[:] = context
        action = self._act(self._row.to(self._device), self._z.to(self._device))
        return self._stats.action_units(action.cpu().numpy())

    @torch.inference_mode()
    def plan(self, planner: Planner, observation: np.ndarray, context: np.ndarray) -> np.ndarray:
        """As `act`, but the first step of a plan."""
        row = torch.from_numpy(self._stats.observation(observation)).to(self._device)
        z = torch.from_numpy(np.asarray(context, np.float32)).to(self._device)
        return self._stats.action_units(planner.plan(row[None], z[None])[0].cpu().numpy())

    @torch.inference_mode()
    def vote(self, transition: Transition) -> np.ndarray:
        """One transition in the contract's units to its vote for z, (Z,) float32."""
        self._transition_numbers[:] = self._stats.transition(
            transition.observation, transition.action, transition.reward, transition.next_observation
        )
        return torch.tanh(self._embed(self._transition.to(self._device))).cpu().numpy()


def _buffer(size: int) -> tuple[Tensor, np.ndarray]:
    """A row for an input, and the same memory as an array to write it by."""
    row = torch.zeros(size)
    return row, row.numpy()


def _mlp(network: nn.Module, outputs: int | None = None) -> Vector:
    """layers.mlp as a function of one row (I,); only the first `outputs` of the last layer where given."""
    if isinstance(network, nn.Identity):
        return lambda x: x
    assert isinstance(network, nn.Sequential)
    modules = list(network)
    blocks = []
    for linear, norm in zip(modules[:-1:3], modules[1:-1:3], strict=True):
        assert isinstance(linear, nn.Linear) and isinstance(norm, nn.LayerNorm)
        blocks.append((linear.weight, linear.bias, tuple(norm.normalized_shape), norm.weight, norm.bias, norm.eps))
    last = modules[-1]
    assert isinstance(last, nn.Linear)
    weight, bias = last.weight[:outputs], last.bias[:outputs]

    def run(x: Tensor) -> Tensor:
        for w, b, shape, gain, offset, eps in blocks:
            x = F.mish(F.layer_norm(torch.addmv(b, w, x), shape, gain, offset, eps))
        return torch.addmv(bias, weight, x)

    return run


def _actor(agent: Agent) -> Callable[[Tensor, Tensor], Tensor]:
    """Agent.act as a function of one row."""
    encode, latent = _mlp(agent.world_model.encoder), agent.world_model.latent
    act = _mlp(agent.actor.network, agent.action_dim)
    put_on: Vector = _rounding(latent) if isinstance(latent, Codes) else latent.encode

    def run(observation: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(act(torch.cat((put_on(encode(observation)), z))))

    return run


def _rounding(latent: Codes) -> Vector:
    """FSQ.forward of all groups of one row at once."""
    steps = latent.fsq.steps.float().repeat(latent.groups)
    bounds = steps * (1 + 1e-3)
    return lambda features: torch.tanh(features).mul_(bounds).round_().div_(steps)
