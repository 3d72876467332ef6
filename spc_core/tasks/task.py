# SPDX-License-Identifier: Apache-2.0
"""A task, the environment of a family of tasks, and the family itself."""

# pyright: reportAttributeAccessIssue=false
# (mujoco re-exports its compiled functions without stubs)

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import gymnasium
import mujoco
import numpy as np

if TYPE_CHECKING:
    from .snapshots import Snapshots

# Settings are chosen by "val" alone; who looks at "id" or "ood" while choosing has no held-out tasks left.
SPLITS = ("train", "val", "id", "ood")


@dataclass(frozen=True)
class Task:
    """One member of a task family: what differs between robots or goals, and is hidden from the policy."""

    task_id: str  # "arm_reach/train/07": family/split/index
    family: str
    split: str  # "train" | "val" | "id" | "ood"; "mean" only for Family.mean_task
    index: int
    params: Mapping[str, float] = field(hash=False)  # read-only; dict(task.params) is a copy

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", MappingProxyType({k: float(v) for k, v in self.params.items()}))

    def __reduce__(self) -> tuple[Any, ...]:  # a mappingproxy cannot be pickled
        return Task, (self.task_id, self.family, self.split, self.index, dict(self.params))


def make_task(family: str, split: str, index: int, **params: float) -> Task:
    """A task whose id follows from its family, split and index."""
    return Task(f"{family}/{split}/{index:02d}", family, split, index, params)


def average_task(train: Sequence[Task]) -> Task:
    """The task with the mean parameters of these tasks."""
    means = {name: math.fsum(task.params[name] for task in train) / len(train) for name in train[0].params}
    return make_task(train[0].family, "mean", 0, **means)


class FamilyError(ValueError):
    """An unknown or wrong task family; the message names it, the value and the fix."""


@dataclass(frozen=True)
class Family:
    """Tasks that share observation, action and contract, and the environment that plays them."""

    name: str
    make: Callable[[Task | None], TaskEnv]  # None: the first training task
    tasks: Mapping[str, tuple[Task, ...]]  # by split, of SPLITS
    contract: Path
    mean: Task | None = None  # default: the mean parameters of the training tasks
    path: Path | None = None  # of its family.yaml, where it is known by that

    def __post_init__(self) -> None:
        """Raises FamilyError for tasks of another family, a split that is missing, and splits that share a task."""
        if set(self.tasks) != set(SPLITS) or not self.tasks["train"]:
            raise FamilyError(f"family '{self.name}': needs tasks to train on, and the splits {', '.join(SPLITS)}")
        seen: dict[tuple[tuple[str, float], ...], Task] = {}
        for split in SPLITS:
            for task in self.tasks[split]:
                if (task.family, task.split) != (self.name, split):
                    raise FamilyError(f"family '{self.name}': task '{task.task_id}' is not of its split '{split}'")
                other = seen.setdefault(tuple(sorted(task.params.items())), task)
                if other is not task:
                    raise FamilyError(
                        f"family '{self.name}': {other.task_id} and {task.task_id} are one task, {dict(task.params)}; "
                        "a task belongs to one split, once"
                    )

    @functools.cached_property
    def mean_task(self) -> Task:
        """What a controller assumes that knows the family but not the task."""
        return self.mean or average_task(self.tasks["train"])

    @property
    def reference(self) -> str:
        """What finds the family in another process: its name, or the path of its file."""
        return self.name if self.path is None else str(self.path)

    def find(self, task_id: str) -> Task:
        """The task with this id. Raises FamilyError."""
        known = [task for split in SPLITS for task in self.tasks[split]]
        for task in (*known, self.mean_task):
            if task.task_id == task_id:
                return task
        raise FamilyError(f"unknown task '{task_id}'; {self.name} has {known[0].task_id} .. {known[-1].task_id}")


class TaskEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A family of tasks as one environment; only `task` differs, and the observation does not show it."""

    metadata = {"render_modes": []}
    family: str
    control_hz: float
    episode_steps: int
    observation_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_low: np.ndarray  # (action_dim,), physical units
    action_high: np.ndarray
    noise_action: np.ndarray  # (action_dim,), strongest exploration noise (1 sigma) that keeps to the workspace
    model: mujoco.MjModel
    data: mujoco.MjData
    dofs: int  # degrees of freedom that can be pushed
    task: Task
    latched_topics: tuple[str, ...] = ()  # observed topics that are published when they change, and kept for latecomers
    terminates = False  # whether episodes can end before their time is up
    has_expert = False  # whether expert() is there: the 1 of normalised scores, and the driver of recordings
    snapshots: Snapshots | None = None  # of a learnt agent: the drivers of recordings, the best of them the expert

    def resting_topics(self) -> tuple[str, ...]:
        """Observed topics without a new message at this tick; in between, the last one holds."""
        return ()

    def push(self, force: np.ndarray) -> None:
        """Forces (dofs,) in N or Nm from outside, from now until the next call or reset."""
        self.data.qfrc_applied[:] = force

    def apply_params(self, params: Mapping[str, float]) -> None:
        """Write a task's parameters into the model."""
        raise NotImplementedError

    def set_task(self, task: Task) -> None:
        """Apply a task's parameters at once, in the middle of an episode too; the robot's state stays."""
        if task.family != self.family:
            raise ValueError(f"task {task.task_id!r} belongs to family {task.family!r}, this is {self.family!r}")
        self.apply_params(task.params)
        self.task = task

    def begin_episode(self, seed: int | None, options: Mapping[str, Any] | None) -> np.random.Generator:
        """The common part of reset(): set options["task"] if given; returns a generator for this episode alone.

        So an episode's length does not change the episodes after it.
        """
        gymnasium.Env.reset(self, seed=seed)
        unknown = set(options or {}) - {"task"}
        if unknown:
            raise ValueError(f"unknown reset options {sorted(unknown)}; known: ['task']")
        if options and options.get("task") is not None:
            self.set_task(options["task"])
        return np.random.default_rng(self.np_random.integers(2**63))

    def expert(self, observation: np.ndarray, task: Task | None = None) -> np.ndarray:
        """The privileged controller's action for `task` (default: its own), from the observation alone."""
        if self.snapshots is None:
            raise FamilyError(f"family '{self.family}' has no expert; learn one with `spc behaviour {self.family}`")
        from .snapshots import within_limits  # which imports this file

        return within_limits(self.snapshots.act(-1, observation, task or self.task), self.action_low, self.action_high)

    def uninformed(self, observation: np.ndarray) -> np.ndarray:
        """What the expert does that knows the family but not the task: it assumes the mean task, or, if it is learnt,
        is told nothing."""
        if self.snapshots is None:
            from .families import mean_task  # which imports this file

            return self.expert(observation, mean_task(self.family))
        from .snapshots import within_limits

        return within_limits(self.snapshots.act(-1, observation, None), self.action_low, self.action_high)

    def rest_action(self, observation: np.ndarray) -> np.ndarray:
        """An action that lets a robot of the mean task drift slowly home: what random motion is added to."""
        raise NotImplementedError

    def success(self, observation: np.ndarray, next_observation: np.ndarray) -> bool | None:
        """Whether an episode that ended with this transition succeeded; None: not known."""
        return None
