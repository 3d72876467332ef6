# SPDX-License-Identifier: Apache-2.0
"""Turn bags into a dataset."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from spc_ros.conversion.convert_options import ConvertOptions


@dataclasses.dataclass(frozen=True)
class Convert(ConvertOptions):
    """Turn bags into a dataset: decoded by the contract, causally aligned, one Minari dataset for each task.

    The same command resumes a conversion that was interrupted.

    examples:
      spc convert bags/ --out dataset
      spc convert bags/ --contract my_robot.yaml --task-from folder --out dataset
    """

    bags: tyro.conf.Positional[tuple[Path, ...]]  # bags, or folders that hold bags at any depth


def run(options: Convert) -> int:
    from spc_ros.conversion.convert import convert

    print(convert(options).summary())
    return 0
