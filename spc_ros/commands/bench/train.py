# SPDX-License-Identifier: Apache-2.0
"""Measure the duration of training updates."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from spc_core.method.config import load_config
from spc_ros.commands.bench import show
from spc_ros.progress_bar import status_line


@dataclasses.dataclass(frozen=True)
class BenchTrain:
    """Measure training updates on this machine, against plain equations and a matrix product in the same run.

    examples:
      spc bench train
      spc bench train --size small --rounds 1 --json updates.json
    """

    size: str = "paper"  # preset: paper, small, or a YAML file
    method: str = "spc"  # a name in config/methods, or a YAML file
    device: str = "auto"  # cpu, cuda, cuda:<n> or auto
    threads: int = 2  # CPU threads
    precision: str = "auto"  # precision of matrix products: fp32, bf16, or auto
    rounds: int = 3  # measurements of each number
    baseline: bool = True  # measure the plain equations too
    json: Path | None = None  # also write the numbers here


def run(options: BenchTrain) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would print its own steps
    from spc_core.training.bench_train import bench_train

    settings = {name: getattr(options, name) for name in ("device", "threads", "precision")}
    config = load_config(options.size, options.method, **settings)
    with status_line("bench") as status:
        report = bench_train(config, options.size, options.rounds, options.baseline, status)
    return show(report.text(), {**dataclasses.asdict(report), "ratio": report.ratio}, options.json)
