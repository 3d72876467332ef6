# SPDX-License-Identifier: Apache-2.0
"""Acting and adapting on a GPU: Agent.act and ContextEncoder.embed as one CUDA graph each, and planning by torch.

A graph is one launch instead of one per operation. Tests run the same methods uncaptured on the CPU, and compare the
captured ones with them if there is a GPU; the capture of these two methods has not been run on one so far.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from spc_core.alignment.streaming import Transition
from spc_core.method.agent import Agent
from spc_core.method.config import PlannerConfig
from spc_core.method.normalize import Stats
from spc_core.method.planner import Planner

WARM_UP = 3


class TorchNetworks:
    """Actor and context encoder of an agent on `device`; see Networks. The agent's weights are used, not copied."""

    def __init__(self, agent: Agent, stats: Stats, device: torch.device) -> None:
        self._stats, self.context_dim = stats, agent.context_dim
        self.task_means = agent.task_means.cpu().numpy()  # (K, Z)
        self.has_encoder = agent.context_encoder is not None
        self._act = _RowFunction(agent.act, (agent.observation_dim, agent.context_dim), device)
        if agent.context_encoder is not None:
            size = 2 * agent.observation_dim + agent.action_dim + 1
            self._embed = _RowFunction(agent.context_encoder.embed, (size,), device)

    def act(self, observation: np.ndarray, context: np.ndarray) -> np.ndarray:
        """(O,) in the contract's units and (Z,) to the actor's mean action (A,) in the contract's units, float64."""
        return self._stats.action_units(self._act(self._stats.observation(observation), context))

    def embed(self, transition: Transition) -> np.ndarray:
        """A transition in the contract's units to its embedding, float32: see Networks."""
        t = transition
        return self._embed(self._stats.transition(t.observation, t.action, t.reward, t.next_observation))


class RowPlanner(Planner):
    """Plans for one robot, in the contract's units."""

    def __init__(self, agent: Agent, stats: Stats, device: torch.device, config: PlannerConfig) -> None:
        """Raises ConfigError if the agent's method has no model to plan with."""
        super().__init__(agent, config)
        self._stats, self._device = stats, device

    @torch.inference_mode()
    def act(self, observation: np.ndarray, context: np.ndarray) -> np.ndarray:
        """(O,) in the contract's units and (Z,) to the first action of a plan (A,) in the contract's units, float64."""
        row = torch.from_numpy(self._stats.observation(observation)).to(self._device)
        z = torch.from_numpy(np.asarray(context, np.float32)).to(self._device)
        return self._stats.action_units(self.plan(row[None], z[None])[0].cpu().numpy())


class _RowFunction:
    """A function of rows, from arrays to an array; on a GPU it is captured once and replayed from then on."""

    @torch.inference_mode()
    def __init__(self, function: Callable[..., Tensor], sizes: tuple[int, ...], device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._rows = [torch.zeros(size, pin_memory=on_gpu) for size in sizes]
        self._arrays = [row.numpy() for row in self._rows]
        self._inputs = [row.to(device) for row in self._rows] if on_gpu else self._rows
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        if on_gpu:
            with torch.cuda.device(device):
                self._capture()

    @torch.inference_mode()
    def __call__(self, *values: np.ndarray) -> np.ndarray:
        for array, value in zip(self._arrays, values, strict=True):
            array[:] = value
        if self._graph is None:
            return self._function(*self._inputs).numpy()
        for row, on_device in zip(self._rows, self._inputs, strict=True):
            on_device.copy_(row, non_blocking=True)
        self._graph.replay()
        return self._output.cpu().numpy()  # waits for the GPU

    def _capture(self) -> None:
        """Record the function's operations."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels are chosen in the first calls, which cannot be recorded
            for _ in range(WARM_UP):
                self._function(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):  # another model may be acting meanwhile
            self._output = self._function(*self._inputs)
