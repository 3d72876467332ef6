# SPDX-License-Identifier: Apache-2.0
"""Notices that the task changed: a CUSUM of how much better an unknown task explains the votes than the present one.

Each vote is predicted twice by the vote model: for a task of which nothing is known, and for the one that the votes so
far have shown. The difference of the log-likelihoods is the evidence of a change. It is compressed, so that a single
surprising vote weighs little, and summed, never below zero. Votes enter the knowledge of the present task only once the
sum is back at zero or they are PENDING steps old; so the votes since the sum left zero are those of a changed task.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import numpy as np

from spc_core.deploy.vote_model import VoteModel

SUSPICION = 8.0  # evidence from which a context should look at the suspected votes only, until it is zero again
PENDING = 60  # votes held back at most
WARM = 8  # votes before a change is looked for
CAUTION, CALM = 2.0, 0.99  # after an alarm the threshold is 1 + CAUTION times as high, and falls back by this a vote
LEARN = 2  # pending votes learnt in a step at most, so that its cost is bounded


class Seen(NamedTuple):
    """A vote as the detector sees it."""

    features: np.ndarray  # (H,)
    noise: float
    place: np.ndarray  # (K,)


class ChangeDetector:
    """The evidence that the task changed; time and memory of a vote are constant."""

    def __init__(self, model: VoteModel) -> None:
        self.model = model
        self.threshold = model.threshold
        self._noise = model.spread * model.noise
        self._pending: deque[Seen] = deque()
        self._caution = 0.0
        self.hold_knowledge(np.empty_like(model.prior_mean), np.empty_like(model.prior_covariance))
        self.reset()

    def hold_knowledge(self, mean: np.ndarray, covariance: np.ndarray) -> None:
        """Keep what is known of the present task in these arrays, (H, K) and (H, H), from the next reset on."""
        self._mean, self._covariance = mean, covariance

    def reset(self) -> None:
        """Forget all votes."""
        self.evidence = self._caution = 0.0
        self._seen = self._suspect = 0
        self._suspicious = False
        self._pending.clear()
        self._mean[:], self._covariance[:] = self.model.prior_mean, self.model.prior_covariance

    @property
    def suspected(self) -> int:
        """How many of the last votes look like a new task's: more than 0 only before an alarm or its refutation."""
        return min(self._suspect, PENDING) if self._suspicious else 0

    def update(self, observation: np.ndarray, action: np.ndarray, vote: np.ndarray) -> int:
        """Add an embedding (E,); returns how many of the last votes belong to a new task, 0 if it is still the same.

        After a change, the detector has forgotten the votes before it.
        """
        features, noise = self.model.features(observation, action)
        place, worth = self.model.place(vote)
        seen = Seen(features, float(noise / worth), place)
        changed = self.weigh(seen, self._score(*seen) if self.warm else 0.0)
        for settled in self.settled():
            self._learn(*settled)
        return changed

    @property
    def warm(self) -> bool:
        """Whether the next vote counts as evidence."""
        return self._seen >= WARM

    def weigh(self, seen: Seen, score: float) -> int:
        """Add a vote and its compressed evidence; returns the same as update(), which then learns settled votes."""
        self._seen += 1
        self.evidence = max(0.0, self.evidence + score)
        self._suspect = self._suspect + 1 if self.evidence > 0 else 0
        self._suspicious = self.evidence > SUSPICION or (self._suspicious and self.evidence > 0)
        self._pending.append(seen)
        changed = 0
        self._caution *= CALM
        if self.evidence > self.threshold * (1 + self._caution):
            changed = self._start_again()
        return changed

    def settled(self) -> list[Seen]:
        """The oldest pending votes that have become knowledge of the present task, to be learnt in this order."""
        ready = len(self._pending) if self.evidence <= 0 else len(self._pending) - PENDING
        return [self._pending.popleft() for _ in range(min(ready, LEARN))]

    def _start_again(self) -> int:
        recent = list(self._pending)[-min(self._suspect, PENDING) :]
        self.reset()
        self._pending.extend(recent)
        self._seen, self._caution = len(recent), CAUTION
        return len(recent)

    def _score(self, features: np.ndarray, noise: float, place: np.ndarray) -> float:
        """The compressed evidence of one vote (K,): positive if an unknown task explains it better."""
        model = self.model
        known = self._log_likelihood(features, noise, place, self._mean, self._covariance)
        unknown = self._log_likelihood(features, noise, place, model.prior_mean, model.prior_covariance)
        return math.copysign(math.log1p(abs(unknown - known)), unknown - known)

    def _log_likelihood(
        self, features: np.ndarray, noise: float, place: np.ndarray, mean: np.ndarray, covariance: np.ndarray
    ) -> float:
        """Up to a constant, of a vote (K,)."""
        variance = (noise + float(features @ covariance @ features)) * self._noise
        deviation = place - features @ mean
        return -0.5 * float((np.log(variance) + deviation**2 / variance).sum())

    def _learn(self, features: np.ndarray, noise: float, place: np.ndarray) -> None:
        """Update the posterior by one vote (recursive least squares)."""
        gain = self._covariance @ features
        scale = noise + float(features @ gain)
        self._mean += np.outer(gain, (place - features @ self._mean) / scale)
        self._covariance -= np.outer(gain, gain) / scale
