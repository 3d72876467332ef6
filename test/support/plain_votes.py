# SPDX-License-Identifier: Apache-2.0
"""A model whose votes are the transitions' next observations, and a vote model by hand: for tests of the tracker."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np

from spc_core.alignment.streaming import Transition
from spc_core.deploy.vote_model import COUNTS, VoteModel
from spc_core.method.config import TrainConfig

NOISE = 0.04  # variance of a vote within a task; tasks have unit spread


def plain_model(threshold: float = 20.0, error: float = 0.0) -> VoteModel:
    """One direction, one feature that is always 1, a prior of mean 0 and variance 1."""
    errors = np.full((len(COUNTS), 2), error)
    return VoteModel(
        input_mean=np.zeros(2), input_std=np.ones(2), hidden_weight=np.zeros((2, 1)), hidden_bias=np.zeros(1),
        feature_weight=np.zeros((1, 2)), feature_bias=np.array([20.0, 0.0]), centre=np.zeros(2),
        basis=np.array([[1.0], [0.0]]), prior_mean=np.zeros((1, 1)), prior_covariance=np.eye(1) / NOISE,
        noise=np.array([NOISE]), errors=errors, spread=1.0, threshold=threshold, hour_alarms=0.0, weights="",
    )  # fmt: skip


def deployed(model: VoteModel | None, why_not: str = "votes.json is missing") -> Any:
    """What a ContextTracker needs of a checkpoint."""
    networks = SimpleNamespace(
        context_dim=2, task_means=np.eye(2), has_encoder=True, embed=lambda t: np.asarray(t.next_observation)
    )
    return SimpleNamespace(
        networks=lambda: networks, vote_model=model, no_vote_model="" if model else why_not,
        task_belief=None, no_task_belief="",
        config=TrainConfig(), contract=SimpleNamespace(rate_hz=50.0),
    )  # fmt: skip


def votes_of(mean: float, count: int, seed: int = 0) -> np.ndarray:
    """Votes (N, 2) of a task at `mean` along the first direction."""
    rng = np.random.default_rng(seed)
    return np.array([mean, 0.0]) + np.sqrt(NOISE) * rng.standard_normal((count, 2))


def transitions(votes: np.ndarray, start_ns: int = 0, period_ns: int = 20_000_000) -> list[Transition]:
    return [Transition(start_ns + i * period_ns, np.zeros(1), np.zeros(1), 0.0, vote) for i, vote in enumerate(votes)]


def without_alarms(model: VoteModel) -> VoteModel:
    return dataclasses.replace(model, threshold=float("inf"))
