# SPDX-License-Identifier: Apache-2.0
"""The task vectors that a collecting robot acts on, one after the other, so that its motion tells tasks apart."""

from __future__ import annotations

import numpy as np


class Hypotheses:
    """The training tasks' means, each held for `steps` transitions.

    Rules: `means` goes through them in turn, always the farthest from those before; `nearest` begins with the same one
    and then takes, of the means that were tried least, the one nearest to what the robot has found so far.
    """

    def __init__(self, means: np.ndarray, steps: int, rule: str) -> None:
        """`means` (K, Z)."""
        self._means, self._steps, self._nearest = far_apart(means), steps, rule == "nearest"
        self._tried = np.zeros(len(means), int)
        self.reset()

    def reset(self) -> None:
        """Begin again."""
        self._tried[:] = 0
        self._choose(0, 0)

    def advance(self, count: int, estimate: np.ndarray) -> None:
        """After transition `count` of a context, whose z is now `estimate` (Z,)."""
        turn = count // self._steps
        if not self._nearest:
            self._choose(turn, turn % len(self._means))
        elif turn != self._turn:
            distances = np.linalg.norm(self._means - estimate, axis=1)
            distances[self._tried > self._tried.min()] = np.inf
            self._choose(turn, int(distances.argmin()))

    def _choose(self, turn: int, number: int) -> None:
        self._turn, self.shown = turn, self._means[number]
        self._tried[number] += 1


def far_apart(points: np.ndarray) -> np.ndarray:
    """The rows of (K, D) reordered: the one farthest from the mean, then always the farthest from those before."""
    order = [int(np.linalg.norm(points - points.mean(0), axis=1).argmax())]
    while len(order) < len(points):
        nearest = np.linalg.norm(points[:, None] - points[order], axis=-1).min(1)
        nearest[order] = -1
        order.append(int(nearest.argmax()))
    return points[order]
