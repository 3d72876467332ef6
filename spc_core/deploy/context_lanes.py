# SPDX-License-Identifier: Apache-2.0
"""Context trackers of many simulated robots, fed together; each equals one that is fed alone, to the bit.

Decisions stay in ContextTracker and ChangeDetector. The arithmetic of all votes of a step is done here at once, with
the same products for each robot as there: see numpy_lanes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from spc_core.alignment.streaming import Transition
from spc_core.deploy.change_detector import ChangeDetector, Seen
from spc_core.deploy.context_tracker import ContextTracker, Said, evidence_of
from spc_core.deploy.deployable import Deployable
from spc_core.deploy.networks.numpy_lanes import NumpyLanes
from spc_core.deploy.votes import VoteSums


class ContextLanes:
    """The trackers of N robots of one model, without a half-life."""

    def __init__(self, deployed: Deployable, networks: NumpyLanes, count: int) -> None:
        shared = deployed.networks()
        self.trackers = [ContextTracker(deployed, shared) for _ in range(count)]
        self._networks, self._has_encoder = networks, shared.has_encoder
        self._sums = np.zeros((4, count, shared.context_dim))
        for number, tracker in enumerate(self.trackers):
            tracker.hold_sums(self._sums[:, number])
        detectors = [tracker.detector for tracker in self.trackers if tracker.detector is not None]
        self._changes = ChangeLanes(detectors) if detectors else None

    def update(self, transitions: Sequence[tuple[int, Transition]]) -> list[tuple[int, np.ndarray]]:
        """Add transitions of different robots, by their numbers; returns the contexts that may have changed.

        All trackers must look for changes, or none.
        """
        added = [(lane, seen) for lane, seen in transitions if not self.trackers[lane].full]
        if not added:
            return []
        if self._has_encoder:
            return self._add([lane for lane, _ in added], [seen for _, seen in added])
        for lane, seen in added:
            self.trackers[lane].update(seen)
        return [(lane, self.trackers[lane].context) for lane, _ in added]

    def _add(self, lanes: list[int], transitions: list[Transition]) -> list[tuple[int, np.ndarray]]:
        trackers = [self.trackers[lane] for lane in lanes]
        for tracker, transition in zip(trackers, transitions, strict=True):
            tracker.watch_gap(transition.t_ns)
        votes = self._networks.embed(transitions)
        changes = [0] * len(lanes)
        if self._changes is not None and trackers[0].watching is not None:
            observations, actions = ([seen.observation for seen in transitions], [seen.action for seen in transitions])
            changes = self._changes.update(lanes, np.array(observations), np.array(actions), votes)
        said = [Said(*pair) for pair in zip(votes, evidence_of(trackers[0].belief, transitions), strict=True)]
        self._sum_up(lanes, trackers, votes, said)
        for tracker, one, changed in zip(trackers, said, changes, strict=True):
            tracker.remember(one, changed)
        means = VoteSums(self._sums[:, lanes]).mean.astype(np.float32)
        rows = zip(lanes, trackers, means, strict=True)
        return [(lane, mean if one.shows_mean else one.context) for lane, one, mean in rows]

    def _sum_up(
        self, lanes: list[int], trackers: list[ContextTracker], votes: np.ndarray, said: Sequence[Said]
    ) -> None:
        """Add the embeddings (M, E), and what else is said."""
        sums = VoteSums(self._sums[:, lanes])
        sums.add(votes)
        self._sums[:, lanes] = sums.arrays
        for tracker, one in zip(trackers, said, strict=True):
            tracker.count_in(one)


class ChangeLanes:
    """The change detectors of N robots of one model, from their start; their knowledge lies in two arrays."""

    def __init__(self, detectors: Sequence[ChangeDetector]) -> None:
        self._detectors, self._model = detectors, detectors[0].model
        self._mean = np.empty((len(detectors), *self._model.prior_mean.shape))  # (N, H, K)
        self._covariance = np.empty((len(detectors), *self._model.prior_covariance.shape))  # (N, H, H)
        for number, detector in enumerate(detectors):
            detector.hold_knowledge(self._mean[number], self._covariance[number])
            detector.reset()

    def update(self, lanes: list[int], observations: np.ndarray, actions: np.ndarray, votes: np.ndarray) -> list[int]:
        """ChangeDetector.update of the robots `lanes` (M) with rows (M, O), (M, A) and embeddings (M, E)."""
        model, detectors = self._model, [self._detectors[lane] for lane in lanes]
        features, noise = model.features(observations[:, None], actions[:, None])
        places, worth = model.place(votes[:, None])  # (M, 1, K), as all rows here
        noise = noise / worth
        scores = self._scores(lanes, features, noise, places)
        seen = map(Seen, features[:, 0], noise[:, 0].tolist(), places[:, 0])
        parts = zip(detectors, seen, scores, strict=True)
        changes = [detector.weigh(new, score if detector.warm else 0.0) for detector, new, score in parts]
        settled = [detector.settled() for detector in detectors]
        for turn in range(max(map(len, settled))):
            learning = [(lane, votes[turn]) for lane, votes in zip(lanes, settled, strict=True) if len(votes) > turn]
            self._learn([lane for lane, _ in learning], [vote for _, vote in learning])
        return changes

    def _scores(self, lanes: list[int], features: np.ndarray, noise: np.ndarray, places: np.ndarray) -> list[float]:
        """ChangeDetector._score of (M, 1, H), (M, 1) and (M, 1, K)."""
        model, spread = self._model, self._model.spread * self._model.noise
        known = _log_likelihoods(features, noise, places, self._mean[lanes], self._covariance[lanes], spread)
        unknown = _log_likelihoods(features, noise, places, model.prior_mean, model.prior_covariance, spread)
        return [math.copysign(math.log1p(abs(more)), more) for more in (unknown - known).tolist()]

    def _learn(self, lanes: list[int], votes: Sequence[Seen]) -> None:
        """ChangeDetector._learn of one vote of each of the robots `lanes` (M)."""
        features = np.array([vote.features for vote in votes])[:, :, None]
        noise = np.array([vote.noise for vote in votes])[:, None, None]
        places = np.array([vote.place for vote in votes])[:, None]
        mean, covariance = self._mean[lanes], self._covariance[lanes]
        gain, rows = covariance @ features, features.swapaxes(1, 2)
        scale = noise + rows @ gain
        mean += gain * ((places - rows @ mean) / scale)
        less = gain * gain.swapaxes(1, 2)
        less /= scale
        covariance -= less
        self._mean[lanes], self._covariance[lanes] = mean, covariance


def _log_likelihoods(
    features: np.ndarray, noise: np.ndarray, places: np.ndarray, mean: np.ndarray, covariance: np.ndarray,
    spread: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """ChangeDetector._log_likelihood of each row, (M,)."""
    variance = (noise[..., None] + features @ covariance @ features.swapaxes(1, 2)) * spread
    deviation = places - features @ mean
    return -0.5 * (np.log(variance) + deviation**2 / variance).sum(-1)[:, 0]
