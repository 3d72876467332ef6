# SPDX-License-Identifier: Apache-2.0
"""Measure the speed of conversion."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from spc_ros.commands.bench import show
from spc_ros.progress_bar import status_line


@dataclasses.dataclass(frozen=True)
class BenchConvert:
    """Measure conversion on this machine, against rosbags reading the same bag in the same run.

    examples:
      spc bench convert
      spc bench convert --messages 20000 --storages mcap --json convert.json
    """

    messages: int = 100_000  # JointState messages of 340 bytes in the bag
    storages: tuple[str, ...] = ("mcap", "sqlite3")  # mcap: in chunks compressed with zstd
    rates_hz: tuple[float, ...] = (500.0, 50.0)  # rates of the ticks; messages arrive at 500 Hz
    rounds: int = 3  # measurements of each number
    folder: Path | None = None  # folder for bag and dataset, which are deleted; default: the system's
    json: Path | None = None  # also write the numbers here


def run(options: BenchConvert) -> int:
    from spc_ros.conversion.bench_convert import bench_convert

    with status_line("bench") as status:
        reports = bench_convert(
            options.messages, options.storages, options.rates_hz, options.rounds, options.folder, status
        )
    text = "\n\n".join(report.text() for report in reports)
    return show(text, [dataclasses.asdict(report) for report in reports], options.json)
