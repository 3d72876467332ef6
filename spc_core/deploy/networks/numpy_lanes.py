# SPDX-License-Identifier: Apache-2.0
"""Acting and adapting of many simulated robots at once, equal to NumpyNetworks to the bit.

A product of matrices would round other than one of a matrix with a vector, and a latent code next to a step would
become another. So the products stay as they are, one for each robot, in a loop in C; all else is done for all together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from spc_core.alignment.streaming import Transition
from spc_core.deploy.networks.numpy_rows import LARGEST, Product, Rows, RowsBlock, latent_function, votes_and_weights
from spc_core.deploy.networks.row_plan import RowPlan


class NumpyLanes:
    """Actor and context encoder of a plan for N rows; each row's result is that of NumpyNetworks."""

    def __init__(self, plan: RowPlan) -> None:
        stats, self._latent_dim, self._sees_both = plan.stats, plan.latent_dim, plan.sees_both
        self._to_latent, scale = latent_function(plan.latent)
        self._actor, self._precision = Rows(plan.actor, scale), plan.precision
        self._encoder = None if plan.encoder is None else Rows(plan.encoder)
        self._context_encoder = None if plan.context_encoder is None else Rows(plan.context_encoder)
        self._mean, self._spread = np.float64(stats.observation_mean), np.float64(stats.observation_std)
        self._low, self._span = np.float64(stats.action_low), np.float64(stats.action_span)
        self._changes, self._reward = np.float64(stats.change_std), (stats.reward_mean, stats.reward_std)

    def act(self, observations: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        """(N, O) in the contract's units and (N, Z) to mean actions (N, A) in the contract's units, float64."""
        inputs = _inputs(self._actor, len(observations))
        latent = inputs[:, : self._latent_dim]
        observed = (observations - self._mean) / self._spread
        if self._encoder is None:
            latent[:] = observed
        else:
            rows = _inputs(self._encoder, len(observations))
            rows[:, :-1] = observed
            self._to_latent(_run(self._encoder, rows), latent)
        if self._sees_both:
            inputs[:, self._latent_dim : self._latent_dim + observed.shape[1]] = observed
        inputs[:, -1 - contexts.shape[1] : -1] = contexts
        outputs = _run(self._actor, inputs)
        unit = np.array([math.tanh(value) for value in outputs.ravel().tolist()])  # np.tanh rounds differently
        return self._low + (unit.reshape(outputs.shape) + 1) / 2 * self._span

    def embed(self, transitions: Sequence[Transition]) -> np.ndarray:
        """N transitions in the contract's units to their embeddings (N, E) float32: see Networks."""
        assert self._context_encoder is not None
        before = np.array([t.observation for t in transitions])
        share = 2 * ((np.array([t.action for t in transitions]) - self._low) / self._span) - 1
        rows, fields, actions = _inputs(self._context_encoder, len(before)), before.shape[1], share.shape[1]
        rows[:, :fields] = (before - self._mean) / self._spread
        rows[:, fields : fields + actions] = np.where(share < -1, -1, np.where(share > 1, 1, share))  # NaN stays NaN
        rewards = np.array([t.reward for t in transitions])
        rows[:, fields + actions] = (rewards - self._reward[0]) / self._reward[1]
        rows[:, -fields - 1 : -1] = (np.array([t.next_observation for t in transitions]) - before) / self._changes
        outputs = _run(self._context_encoder, rows)
        return votes_and_weights(outputs) if self._precision else np.tanh(outputs)


def _inputs(rows: Rows, count: int) -> np.ndarray:
    """(N, I + 1) for the inputs of an MLP; the last one is one."""
    return np.ones((count, len(rows.inputs) + 1), np.float32)


def _run(rows: Rows, x: np.ndarray) -> np.ndarray:
    """(N, I + 1) to the last layer's (N, O) float32."""
    for block in rows.blocks:
        x = _block(block, x)
    return _product(rows.last, x)


def _block(block: RowsBlock, x: np.ndarray) -> np.ndarray:
    """(N, I + 1) to (N, O + 1), in the steps of RowsBlock.run."""
    y = _product(block.product, x)
    squares = np.matmul(y[:, None], y[:, :, None])[:, :, 0].astype(np.float64)
    y *= (1 / np.sqrt(squares / block.size + block.eps)).astype(np.float32)
    y *= block.gain
    y += block.offset
    gate = np.exp(np.minimum(y, LARGEST) if block.steep else y)
    outputs = np.ones((len(y), block.size + 1), np.float32)
    inner = gate + 2
    gate *= inner
    np.add(gate, 2, out=inner)
    gate /= inner
    np.multiply(y, gate, out=outputs[:, :-1])
    return outputs


def _product(product: Product, x: np.ndarray) -> np.ndarray:
    """(N, I + 1) to (N, O): each part of the matrix with all rows in turn, while it is in the processor's cache."""
    if len(product.parts) == 1:
        return np.matmul(product.parts[0], x[:, :, None])[:, :, 0]
    return np.matmul(product.parts[:, None], x[:, :, None])[..., 0].swapaxes(0, 1).reshape(len(x), -1)
