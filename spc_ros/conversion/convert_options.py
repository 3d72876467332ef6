# SPDX-License-Identifier: Apache-2.0
"""The options of a conversion, and those of them that everything shares that reads bags."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class BagOptions:
    """Which bags are read, and what they do not say themselves: the same for the doctor and for a conversion."""

    bags: tuple[Path, ...] = dataclasses.field(kw_only=False)  # bags, or folders that hold bags at any depth
    contract: Path | None = None  # contract file; default: the bags' own
    task: str | None = None  # task id of bags that do not name it
    task_from: Literal["", "folder"] = ""  # folder: a bag's task is named by the folder that it is in
    manifest: Path | None = None  # YAML with tasks, parameters and labels of bags; see docs/bags.md
    types: tuple[Path, ...] = ()  # .msg files, or packages with msg/, of types that the bags do not define
    workers: int | None = None  # processes; default: one for each core

    @property
    def given(self) -> str:
        """What to type to say the same of other bags, each option with a space before it."""
        named = {"contract": self.contract, "task": self.task, "task-from": self.task_from, "manifest": self.manifest}
        words = [f" --{name} {shlex.quote(str(value))}" for name, value in named.items() if value]
        return "".join([*words, " --types " * bool(self.types) + shlex.join(map(str, self.types))])


@dataclasses.dataclass(frozen=True)
class ConvertOptions(BagOptions):
    """Which bags become a dataset, and how; the options of `spc convert`, whose help texts are the comments."""

    out: Path  # the dataset's folder
    overwrite: bool = False  # replace an existing dataset
    skip_bad: bool = False  # leave out bags that cannot be read, instead of refusing all
    engine: Literal["processes", "ray"] = "processes"  # ray: on a Ray cluster, with bags and out on a shared disk
