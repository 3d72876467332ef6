# SPDX-License-Identifier: Apache-2.0
"""Votes with weights: z and its standard error are those of weighted least squares, and worthless votes say nothing."""

import numpy as np

from spc_core.deploy.change_detector import ChangeDetector
from spc_core.deploy.context_tracker import ContextTracker
from spc_core.deploy.votes import LEAST_WEIGHT, sums_of, weighted_mean
from support.plain_votes import NOISE, deployed, plain_model, transitions, votes_of, without_alarms


def embeddings_of(z: float, count: int, seed: int = 0, spread: float = 0.2) -> np.ndarray:
    """Votes (N, 2) of the variance spread^2 / weight, and their weights, from 0.01 to 100."""
    rng = np.random.default_rng(seed)
    weights = 10 ** rng.uniform(-2, 2, (count, 2))
    return np.concatenate([z + spread * rng.standard_normal((count, 2)) / np.sqrt(weights), weights], -1)


def tracked(embeddings: np.ndarray, **settings: object) -> ContextTracker:
    tracker = ContextTracker(deployed(None))
    for name, value in settings.items():
        setattr(tracker, name, value)
    for transition in transitions(embeddings):
        tracker.update(transition)
    return tracker


def test_context_and_uncertainty_are_those_of_weighted_least_squares() -> None:
    """numpy's fit of a constant, whose weights are square roots."""
    embeddings = embeddings_of(0.3, 40)
    tracker = tracked(embeddings)
    for column in range(2):
        root = np.sqrt(embeddings[:, 2 + column])
        (z,), covariance = np.polyfit(np.zeros(40), embeddings[:, column], 0, w=root, cov=True)
        np.testing.assert_allclose(tracker.context[column], z, rtol=1e-6)
        np.testing.assert_allclose(tracker.uncertainty[column], np.sqrt(covariance[0, 0]), rtol=1e-6)
    scaled = embeddings * [1, 1, 7, 7]
    np.testing.assert_allclose(tracked(scaled).uncertainty, tracker.uncertainty, rtol=1e-6)
    np.testing.assert_allclose(tracked(scaled).context, tracker.context, rtol=1e-6)


def test_the_uncertainty_is_the_spread_of_contexts_over_many_robots() -> None:
    trackers = [tracked(embeddings_of(0.3, 20, seed)) for seed in range(300)]
    spread = np.std([tracker.context for tracker in trackers], axis=0)
    expected = np.sqrt(np.mean([tracker.uncertainty**2 for tracker in trackers], axis=0))
    np.testing.assert_allclose(expected, spread, rtol=0.15)
    plain = np.mean([embeddings_of(0.3, 20, seed)[:, :2] for seed in range(300)], axis=1)
    assert (plain.std(0) > 3 * spread).all(), "the mean of all votes knows less"


def test_old_votes_decay_with_weights_too() -> None:
    embeddings = embeddings_of(0.3, 30)
    tracker = tracked(embeddings, half_life=4.0)
    votes, weights, decay = embeddings[:, :2], embeddings[:, 2:], 0.5 ** (np.arange(29, -1, -1) / 4)[:, None]
    z = np.average(votes, axis=0, weights=decay * weights)
    np.testing.assert_allclose(tracker.context, z, rtol=1e-6)
    total, double = (decay * weights).sum(0), (decay**2 * weights).sum(0)
    variance = (decay * weights * (votes - z) ** 2).sum(0) / (decay.sum() - double / total)
    np.testing.assert_allclose(tracker.uncertainty, np.sqrt(variance * double) / total, rtol=1e-5)


def test_a_direction_in_which_no_vote_is_worth_anything_stays_unknown() -> None:
    embeddings = embeddings_of(0.3, 20)
    embeddings[:, 3] = 0
    tracker = tracked(embeddings)
    assert tracker.uncertainty[1] == 1 and tracker.context[1] == 0 and tracker.uncertainty[0] < 0.1


def test_sums_in_one_go_are_the_weighted_mean() -> None:
    embeddings = embeddings_of(-0.5, 15)
    np.testing.assert_allclose(sums_of(embeddings, 2).mean, weighted_mean(embeddings, 2))
    assert sums_of(embeddings, 2).known.all() and not sums_of(embeddings[:0], 2).known.any() and LEAST_WEIGHT > 0


def weighted(votes: np.ndarray, weight: float = 1.0) -> np.ndarray:
    return np.concatenate([votes, np.full_like(votes, weight)], -1)


def test_worthless_votes_are_no_evidence_of_a_change_and_worthy_ones_are() -> None:
    nowhere, detector = np.zeros(1), ChangeDetector(plain_model())
    noise = np.random.default_rng(1).normal(1.0, np.sqrt(NOISE / 1e-2), (200, 2))  # up to 6 from the task's 1
    same, wild, other = weighted(votes_of(1.0, 200)), weighted(noise, 1e-2), weighted(votes_of(-1.0, 40, seed=2))
    worthless = [detector.update(nowhere, nowhere, vote) for vote in np.concatenate([same, wild])]
    assert not any(worthless)
    detector.reset()
    found = [detector.update(nowhere, nowhere, vote) for vote in np.concatenate([same, other])]
    assert 200 <= np.flatnonzero(found)[0] < 210
    detector.reset()
    certain = np.concatenate([weighted(votes_of(1.0, 200)), weighted(noise)])
    assert any(detector.update(nowhere, nowhere, vote) for vote in certain), "with full weight they would be"


def test_after_a_change_the_context_is_the_weighted_mean_of_the_new_votes() -> None:
    tracker = ContextTracker(deployed(plain_model()))
    after = np.concatenate([votes_of(-1.0, 15, seed=1), np.linspace(0.7, 1.4, 30).reshape(15, 2)], -1)
    for transition in transitions(np.concatenate([weighted(votes_of(1.0, 200)), after])):
        tracker.update(transition)
    assert tracker.restarts == 1 and tracker.count == 15
    z = np.average(after[:, :2], axis=0, weights=after[:, 2:])
    np.testing.assert_allclose(tracker.context, z, atol=1e-6)


def test_a_suspicion_shows_the_weighted_mean_of_the_suspected_votes() -> None:
    tracker = ContextTracker(deployed(without_alarms(plain_model())))
    odd = np.concatenate([votes_of(-1.0, 6, seed=1), np.linspace(0.7, 1.4, 12).reshape(6, 2)], -1)
    for transition in transitions(np.concatenate([weighted(votes_of(1.0, 100)), odd])):
        tracker.update(transition)
    z = np.average(odd[:, :2], axis=0, weights=odd[:, 2:])
    np.testing.assert_allclose(tracker.context, z, atol=1e-6)
    spread = (odd[:, 2:] * (odd[:, :2] - z) ** 2).sum(0) / 5
    np.testing.assert_allclose(tracker.uncertainty, np.sqrt(spread / odd[:, 2:].sum(0)), rtol=1e-5)


def test_votes_of_weight_one_are_votes_without_weights() -> None:
    votes = votes_of(0.4, 50)
    one, other = tracked(votes), tracked(weighted(votes))
    np.testing.assert_array_equal(one.context, other.context)
    np.testing.assert_array_equal(one.uncertainty, other.uncertainty)
