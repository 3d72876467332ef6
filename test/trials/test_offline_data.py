# SPDX-License-Identifier: Apache-2.0
"""Behaviour data made in process: shaped and aligned as converted bags, seeded, and true to the simulation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from spc_core.contract.contract import load_contract
from spc_core.data.dataset import DatasetWriter, Episode
from spc_core.data.reader import read_episodes
from spc_core.system.config_files import find_config
from spc_core.tasks import find_task, make_env, tasks
from spc_core.tasks.behaviour import episode_seed
from spc_core.trials.offline_data import behaviour_episodes
from support.contracts import ARM_REACH
from support.families import WITH_EXPERT

STEPS = 100


def same(first: Episode, second: Episode) -> bool:
    return all(
        np.array_equal(getattr(first, field.name), getattr(second, field.name)) for field in dataclasses.fields(Episode)
    )


@pytest.mark.parametrize("family", WITH_EXPERT)
def test_episodes_are_whole_and_the_kinds_take_turns(family):
    contract = load_contract(find_config("contracts", family))
    made = list(behaviour_episodes(tasks(family, "id")[3], 4, seed=5))
    assert [episode.behaviour for episode in made] == ["expert", "noisy", "random", "expert"]
    for episode in made:
        assert episode.observations.shape == (STEPS + 1, contract.observation_dim)
        assert episode.actions.shape == (STEPS, contract.action_dim)
        assert episode.rewards.shape == (STEPS,) and len(episode) == STEPS
        assert (np.diff(episode.times_ns) == contract.period_ns).all() and episode.times_ns.dtype == np.int64
        assert (episode.terminated, episode.truncated, episode.cut) == (False, True, None)
        assert (episode.actions >= contract.action.low).all() and (episode.actions <= contract.action.high).all()
        assert all(np.isfinite(array).all() for array in (episode.observations, episode.actions, episode.rewards))
        assert np.ptp(episode.actions, axis=0).min() > 0.01, "somebody drives"
    expert, _, random, _ = (episode.rewards.sum() for episode in made)
    assert expert > random


@pytest.mark.parametrize("family", WITH_EXPERT)
def test_task_and_seed_decide_everything(family):
    task, other = tasks(family, "val")[2], tasks(family, "id")[2]
    first, again = (list(behaviour_episodes(task, 3, seed=1)) for _ in range(2))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert same(first[0], next(behaviour_episodes(task, 1, seed=1))), "the number asked for does not matter"
    for changed in (behaviour_episodes(task, 3, seed=2), behaviour_episodes(other, 3, seed=1)):
        assert not any(np.array_equal(a.rewards, b.rewards) for a, b in zip(first, changed, strict=True))
    starts = {episode.observations[0].tobytes() for episode in first}
    assert len(starts) == 3, "no two episodes start alike"


@pytest.mark.parametrize("family", WITH_EXPERT)
def test_each_transition_is_a_step_of_the_simulation(family):
    """(o_k, a_k, r_k, o_k+1): playing the actions again from the same start gives every row, with nothing shifted."""
    task = tasks(family, "ood")[7]
    env = make_env(family)
    for number, episode in enumerate(behaviour_episodes(task, 3, seed=4)):
        observation, _ = env.reset(seed=episode_seed(4, task.index, number), options={"task": task})
        np.testing.assert_array_equal(observation, episode.observations[0])
        for k in range(len(episode)):
            observation, reward, terminated, truncated, _ = env.step(episode.actions[k])
            np.testing.assert_array_equal(observation, episode.observations[k + 1])
            assert reward == episode.rewards[k]
            assert (terminated or truncated) is (k == len(episode) - 1)


def test_rewards_are_those_that_the_contract_computes():
    """arm_payload publishes no reward: conversion computes it from the observations and actions that stand here."""
    function = load_contract(find_config("contracts", "arm_payload")).reward_function()
    assert function is not None
    for e in behaviour_episodes(tasks("arm_payload", "id")[0], 3, seed=1):
        computed = [function(*row) for row in zip(e.observations, e.actions, e.observations[1:], strict=False)]
        np.testing.assert_allclose(e.rewards, computed, rtol=0, atol=1e-12)


def test_a_dataset_takes_them(tmp_path):
    task = find_task("arm_reach/id/04")
    made = list(behaviour_episodes(task, 3, seed=1))
    with DatasetWriter(tmp_path / "dataset", ARM_REACH) as writer:
        for episode in made:
            writer.add_episode(task.task_id, task.params, episode)
    stored = [episode for entry, episode in read_episodes(tmp_path / "dataset") if entry.task_id == task.task_id]
    assert all(same(a, b) for a, b in zip(stored, made, strict=True))


def test_refusals_and_nothing():
    task = tasks("arm_reach", "id")[0]
    assert list(behaviour_episodes(task, 0, seed=0)) == []
    with pytest.raises(ValueError, match="at least 0, got episodes -1, seed 0"):
        behaviour_episodes(task, -1, seed=0)
    with pytest.raises(ValueError, match="got episodes 1, seed -3"):
        behaviour_episodes(task, 1, seed=-3)
