# SPDX-License-Identifier: Apache-2.0
"""Sampling: uniform over valid windows, never across an episode or a task; contexts of every size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spc_core.data.dataset import TaskEntry
from spc_core.data.packed import PackedDataset, load_dataset
from spc_core.data.sampler import Sampler
from spc_core.method.config import ConfigError
from spc_core.training.train import data_stats
from support.synthetic import POINT, tiny_config, write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_dataset(write_dataset(tmp_path_factory.mktemp("data") / "point"))


def make_sampler(data, rank=0, world=1, **overrides):
    return Sampler(data, data_stats(data), tiny_config(**overrides), seed=0, rank=rank, world=world)


def numbered(tasks):
    """A dataset whose numbers encode their position: `tasks` lists each task's episode lengths.

    The first observation field is the row's number, the second the episode's.
    """
    lengths = np.array([length for episodes in tasks for length in episodes])
    starts = np.concatenate([[0], lengths.cumsum()])
    owner = np.repeat(np.arange(len(tasks)), [len(episodes) for episodes in tasks])
    rows = np.arange(starts[-1] + len(lengths), dtype=np.float32)
    episode = np.repeat(np.arange(len(lengths), dtype=np.float32), lengths + 1)
    steps = np.arange(starts[-1], dtype=np.float32)
    entries = tuple(TaskEntry(f"point/train/{index:02d}", {}) for index in range(len(tasks)))
    return PackedDataset(
        root=Path("numbered"), contract=POINT, tasks=entries, sha256="", observations=np.stack([rows, episode], 1),
        actions=np.zeros((len(steps), 2), np.float32), rewards=steps, terminated=np.zeros(len(steps), np.bool_),
        episode_starts=starts, episode_task=owner,
    )  # fmt: skip


def units(values, mean, std):
    return np.rint(values.numpy().astype(np.float64) * std + mean).astype(np.int64)


def chi_square(counts):
    return float(((counts - counts.mean()) ** 2 / counts.mean()).sum())


def test_windows_are_uniform_over_valid_starts_first_and_last_included(data):
    """Episodes of 5, 12 and 9 steps have 1, 8 and 5 windows of 5: a chi-square test over all 14 of each task."""
    sampler = make_sampler(data, windows_per_task=100)
    drawn = [sampler._windows(np.array([2, 0])) for _ in range(140)]
    for t, task in enumerate((2, 0)):
        first, counts = np.unique([starts[t] for starts, _ in drawn], return_counts=True)
        assert (first - 26 * task).tolist() == [0, *range(5, 13), *range(17, 22)]
        assert chi_square(counts) < 34.5  # 99.9 % of chi-square with 13 degrees of freedom


def test_windows_are_uniform_over_many_episodes_of_very_different_lengths():
    """One window in a short episode is drawn as often as one in a long episode, whatever stands between."""
    data = numbered([[5], [4, 5, 1, 204, 4, 7, 5], [9]])
    sampler = make_sampler(data, windows_per_task=1000)
    first = np.concatenate([sampler._windows(np.array([1]))[0][0] for _ in range(208)])
    counts = np.unique(first, return_counts=True)[1]
    assert len(counts) == 1 + 1 + 1 + 200 + 1 + 3 + 1
    assert chi_square(counts) < 276.4  # 99.9 % of chi-square with 207 degrees of freedom


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


episode_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=6).filter(lambda lengths: max(lengths) >= 3)


@settings(max_examples=40, deadline=None)
@given(st.lists(episode_lengths, min_size=2, max_size=5), st.sampled_from([1, 2, 4]))
def test_no_window_and_no_context_leaves_its_episode_or_task(tasks, contexts):
    data = numbered(tasks)
    stats = data_stats(data) if data.episode_count > 1 else None
    config = tiny_config(tasks_per_batch=2, horizon=3, context_max=9, contexts_per_task=contexts)
    sampler = Sampler(data, stats, config, seed=0)
    task_of_row = np.repeat(data.episode_task, np.diff(data.episode_starts) + 1)
    for _ in range(5):
        batch = sampler.batch()
        assert batch.context.shape == (2, contexts, 9, 7) and batch.context_weight.shape == (2, contexts, 9)
        seen = units(batch.observations, stats.observation_mean, stats.observation_std)
        rows, episodes = seen[..., 0], seen[..., 1]
        counted = batch.count.numpy() > 0
        assert counted[..., 0].all() and (np.diff(rows)[counted] == 1).all() and (np.diff(rows)[~counted] == 0).all()
        assert (episodes == episodes[..., :1]).all()
        assert (task_of_row[rows] == batch.task.numpy()[:, None, None]).all()
        steps = units(batch.rewards, stats.reward_mean, stats.reward_std)
        assert (steps + episodes[..., 1:] == rows[..., :-1])[counted].all()
        used = batch.context_weight.numpy() > 0
        rows = units(batch.context[..., :2], stats.observation_mean, stats.observation_std)
        assert (task_of_row[rows[used][:, 0]] == np.broadcast_to(batch.task[:, None, None], used.shape)[used]).all()
        change = units(batch.context[..., -2:], 0, stats.change_std)[used]
        assert (change == [1, 0]).all(), "s' is the next row of the same episode"
        assert not batch.context[~torch.from_numpy(used)].any()


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


@pytest.mark.parametrize(("online", "sizes"), [(0.0, range(1, 7)), (1.0, range(1, 7))])
def test_both_kinds_of_context_have_every_size(data, online, sizes):
    sampler = make_sampler(data, context_online_share=online, context_empty_share=0.0)
    drawn = np.concatenate([sampler.batch().context_weight.sum(-1).flatten() for _ in range(100)])
    assert np.unique(drawn).tolist() == list(sizes)


def test_terminal_transitions_are_drawn_with_their_flag(data):
    sampler = make_sampler(data)
    flags = np.concatenate([sampler.batch().terminated.numpy().reshape(-1, 5) for _ in range(50)])
    assert flags[:, -1].any() and not flags[:, :-1].any(), "a terminal is the last step of its window"


@pytest.mark.parametrize(("contexts", "world"), [(1, 2), (2, 2), (4, 2), (2, 4)])
def test_the_shares_of_several_processes_are_one_batch(data, contexts, world):
    whole = make_sampler(data, contexts_per_task=contexts)
    parts = [make_sampler(data, rank, world, contexts_per_task=contexts) for rank in range(world)]
    for _ in range(3):
        batch, shares = whole.batch(), [part.batch() for part in parts]
        assert batch.context_of.tolist() == [w // (4 // contexts) for w in range(4)]
        for name in ("observations", "actions", "rewards", "terminated"):
            assert torch.equal(getattr(batch, name), torch.cat([getattr(s, name) for s in shares], 1)), name
        assert torch.equal(batch.context_of, torch.cat([s.context_of for s in shares]))
        for name in ("context", "context_weight", "task"):
            assert all(torch.equal(getattr(batch, name), getattr(s, name)) for s in shares), name


def test_windows_that_cannot_be_shared_are_refused_by_name(data):
    with pytest.raises(ConfigError, match="windows_per_task 4 cannot be shared by 3 processes.*divides"):
        make_sampler(data, rank=0, world=3)
    with pytest.raises(ConfigError, match="by 2 processes, of which this is number 2"):
        make_sampler(data, rank=2, world=2)


def test_the_policy_learns_from_every_transition_of_a_task_alike():
    """Summed over all windows of a task, each transition counts the same: first and last ones, those of short episodes
    too; and the mean over a batch is the mean over transitions."""
    data = numbered([[4, 5, 1, 30, 6, 2]])
    windows = 1 + 1 + 1 + 26 + 2 + 1
    sampler = make_sampler(data, tasks_per_batch=1, windows_per_task=windows)
    sampler._below = lambda bound, shape: np.arange(shape[1])[None] % bound  # each window once
    batch = sampler.batch()
    steps = units(batch.rewards, sampler.stats.reward_mean, sampler.stats.reward_std).ravel()
    count = np.bincount(steps, batch.count.numpy().ravel())
    assert count.shape == (48,)
    np.testing.assert_allclose(count, 5 * windows / 48, rtol=1e-5)
    assert float(batch.count.mean()) == pytest.approx(1)


def test_an_episode_shorter_than_a_window_is_one_window_that_ends_with_it():
    data = numbered([[3], [3]])
    data.terminated[[2, 5]] = True
    sampler = make_sampler(data, tasks_per_batch=2)
    batch = sampler.batch()
    rows = units(batch.observations, sampler.stats.observation_mean, sampler.stats.observation_std)[..., 0]
    own = 4 * batch.task.numpy()[:, None, None]
    assert (rows - own == [0, 1, 2, 3, 3, 3]).all()
    assert (batch.count > 0).tolist() == [[[True] * 3 + [False] * 2] * 4] * 2
    assert batch.terminated[:, :, :3].tolist() == [[[0, 0, 1]] * 4] * 2


def test_a_batch_of_more_tasks_than_there_are_is_refused(data):
    with pytest.raises(ConfigError, match="tasks_per_batch is 20, but the dataset has 4 tasks; set tasks_per_batch to"):
        make_sampler(data, tasks_per_batch=20)


def test_an_index_has_nothing_for_each_step():
    """The sampler's tables are as long as the episodes are many, however long these are."""
    sizes = []
    for length in (20, 20_000):
        sampler = make_sampler(numbered([[length] * 3] * 4))
        sizes.append(sum(v.nbytes for v in vars(sampler).values() if isinstance(v, np.ndarray)))
    assert sizes[0] == sizes[1] < 2000
