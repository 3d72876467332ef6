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
from spc_core.deploy.networks.mlp import Rows
from spc_core.deploy.networks.row_plan import Rounding, RowPlan, Simplexes
from spc_core.method.world_model import ONE

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
