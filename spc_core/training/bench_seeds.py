# SPDX-License-Identifier: Apache-2.0
"""Benchmark of several seeds trained as one stacked, compiled model, against the same seeds one by one."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch

from spc_core.data.sampler import Sampler, rows_for
from spc_core.deploy.checkpoint import pick_device
from spc_core.method.config import ConfigError, TrainConfig
from spc_core.method.fused import FusedLearner, uses_bfloat16
from spc_core.method.stacked import StackedLearner
from spc_core.system.allocator import keep_freed_memory
from spc_core.training.bench_train import new_agent, random_dataset
from spc_core.training.train import data_stats


@dataclasses.dataclass(frozen=True)
class SeedsBench:
    """The report of `spc bench seeds`: milliseconds of an update of all seeds, in the mean over updates."""

    method: str
    size: str
    device: str
    threads: int
    seeds: int
    alone_ms: float  # one by one, as `spc train` does for each seed
    uncompiled_ms: float
    stacked_ms: float
    compile_s: float  # of the first two updates; a second run on the same machine takes it from torch's cache
    alone_cpu_ms: float  # processor time of all threads
    stacked_cpu_ms: float

    @property
    def ratio(self) -> float:
        """How many times the updates a second."""
        return self.alone_ms / self.stacked_ms

    @property
    def pays_after(self) -> float:
        """Updates of each seed from which on compiling has paid."""
        saved_s = (self.alone_ms - self.stacked_ms) / 1e3
        return self.compile_s / saved_s if saved_s > 0 else float("inf")

    def text(self) -> str:
        """The report for a terminal."""
        pays = f"pays from {self.pays_after:,.0f} updates on" if self.ratio > 1 else "does not pay"
        return "\n".join(
            [
                f"{self.seeds} seeds of {self.method}, {self.size} size, {self.device}, {self.threads} threads",
                f"  one by one           {self.alone_ms:8.1f} ms an update of all ({self.alone_cpu_ms:.1f} ms cpu)",
                f"  stacked, uncompiled  {self.uncompiled_ms:8.1f} ms",
                f"  stacked, compiled    {self.stacked_ms:8.1f} ms ({self.stacked_cpu_ms:.1f} ms cpu): "
                f"{self.ratio:.2f} times the updates a second",
                f"  compiling took {self.compile_s:.0f} s, which {pays}",
            ]
        )


def bench_seeds(
    config: TrainConfig, size: str, seeds: int, rounds: int, progress: Callable[[str], None] = lambda text: None
) -> SeedsBench:
    """Measure, in turns, so that a change of the machine's speed touches all. Raises ConfigError."""
    config.check(f"bench of {size} size")
    device = pick_device(config.device)
    if uses_bfloat16(config, device.type):
        raise ConfigError(f"size '{size}' trains in bfloat16 here, which is not stacked; use small, or precision fp32")
    if config.threads:
        torch.set_num_threads(config.threads)
    keep_freed_memory()
    data = random_dataset()
    stats = data_stats(data)
    samplers = [Sampler(data, stats, config, seed) for seed in range(seeds)]
    rows = rows_for(samplers)

    def learners() -> list[FusedLearner]:
        made = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            made.append(FusedLearner(new_agent(data, config).to(device), torch.Generator(device).manual_seed(seed)))
        return made

    own = learners()
    plain, fast = StackedLearner(learners(), rows, compiles=False), StackedLearner(learners(), rows)
    batches = [sampler.batch().to(device) for sampler in samplers]

    def alone(number: int) -> None:
        for learner, batch in zip(own, batches, strict=True):
            learner.update(batch, number)

    updates = (alone, lambda number: plain.update(batches, number), lambda number: fast.update(batches, number))
    progress("compiling")
    began_s = time.perf_counter()
    for number in (0, 1):
        updates[2](number)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    compile_s = time.perf_counter() - began_s
    kinds = (0, 1) if config.world_model_every > 1 and "model" in own[0].optimizers else (0,)
    share = 1 / config.world_model_every if len(kinds) == 2 else 1.0
    timings = [[_Least() for _ in updates] for _ in kinds]
    for turn in range(rounds + 1):
        progress(f"round {turn} of {rounds}")
        for kind, row in zip(kinds, timings, strict=True):
            for update, least in zip(updates, row, strict=True):
                least.time(lambda update=update, kind=kind: update(kind), device, keep=turn > 0)

    def mean(values: Sequence[float]) -> float:
        return share * values[0] + (1 - share) * values[-1]

    wall, cpu = ([mean([getattr(row[i], key) for row in timings]) for i in range(3)] for key in ("wall_ms", "cpu_ms"))
    return SeedsBench(
        method=config.method.name, size=size, threads=torch.get_num_threads(), seeds=seeds,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        alone_ms=wall[0], uncompiled_ms=wall[1], stacked_ms=wall[2], compile_s=compile_s, alone_cpu_ms=cpu[0],
        stacked_cpu_ms=cpu[2],
    )  # fmt: skip


def table(reports: Sequence[SeedsBench]) -> str:
    """Reports of several numbers of seeds as a Markdown table."""
    lines = ["| seeds | one by one | uncompiled | stacked | times the updates a second | compiling |", "|---" * 6 + "|"]
    for report in reports:
        lines.append(
            f"| {report.seeds} | {report.alone_ms:.1f} ms | {report.uncompiled_ms:.1f} ms | "
            f"**{report.stacked_ms:.1f} ms** | {report.ratio:.2f} | {report.compile_s:.0f} s |"
        )
    first = reports[0]
    return "\n".join([*lines, "", f"{first.method}, {first.size}, {first.device}, {first.threads} threads"])


class _Least:
    """The least times of several calls, in milliseconds."""

    def __init__(self) -> None:
        self.wall_ms = self.cpu_ms = float("inf")

    def time(self, work: Callable[[], object], device: torch.device, keep: bool) -> None:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if keep:
            self.wall_ms = min(self.wall_ms, 1e3 * (time.perf_counter() - wall_s))
            self.cpu_ms = min(self.cpu_ms, 1e3 * (time.process_time() - cpu_s))
