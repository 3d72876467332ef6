# SPDX-License-Identifier: Apache-2.0
"""Task families as seeded gymnasium environments, found by name or by the path of a family.yaml."""

from .families import contract_file, families, find_family, find_task, is_family, make_env, mean_task, tasks
from .task import SPLITS, Family, FamilyError, Task, TaskEnv

__all__ = [
    "SPLITS",
    "Family",
    "FamilyError",
    "Task",
    "TaskEnv",
    "contract_file",
    "families",
    "find_family",
    "find_task",
    "is_family",
    "make_env",
    "mean_task",
    "tasks",
]
