# SPDX-License-Identifier: Apache-2.0
"""The registry of task families: those of this package, of other packages' entry points, and of family.yaml files."""

from __future__ import annotations

import functools
import importlib.metadata
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from spc_core.system.config_files import find_config, suggest

from .task import SPLITS, Family, FamilyError, Task

if TYPE_CHECKING:
    from .task_env import TaskEnv

ENTRY_POINTS = "spc_ros.families"  # each names a Family, or a function that returns one


def _arm_reach() -> Family:
    from .arm_reach import family

    return family()


def _arm_payload() -> Family:
    from .arm_payload import family

    return family()


def _base_drive() -> Family:
    from .base_drive import family

    return family()


def _of_the_paper(name: str) -> Callable[[], Family]:
    def load() -> Family:
        from .paper_families import family

        return family(name)

    return load


def _cheetah(name: str) -> Callable[[], Family]:
    def load() -> Family:
        from .cheetah_families import family

        return family(name)

    return load


PAPER = ("cheetah_vel", "ant_dir", "ant_goal", "hopper_mass", "hopper_friction", "walker_mass", "walker_friction",
         "point_robot")  # fmt: skip
CHEETAHS = ("cheetah_length", "cheetah_motors")
BUILT_IN: Mapping[str, Callable[[], Family]] = MappingProxyType(
    {
        "arm_reach": _arm_reach,
        "arm_payload": _arm_payload,
        "base_drive": _base_drive,
        **{name: _of_the_paper(name) for name in PAPER},
        **{name: _cheetah(name) for name in CHEETAHS},
    }
)
_from_files: dict[str, Family] = {}  # by name


def families() -> tuple[str, ...]:
    """Names of all families that are known without a path."""
    return (*BUILT_IN, *_plugged_in(), *_from_files)


def is_family(name: str) -> bool:
    """Whether this is a family's name, or the path of its file."""
    return name in families() or _is_path(name)


def find_family(name: str) -> Family:
    """The family of this name or in this file. Raises FamilyError."""
    if name in BUILT_IN or name in _plugged_in():
        return _named(name)
    if name in _from_files:
        return _from_files[name]
    if _is_path(name):
        return _in_file(Path(name).resolve())
    raise FamilyError(
        f"unknown task family '{name}'{suggest(name, families())}; known: {', '.join(families())}, "
        "or give the path of a family.yaml"
    )


def family_of(contract: str) -> Family:
    """The family that has a contract's name. Raises FamilyError."""
    if is_family(contract):
        return find_family(contract)
    raise FamilyError(
        f"no task family is named '{contract}', as the contract is{suggest(contract, families())}; to simulate, give "
        "--family a name or the path of a family.yaml; on a robot use `spc trial` with --no-sim --operator --tasks "
        "light heavy; recordings alone are enough for `spc assess`"
    )


def make_env(family: str, task: Task | None = None) -> TaskEnv:
    """A fresh environment of the family, set to `task` or else to its first training task."""
    return find_family(family).make(task)


def tasks(family: str, split: str) -> tuple[Task, ...]:
    """The tasks of one split: "train", "val" and "id" between the training tasks, "ood" beyond them."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    return find_family(family).tasks[split]


def mean_task(family: str) -> Task:
    """The task that stands for the family where the true one is not known."""
    return find_family(family).mean_task


def find_task(task_id: str) -> Task:
    """The task with this id, such as "arm_reach/train/07", or a family's mean task, "arm_reach/mean/00"."""
    return find_family(task_id.split("/")[0]).find(task_id)


def contract_file(contract: str, family: str) -> Path:
    """The file of a contract by name or path, or else of the family's. Raises ConfigFileError and FamilyError."""
    return find_config("contracts", contract) if contract else find_family(family).contract


def _is_path(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or os.sep in name and os.path.exists(name)


@functools.cache
def _plugged_in() -> Mapping[str, importlib.metadata.EntryPoint]:
    """Entry points of other packages; a name of this package stays its own."""
    found = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return {point.name: point for point in found if point.name not in BUILT_IN}


@functools.cache
def _named(name: str) -> Family:
    if name in BUILT_IN:
        return BUILT_IN[name]()
    point = _plugged_in()[name]
    loaded = point.load()
    family = loaded() if callable(loaded) else loaded
    if not isinstance(family, Family) or family.name != name:
        what = f"family '{family.name}'" if isinstance(family, Family) else type(family).__name__
        raise FamilyError(f"entry point '{name} = {point.value}' gives a {what}, not a Family of its name")
    return family


@functools.cache
def _in_file(path: Path) -> Family:
    from .family_file import load_family

    family = load_family(path)
    if family.name in BUILT_IN or family.name in _plugged_in():
        raise FamilyError(f"{path}: name is '{family.name}', as another family's; give it another name")
    other = _from_files.setdefault(family.name, family)
    if other is not family:
        raise FamilyError(f"{path}: name is '{family.name}', as in {other.path}; give one of them another name")
    return family
