# SPDX-License-Identifier: Apache-2.0
"""What a collecting robot acts on: for how long in seconds, and in which order."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from spc_core.deploy.context_tracker import ContextTracker
from spc_core.deploy.hypotheses import Hypotheses, far_apart
from support.plain_votes import deployed, transitions

MEANS = np.array([[0.1, 0.0], [0.9, 0.0], [0.2, 0.0], [-0.8, 0.0]])


def collecting(rate_hz: float = 50.0, **method: object) -> ContextTracker:
    robot = deployed(None)
    networks = robot.networks()
    networks.task_means = MEANS
    robot.contract = SimpleNamespace(rate_hz=rate_hz)
    robot.config = dataclasses.replace(robot.config, method=dataclasses.replace(robot.config.method, **method))
    tracker = ContextTracker(robot)
    tracker.mode = "collect"
    return tracker


def shown(tracker: ContextTracker, votes: np.ndarray) -> list[float]:
    """The first number of the hypothesis before each transition."""
    seen = []
    for transition in transitions(votes):
        seen.append(float(tracker.context[0]))
        tracker.update(transition)
    return seen


@pytest.mark.parametrize(
    "rate_hz, settings, steps",
    [(50.0, {}, 12), (25.0, {}, 6), (50.0, {"hypothesis_s": 0.1}, 5), (5.0, {}, 1), (1.0, {"hypothesis_s": 0.01}, 1)],
)
def test_a_hypothesis_is_held_for_seconds(rate_hz, settings, steps):
    seen = shown(collecting(rate_hz, **settings), np.zeros((4 * steps + 1, 2)))
    assert seen == [value for value in (-0.8, 0.9, 0.1, 0.2) for _ in range(steps)] + [-0.8], "and then from the first"


def test_the_nearest_hypothesis_comes_next_of_those_tried_least():
    tracker = collecting(hypothesis_s=0.02, collect="nearest")  # one transition each
    assert shown(tracker, np.full((5, 2), -0.7)) == [-0.8, 0.1, 0.2, 0.9, -0.8]
    tracker.reset()
    assert shown(tracker, np.array([[0.19, 0], [0.8, 0], [0.0, 0]])) == [-0.8, 0.2, 0.1], "z is 0.19, then 0.495"


def test_a_hypothesis_stays_while_it_is_held():
    tracker = collecting(hypothesis_s=0.06, collect="nearest")  # three transitions
    votes = np.array([[0.2, 0], [0.2, 0], [0.2, 0], [-5.0, 0], [-5.0, 0], [-5.0, 0], [0, 0]])
    assert shown(tracker, votes) == [-0.8, -0.8, -0.8, 0.2, 0.2, 0.2, 0.1]


def test_far_apart_begins_with_the_farthest_from_the_mean():
    np.testing.assert_array_equal(far_apart(MEANS)[:, 0], [-0.8, 0.9, 0.1, 0.2])
    assert Hypotheses(MEANS, 3, "means").shown[0] == -0.8
