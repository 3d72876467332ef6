# SPDX-License-Identifier: Apache-2.0
"""Intervals and probabilities against numbers worked out by hand."""

import math

import numpy as np
import pytest

from spc_core.comparison.statistics import (
    mean_interval,
    probability_interval,
    probability_of_improvement,
    redraw,
    return_grid,
)
from spc_core.trials.scores import normalise


def test_a_grid_averages_episodes_and_refuses_holes():
    returns = {(1, "b"): [4.0], (0, "b"): [2.0], (0, "a"): [1.0, 3.0], (1, "a"): [5.0]}
    assert return_grid(returns).tolist() == [[2.0, 2.0], [5.0, 4.0]]
    with pytest.raises(ValueError, match="training seed 1 has no episode of task 'a'"):
        return_grid({**returns, (1, "a"): []})


def test_probability_of_improvement_by_hand():
    x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [2.0]])
    assert probability_of_improvement(x, y) == (1 + 0 + 1 + 0.5) / 4
    two = probability_of_improvement(np.array([[1.0, 5.0], [2.0, 6.0]]), np.array([[0.0, 7.0], [2.0, 8.0]]))
    assert two == (0.625 + 0) / 2, "tasks are compared each for itself"
    three = probability_of_improvement(np.array([[3.0], [1.0], [2.0]]), np.array([[1.5], [2.5]]))
    assert three == pytest.approx((2 + 0 + 1) / 6), "different numbers of seeds"
    assert probability_of_improvement(x, x) == 0.5


def test_probability_of_gaussians_is_that_of_their_difference():
    rng = np.random.default_rng(1)
    x, y = rng.normal(1, 1, (400, 3)), rng.normal(0, 1, (400, 3))
    expected = 0.5 * (1 + math.erf(1 / 2))  # Phi(1 / sqrt 2)
    assert probability_of_improvement(x, y) == pytest.approx(expected, abs=0.02)


def test_interval_of_two_seeds_and_one_task_is_their_range():
    """The three possible means 0, 1/2, 1 have the probabilities 1/4, 1/2, 1/4, so both tails reach the ends."""
    assert mean_interval(np.array([[0.0], [1.0]])) == (0.0, 1.0)
    assert probability_interval(np.array([[0.0], [1.0]]), np.array([[0.5], [0.5]])) == (0.0, 1.0)


def test_bootstrap_spread_is_the_analytic_one():
    """The variance of a bootstrap mean: of each task its population variance / S, together / N^2."""
    grid = np.random.default_rng(2).normal(size=(5, 8))
    means = redraw(grid, np.random.default_rng(0), draws=20_000).mean(axis=(1, 2))
    assert means.mean() == pytest.approx(grid.mean(), abs=0.01)
    assert means.std() == pytest.approx(math.sqrt(grid.var(axis=0).sum() / 5) / 8, rel=0.03)
    whole = redraw(grid, np.random.default_rng(0), whole_rows=True, draws=20_000).mean(axis=(1, 2))
    assert whole.std() == pytest.approx(grid.mean(axis=1).std() / math.sqrt(5), rel=0.03)


def test_redrawing_keeps_tasks_apart_and_rows_whole_where_asked():
    grid = np.array([[0.0, 10.0, 20.0], [1.0, 11.0, 21.0]])
    samples = redraw(grid, np.random.default_rng(0), draws=50)
    assert (samples // 10 == [0, 1, 2]).all()
    mixed = samples % 10
    assert (mixed != mixed[..., :1]).any(), "each task has seeds of its own"
    rows = redraw(grid, np.random.default_rng(0), whole_rows=True, draws=50) % 10
    assert (rows == rows[..., :1]).all()


def test_agents_that_are_good_or_bad_at_all_tasks_have_wider_intervals_by_whole_rows():
    grid = np.repeat(np.arange(5.0)[:, None], 10, axis=1)
    alone, whole = mean_interval(grid), mean_interval(grid, whole_rows=True)
    assert whole[0] < alone[0] < 2 < alone[1] < whole[1]


def test_one_seed_has_no_interval():
    assert all(math.isnan(end) for end in mean_interval(np.ones((1, 4))))
    assert all(math.isnan(end) for end in probability_interval(np.ones((1, 4)), np.ones((3, 4))))


def test_an_interval_over_seeds_and_tasks_covers_the_mean_and_shrinks_with_the_spread():
    grid = np.tile(np.arange(10.0), (3, 1))
    low, high = mean_interval(grid, whole_rows=True, redraw_tasks=True)
    assert low < 4.5 < high and abs((high - low) / 2 - 1.96 * np.std(range(10)) / math.sqrt(10)) < 0.2
    assert mean_interval(grid, whole_rows=True, redraw_tasks=True) == (low, high)
    assert mean_interval(np.array([[2.0]]), whole_rows=True, redraw_tasks=True) == (2.0, 2.0)
    grid[0, 0] = math.nan  # an unfinished trial
    assert low < mean_interval(grid, whole_rows=True, redraw_tasks=True)[0] < 4.6


def test_a_sample_without_any_episode_does_not_count():
    sparse = np.array([[math.nan, 3.0]])  # a quarter of the samples redraws the missing task twice
    assert mean_interval(sparse, whole_rows=True, redraw_tasks=True) == (3.0, 3.0)


def test_normalised_by_hand():
    assert normalise(-5.0, -10.0, 0.0) == 0.5
    assert math.isnan(normalise(1.0, 2.0, 2.0))
