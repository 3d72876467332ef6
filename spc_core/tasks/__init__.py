# SPDX-License-Identifier: Apache-2.0
"""Task families as seeded gymnasium environments, found by name or by the path of a family.yaml.

The simulator is loaded with the first family, so that a robot needs none."""

from .families import contract_file, families, family_of, find_family, find_task, is_family, make_env, mean_task, tasks
from .task import SPLITS, Family, FamilyError, Task

__all__ = [
    "SPLITS",
    "Family",
    "FamilyError",
    "Task",
    "contract_file",
    "families",
    "family_of",
    "find_family",
    "find_task",
    "is_family",
    "make_env",
    "mean_task",
    "tasks",
]
