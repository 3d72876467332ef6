# SPDX-License-Identifier: Apache-2.0
"""Sampling: uniform over valid windows, never across an episode or a task; contexts of every size."""

import numpy as np
import pytest
from synthetic import tiny_config, write_dataset

from spc_core.config import ConfigError
from spc_core.packed import load_dataset
from spc_core.sampler import Sampler
from spc_core.train import data_stats


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_dataset(write_dataset(tmp_path_factory.mktemp("data") / "point"))


def make_sampler(data, **overrides):
    return Sampler(data, data_stats(data), tiny_config(**overrides), seed=0)


def test_windows_are_uniform_over_valid_starts_first_and_last_included(data):
    """Episodes of 5, 12 and 9 steps have 1, 8 and 5 windows of 5: a chi-square test over all 14 of task 0."""
    sampler = make_sampler(data)
    assert [len(w) for w in sampler._windows] == [14] * 4
    assert sampler._windows[0].tolist() == [0, *range(5, 13), *range(17, 22)]
    drawn = np.concatenate([sampler.rng.choice(sampler._windows[0], 100) for _ in range(140)])
    counts = np.unique(drawn, return_counts=True)[1]
    assert len(counts) == 14
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 34.5  # 99.9 % of chi-square with 13 degrees of freedom


def test_batches_hold_real_windows_with_their_own_next_observations(data):
    """Every window of a batch is found, whole, in one episode of its task; actions and rewards belong to it."""
    sampler = make_sampler(data)
    stats = sampler.stats
    for _ in range(20):
        batch = sampler.batch()
        assert len(set(batch.task.tolist())) == 3, "tasks of a batch are distinct"
        for t, task in enumerate(batch.task.tolist()):
            for w in range(4):
                found = _find(data, task, batch.observations[t, w].numpy(), stats)
                assert found is not None
                step, episode = found
                steps = slice(step, step + 5)
                assert data.episode_starts[episode] <= step and step + 5 <= data.episode_starts[episode + 1]
                np.testing.assert_array_equal(batch.actions[t, w], stats.action(data.actions[steps]))
                np.testing.assert_array_equal(batch.rewards[t, w], stats.reward(data.rewards[steps]))
                np.testing.assert_array_equal(batch.terminated[t, w], data.terminated[steps])


def _find(data, task, window, stats):
    for episode in np.flatnonzero(data.episode_task == task):
        for step in range(data.episode_starts[episode], data.episode_starts[episode + 1] - 4):
            if np.array_equal(stats.observation(data.observations[step + episode : step + episode + 6]), window):
                return step, episode
    return None


def test_contexts_never_mix_tasks_and_sizes_include_none_and_most(data):
    sampler = make_sampler(data)
    rows = {
        tuple(row): int(data.episode_task[episode])
        for episode in range(data.episode_count)
        for row in _transitions(data, sampler.stats, episode)
    }
    sizes = []
    for _ in range(200):
        batch = sampler.batch()
        for t, task in enumerate(batch.task.tolist()):
            for context, weight in zip(batch.context[t], batch.context_weight[t], strict=True):
                used = context[weight > 0].numpy()
                sizes.append(len(used))
                assert all(rows[tuple(row)] == task for row in used)
    share = np.bincount(sizes, minlength=7) / len(sizes)
    assert len(share) == 7 and (share > 0).all(), "every size from 0 to the most appears"
    assert share[0] == pytest.approx(0.1, abs=0.04)


def _transitions(data, stats, episode):
    steps = np.arange(data.episode_starts[episode], data.episode_starts[episode + 1])
    seen, led_to = data.observations[steps + episode], data.observations[steps + episode + 1]
    return stats.transition(seen, data.actions[steps], data.rewards[steps], led_to)


def test_online_contexts_are_consecutive_steps_of_one_episode(data):
    sampler = make_sampler(data, context_online_share=1.0, context_empty_share=0.0)
    orders = {
        episode: [tuple(row) for row in _transitions(data, sampler.stats, episode)]
        for episode in range(data.episode_count)
    }
    for _ in range(50):
        batch = sampler.batch()
        for context, weight in zip(batch.context.flatten(0, 1), batch.context_weight.flatten(0, 1), strict=True):
            used = [tuple(row) for row in context[weight > 0].numpy()]
            assert any(used == order[i : i + len(used)] for order in orders.values() for i in range(len(order)))


def test_terminal_transitions_are_drawn_with_their_flag(data):
    sampler = make_sampler(data)
    flags = np.concatenate([sampler.batch().terminated.numpy().reshape(-1, 5) for _ in range(50)])
    assert flags[:, -1].any() and not flags[:, :-1].any(), "a terminal is the last step of its window"


def test_window_longer_than_every_episode_is_refused_by_name(data):
    with pytest.raises(ConfigError, match="horizon is 13, but the longest episode of task point/train/00 has 12"):
        make_sampler(data, horizon=13)
