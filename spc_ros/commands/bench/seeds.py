# SPDX-License-Identifier: Apache-2.0
"""Measure several seeds that train together."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from spc_core.method.config import load_config
from spc_ros.commands.bench import show
from spc_ros.progress_bar import status_line


@dataclasses.dataclass(frozen=True)
class BenchSeeds:
    """Measure several seeds trained as one compiled model, against the same seeds one by one in the same run.

    examples:
      spc bench seeds
      spc bench seeds --method focal --seeds 3 --json seeds.json
      spc bench seeds --device cuda --seeds 1 5 20 80
    """

    size: str = "quick"  # preset: quick, small, or a YAML file; a paper-size model in bfloat16 is not stacked
    method: str = "spc_paper"  # a name in config/methods, or a YAML file
    seeds: tuple[int, ...] = (5,)  # how many; several numbers give a table
    device: str = "auto"  # cpu, cuda, cuda:<n> or auto
    threads: int = 1  # CPU threads
    rounds: int = 10  # measurements of each number
    json: Path | None = None  # also write the numbers here


def run(options: BenchSeeds) -> int:
    from spc_core.training.bench_seeds import bench_seeds, table

    for name, least in (("seeds", min(options.seeds, default=0)), ("rounds", options.rounds)):
        if least < 1:
            raise ValueError(f"--{name} has {least}; use at least 1")
    config = load_config(options.size, options.method, device=options.device, threads=options.threads)
    with status_line("bench") as status:
        reports = [bench_seeds(config, options.size, seeds, options.rounds, status) for seeds in options.seeds]
    numbers = [{**dataclasses.asdict(r), "ratio": r.ratio, "pays_after": r.pays_after} for r in reports]
    text = "\n".join(report.text() for report in reports)
    if len(reports) == 1:
        return show(text, numbers[0], options.json)
    return show(f"{text}\n\n{table(reports)}", numbers, options.json)
