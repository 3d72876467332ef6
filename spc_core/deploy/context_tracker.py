# SPDX-License-Identifier: Apache-2.0
"""The task vector z on a robot, as a running mean: no gradient, no history."""

from __future__ import annotations

import numpy as np

from spc_core.alignment.streaming import Transition
from spc_core.deploy.deployable import Deployable

MODES = ("online", "collect", "frozen")
NOTHING_KNOWN = 1.0  # uncertainty before two transitions: embeddings range over [-1, 1]
HYPOTHESIS_STEPS = 12  # transitions for which a collecting robot acts on one hypothesis


class ContextTracker:
    """The task vector z from the transitions seen so far; the cost of a transition does not grow with the history.

    Modes: `online` adds each transition and shows the result at once; `collect` adds, but shows the prior, as one
    hypothesis after another, for informative motion; `frozen` adds nothing. At most `limit`
    transitions are added (None: no limit). Before the first transition, `online` and `frozen` show zeros.
    `uncertainty` measures how well the transitions agree on z, in every mode.
    With a `half_life`, a transition counts half as much after that many newer ones. None: all count the same.
    An agent without a context encoder counts transitions and shows zeros, or its `oracle_context`.
    """

    def __init__(self, deployed: Deployable) -> None:
        self._networks = deployed.networks()
        self._sum = np.zeros(self._networks.context_dim)  # of the embeddings
        self._squares = np.zeros_like(self._sum)  # of the embeddings' deviations from their mean
        self._weight = self._square_weight = 0.0  # sums of the embeddings' weights, and of their squares
        self.half_life: float | None = None
        self._hypotheses = far_apart(self._networks.task_means)
        self._mode = "online"
        self.limit: int | None = None
        self.oracle_context: np.ndarray | None = None  # the true task vector (Z,), for the oracle in a simulation
        self.count = 0

    @property
    def mode(self) -> str:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        if mode not in MODES:
            raise ValueError(f"context mode {mode!r} is unknown; use one of: {', '.join(MODES)}")
        self._mode = mode

    def reset(self) -> None:
        """Forget all transitions: back to the prior."""
        self._sum[:] = 0
        self._squares[:] = 0
        self._weight = self._square_weight = 0.0
        self.count = 0

    def update(self, transition: Transition) -> bool:
        """Add a transition unless frozen or full; returns whether it was added."""
        if self._mode == "frozen" or (self.limit is not None and self.count >= self.limit):
            return False
        if self._networks.has_encoder:
            self._add(self._networks.embed(transition))
        else:
            self.count += 1
        return True

    def _add(self, embedding: np.ndarray) -> None:
        """Add an embedding (Z,), by Welford's update: plain sums of squares cancel where embeddings agree."""
        keep = 1.0 if self.half_life is None else 0.5 ** (1 / self.half_life)
        deviation = embedding - self._sum / (self._weight or 1.0)
        old = keep * self._weight
        self._weight, self._square_weight = old + 1, keep**2 * self._square_weight + 1
        if keep < 1:
            self._squares *= keep
            self._sum *= keep
        self._squares += deviation**2 * (old / self._weight)
        self._sum += embedding
        self.count += 1

    @property
    def context(self) -> np.ndarray:
        """The task vector to act on now, (Z,) float32."""
        if self.oracle_context is not None:
            return self.oracle_context
        if self._mode == "collect":
            return self._hypotheses[self.count // HYPOTHESIS_STEPS % len(self._hypotheses)]
        if self.count == 0:
            return np.zeros(len(self._sum), np.float32)
        return (self._sum / (self._weight or 1.0)).astype(np.float32)

    @property
    def uncertainty(self) -> np.ndarray:
        """Standard error of the mean embedding, (Z,) float32: sqrt(sample variance / count); ones before two of them.

        With weights w: sample variance squares / (sum w - sum w^2 / sum w), and count (sum w)^2 / sum w^2.
        Embeddings are taken as independent; consecutive transitions are similar, so it tends to be too small.
        """
        if self.count < 2 or not self._networks.has_encoder:
            return np.full(len(self._sum), NOTHING_KNOWN, np.float32)
        share = self._square_weight / self._weight
        return np.sqrt(self._squares / (self._weight - share) * (share / self._weight)).astype(np.float32)


def far_apart(points: np.ndarray) -> np.ndarray:
    """The rows of (K, D) reordered: the one farthest from the mean, then always the farthest from those before."""
    order = [int(np.linalg.norm(points - points.mean(0), axis=1).argmax())]
    while len(order) < len(points):
        nearest = np.linalg.norm(points[:, None] - points[order], axis=-1).min(1)
        nearest[order] = -1
        order.append(int(nearest.argmax()))
    return points[order]
