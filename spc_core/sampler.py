# SPDX-License-Identifier: Apache-2.0
"""Draws training batches: windows and contexts of distinct tasks, gathered from packed arrays."""

from __future__ import annotations

import numpy as np
import torch

from spc_core.agent import Batch
from spc_core.config import ConfigError, TrainConfig
from spc_core.normalize import Stats
from spc_core.packed import PackedDataset

MOST_EPISODES_LOG2 = 4  # a context that is not online is drawn from up to 16 episodes


class Sampler:
    """Uniform over tasks, then over a task's windows; no window crosses an episode, a cut or a task."""

    def __init__(self, data: PackedDataset, stats: Stats, config: TrainConfig, seed: int) -> None:
        self.data, self.stats, self.config = data, stats, config
        self.rng = np.random.default_rng(seed)
        starts = np.asarray(data.episode_starts)
        lengths = np.diff(starts)
        self._windows: list[np.ndarray] = []  # per task: every step at which a window may start
        self._episodes: list[np.ndarray] = []  # per task: its episodes
        for index, task in enumerate(data.tasks):
            mine = np.flatnonzero(np.asarray(data.episode_task) == index)
            long = mine[lengths[mine] >= config.horizon]
            if len(long) == 0:
                raise ConfigError(
                    f"horizon is {config.horizon}, but the longest episode of task {task.task_id} has "
                    f"{lengths[mine].max(initial=0)} transitions; use a smaller horizon or longer recordings"
                )
            self._windows.append(_ranges(starts[long], lengths[long] - config.horizon + 1))
            self._episodes.append(mine)
        self._starts = starts

    def batch(self) -> Batch:
        """One batch on the CPU."""
        config, data = self.config, self.data
        tasks = self.rng.choice(len(data.tasks), min(config.tasks_per_batch, len(data.tasks)), replace=False)
        first = np.stack([self.rng.choice(self._windows[t], config.windows_per_task) for t in tasks])  # (T, W)
        steps = first[..., None] + np.arange(config.horizon)  # (T, W, H)
        rows = (first + self._episode(first))[..., None] + np.arange(config.horizon + 1)  # an episode has one row more
        context, weight = self._contexts(tasks)
        stats = self.stats
        return Batch(
            observations=torch.from_numpy(stats.observation(data.observations[rows])),
            actions=torch.from_numpy(stats.action(data.actions[steps])),
            rewards=torch.from_numpy(stats.reward(data.rewards[steps])),
            terminated=torch.from_numpy(data.terminated[steps].astype(np.float32)),
            context=torch.from_numpy(context),
            context_weight=torch.from_numpy(weight),
            task=torch.from_numpy(tasks),
        )

    def _contexts(self, tasks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Transitions (T, W, N, 2 O + A + 1) and weights (T, W, N) of one context for each window.

        Online contexts are cut from one episode and have log-uniform sizes, since the first few transitions matter
        as much as many more later. The rest are drawn from a few episodes, from one to many, with uniform sizes:
        all of a random driver's, say, so that no context needs an expert in it.
        """
        config, rng, data = self.config, self.rng, self.data
        shape, most = (len(tasks), config.windows_per_task), config.context_max
        few = np.exp2(rng.uniform(0, MOST_EPISODES_LOG2, shape)).astype(np.int64)  # episodes to draw from
        chosen = np.stack([rng.choice(self._episodes[t], (shape[1], 2**MOST_EPISODES_LOG2)) for t in tasks])
        episode = np.take_along_axis(chosen, rng.integers(0, few[..., None], (*shape, most)), -1)
        begin, end = self._starts[episode], self._starts[episode + 1]
        steps = rng.integers(begin, end)
        first, left = steps[..., 0], end[..., 0] - steps[..., 0]
        online = rng.random(shape) < config.context_online_share
        online_size = np.minimum(np.exp(rng.uniform(0, np.log(most + 1), shape)).astype(np.int64), left)
        size = np.where(online, online_size, rng.integers(1, most + 1, shape))
        size[rng.random(shape) < config.context_empty_share] = 0
        place = np.arange(most)
        weight = place < size[..., None]
        steps = np.where(online[..., None] & weight, first[..., None] + place, steps)
        rows = steps + self._episode(steps)
        transitions = self.stats.transition(
            data.observations[rows], data.actions[steps], data.rewards[steps], data.observations[rows + 1]
        )
        return transitions, weight.astype(np.float32)

    def _episode(self, step: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, step, side="right") - 1


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[start, start + count) of every pair, in one array."""
    return np.concatenate([np.arange(s, s + n) for s, n in zip(starts, counts, strict=True)])
