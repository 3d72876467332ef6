# SPDX-License-Identifier: Apache-2.0
"""Measure the nodes' latency from a state to its command."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from spc_ros.commands.bench import show
from spc_ros.progress_bar import status_line


@dataclasses.dataclass(frozen=True)
class BenchLatency:
    """Measure the latency from a state to its command over ROS 2, against a bare relay node in the same run.

    examples:
      spc bench latency
      spc bench latency --seconds 3 --sustained-s 0 --json latency.json
    """

    rate_hz: float = 200.0  # rate of the states
    seconds: float = 10.0  # duration for each controller: relay, policy of two sizes, policy with context encoder
    sustained_hz: float = 500.0  # rate of a second measurement: relay and policy, without a pause
    sustained_s: float = 60.0  # duration of that for each of the two; 0: leave it out
    json: Path | None = None  # also write the numbers here


def run(options: BenchLatency) -> int:
    from spc_ros.trials.bench_latency import bench_latency

    with status_line("bench") as status:
        report = bench_latency(options.rate_hz, options.seconds, options.sustained_hz, options.sustained_s, status)
    return show(report.text(), dataclasses.asdict(report), options.json)
