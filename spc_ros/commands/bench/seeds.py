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
      spc bench seeds --method focal --seeds 3 --device cuda --json seeds.json
    """

    size: str = "quick"  # preset: quick, small, or a YAML file; a paper-size model in bfloat16 is not stacked
    method: str = "spc"  # a name in config/methods, or a YAML file
    seeds: int = 5  # how many
    device: str = "auto"  # cpu, cuda, cuda:<n> or auto
    threads: int = 1  # CPU threads
    rounds: int = 10  # measurements of each number
    json: Path | None = None  # also write the numbers here


def run(options: BenchSeeds) -> int:
    from spc_core.training.bench_seeds import bench_seeds

    for name in ("seeds", "rounds"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} is {getattr(options, name)}; use at least 1")
    config = load_config(options.size, options.method, device=options.device, threads=options.threads)
    with status_line("bench") as status:
        report = bench_seeds(config, options.size, options.seeds, options.rounds, status)
    numbers = {**dataclasses.asdict(report), "ratio": report.ratio, "pays_after": report.pays_after}
    return show(report.text(), numbers, options.json)
