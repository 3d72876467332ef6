# SPDX-License-Identifier: Apache-2.0
"""Draws training batches: windows and contexts of distinct tasks, gathered from packed arrays."""

from __future__ import annotations

import numpy as np
import torch

from spc_core.agent import Batch
from spc_core.config import ConfigError, TrainConfig
from spc_core.dataset import PackedDataset
from spc_core.normalize import Stats


class Sampler:
    """Uniform over tasks, then over a task's windows; no window crosses an episode, a cut or a task."""

    def __init__(self, data: PackedDataset, stats: Stats, config: TrainConfig, seed: int) -> None:
        self.data, self.stats, self.config = data, stats, config
        self.rng = np.random.default_rng(seed)
        starts = np.asarray(data.episode_starts)
        lengths = np.diff(starts)
        self._windows: list[np.ndarray] = []  # per task: every step at which a window may start
        self._steps: list[np.ndarray] = []  # per task: every step
        for index, task in enumerate(data.tasks):
            mine = np.flatnonzero(np.asarray(data.episode_task) == index)
            long = mine[lengths[mine] >= config.horizon]
            if len(long) == 0:
                raise ConfigError(
                    f"horizon is {config.horizon}, but the longest episode of task {task.task_id} has "
                    f"{lengths[mine].max(initial=0)} transitions; use a smaller horizon or longer recordings"
                )
            self._windows.append(_ranges(starts[long], lengths[long] - config.horizon + 1))
            self._steps.append(_ranges(starts[mine], lengths[mine]))
        self._starts = starts

    def batch(self) -> Batch:
        """One batch on the CPU."""
        config, data = self.config, self.data
        tasks = self.rng.choice(len(data.tasks), min(config.tasks_per_batch, len(data.tasks)), replace=False)
        first = np.stack(
            [self.rng.choice(self._windows[t], config.windows_per_task) for t in tasks]
        )  # (T, W)
        steps = first[..., None] + np.arange(config.horizon)  # (T, W, H)
        rows = (first + self._episode(first))[..., None] + np.arange(
            config.horizon + 1
        )  # an episode has one row more
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
        """Transitions (T, N, 2 O + A + 1) and weights (T, N) of one context for each task.

        Online contexts have log-uniform sizes, since the first few transitions matter as much as many more later;
        those drawn anywhere have uniform sizes.
        """
        most = self.config.context_max
        steps = np.empty((len(tasks), most), np.int64)
        weight = np.zeros((len(tasks), most), np.float32)
        for i, task in enumerate(tasks):
            steps[i] = self.rng.choice(self._steps[task], most)
            if self.rng.random() < self.config.context_empty_share:
                continue
            if self.rng.random() < self.config.context_online_share:
                begin = steps[i, 0]
                left = int(self._starts[self._episode(begin) + 1] - begin)
                size = min(int(np.exp(self.rng.uniform(0, np.log(most + 1)))), left)
                steps[i, :size] = np.arange(begin, begin + size)
            else:
                size = int(self.rng.integers(1, most + 1))
            weight[i, :size] = 1
        data, rows = self.data, steps + self._episode(steps)
        return self.stats.transition(
            data.observations[rows], data.actions[steps], data.rewards[steps], data.observations[rows + 1]
        ), weight

    def _episode(self, step: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, step, side="right") - 1


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[start, start + count) of every pair, in one array."""
    return np.concatenate([np.arange(s, s + n) for s, n in zip(starts, counts, strict=True)])
