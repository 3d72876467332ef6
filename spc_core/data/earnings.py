# SPDX-License-Identifier: Apache-2.0
"""What each term of a computed reward earns in a dataset, task by task; nothing is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from spc_core.contract.contract import Contract
from spc_core.contract.rewards import MEND_REWARD, RewardFunction, actions_before
from spc_core.data.dataset import DatasetError, Episode
from spc_core.data.reader import StoredTask
from spc_core.system.wording import plural

LONG_NAME = 60  # letters of a task's name in the text


def reward_rows(episode: Episode, last: Episode | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of T steps the observations, actions, next observations and actions before; NaN where there was none.

    `last` is the episode before in the dataset, which this one may continue, behind a time limit.
    """
    goes_on = last is not None and last.source == episode.source and last.times_ns[-1] == episode.times_ns[0]
    first = last.actions[-1] if last is not None and goes_on else None
    return episode.observations[:-1], episode.actions, episode.observations[1:], actions_before(first, episode.actions)


def step_rewards(function: RewardFunction, episode: Episode, last: Episode | None, where: str) -> np.ndarray:
    """r_k of (o_k, a_k, o_{k+1}) for all steps, (T,) float64: bitwise equal to those of a conversion.

    Raises DatasetError, which begins with `where`, if one is not finite.
    """
    rows = reward_rows(episode, last)
    rewards = function(*rows)
    bad = np.flatnonzero(~np.isfinite(rewards))
    if len(bad):
        step = int(bad[0])
        term = function.culprit(*(row[step] for row in rows))
        raise DatasetError(
            f"{where}: the reward's term '{term}' is not finite at step {step}, "
            f"{(episode.times_ns[step] - episode.times_ns[0]) / 1e9:.2f} s after its start; {MEND_REWARD}"
        )
    return rewards


@dataclasses.dataclass(frozen=True)
class TaskEarnings:
    """What the terms earn in a task, or in the whole dataset."""

    task_id: str
    episodes: int
    transitions: int
    per_step: tuple[float, ...]  # mean of each term
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    success: float | None  # share of the steps in which a success term pays; None without such a term

    @property
    def mean(self) -> float:
        """Of the reward, per step."""
        return sum(self.per_step)

    @property
    def episode_return(self) -> float:
        """The mean return of an episode."""
        return self.mean * self.transitions / self.episodes


class EarningsCounter:
    """Accumulates episodes of one function; total() summarises them."""

    def __init__(self, function: RewardFunction) -> None:
        self._function, count = function, len(function.names)
        self._sums, self._low, self._high = np.zeros(count), np.full(count, np.inf), np.full(count, -np.inf)
        self._episodes, self._steps, self._met = 0, 0, 0

    def add(self, episode: Episode, last: Episode | None) -> None:
        rows = reward_rows(episode, last)
        parts = self._function.parts(*rows)  # (K, T)
        self._sums += parts.sum(1)
        self._low, self._high = np.minimum(self._low, parts.min(1)), np.maximum(self._high, parts.max(1))
        self._met += int(self._function.succeeded(*rows).sum())
        self._episodes, self._steps = self._episodes + 1, self._steps + len(episode)

    def total(self, task_id: str) -> TaskEarnings:
        return TaskEarnings(
            task_id, self._episodes, self._steps, tuple((self._sums / self._steps).tolist()),
            tuple(self._low.tolist()), tuple(self._high.tolist()),
            self._met / self._steps if self._function.successes else None,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Earnings:
    """What a contract's reward would pay for a dataset."""

    root: Path
    contract: Contract
    terms: tuple[str, ...]
    whole: TaskEarnings
    tasks: tuple[TaskEarnings, ...]

    def notes(self) -> list[str]:
        notes = []
        for name, low, high in zip(self.terms, self.whole.lowest, self.whole.highest, strict=True):
            if low == high:
                notes.append(f"term {name} is {low:g} in every transition: nothing can be learnt from it")
        if self.whole.success == 0.0:
            notes.append("no transition meets the condition of a success term")
        return notes

    def text(self) -> str:
        """For people, at a terminal."""
        width = max(4, *(len(_short(task.task_id)) for task in self.tasks))
        columns = [max(10, len(name)) for name in self.terms]
        heads = " ".join(f"{name:>{size}}" for name, size in zip(self.terms, columns, strict=True))
        lines = [
            f"{self.root}: {plural(len(self.tasks), 'task')}, {plural(self.whole.episodes, 'episode')}, "
            f"{self.whole.transitions:,} transitions; nothing is written",
            f"reward of contract {self.contract.name}: {self.contract.reward}",
            "mean of a step by term, their sum, the mean return of an episode, and the share of steps with success",
            "",
            f"{'task':{width}} {'steps':>9} {heads} {'sum':>10} {'return':>10} {'success':>8}",
        ]
        for task in (*self.tasks, self.whole):
            earned = " ".join(f"{value:{size}.4g}" for value, size in zip(task.per_step, columns, strict=True))
            success = "" if task.success is None else f"{task.success:8.1%}"
            lines.append(f"{_short(task.task_id):{width}} {task.transitions:9,} {earned} {task.mean:10.4g} "
                         f"{task.episode_return:10.4g} {success}".rstrip())  # fmt: skip
        return "\n".join([*lines, *([""] if self.notes() else []), *(f"note: {note}" for note in self.notes())])


def earnings(
    root: Path,
    stores: Sequence[StoredTask],
    contract: Contract,
    function: RewardFunction,
    progress: Callable[[int, int, str], object] = lambda done, total, text: None,
) -> Earnings:
    """What each term of the contract's function earns in the stored tasks. Raises DatasetError where one has no end."""
    whole, tasks = EarningsCounter(function), []
    done, total = 0, sum(store.episode_count for store in stores)
    for store in stores:
        counter, last = EarningsCounter(function), None
        for number, episode in enumerate(store.episodes()):
            where = f"{root}: task '{store.entry.task_id}', episode {number} ({episode.source})"
            step_rewards(function, episode, last, where)
            for part in (counter, whole):
                part.add(episode, last)
            last, done = episode, done + 1
            progress(done, total, store.entry.task_id)
        tasks.append(counter.total(store.entry.task_id))
    return Earnings(root, contract, function.names, whole.total("all"), tuple(tasks))


def _short(name: str) -> str:
    return name if len(name) <= LONG_NAME else f"{name[: LONG_NAME - 3]}..."
