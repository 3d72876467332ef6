# SPDX-License-Identifier: Apache-2.0
"""Behaviour data of one task, made in this process: the episodes that collection and conversion would give.

Data that a robot with the task's hidden parameters might have left behind; the `offline` protocol takes its context
from it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from spc_core.data.dataset import Episode
from spc_core.tasks import make_env
from spc_core.tasks.arm import Task, TaskEnv
from spc_core.tasks.behaviour import Behaviour, behaviour_mix, episode_seed


def behaviour_episodes(task: Task, episodes: int, seed: int) -> Iterator[Episode]:
    """So many episodes of the usual mix: an expert, a noisy expert and random motion take turns.

    The same as `spc collect --seed` records and `spc convert` aligns, number for number, but for times, sources, and
    the last bit of a reward that the contract computes from observation and action.
    Scored episodes count their seeds from 0, as collection with seed 0 does on task 0: give another seed, or the data
    starts from the very states that a score is measured from.
    Raises ValueError for a negative number of episodes or seed.
    """
    if episodes < 0 or seed < 0:
        raise ValueError(f"episodes and seed must be at least 0, got episodes {episodes}, seed {seed}")
    return _episodes(task, episodes, seed)


def _episodes(task: Task, episodes: int, seed: int) -> Iterator[Episode]:
    env = make_env(task.family, task)
    for number in range(episodes):
        own_seed = episode_seed(seed, task.index, number)
        yield _episode(env, Behaviour(env, behaviour_mix(number), own_seed), own_seed)


def _episode(env: TaskEnv, behaviour: Behaviour, seed: int) -> Episode:
    """One episode in the order of a bag: o_k is seen, a_k answers it, r_k and o_k+1 are what came of that."""
    observation, _ = env.reset(seed=seed)
    observations, actions, rewards = [observation], [], []
    terminated = truncated = False
    while not (terminated or truncated):
        action = behaviour.act(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(float(reward))
    period_ns = round(1e9 / env.control_hz)
    return Episode(
        observations=np.array(observations),
        actions=np.array(actions),
        rewards=np.array(rewards),
        times_ns=np.arange(len(observations), dtype=np.int64) * period_ns,
        terminated=terminated,
        truncated=truncated and not terminated,
        cut=None,
        source=f"simulated: {env.task.task_id}, seed {seed}",
        behaviour=behaviour.kind,
    )
