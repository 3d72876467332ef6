# SPDX-License-Identifier: Apache-2.0
"""A task, and a family of tasks; loads no simulator, which a robot lacks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .task_env import TaskEnv

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
