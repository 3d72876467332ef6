# SPDX-License-Identifier: Apache-2.0
"""Run the chain for three task families, from recording to a report."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Demo:
    """Run the chain for two arms and a family of the paper: collect, convert, train, trial, report.

    The same command resumes a demo that was interrupted.

    examples:
      spc demo
      spc demo --preset smoke --out runs/smoke
    """

    out: Path = Path("runs/demo")  # folder for everything; a finished stage is not run again
    preset: str = "demo"  # demo, or smoke (minutes, learns nothing)
    overwrite: bool = False  # start from the beginning


def run(options: Demo) -> int:
    from spc_ros.trials.demo import demo

    demo(options.out, options.preset, options.overwrite)
    return 0
