# SPDX-License-Identifier: Apache-2.0
"""The trust in the heads, learnt on recordings of a point whose tasks differ in goal, in gain, or in neither."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from spc_core.alignment.streaming import Transition
from spc_core.deploy.task_belief import TaskBelief
from spc_core.method.agent import Agent
from spc_core.method.normalize import Stats
from spc_core.method.one_step import beta_nll
from spc_core.training.belief_fit import (
    Pieces,
    Trust,
    candidates_of,
    fit_task_belief,
    grain_of,
    summed_likelihoods,
    task_pieces,
    usual_of,
)
from support.method_options import configured
from support.random_checkpoint import TINY

TASKS, EPISODES, STEPS = 6, 4, 60


class Point:
    """A point in a plane that is pushed at random: reward by the distance to the goal, and a gain of the pushes."""

    def __init__(self, goals: bool, gains: bool) -> None:
        spread = np.linspace(-1, 1, TASKS)
        self.goals, self.gains = (spread if goals else 0 * spread), 1 + (0.6 * spread if gains else 0 * spread)

    def episode(self, goal: float, gain: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        actions = rng.uniform(-1, 1, (STEPS, 2))
        changes = 0.3 * gain * actions + 0.02 * rng.standard_normal((STEPS, 2))
        places = np.concatenate([rng.uniform(-1, 1, (1, 2)), np.zeros((STEPS, 2))])
        for step, change in enumerate(changes):
            places[step + 1] = np.clip(places[step] + change, -1.5, 1.5)
        rewards = -np.abs(places[:-1, 0] - goal) + 0.05 * rng.standard_normal(STEPS)
        return places, actions, rewards

    def recordings(self) -> Any:
        """What the fit needs of a PackedDataset."""
        rng = np.random.default_rng(0)
        tasks = [number for number in range(TASKS) for _ in range(EPISODES)]
        runs = [self.episode(self.goals[number], self.gains[number], rng) for number in tasks]
        observations, actions, rewards = (np.concatenate(part).astype(np.float32) for part in zip(*runs, strict=True))
        return SimpleNamespace(
            observations=observations, actions=actions, rewards=rewards, episode_task=np.array(tasks),
            tasks=[None] * TASKS, episode_starts=STEPS * np.arange(len(tasks) + 1),
        )  # fmt: skip


def learnt(data: Any) -> tuple[Agent, Stats]:
    """An agent whose heads know the recordings, with tasks evenly along the first number of z."""
    two = np.ones(2, np.float32)
    stats = Stats(np.float32([0.5, -0.2]), 2 * two, 0.2 * two, -0.5, 0.5, -two, two)
    torch.manual_seed(0)
    agent = Agent(2, 2, [{}] * TASKS, dataclasses.replace(configured("spc"), model=TINY))
    agent.task_means[:, 0] = torch.linspace(-1, 1, TASKS)
    heads = agent.world_model.one_step
    assert heads is not None
    heads.scale.copy_(torch.full((2,), 0.1))
    task = torch.from_numpy(data.episode_task).repeat_interleave(STEPS)
    rows = np.arange(len(data.rewards)) + np.arange(len(data.rewards)) // STEPS
    before, after = (torch.from_numpy(stats.observation(data.observations[rows + one])) for one in (0, 1))
    inputs = torch.cat([before, torch.from_numpy(data.actions), agent.task_means[task]], -1)
    targets = heads.targets(torch.from_numpy(stats.reward(data.rewards)), before, after)
    optimizer = torch.optim.Adam(heads.parameters(), 0.02)
    for _ in range(150):
        loss = beta_nll(*heads(inputs), targets, 0.5).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return agent, stats


def fitted(point: Point) -> TaskBelief:
    data = point.recordings()
    return fit_task_belief(*learnt(data), data, "weights")


@pytest.mark.parametrize(
    ("goals", "gains", "trusted"), [(True, False, [1, 0, 0]), (False, True, [0, 1, 1]), (False, False, [0, 0, 0])]
)
def test_what_tells_tasks_apart_is_trusted_and_nothing_else(goals: bool, gains: bool, trusted: list[int]) -> None:
    point = Point(goals, gains)
    belief = fitted(point)
    assert (belief.trust > 0).astype(int).tolist() == trusted
    assert (belief.rewards_tell > 0.3, belief.changes_tell > 0.3) == (goals, gains)
    if not goals and not gains:
        assert belief.rewards_tell < 0.2 and belief.changes_tell < 0.2
        return
    rng = np.random.default_rng(9)
    for goal, gain, z in [(0.5, 1.3, 0.5), (-0.7, 0.58, -0.7)]:  # tasks between the recorded ones
        places, actions, rewards = point.episode(goal * goals, gain if gains else 1.0, rng)
        rows = [Transition(t, places[t], actions[t], rewards[t], places[t + 1]) for t in range(STEPS)]
        found, variance = belief.place(belief.log_likelihoods(rows).sum(0), STEPS)
        assert abs(found[0] - z) < 0.25, (goal, gain, found[0])
        assert variance[0] < 0.1
    places, actions, rewards = point.episode(2.5 * goals, 2.5 if gains else 1.0, rng)  # far beyond them
    rows = [Transition(t, places[t], actions[t], rewards[t], places[t + 1]) for t in range(STEPS)]
    assert belief.doubt(belief.log_likelihoods(rows).sum(0), STEPS) > 2


def test_a_robot_finds_the_likelihoods_that_trust_was_learnt_on() -> None:
    """Torch on the encoder's inputs, and NumPy on transitions in the contract's units."""
    data = Point(True, True).recordings()
    agent, stats = learnt(data)
    belief = fit_task_belief(agent, stats, data, "")
    (piece, *_) = task_pieces(stats, data, 0, np.random.default_rng(0))
    places, acted, rewards = np.asarray(data.observations, np.float64), data.actions, data.rewards
    row = int(np.abs(stats.observation(places) - piece[0, :2]).sum(1).argmin())
    step = row - row // (STEPS + 1)
    own = Transition(0, places[row], np.float64(acted[step]), float(rewards[step]), places[row + 1])
    (theirs,) = summed_likelihoods(agent, [piece[:1]], torch.from_numpy(belief.candidates).float())
    expected = theirs.double().numpy() @ belief.trust
    np.testing.assert_allclose(belief.log_likelihoods([own])[0], expected, rtol=1e-4, atol=1e-4)


def test_the_fit_repeats() -> None:
    data = Point(True, False).recordings()
    agent, stats = learnt(data)
    before = torch.get_rng_state()
    one, two = (fit_task_belief(agent, stats, data, "", seed=3).to_dict() for _ in range(2))
    assert one == two and torch.equal(before, torch.get_rng_state())


def test_candidates_are_the_means_and_points_on_lines_through_two_of_them() -> None:
    means = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    candidates = candidates_of(means, np.random.default_rng(0))
    assert len(candidates) == 64
    np.testing.assert_array_equal(candidates[:3], means)
    x, y = candidates.T
    on_a_line = [np.abs(y) < 1e-9, np.abs(x) < 1e-9, np.abs(2 * x + y - 2) < 1e-9]
    assert np.any(on_a_line, 0).all() and all(np.count_nonzero(line) > 10 for line in on_a_line)
    assert x.min() >= -0.5 and x.max() <= 1.5 and (x < 0).any() and (x > 1).any(), "beyond the tasks, by half at most"
    many = np.arange(200.0).reshape(100, 2) ** 2
    candidates = candidates_of(many, np.random.default_rng(0))
    assert len(candidates) == 64 and sum(any((one == many).all(1)) for one in candidates) == 32


def test_what_is_usual_by_hand() -> None:
    """Two pieces of two transitions of their own tasks have -2 and -6: -2 each, 2 off, and 2 (1 + 2/2) = 4."""
    likely = torch.tensor([[[-1.0, 9.0], [5.0, 9.0]], [[5.0, 9.0], [-3.0, 9.0]]])  # two pieces, tasks, outputs
    pieces = Pieces(likely, torch.tensor([0, 1]), torch.tensor([2.0, 2.0]))
    assert usual_of(pieces, Trust(torch.tensor([2.0, 0.0]), 2.0, 1.0)) == (-2.0, 1.0)


def test_the_grain_by_hand() -> None:
    """Ways to the nearest of 1, 1 and 2."""
    np.testing.assert_allclose(grain_of(np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]])), [2 / 3, 4 / 3])
