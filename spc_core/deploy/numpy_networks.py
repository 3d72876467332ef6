# SPDX-License-Identifier: Apache-2.0
"""The networks that a robot needs, on the CPU, for one row at a time: plain numpy on the agent's own weights.

The same equations as Agent.act and ContextEncoder.embed. Between two ticks other programs push code out of the
processor's caches, and torch's way to an operation is long: a cold action takes half as long here. There, each kind
of operation costs more than its numbers, so what can be folded into the weights is, and a few numbers are Python's.
Nothing is allocated but the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from spc_core.alignment.streaming import Transition
from spc_core.deploy.checkpoint import Checkpoint
from spc_core.method.latents import Codes, Continuous, SimNorm
from spc_core.method.planner import Planner

ONE_THREAD = 9215  # weights in a product; OpenBLAS takes more threads from 9216 on
FEW = 4  # parts of a product that are faster one by one
LARGEST = 43.0  # whose exponential has a square in float32


class NumpyNetworks:
    """Actor and context encoder of a checkpoint on the CPU. Its weights are copied: some are folded together."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        agent, stats = checkpoint.agent, checkpoint.stats
        self._stats, self.context_dim = stats, agent.context_dim
        self.task_means = agent.task_means.numpy()  # (K, Z)
        self.has_encoder = agent.context_encoder is not None
        latent = agent.world_model.latent
        self._put_on, scale = _latent(latent)
        self._actor = _Rows(agent.actor.network, agent.action_dim)
        self._actor.scale_inputs(scale)
        self._latent = self._actor.inputs[: latent.dim]
        self._z = self._actor.inputs[latent.dim : latent.dim + agent.context_dim]
        raw = isinstance(agent.world_model.encoder, nn.Identity)
        self._encode = None if raw else _Rows(agent.world_model.encoder)
        self._observed = self._latent if self._encode is None else self._encode.inputs
        self._seen = _columns(stats.observation_mean, stats.observation_std)
        low, high = stats.action_low.tolist(), (stats.action_high - stats.action_low).tolist()
        self._command = list(zip(low, high, strict=True))  # low, range
        if agent.context_encoder is not None:
            self._embed = _Rows(agent.context_encoder.network)
            self._changes = stats.change_std.tolist()
            self._reward = (stats.reward_mean, stats.reward_std)

    def act(self, observation: np.ndarray, context: np.ndarray) -> np.ndarray:
        """(O,) in the contract's units and (Z,) to the actor's mean action (A,) in the contract's units, float64."""
        _normalise(observation.tolist(), self._seen, self._observed)
        if self._encode is not None:
            self._put_on(self._encode.run(), self._latent)
        self._z[:] = context
        outputs = zip(self._actor.run().tolist(), self._command, strict=True)
        return np.array([low + (math.tanh(value) + 1) / 2 * span for value, (low, span) in outputs])

    def vote(self, transition: Transition) -> np.ndarray:
        """One transition in the contract's units to its vote for z, (Z,) float32."""
        before, after = transition.observation.tolist(), transition.next_observation.tolist()
        row = self._embed.inputs
        place = len(before)
        _normalise(before, self._seen, row)
        for value, (low, span) in zip(transition.action.tolist(), self._command, strict=True):
            share = 2 * ((value - low) / span) - 1
            row[place] = -1 if share < -1 else 1 if share > 1 else share  # not a number stays so
            place += 1
        row[place] = (transition.reward - self._reward[0]) / self._reward[1]
        for old, new, spread in zip(before, after, self._changes, strict=True):
            place += 1
            row[place] = (new - old) / spread
        return np.tanh(self._embed.run())

    @torch.inference_mode()
    def plan(self, planner: Planner, observation: np.ndarray, context: np.ndarray) -> np.ndarray:
        """As `act`, but the first step of a plan, by torch."""
        row = torch.from_numpy(self._stats.observation(observation))
        z = torch.from_numpy(np.asarray(context, np.float32))
        return self._stats.action_units(planner.plan(row[None], z[None])[0].numpy())


def _columns(mean: np.ndarray, spread: np.ndarray) -> list[tuple[float, float]]:
    return list(zip(mean.tolist(), spread.tolist(), strict=True))


def _normalise(values: list[float], columns: list[tuple[float, float]], row: np.ndarray) -> None:
    """As Stats.observation, into the beginning of (N,) float32. A few numbers are faster without numpy."""
    for place, (value, (mean, spread)) in enumerate(zip(values, columns, strict=True)):
        row[place] = (value - mean) / spread


class _Rows:
    """layers.mlp for one row at a time: write it into `inputs`, (I,) or more, then `run`.

    A bias is a weight more, of an input that is always one. What a layer norm takes off its input, the mean, is taken
    off the weights once: then each row has mean zero.
    """

    def __init__(self, network: nn.Module, outputs: int | None = None) -> None:
        """Only the first `outputs` of the last layer, where given."""
        assert isinstance(network, nn.Sequential)
        modules = list(network)
        self._blocks: list[_Block] = []
        for linear, norm in zip(modules[:-1:3], modules[1:-1:3], strict=True):
            assert isinstance(linear, nn.Linear) and isinstance(norm, nn.LayerNorm)
            self._blocks.append(_Block(linear, norm))
        last = modules[-1]
        assert isinstance(last, nn.Linear)
        weight, self._inputs_last = _with_bias(last)[:outputs], _with_one(last.in_features)
        self._last = _Product(weight)
        rooms = [*(block.inputs for block in self._blocks), self._inputs_last]
        self.inputs = rooms[0][:-1]
        for block, room in zip(self._blocks, rooms[1:], strict=True):
            block.outputs = room[:-1]

    def scale_inputs(self, scale: np.ndarray | None) -> None:
        """The first inputs are to be multiplied by (N,) before anything else."""
        if scale is not None:
            product = self._blocks[0].product if self._blocks else self._last
            product.weight[:, : len(scale)] *= scale

    def run(self) -> np.ndarray:
        """The last layer's (O,) float32, in the same buffer each time."""
        for block in self._blocks:
            block.run()
        return self._last(self._inputs_last)


class _Block:
    """Linear, LayerNorm, Mish."""

    def __init__(self, linear: nn.Linear, norm: nn.LayerNorm) -> None:
        weight = _with_bias(linear)
        self.product = _Product(weight - weight.mean(0))
        self.inputs = _with_one(linear.in_features)
        self.outputs = np.empty(0, np.float32)
        self._gain, self._offset = (value.detach().numpy() for value in (norm.weight, norm.bias))
        self._eps, self._size = float(norm.eps), linear.out_features
        self._room = np.empty(linear.out_features, np.float32)
        most = abs(self._gain) * math.sqrt(self._size) + abs(self._offset)  # that the norm can give
        self._steep = float(most.max()) > LARGEST

    def run(self) -> None:
        """From `inputs` to `outputs`."""
        y, gate = self.product(self.inputs), self._room
        y *= 1 / math.sqrt(float(y.dot(y)) / self._size + self._eps)
        y *= self._gain
        y += self._offset
        # Mish: x n / (n + 2) with n = e^x (e^x + 2)
        np.exp(np.minimum(y, LARGEST, out=gate) if self._steep else y, out=gate)
        np.add(gate, 2, out=self.outputs)
        gate *= self.outputs
        np.add(gate, 2, out=self.outputs)
        gate /= self.outputs
        np.multiply(y, gate, out=self.outputs)


class _Product:
    """A matrix (O, I) for products with one vector."""

    def __init__(self, weight: np.ndarray) -> None:
        self.weight = np.ascontiguousarray(weight, np.float32)
        self._result = np.empty(len(weight), np.float32)
        parts = _small_parts(self.weight)
        self._parts, self._results = parts, self._result.reshape(parts.shape[:2])
        few = len(parts) <= FEW
        self._pairs = list(zip(parts, self._results, strict=True)) if few else []

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(I,) to (O,) float32, in the same buffer each time."""
        for part, result in self._pairs:
            part.dot(x, result)
        if not self._pairs:
            np.matmul(self._parts, x, out=self._results)
        return self._result


def _with_bias(linear: nn.Linear) -> np.ndarray:
    """(O, I + 1) float64: the weights, then the bias."""
    weight, bias = linear.weight.detach().numpy(), linear.bias.detach().numpy()
    return np.concatenate([weight, bias[:, None]], 1, dtype=np.float64)


def _with_one(inputs: int) -> np.ndarray:
    """Room for (I,) and the one that the bias is multiplied by."""
    return np.ones(inputs + 1, np.float32)


def _small_parts(weight: np.ndarray) -> np.ndarray:
    """(O, I) as (parts, rows, I), the same memory: each product is too small for numpy's BLAS to share it out.

    It would wait for a second thread, for up to 20 ms on a busy machine, to save 10 us.
    """
    outputs, inputs = weight.shape
    rows = max(n for n in range(1, outputs + 1) if outputs % n == 0 and (n == 1 or n * inputs <= ONE_THREAD))
    return weight.reshape(-1, rows, inputs)


def _latent(latent: nn.Module) -> tuple[Callable[[np.ndarray, np.ndarray], object], np.ndarray | None]:
    """latent.encode of one row (I,) into another, and what is left to multiply the result by, (I,)."""
    if isinstance(latent, Codes):
        steps = np.tile(latent.fsq.steps.numpy().astype(np.float32), latent.groups)
        bounds = steps * np.float32(1 + 1e-3)  # as in FSQ.forward

        def encode(x: np.ndarray, codes: np.ndarray) -> None:
            np.tanh(x, out=x)
            x *= bounds
            np.rint(x, out=codes)

        return encode, 1 / steps.astype(np.float64)
    if isinstance(latent, SimNorm):
        size = latent.size

        def simplex(x: np.ndarray, shares: np.ndarray) -> None:
            groups = x.reshape(-1, size)
            groups -= groups.max(1, keepdims=True)
            np.exp(groups, out=groups)
            groups /= groups.sum(1, keepdims=True)
            shares[:] = x

        return simplex, None
    assert isinstance(latent, Continuous)
    return lambda x, out: np.copyto(out, x), None
