# SPDX-License-Identifier: Apache-2.0
"""Simulated behaviour data of one task: the episodes that collection and conversion would produce.

By default the `offline` protocol takes its context from it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from spc_core.data.dataset import Episode
from spc_core.tasks import Task, make_env
from spc_core.tasks.behaviour import Behaviour, behaviour_mix, episode_seed, kinds_of
from spc_core.tasks.task_env import TaskEnv


def behaviour_episodes(task: Task, episodes: int, seed: int, first: int = 0) -> Iterator[Episode]:
    """Episodes of the usual mix, from number `first` on: states of a learning agent; or an expert, a noisy expert and
    random motion in turn; or random motion alone.

    Equal to those that `spc collect --seed` records and `spc convert` aligns, except for times, sources, and the last
    bit of a reward that the contract computes from observation and action.
    Use a seed other than 0: scored episodes, and collection with seed 0 on task 0, start from the same states.
    Raises ValueError for a negative number of episodes or seed.
    """
    if episodes < 0 or seed < 0:
        raise ValueError(f"episodes and seed must be at least 0, got episodes {episodes}, seed {seed}")
    env = make_env(task.family, task)
    kinds = kinds_of(env)
    numbers = range(first, first + episodes)
    return (_episode(env, behaviour_mix(n, kinds), episode_seed(seed, task.index, n)) for n in numbers)


def _episode(env: TaskEnv, kind: str, seed: int) -> Episode:
    """One episode in the order of a bag: o_k, then a_k in response, then r_k and o_k+1."""
    behaviour = Behaviour(env, kind, seed)
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
