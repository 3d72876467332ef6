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
from spc_core.deploy.networks.mlp import Rows, rows_of_ones, run_rows
from spc_core.deploy.networks.numpy_rows import latent_function, votes_and_weights
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
        inputs = rows_of_ones(self._actor, len(observations))
        latent = inputs[:, : self._latent_dim]
        observed = (observations - self._mean) / self._spread
        if self._encoder is None:
            latent[:] = observed
        else:
            rows = rows_of_ones(self._encoder, len(observations))
            rows[:, :-1] = observed
            self._to_latent(run_rows(self._encoder, rows), latent)
        if self._sees_both:
            inputs[:, self._latent_dim : self._latent_dim + observed.shape[1]] = observed
        inputs[:, -1 - contexts.shape[1] : -1] = contexts
        outputs = run_rows(self._actor, inputs)
        unit = np.array([math.tanh(value) for value in outputs.ravel().tolist()])  # np.tanh rounds differently
        return self._low + (unit.reshape(outputs.shape) + 1) / 2 * self._span

    def embed(self, transitions: Sequence[Transition]) -> np.ndarray:
        """N transitions in the contract's units to their embeddings (N, E) float32: see Networks."""
        assert self._context_encoder is not None
        before = np.array([t.observation for t in transitions])
        share = 2 * ((np.array([t.action for t in transitions]) - self._low) / self._span) - 1
        rows, fields, actions = rows_of_ones(self._context_encoder, len(before)), before.shape[1], share.shape[1]
        rows[:, :fields] = (before - self._mean) / self._spread
        rows[:, fields : fields + actions] = np.where(share < -1, -1, np.where(share > 1, 1, share))  # NaN stays NaN
        rewards = np.array([t.reward for t in transitions])
        rows[:, fields + actions] = (rewards - self._reward[0]) / self._reward[1]
        rows[:, -fields - 1 : -1] = (np.array([t.next_observation for t in transitions]) - before) / self._changes
        outputs = run_rows(self._context_encoder, rows)
        return votes_and_weights(outputs) if self._precision else np.tanh(outputs)
