# SPDX-License-Identifier: Apache-2.0
"""Recordings that a command is given with --recordings: a dataset, or bags, which are converted for it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from spc_core.contract.contract import load_contract
from spc_ros.conversion.convert import ConversionError, convert
from spc_ros.conversion.convert_options import ConvertOptions


def is_dataset(folder: Path) -> bool:
    return any(folder.glob("*/*/data/metadata.json"))


def convert_recordings(bags: Sequence[Path], out: Path, contract: Path, task_from: Literal["", "folder"] = "") -> str:
    """Convert bags into a dataset at `out` by the contract of a run; returns what was read and lost.

    Raises ConversionError with what to type instead, since the command has few of the options of `spc convert`.
    """
    options = ConvertOptions(tuple(bags), out, task_from=task_from)
    try:
        return convert(options, load_contract(contract)).summary()
    except ConversionError as error:
        reasons = "\n  ".join(error.bags or [str(error)])
        typed = shlex.join(["spc", "convert", *map(str, bags), "--contract", str(contract), "--out", "DATASET"])
        raise ConversionError(
            f"the recordings cannot be used as they are:\n  {reasons}\n"
            f"--task, --task-from, --manifest, --types and --skip-bad are options of `{typed}`; convert with those "
            "that you need and give --recordings DATASET",
            error.bags,
        ) from None
