# SPDX-License-Identifier: Apache-2.0
"""Measure the duration of training updates."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from spc_core.method.config import load_config
from spc_ros.commands.bench import show
from spc_ros.progress_bar import status_line

TABLE = (
    ("paper", "spc_paper"),
    ("paper", "spc_continuous"),
    ("paper", "focal"),
    ("small", "spc_paper"),
)  # docs/benchmarks.md


@dataclasses.dataclass(frozen=True)
class BenchTrain:
    """Measure training updates on this machine, against plain equations and a matrix product in the same run.

    examples:
      spc bench train
      spc bench train --size small --rounds 1 --json updates.json
      spc bench train --table --device cuda
    """

    size: str = "paper"  # preset: paper, small, or a YAML file
    method: str = "spc_paper"  # a name in config/methods, or a YAML file
    device: str = "auto"  # cpu, cuda, cuda:<n> or auto
    threads: int = 2  # CPU threads
    precision: str = "auto"  # precision of matrix products: fp32, bf16, or auto
    rounds: int = 3  # measurements of each number
    baseline: bool = True  # measure the plain equations too
    table: bool = False  # instead of one size and method: all rows of the table in docs/benchmarks.md
    json: Path | None = None  # also write the numbers here


def run(options: BenchTrain) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would print its own steps
    from spc_core.training.bench_train import bench_train, table

    if options.table:
        rows = [_row(options, size, method) for size, method in TABLE]
        return show(table(rows), rows, options.json)
    settings = {name: getattr(options, name) for name in ("device", "threads", "precision")}
    config = load_config(options.size, options.method, **settings)
    with status_line("bench") as status:
        report = bench_train(config, options.size, options.rounds, options.baseline, status)
    return show(report.text(), {**dataclasses.asdict(report), "ratio": report.ratio}, options.json)


def _row(options: BenchTrain, size: str, method: str) -> dict[str, Any]:
    """The numbers of one size and method, measured in a process of its own, whose memory is its own.

    Raises ValueError where that process fails, after its message.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        settings = {name: getattr(options, name) for name in ("device", "threads", "precision", "rounds")}
        flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "spc_ros.cli", "bench", "train", "--size", size, "--method", method, *flags,
                   "--baseline" if options.baseline else "--no-baseline", "--json", str(file)]  # fmt: skip
        code = subprocess.run(command, stdout=sys.stderr).returncode
        if code != 0:
            raise ValueError(f"the measurement of {size}, {method} ended with code {code}")
        return json.loads(file.read_text())
