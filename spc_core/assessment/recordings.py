# SPDX-License-Identifier: Apache-2.0
"""The recordings that a policy is assessed by: tasks that it was not trained on, each as plain arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from spc_core.contract.contract import Contract
from spc_core.data.dataset import DatasetError, Episode, check_episode
from spc_core.data.reader import StoredTask, dataset_contract, stored_tasks

MOST_STEPS = 20_000  # of a task; later ones are left out
LIMITING = 0.5  # share of the episodes that may be shorter than the horizon without having terminated


@dataclasses.dataclass(frozen=True)
class TaskRecording:
    """N transitions of one task, episode by episode, in the contract's units."""

    task_id: str
    params: Mapping[str, float]
    observations: np.ndarray  # (N, O) float64
    actions: np.ndarray  # (N, A) float64
    rewards: np.ndarray  # (N,) float64
    next_observations: np.ndarray  # (N, O) float64
    terminated: np.ndarray  # (N,) bool
    episode: np.ndarray  # (N,) int64, counted from 0

    @property
    def starts(self) -> np.ndarray:
        """(E,) the first transition of each episode."""
        return np.flatnonzero(np.diff(self.episode, prepend=-1))

    @property
    def lengths(self) -> np.ndarray:
        """(E,) transitions of each episode."""
        return np.diff(np.append(self.starts, len(self.rewards)))

    @property
    def last(self) -> np.ndarray:
        """(N,) bool, the last transition of each episode."""
        return np.append(np.diff(self.episode) > 0, True)

    def returns(self, horizon: int, discount: float) -> np.ndarray:
        """(E,) discounted sums of the first `horizon` rewards of each episode."""
        place = np.arange(len(self.rewards)) - self.starts[self.episode]
        weighted = np.where(place < horizon, discount ** np.minimum(place, horizon), 0.0) * self.rewards
        return np.bincount(self.episode, weighted, len(self.starts))


@dataclasses.dataclass(frozen=True)
class Recordings:
    """Tasks to assess by, and what a person must know about them."""

    root: Path
    contract: Contract
    tasks: tuple[TaskRecording, ...]
    known: tuple[str, ...]  # training tasks that are left out or, where there are no others, that these are
    notes: tuple[str, ...]

    @property
    def all_known(self) -> bool:
        """Whether the policy was trained on every one of the tasks."""
        return {task.task_id for task in self.tasks} <= set(self.known)

    @property
    def horizon(self) -> int:
        """Steps of an episode: as many as at least half of the episodes have that did not terminate before."""
        lengths = [
            n for task in self.tasks for n, end in zip(task.lengths, task.terminated[task.last], strict=True) if not end
        ]
        ended = [n for task in self.tasks for n in task.lengths]
        return int(np.quantile(lengths or ended, LIMITING, method="lower"))


def load_recordings(
    root: str | Path, contract: Contract, trained_on: Sequence[str], only: Sequence[str] = ()
) -> Recordings:
    """Tasks of a dataset that are not among those `trained_on`; those alone where there are no others.

    `only`: no other tasks than these. Raises DatasetError for an unreadable dataset, one that lacks a task, or one of
    another contract, with the fields that differ.
    """
    root = Path(root)
    stores = stored_tasks(root)
    if missing := [name for name in only if name not in {store.entry.task_id for store in stores}]:
        raise DatasetError(f"{root}: has no task {_named(missing)} any more, which was held out; give --recordings")
    if lines := contract.differences(dataset_contract(root, stores)):
        raise DatasetError(
            f"{root}: was converted by another contract than the run's; convert its bags again by the run's:\n"
            + "\n".join(f"  {line}" for line in lines)
        )
    stores = [store for store in stores if not only or store.entry.task_id in only]
    known = tuple(store.entry.task_id for store in stores if store.entry.task_id in trained_on)
    held_out = [store for store in stores if store.entry.task_id not in known and store.step_count]
    notes = []
    if known and held_out:
        notes.append(f"{len(known)} of the tasks are training tasks and are left out: {_named(known)}")
    if known and not held_out:
        notes.append(
            f"the policy was trained on all {len(known)} tasks of these recordings, so everything below flatters it; "
            "record tasks that it was not trained on"
        )
    tasks = []
    for store in held_out or [store for store in stores if store.step_count]:
        tasks.append(task_recording(store.entry.task_id, store.entry.params, _checked(store, contract)))
        if (left := store.step_count - len(tasks[-1].rewards)) > 0:
            notes.append(f"{store.entry.task_id}: the last {left:,} of {store.step_count:,} transitions are left out")
    return Recordings(root, contract, tuple(tasks), known, tuple(notes))


def task_recording(task_id: str, params: Mapping[str, float], episodes: Iterable[Episode]) -> TaskRecording:
    """The arrays of a task's episodes, whole ones up to MOST_STEPS, and at least one."""
    kept: list[Episode] = []
    for episode in episodes:
        if kept and sum(map(len, kept)) + len(episode) > MOST_STEPS:
            break
        kept.append(episode)
    lengths = [len(episode) for episode in kept]
    ends = np.cumsum(lengths) - 1
    terminated = np.zeros(sum(lengths), bool)
    terminated[ends] = [episode.terminated for episode in kept]
    return TaskRecording(
        task_id=task_id,
        params=dict(params),
        observations=np.concatenate([np.asarray(e.observations[:-1], np.float64) for e in kept]),
        actions=np.concatenate([np.asarray(e.actions, np.float64) for e in kept]),
        rewards=np.concatenate([np.asarray(e.rewards, np.float64) for e in kept]),
        next_observations=np.concatenate([np.asarray(e.observations[1:], np.float64) for e in kept]),
        terminated=terminated,
        episode=np.repeat(np.arange(len(kept)), lengths),
    )


def _checked(store: StoredTask, contract: Contract) -> Iterator[Episode]:
    """A task's episodes. Raises DatasetError for a number that is not finite, and the like."""
    for index, episode in enumerate(store.episodes()):
        check_episode(episode, contract, f"{store.data}: task '{store.entry.task_id}', episode {index}")
        yield episode


def _named(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
