# SPDX-License-Identifier: Apache-2.0
"""The networks that a robot needs, on the CPU, for one row at a time: plain numpy on the agent's own weights.

The same equations as Agent.act and ContextEncoder.embed. Between two ticks other programs push code out of the
processor's caches, and torch's way to an operation is long: a cold action takes half as long here. Nothing is
allocated but the result.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from spc_core.alignment.frames import Transition
from spc_core.deploy.checkpoint import Checkpoint
from spc_core.method.latents import Codes, Continuous, SimNorm
from spc_core.method.planner import Planner

Vector = Callable[[np.ndarray], np.ndarray]
ONE_THREAD = 8192  # weights in a product; OpenBLAS takes more threads from 9216 on


class NumpyNetworks:
    """Actor and context encoder of a checkpoint on the CPU. Weights are shared with its agent, not copied."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        agent = checkpoint.agent
        self._stats, self.context_dim = checkpoint.stats, agent.context_dim
        self.task_means = agent.task_means.numpy()  # (K, Z)
        self.has_encoder = agent.context_encoder is not None
        self._encode, latent = _mlp(agent.world_model.encoder), agent.world_model.latent
        self._put_on = _latent(latent)
        self._inputs = np.empty(latent.dim + agent.context_dim, np.float32)  # of the actor: latent, then z
        self._latent, self._z = self._inputs[: latent.dim], self._inputs[latent.dim :]
        self._actor = _mlp(agent.actor.network, agent.action_dim)
        if agent.context_encoder is not None:
            self._embed = _mlp(agent.context_encoder.network)

    def act(self, observation: np.ndarray, context: np.ndarray) -> np.ndarray:
        """(O,) in the contract's units and (Z,) to the actor's mean action (A,) in the contract's units, float64."""
        self._latent[:] = self._put_on(self._encode(self._stats.observation(observation)))
        self._z[:] = context
        return self._stats.action_units(np.tanh(self._actor(self._inputs)))

    def vote(self, transition: Transition) -> np.ndarray:
        """One transition in the contract's units to its vote for z, (Z,) float32."""
        row = self._stats.transition(
            transition.observation, transition.action, transition.reward, transition.next_observation
        )
        return np.tanh(self._embed(row))

    @torch.inference_mode()
    def plan(self, planner: Planner, observation: np.ndarray, context: np.ndarray) -> np.ndarray:
        """As `act`, but the first step of a plan, by torch."""
        row = torch.from_numpy(self._stats.observation(observation))
        z = torch.from_numpy(np.asarray(context, np.float32))
        return self._stats.action_units(planner.plan(row[None], z[None])[0].numpy())


def _mlp(network: nn.Module, outputs: int | None = None) -> Vector:
    """layers.mlp as a function of one row (I,), which gives the same buffer each time.

    Only the first `outputs` of the last layer, where given.
    """
    if isinstance(network, nn.Identity):
        return lambda x: x
    assert isinstance(network, nn.Sequential)
    modules, blocks = list(network), []
    for linear, norm in zip(modules[:-1:3], modules[1:-1:3], strict=True):
        assert isinstance(linear, nn.Linear) and isinstance(norm, nn.LayerNorm)
        buffers = np.empty((2, linear.out_features), np.float32)
        weights = [value.detach().numpy() for value in (linear.weight, linear.bias, norm.weight, norm.bias)]
        y, gate = buffers
        weight = _small_parts(weights[0])
        blocks.append((weight, y.reshape(weight.shape[:2]), *weights[1:], np.float32(norm.eps), y, gate))
    last = modules[-1]
    assert isinstance(last, nn.Linear)
    weight, bias = last.weight.detach().numpy()[:outputs], last.bias.detach().numpy()[:outputs]
    result = np.empty(len(bias), np.float32)
    weight = _small_parts(weight)
    result_parts = result.reshape(weight.shape[:2])

    def run(x: np.ndarray) -> np.ndarray:
        for w, parts, b, gain, offset, eps, y, gate in blocks:
            np.matmul(w, x, out=parts)
            y += b
            _layer_norm(y, gain, offset, eps)
            _mish(y, gate)
            x = y
        np.matmul(weight, x, out=result_parts)
        return np.add(result, bias, out=result)

    return run


def _small_parts(weight: np.ndarray) -> np.ndarray:
    """(O, I) as (parts, rows, I), the same memory: each product is too small for numpy's BLAS to share it out.

    It would wait for a second thread, for up to 20 ms on a busy machine, to save 10 us.
    """
    outputs, inputs = weight.shape
    rows = max(n for n in range(1, outputs + 1) if outputs % n == 0 and (n == 1 or n * inputs <= ONE_THREAD))
    return weight.reshape(-1, rows, inputs)


def _layer_norm(x: np.ndarray, gain: np.ndarray, offset: np.ndarray, eps: np.float32) -> None:
    """In place, (D,)."""
    x -= np.add.reduce(x) / x.size
    x *= 1 / np.sqrt(x.dot(x) / np.float32(x.size) + eps)
    x *= gain
    x += offset


def _mish(x: np.ndarray, gate: np.ndarray) -> None:
    """In place, (D,), with `gate` as room: x u / (2 - u) as layers.Mish.

    With h = tanh(x / 2) the sigmoid t is (1 + h) / 2, and with q = (1 - t)^2 = (1 - h)^2 / 4 it holds u = 1 - q, so
    that the factor is (1 - q) / (1 + q). A tanh cannot overflow, as an exponential can.
    """
    np.multiply(x, 0.5, out=gate)
    np.tanh(gate, out=gate)
    np.subtract(1, gate, out=gate)
    gate *= gate
    gate *= 0.25
    # (1 - q) / (1 + q) = 2 / (1 + q) - 1
    gate += 1
    np.divide(2, gate, out=gate)
    gate -= 1
    x *= gate


def _latent(latent: nn.Module) -> Vector:
    """latent.encode of one row."""
    if isinstance(latent, Codes):
        steps = np.tile(latent.fsq.steps.numpy().astype(np.float32), latent.groups)
        bounds = steps * np.float32(1 + 1e-3)  # as in FSQ.forward

        def encode(x: np.ndarray) -> np.ndarray:
            np.tanh(x, out=x)
            x *= bounds
            np.rint(x, out=x)
            x /= steps
            return x

        return encode
    if isinstance(latent, SimNorm):
        size = latent.size

        def simplex(x: np.ndarray) -> np.ndarray:
            groups = x.reshape(-1, size)
            groups -= groups.max(1, keepdims=True)
            np.exp(groups, out=groups)
            groups /= groups.sum(1, keepdims=True)
            return x

        return simplex
    assert isinstance(latent, Continuous)
    return lambda x: x
