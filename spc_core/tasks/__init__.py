# SPDX-License-Identifier: Apache-2.0
"""MuJoCo task families as seeded gymnasium environments; to add one, write its file and name it here."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from . import arm_payload, arm_reach, base_drive
from .arm import Task, TaskEnv
from .arm_payload import ArmPayload
from .arm_reach import ArmReach
from .base_drive import BaseDrive

__all__ = [
    "SPLITS",
    "ArmPayload",
    "ArmReach",
    "BaseDrive",
    "Task",
    "TaskEnv",
    "families",
    "find_task",
    "make_env",
    "tasks",
]


# Settings are chosen by "val" alone; who looks at "id" or "ood" while choosing has no held-out tasks left.
SPLITS = ("train", "val", "id", "ood")
_ENVS: dict[str, tuple[Callable[[Task | None], TaskEnv], ModuleType]] = {
    "arm_reach": (ArmReach, arm_reach),
    "arm_payload": (ArmPayload, arm_payload),
    "base_drive": (BaseDrive, base_drive),
}


def families() -> tuple[str, ...]:
    """Names of all task families."""
    return tuple(_ENVS)


def _entry(family: str) -> tuple[Callable[[Task | None], TaskEnv], ModuleType]:
    if family not in _ENVS:
        raise ValueError(f"unknown task family {family!r}; known: {', '.join(_ENVS)}")
    return _ENVS[family]


def make_env(family: str, task: Task | None = None) -> TaskEnv:
    """A fresh environment of the family, set to `task` or else to its first training task."""
    return _entry(family)[0](task)


def tasks(family: str, split: str) -> tuple[Task, ...]:
    """The tasks of one split: "train" 20, "val" and "id" 10 each (between them), "ood" 10 (beyond them)."""
    module = _entry(family)[1]
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    return module.TASKS[split]


def find_task(task_id: str) -> Task:
    """The task with this id, such as "arm_reach/train/07", or a family's mean task, "arm_reach/mean/00"."""
    family = task_id.split("/")[0]
    module = _entry(family)[1]
    known = [task for split in SPLITS for task in module.TASKS[split]] + [module.MEAN_TASK]
    for task in known:
        if task.task_id == task_id:
            return task
    raise ValueError(f"unknown task {task_id!r}; {family} has {known[0].task_id} .. {known[-2].task_id}")
