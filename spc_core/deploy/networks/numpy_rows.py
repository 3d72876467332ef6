# SPDX-License-Identifier: Apache-2.0
"""Acting and adapting on the CPU, one row at a time, in plain NumPy.

Between two ticks other programs evict code from the processor's caches, and torch runs much code for each operation:
a cold action takes half as long here. Overhead then outweighs arithmetic, so as much as possible is folded into copies
of the weights, and plain Python handles small vectors. Only the result is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from spc_core.alignment.streaming import Transition
from spc_core.deploy.networks.row_plan import Block, Mlp, Rounding, RowPlan, Simplexes
from spc_core.method.world_model import ONE

ONE_THREAD = 9215  # weights in a product; OpenBLAS takes more threads from 9216 on
FEW = 4  # products of up to this many parts run part by part, which is faster
LARGEST = 43.0  # largest x for which exp(x)^2 fits in float32

IntoRow = Callable[[np.ndarray, np.ndarray], object]  # reads one row, which it may overwrite, and writes another


class NumpyNetworks:
    """Actor and context encoder of a plan; see Networks."""

    def __init__(self, plan: RowPlan) -> None:
        self.task_means = plan.task_means
        self.context_dim = plan.task_means.shape[1]
        self.has_encoder = plan.context_encoder is not None
        self._to_latent, scale = latent_function(plan.latent)
        self._actor = Rows(plan.actor, scale)
        self._latent = self._actor.inputs[: plan.latent_dim]
        self._beside, self._z = np.split(self._actor.inputs[plan.latent_dim :], [-self.context_dim])
        self._encoder = None if plan.encoder is None else Rows(plan.encoder)
        self._observed = self._latent if self._encoder is None else self._encoder.inputs
        stats = plan.stats
        self._observation = list(zip(stats.observation_mean.tolist(), stats.observation_std.tolist(), strict=True))
        self._actions = list(zip(stats.action_low.tolist(), stats.action_span.tolist(), strict=True))
        self._precision = plan.precision
        if plan.context_encoder is not None:
            self._context_encoder = Rows(plan.context_encoder)
            self._changes, self._reward = stats.change_std.tolist(), (stats.reward_mean, stats.reward_std)

    def act(self, observation: np.ndarray, context: np.ndarray) -> np.ndarray:
        """(O,) in the contract's units and (Z,) to the actor's mean action (A,) in the contract's units, float64."""
        _normalise(observation.tolist(), self._observation, self._observed)
        if self._encoder is not None:
            if self._beside.size:
                self._beside[:] = self._observed
            self._to_latent(self._encoder.run(), self._latent)
        self._z[:] = context
        outputs = zip(self._actor.run().tolist(), self._actions, strict=True)
        return np.array([low + (math.tanh(value) + 1) / 2 * span for value, (low, span) in outputs])

    def embed(self, transition: Transition) -> np.ndarray:
        """A transition in the contract's units to its embedding, float32: see Networks."""
        before, after = transition.observation.tolist(), transition.next_observation.tolist()
        row = self._context_encoder.inputs
        column = len(before)
        _normalise(before, self._observation, row)
        for value, (low, span) in zip(transition.action.tolist(), self._actions, strict=True):
            share = 2 * ((value - low) / span) - 1
            row[column] = -1 if share < -1 else 1 if share > 1 else share  # NaN stays NaN
            column += 1
        row[column] = (transition.reward - self._reward[0]) / self._reward[1]
        for old, new, spread in zip(before, after, self._changes, strict=True):
            column += 1
            row[column] = (new - old) / spread
        outputs = self._context_encoder.run()
        return votes_and_weights(outputs) if self._precision else np.tanh(outputs)


def _normalise(values: list[float], columns: list[tuple[float, float]], row: np.ndarray) -> None:
    """Stats.observation, into the beginning of (N,) float32. A few numbers are faster without NumPy."""
    for column, (value, (mean, spread)) in enumerate(zip(values, columns, strict=True)):
        row[column] = (value - mean) / spread


def votes_and_weights(outputs: np.ndarray) -> np.ndarray:
    """The context encoder's last layer (..., 2 Z) to votes and their weights, as ContextEncoder.embed."""
    weights = outputs.shape[-1] // 2
    embeddings = np.tanh(outputs)
    np.logaddexp(np.float32(0), outputs[..., weights:] + np.float32(ONE), out=embeddings[..., weights:])
    return embeddings


class Rows:
    """An MLP for one row at a time: write the row into `inputs`, (I,), then `run`.

    The bias is one more weight, of an input that is always one. The mean that a layer norm subtracts from its input
    is subtracted from the weights once: then each row has mean zero.
    """

    def __init__(self, mlp: Mlp, scale: np.ndarray | None = None) -> None:
        """The first inputs are multiplied by `scale` (N,) before anything else, if given."""
        layers = (*mlp.blocks, mlp.last)
        weights = [np.concatenate([a.weight, a.bias[:, None]], 1, dtype=np.float64) for a in layers]  # (O, I + 1)
        products = [*(Product(weight - weight.mean(0)) for weight in weights[:-1]), Product(weights[-1])]
        if scale is not None:
            products[0].weight[:, : len(scale)] *= scale
        buffers = [np.ones(weight.shape[1], np.float32) for weight in weights]  # the last number stays one
        steps = zip(mlp.blocks, products[:-1], buffers[:-1], buffers[1:], strict=True)
        self.blocks = [RowsBlock(block, product, row, after[:-1]) for block, product, row, after in steps]
        self.last, self._last_inputs = products[-1], buffers[-1]
        self.inputs = buffers[0][:-1]

    def run(self) -> np.ndarray:
        """The last layer's (O,) float32, in the same buffer each time."""
        for block in self.blocks:
            block.run()
        return self.last(self._last_inputs)


class RowsBlock:
    """Linear, LayerNorm, Mish: from one buffer to another."""

    def __init__(self, block: Block, product: Product, inputs: np.ndarray, outputs: np.ndarray) -> None:
        """`product` gives rows of mean zero."""
        self.product, self._inputs, self._outputs = product, inputs, outputs
        self.gain, self.offset, self.eps, self.size = block.gain, block.offset, block.eps, len(block.bias)
        self._gate = np.empty(self.size, np.float32)
        largest = abs(self.gain) * math.sqrt(self.size) + abs(self.offset)  # outputs of the norm
        self.steep = float(largest.max()) > LARGEST

    def run(self) -> None:
        y, gate = self.product(self._inputs), self._gate
        y *= 1 / math.sqrt(float(y.dot(y)) / self.size + self.eps)
        y *= self.gain
        y += self.offset
        # Mish: x n / (n + 2) with n = e^x (e^x + 2)
        np.exp(np.minimum(y, LARGEST, out=gate) if self.steep else y, out=gate)
        np.add(gate, 2, out=self._outputs)
        gate *= self._outputs
        np.add(gate, 2, out=self._outputs)
        gate /= self._outputs
        np.multiply(y, gate, out=self._outputs)


class Product:
    """A matrix (O, I) for products with one vector."""

    def __init__(self, weight: np.ndarray) -> None:
        self.weight = np.ascontiguousarray(weight, np.float32)
        outputs, inputs = weight.shape
        self._result = np.empty(outputs, np.float32)
        # parts too small for a second thread of OpenBLAS, which saves 10 us but may take 20 ms on a busy machine
        rows = max(n for n in range(1, outputs + 1) if outputs % n == 0 and (n == 1 or n * inputs <= ONE_THREAD))
        self.parts = self.weight.reshape(-1, rows, inputs)  # the same memory
        self._results = self._result.reshape(self.parts.shape[:2])
        few = len(self.parts) <= FEW
        self._pairs = list(zip(self.parts, self._results, strict=True)) if few else []

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(I,) to (O,) float32, in the same buffer each time."""
        for part, result in self._pairs:
            part.dot(x, result)
        if not self._pairs:
            np.matmul(self.parts, x, out=self._results)
        return self._result


def latent_function(latent: Rounding | Simplexes | None) -> tuple[IntoRow, np.ndarray | None]:
    """Function from features (L,) to the unscaled latent, and the factors (L,) that scale it, if any."""
    if isinstance(latent, Rounding):
        bounds = latent.bounds

        def encode(x: np.ndarray, codes: np.ndarray) -> None:
            np.tanh(x, out=x)
            x *= bounds
            np.rint(x, out=codes)

        return encode, 1 / latent.steps.astype(np.float64)
    if isinstance(latent, Simplexes):
        size = latent.size

        def simplex(x: np.ndarray, shares: np.ndarray) -> None:
            groups = x.reshape(-1, size)
            groups -= groups.max(1, keepdims=True)
            np.exp(groups, out=groups)
            groups /= groups.sum(1, keepdims=True)
            shares[:] = x

        return simplex, None
    return lambda x, out: np.copyto(out, x), None
