# SPDX-License-Identifier: Apache-2.0
"""Train and evaluate several methods with several seeds, side by side, with statistics."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import tyro

from spc_core.trials.protocol import SIM_PROTOCOLS


@dataclasses.dataclass(frozen=True)
class Compare:
    """Train and evaluate methods side by side on one dataset. The same command resumes where it was interrupted.

    examples:
      spc compare dataset --out comparison
      spc compare dataset --out comparison --methods spc focal --seeds 0 1 2 3 4
    """

    dataset: tyro.conf.Positional[Path]  # folder that `spc convert` wrote
    out: Path  # folder for all runs, the table and the page
    methods: tuple[str, ...] = ("spc", "focal", "no_context", "oracle")  # of config/methods, YAML files, dora+shared
    seeds: tuple[int, ...] = (0, 1, 2)  # training seeds
    preset: str = "small"  # small, paper, or a YAML file
    family: str = ""  # task family, or the path of a family.yaml; default: the name of the dataset's contract
    splits: tuple[str, ...] = ("id", "ood")  # held-out tasks: id, ood (or train)
    protocols: tuple[str, ...] = SIM_PROTOCOLS  # any of no_context, zero_shot, few_shot, offline
    few_shot_sizes: tuple[int, ...] = (100,)  # transitions collected before a few-shot episode
    episodes: int = 3  # scored episodes of each task and protocol
    engine: Literal["processes", "ray"] = "processes"  # ray: on a Ray cluster, with dataset and out on a shared disk
    jobs: int | None = None  # processes at a time, each with one thread; default: 2, on Ray one for each of its CPUs


def run(options: Compare) -> int:
    from spc_core.comparison.plan import make_plan
    from spc_core.comparison.run import compare
    from spc_core.pages.comparison_report import CompareReport

    if options.jobs is not None and options.jobs < 1:
        raise ValueError(f"--jobs is {options.jobs}; use at least 1")
    plan = make_plan(**{name: value for name, value in vars(options).items() if name not in ("engine", "jobs")})
    report = CompareReport(plan)
    try:
        compare(plan, options.jobs, [sys.executable, "-m", "spc_ros.cli"], report.write, options.engine)
    finally:
        if report.rows:
            folder = options.out
            print(f"{report.text()}\ntable: {folder / 'table.md'}\npage:  {folder / 'compare.html'}")
    return 0
