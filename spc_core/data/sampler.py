# SPDX-License-Identifier: Apache-2.0
"""Draws training batches: windows and contexts of distinct tasks, gathered from packed arrays."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch

from spc_core.data.packed import PackedDataset, rows_of
from spc_core.method.agent import Batch
from spc_core.method.config import ConfigError, TrainConfig
from spc_core.method.normalize import Stats

MOST_EPISODES_LOG2 = 4  # a context that is not online is drawn from up to 16 episodes
TRIED = 32  # batches of each seed that are drawn to see how long contexts become
SPARE = 1.1  # room for longer ones
ROWS = 64  # room is a multiple of this


class Sampler:
    """Uniform over tasks, then over a task's windows; no window crosses an episode, a cut or a task.

    An episode shorter than a window has one, which the batch's `count` ends. Inner transitions are in more windows than
    the first and last ones: `count` makes up for it, so that the policy's losses weigh all transitions of a task alike.

    Of `world` processes with the same seed, each draws the same batch, and gets its share of each task's windows.
    """

    def __init__(
        self, data: PackedDataset, stats: Stats, config: TrainConfig, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        """Raises ConfigError for a number of tasks or a `world` that the dataset or batch cannot give."""
        if config.tasks_per_batch > len(data.tasks):
            raise ConfigError(
                f"tasks_per_batch is {config.tasks_per_batch}, but the dataset has {len(data.tasks)} tasks; "
                f"set tasks_per_batch to at most {len(data.tasks)}"
            )
        windows = config.windows_per_task
        if not 0 <= rank < world or windows % world:
            raise ConfigError(
                f"windows_per_task {windows} cannot be shared by {world} processes, of which this is number {rank}; "
                "use a number of processes that divides windows_per_task"
            )
        self.stats, self.config = stats, config
        self.rng = np.random.default_rng(seed)
        self._task_count = len(data.tasks)
        self._share = slice(rank * windows // world, (rank + 1) * windows // world)
        self._context_of = torch.arange(windows)[self._share] // (windows // config.contexts_per_task)
        self._observations, self._actions, self._rewards, self._terminated = rows_of(data)
        self._index(data)

    def _index(self, data: PackedDataset) -> None:
        """What drawing needs: a few numbers for each episode, none for each step."""
        task = np.asarray(data.episode_task)
        starts, lengths = np.asarray(data.episode_starts[:-1]), np.diff(data.episode_starts)
        order = np.argsort(task, kind="stable")  # all tables below are in this order, task by task
        self._episode, self._start, self._length = order, starts[order], lengths[order]
        self._first_episode = np.searchsorted(task[order], np.arange(self._task_count + 1))
        ends = np.cumsum(np.maximum(self._length - self.config.horizon + 1, 1))
        self._window_ends = ends  # windows up to and with each episode
        bounds = np.concatenate([[0], ends])[self._first_episode]
        self._first_window, self._window_count = bounds[:-1], np.diff(bounds)
        self._windows_per_step = self._window_count / np.bincount(task, lengths, self._task_count)

    def batch(self) -> Batch:
        """One batch on the CPU, or this process's share of it."""
        config, stats = self.config, self.stats
        tasks = self.rng.choice(self._task_count, config.tasks_per_batch, replace=False)
        first, place = self._windows(tasks)
        context, weight = self._contexts(tasks)
        first, place = first[:, self._share, None], place[:, self._share, None]
        episode, end = self._episode[place], self._start[place] + self._length[place]
        steps = np.minimum(first + np.arange(config.horizon), end - 1)  # (T, W, H)
        rows = np.minimum(first + np.arange(config.horizon + 1), end) + episode  # one row more than steps
        return Batch(
            observations=torch.from_numpy(stats.observation(self._observations[rows])),
            actions=torch.from_numpy(stats.action(self._actions[steps])),
            rewards=torch.from_numpy(stats.reward(self._rewards[steps])),
            terminated=torch.from_numpy(self._terminated[steps].astype(np.float32)),
            count=torch.from_numpy(self._count(tasks, first, place)),
            context=torch.from_numpy(context),
            context_weight=torch.from_numpy(weight),
            task=torch.from_numpy(tasks),
            context_of=self._context_of,
        )

    def _windows(self, tasks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First steps, and places of their episodes in the tables (T, W): a number among a task's windows says both."""
        number = self._below(self._window_count[tasks][:, None], (len(tasks), self.config.windows_per_task))
        number += self._first_window[tasks][:, None]
        place = np.searchsorted(self._window_ends, number, side="right")
        last = self._start[place] + np.maximum(self._length[place] - self.config.horizon, 0)
        return last + 1 + number - self._window_ends[place], place

    def _count(self, tasks: np.ndarray, first: np.ndarray, place: np.ndarray) -> np.ndarray:
        """How much each transition (T, W, H) counts: one over the windows that hold it; 0 after the episode's end."""
        horizon, length = self.config.horizon, self._length[place]
        at = first - self._start[place] + np.arange(horizon)
        windows = np.minimum(np.minimum(at + 1, length - at), np.clip(length - horizon + 1, 1, horizon))
        mean = horizon * self._windows_per_step[tasks][:, None, None]  # makes the count of a task 1 on average
        return np.where(windows > 0, mean / np.maximum(windows, 1), 0).astype(np.float32)

    def _contexts(self, tasks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Transitions (T, C, N, 2 O + A + 1), zero where unused, and weights (T, C, N) of the tasks' contexts."""
        used, steps, episode = self._context_steps(np.repeat(tasks, self.config.contexts_per_task))
        rows = steps + episode
        seen = self._observations[np.stack([rows, rows + 1], -1)]
        transitions = self.stats.transition(seen[:, 0], self._actions[steps], self._rewards[steps], seen[:, 1])
        context = np.zeros((*used.shape, transitions.shape[1]), np.float32)
        context[used] = transitions
        shape = (len(tasks), self.config.contexts_per_task, self.config.context_max)
        return context.reshape(*shape, -1), used.astype(np.float32).reshape(shape)

    def _context_steps(self, tasks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For a context of each of G tasks: which of its N places are used (G, N), and their steps and episodes (M,).

        Online contexts are cut from one episode and have log-uniform sizes, since the first few transitions matter
        as much as many more later. The rest are drawn from a few episodes, from one to many, with uniform sizes:
        all of a random driver's, say, so that no context needs an expert in it.
        """
        config, most = self.config, self.config.context_max
        begin = self._first_episode[tasks]
        chosen = begin[:, None] + self._below(
            (self._first_episode[tasks + 1] - begin)[:, None], (len(tasks), 2**MOST_EPISODES_LOG2)
        )
        draw_online, draw_few, draw_at, draw_size, draw_empty = self.rng.random((5, len(tasks)))
        online = draw_online < config.context_online_share
        few = np.where(online, 1, 2 ** (MOST_EPISODES_LOG2 * draw_few)).astype(np.int64)  # episodes to draw from
        length = self._length[chosen[:, 0]]
        at = (draw_at * length).astype(np.int64)  # where an online context begins in its episode
        size = np.where(online, np.minimum((most + 1) ** draw_size, length - at), 1 + most * draw_size).astype(np.int64)
        size[draw_empty < config.context_empty_share] = 0
        used = np.arange(most) < size[:, None]
        group, place = used.nonzero()
        draw_episode, draw_step = self.rng.random((2, len(group)))
        index = chosen[group, (draw_episode * few[group]).astype(np.int64)]
        step = np.where(online[group], at[group] + place, (draw_step * self._length[index]).astype(np.int64))
        return used, self._start[index] + step, self._episode[index]

    def _below(self, bound: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Whole numbers of `shape` from 0 to below `bound`; Generator.integers is slow with arrays of bounds."""
        return (self.rng.random(shape) * bound).astype(np.int64)


def rows_for(samplers: Sequence[Sampler]) -> int:
    """Room for the context transitions of nearly every batch; the same whenever a run is resumed."""
    most = 0
    for sampler in samplers:
        other = copy.copy(sampler)
        other.rng = np.random.default_rng(0)
        most = max(most, *(int(other.batch().context_weight.sum()) for _ in range(TRIED)))
    return -(-int(SPARE * most) // ROWS) * ROWS
