# SPDX-License-Identifier: Apache-2.0
"""Votes with or without weights, as networks give them: an embedding is a vote (Z,), or a vote and its weights (2 Z,).

A weight says what a vote is worth in each direction of z: votes are taken to vary by s^2 / weight around z, so that z
is the weighted mean, and its standard error that of weighted least squares. Only ratios of weights count.
"""

from __future__ import annotations

import numpy as np

LEAST_WEIGHT = 1e-8  # as in training: below it a direction of z is not known, and the division would blow up


def parts(embeddings: np.ndarray, context_dim: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Embeddings (..., E) to votes (..., Z) and weights (..., Z), if they have any."""
    if embeddings.shape[-1] == context_dim:
        return embeddings, None
    return embeddings[..., :context_dim], embeddings[..., context_dim:].astype(np.float64)


def weighted_mean(embeddings: np.ndarray, context_dim: int) -> np.ndarray:
    """z (Z,) of embeddings (N, E)."""
    votes, weights = parts(embeddings, context_dim)
    if weights is None:
        return votes.mean(0)
    return (votes * weights).sum(0) / np.maximum(weights.sum(0), LEAST_WEIGHT)


class VoteSums:
    """Sums of the votes of one robot or, with an axis for them, of several; an old vote's weight may decay.

    With weights p and decay d of each vote: A = sum d p, B = sum d^2 p, squares S = sum d p (vote - z)^2, D = sum d.
    A vote has the variance s^2 / p, so z = sum d p vote / A has the variance s^2 B / A^2, and S the expectation
    s^2 (D - B / A). Without weights and decay these are the mean, and the sample variance over the count.
    """

    def __init__(self, arrays: np.ndarray) -> None:
        """`arrays` (4, ..., Z) of zeros hold the sums."""
        self.arrays = arrays
        self.total, self.squares, self.weights, self.square_weights = arrays

    def clear(self) -> None:
        self.arrays[:] = 0

    @property
    def mean(self) -> np.ndarray:
        """z; zeros before the first vote."""
        return self.total / np.maximum(self.weights, LEAST_WEIGHT)

    def add(self, embeddings: np.ndarray, keep: float = 1.0) -> None:
        """Add a vote, by Welford's update: plain sums of squares cancel where votes agree.

        Those before fall to `keep` of their weight.
        """
        votes, own = parts(embeddings, self.total.shape[-1])
        weights = 1.0 if own is None else own
        deviations = votes - self.mean
        if keep < 1:
            self.arrays[:3] *= keep
            self.square_weights *= keep**2
        after = self.weights + weights
        self.squares += deviations**2 * (self.weights / np.maximum(after, LEAST_WEIGHT)) * weights
        self.total += votes * weights
        self.weights[:] = after
        self.square_weights += weights

    def error(self, decayed: float) -> np.ndarray:
        """Standard error of z, (..., Z), from at least two votes; `decayed` is D."""
        weights = np.maximum(self.weights, LEAST_WEIGHT)
        share = self.square_weights / weights
        return np.sqrt(self.squares / (decayed - share) * (share / weights))

    @property
    def known(self) -> np.ndarray:
        """Whether any vote is worth something, (..., Z)."""
        return self.weights > LEAST_WEIGHT


def sums_of(embeddings: np.ndarray, context_dim: int) -> VoteSums:
    """The sums of embeddings (N, E)."""
    sums = VoteSums(np.zeros((4, context_dim)))
    for embedding in embeddings:
        sums.add(embedding)
    return sums
