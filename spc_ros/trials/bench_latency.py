# SPDX-License-Identifier: Apache-2.0
"""Latency from a state to its command through real processes, against a relay with the same messages and QoS."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spc_core.alignment.streaming import Transition
from spc_core.contract.contract import load_contract
from spc_core.deploy.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from spc_core.deploy.context_tracker import ContextTracker
from spc_core.method.agent import Agent
from spc_core.method.config import load_config
from spc_core.method.normalize import Stats
from spc_core.system.config_files import find_config
from spc_ros.processes import NodeGroup

SLICE_S = 2.0  # for one controller before the next one
CONTROLLERS = {  # name -> size of the policy (empty: the relay) and the programs, the one that commands first
    "relay": ("", ("relay",)),
    "policy small": ("small", ("policy",)),
    "policy paper": ("paper", ("policy",)),
    "policy paper, encoder": ("paper", ("policy", "context_encoder")),
    "both in one process": ("paper", ("deploy",)),
}
HISTORIES = (10, 10_000)


@dataclasses.dataclass(frozen=True)
class Row:
    """State-in to command-out of one controller at one rate, in microseconds."""

    name: str
    rate_hz: float
    ticks: int
    median_us: float
    p99_us: float
    worst_us: float
    missed: int  # states without a command before the next state
    missed_in_time: int  # those of them whose state the driver published in time
    unasked: int  # commands too late for their state, or for none
    driver_late: int  # states that the driver published over a quarter of a period late: a busy machine
    median_ratio: float  # to the relay at the same rate
    p99_ratio: float
    cpu_us: float  # processor time of the controller's processes per state, user and system
    context_age_ms: float | None  # from the end of z's latest transition to the state acted on; None: no encoder
    growth_kib: int  # of the commanding process's memory during the measurement


@dataclasses.dataclass(frozen=True)
class BenchLatency:
    """Measurements, and the load of the machine."""

    rows: tuple[Row, ...]
    update_us: dict[int, float]  # median time of a context update, by number of transitions
    cores: int
    load_before: float  # of the last minute
    load_after: float

    def text(self) -> str:
        head = f"{'controller':24}{'Hz':>5}{'ticks':>8}{'median':>9}{'p99':>9}{'worst':>10}{'missed':>8}{'in time':>9}"
        lines = [f"{head}{'median/relay':>14}{'p99/relay':>11}{'driver late':>13}{'CPU':>9}{'z old':>9}{'memory':>11}"]
        for row in self.rows:
            age = "-" if row.context_age_ms is None else f"{row.context_age_ms:.1f} ms"
            lines.append(
                f"{row.name:24}{row.rate_hz:5g}{row.ticks:8}{row.median_us:6.0f} us{row.p99_us:6.0f} us"
                f"{row.worst_us:7.0f} us{row.missed:8}{row.missed_in_time:9}{row.median_ratio:14.2f}"
                f"{row.p99_ratio:11.2f}{row.driver_late:13}{row.cpu_us:6.0f} us{age:>9}{row.growth_kib:+7} KiB"
            )
        for count, update_us in self.update_us.items():
            lines.append(f"context update after {count} transitions: {update_us:.0f} us")
        lines.append(f"{self.cores} cores, load {self.load_before:.1f} before and {self.load_after:.1f} after")
        return "\n".join(lines)


def bench_latency(
    rate_hz: float = 200.0,
    seconds: float = 10.0,
    sustained_hz: float = 500.0,
    sustained_s: float = 60.0,
    progress: Callable[[str], None] = lambda _: None,
) -> BenchLatency:
    """Measure all at `rate_hz` in turn, then relay and policy at `sustained_hz` (0 s: not), then context updates."""
    load_before = os.getloadavg()[0]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        progress(f"{rate_hz:g} Hz, {len(CONTROLLERS)} controllers for {seconds:g} s each")
        rows += _drive(Path(folder) / "all", tuple(CONTROLLERS), rate_hz, seconds, min(SLICE_S, seconds))
        if sustained_s:
            progress(f"{sustained_hz:g} Hz for {sustained_s:g} s")
            rows += _drive(Path(folder) / "fast", ("relay", "policy paper"), sustained_hz, sustained_s, sustained_s)
        progress("context updates")
        checkpoint = load_checkpoint(write_random(Path(folder) / "paper", "paper", rate_hz))
        updates = {count: update_us(checkpoint, count) for count in HISTORIES}
    return BenchLatency(tuple(rows), updates, os.cpu_count() or 1, load_before, os.getloadavg()[0])


def write_random(folder: Path, size: str, rate_hz: float) -> Path:
    """A checkpoint of a preset's size for the shipped arm at another rate, untrained but as fast as a trained one."""
    text = load_contract(find_config("contracts", "arm_reach")).text
    file = folder.with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.replace("rate_hz: 50", f"rate_hz: {rate_hz:g}"))
    contract = load_contract(file)
    torch.manual_seed(0)
    config = load_config(size, "")
    agent = Agent(contract.observation_dim, contract.action_dim, [{}, {}], config)
    ones = np.ones(contract.observation_dim, np.float32)
    low, high = np.asarray(contract.action.low, np.float32), np.asarray(contract.action.high, np.float32)
    stats = Stats(0 * ones, ones, 0.1 * ones, -0.5, 0.3, low, high)
    metrics = {"tasks": [{"task_id": name, "params": {}} for name in "ab"], "update": 0}
    save_checkpoint(folder, Checkpoint(agent, config, contract, stats, metrics, torch.device("cpu")))
    return folder


def update_us(checkpoint: Checkpoint, history: int, rounds: int = 300) -> float:
    """Median time of one context update after `history` transitions, in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tracker, random = ContextTracker(checkpoint), np.random.default_rng(0)
    values = random.normal(size=(64, 11))
    transitions = [Transition(0, row[:4], row[4:6], float(row[6]), row[7:]) for row in values]
    took = np.empty(rounds)
    try:
        for i in range(history):
            tracker.update(transitions[i % 64])
        for i in range(rounds):
            begin_s = time.perf_counter()
            tracker.update(transitions[i % 64])
            took[i] = time.perf_counter() - begin_s
    finally:
        torch.set_num_threads(threads)
    return float(1e6 * np.median(took))


def _drive(folder: Path, names: Sequence[str], rate_hz: float, seconds: float, slice_s: float) -> list[Row]:
    """Start each controller in a separate namespace, and a driver, and wait for the driver's result."""
    environment = {
        "ROS_DOMAIN_ID": os.environ.get("ROS_DOMAIN_ID", str(90 + os.getpid() % 10)),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    }
    sizes = {size: write_random(folder / (size or "small"), size or "small", rate_hz) for size in _sizes(names)}
    contract = str(next(iter(sizes.values())) / "contract.yaml")
    spaces = {name: f"c{number}" for number, name in enumerate(names)}
    with contextlib.ExitStack() as stack:
        groups: dict[str, NodeGroup] = {}
        for name, space in spaces.items():
            size, programs = CONTROLLERS[name]
            groups[name] = stack.enter_context(NodeGroup(folder / space, space, environment))
            params = {"checkpoint": str(sizes[size])} if size else {"contract": contract}
            for program in programs:
                groups[name].start(program, params)
        for group in groups.values():
            group.wait_ready(120.0)
        before = {name: (_resident_kib(group), _cpu_s(group)) for name, group in groups.items()}
        driver = stack.enter_context(NodeGroup(folder / "driver", "", environment))
        out = folder / "result.json"
        node = driver.start("latency", {"contract": contract, "targets": list(spaces.values()), "seconds": seconds,
                                        "slice_s": slice_s, "out": str(out)})  # fmt: skip
        if node.wait(60.0 + len(names) * (2 * seconds + 5.0)) != 0:
            raise RuntimeError(f"the driver failed{node.tail()}")
        for group in groups.values():
            group.check()
        results = json.loads(out.read_text())
        after = {name: (_resident_kib(group), _cpu_s(group)) for name, group in groups.items()}
    used = {name: (after[name][0] - before[name][0], after[name][1] - before[name][1]) for name in names}
    relay = _percentiles(results[spaces["relay"]])
    return [_row(name, rate_hz, results[space], relay, *used[name]) for name, space in spaces.items()]


def _sizes(names: Sequence[str]) -> list[str]:
    return sorted({CONTROLLERS[name][0] for name in names} - {""}) or ["small"]


def _percentiles(result: dict[str, Any]) -> tuple[float, float, float]:
    if not result["latency_us"]:
        raise RuntimeError("a controller answered no state; is another program using this ROS domain?")
    median, p99, worst = np.percentile(result["latency_us"], (50, 99, 100))
    return float(median), float(p99), float(worst)


def _row(
    name: str, rate_hz: float, result: dict[str, Any], relay: tuple[float, float, float], growth_kib: int, cpu_s: float
) -> Row:
    median, p99, worst = _percentiles(result)
    counts = (result["missed"], result["missed_in_time"], result["unasked"], result["driver_late"])
    ages = result["context_age_ms"]
    age_ms = float(np.median(ages)) if ages else None
    ratios = (median / relay[0], p99 / relay[1])
    cpu_us = 1e6 * cpu_s / result["published"]
    return Row(name, rate_hz, result["ticks"], median, p99, worst, *counts, *ratios, cpu_us, age_ms, growth_kib)


def _cpu_s(group: NodeGroup) -> float:
    """Processor time of the group's processes, user and system; 0 without /proc."""
    files = [Path(f"/proc/{node.process.pid}/stat") for node in group.nodes.values()]
    fields = [file.read_text().rpartition(")")[2].split() for file in files if file.exists()]
    return sum(int(parts[11]) + int(parts[12]) for parts in fields) / os.sysconf("SC_CLK_TCK")


def _resident_kib(group: NodeGroup) -> int:
    """Memory of the group's controller; 0 without /proc."""
    status = Path(f"/proc/{next(iter(group.nodes.values())).process.pid}/status")
    if not status.exists():
        return 0
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS"))
