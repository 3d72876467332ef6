# SPDX-License-Identifier: Apache-2.0
"""The networks that a robot needs, with torch, for one row at a time: weights looked up once, inputs written in place.

The same equations as Agent.act and ContextEncoder.embed, which serve batches; here the modules' calls and the
gradient's records would take longer than the arithmetic. On a GPU each is one CUDA graph: one launch, not one for
each operation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spc_core.alignment.streaming import Transition
from spc_core.deploy.checkpoint import Checkpoint
from spc_core.method.agent import Agent
from spc_core.method.latents import Codes
from spc_core.method.planner import Planner

Vector = Callable[[Tensor], Tensor]
WARM_UP = 3


class TorchNetworks:
    """Actor and context encoder of a checkpoint. Weights are shared with its agent, not copied."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        agent = checkpoint.agent
        self._stats, self._device = checkpoint.stats, checkpoint.device
        self.context_dim = agent.context_dim
        self.task_means = agent.task_means.cpu().numpy()  # (K, Z)
        self.has_encoder = agent.context_encoder is not None
        self._act = _Function(_actor(agent), (agent.observation_dim, agent.context_dim), self._device)
        if agent.context_encoder is not None:
            embed = _mlp(agent.context_encoder.network)
            row = 2 * agent.observation_dim + agent.action_dim + 1
            self._vote = _Function(lambda x: torch.tanh(embed(x)), (row,), self._device)

    @torch.inference_mode()
    def act(self, observation: np.ndarray, context: np.ndarray) -> np.ndarray:
        """(O,) in the contract's units and (Z,) to the actor's mean action (A,) in the contract's units, float64."""
        return self._stats.action_units(self._act(self._stats.observation(observation), context))

    @torch.inference_mode()
    def plan(self, planner: Planner, observation: np.ndarray, context: np.ndarray) -> np.ndarray:
        """As `act`, but the first step of a plan."""
        row = torch.from_numpy(self._stats.observation(observation)).to(self._device)
        z = torch.from_numpy(np.asarray(context, np.float32)).to(self._device)
        return self._stats.action_units(planner.plan(row[None], z[None])[0].cpu().numpy())

    @torch.inference_mode()
    def vote(self, transition: Transition) -> np.ndarray:
        """One transition in the contract's units to its vote for z, (Z,) float32."""
        row = self._stats.transition(
            transition.observation, transition.action, transition.reward, transition.next_observation
        )
        return self._vote(row)


class _Function:
    """A function of rows, from arrays to an array; inputs are written into the same memory each time."""

    @torch.inference_mode()
    def __init__(self, function: Callable[..., Tensor], sizes: tuple[int, ...], device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._rows = [torch.zeros(size, pin_memory=on_gpu) for size in sizes]
        self._numbers = [row.numpy() for row in self._rows]
        self._inputs = [row.to(device) for row in self._rows] if on_gpu else self._rows
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        if on_gpu:
            with torch.cuda.device(device):
                self._capture()

    def __call__(self, *values: np.ndarray) -> np.ndarray:
        for numbers, value in zip(self._numbers, values, strict=True):
            numbers[:] = value
        if self._graph is None:
            return self._function(*self._inputs).numpy()
        for row, given in zip(self._rows, self._inputs, strict=True):
            given.copy_(row, non_blocking=True)
        self._graph.replay()
        return self._output.cpu().numpy()  # waits for the GPU

    def _capture(self) -> None:
        """Record the function's operations once; they run again by one launch."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # kernels are chosen in the first calls, which cannot be recorded
            for _ in range(WARM_UP):
                self._function(*self._inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):  # another model may be acting meanwhile
            self._output = self._function(*self._inputs)


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
