# SPDX-License-Identifier: Apache-2.0
"""Benchmark of one training update: its time, breakdown, and share of the machine's peak.

All numbers of a report come from one run: the update, the plain equations (agent.Learner) as its baseline, and a matrix
product as the machine's peak.
"""

from __future__ import annotations

import dataclasses
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from spc_core.contract.contract import Contract, parse_contract
from spc_core.contract.positional import JOINT_STATE
from spc_core.data.dataset import TaskEntry
from spc_core.data.packed import PackedDataset
from spc_core.data.sampler import Sampler
from spc_core.deploy.checkpoint import pick_device
from spc_core.method.agent import Agent, Batch, Learner
from spc_core.method.config import TrainConfig
from spc_core.method.fused import FusedLearner
from spc_core.system.allocator import keep_freed_memory
from spc_core.training.train import data_stats

OBSERVATIONS, ACTIONS, TASKS = 17, 6, 20  # of a walker, the usual task of the public implementation
EPISODES, STEPS = 10, 200  # of each task
MATMUL = (5120, 512, 7680)  # the largest product of a full-size update
SLOW_MS = 2_000.0  # of a product, of which a part is measured instead
ROUNDS = 3
GROUPS = {  # parts of the breakdown, and prefixes of their operators' names
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "mkldnn"),
    "softmax, draws, cross-entropy": (
        "aten::_softmax", "aten::_log_softmax", "aten::log_", "aten::random_", "aten::gather", "aten::scatter",
        "aten::nll", "aten::amax", "aten::eq", "aten::uniform_", "aten::exponential_", "aten::log",
    ),
    "norms and activations": ("aten::native_layer_norm", "aten::sigmoid", "aten::tanh", "aten::mish"),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::fill_", "aten::zero_", "aten::index"),
    "optimisers and averages": ("aten::_fused", "aten::_foreach", "Optimizer"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Timing:
    """Milliseconds: least and median of the rounds, and processor time of all threads."""

    least: float
    median: float
    cpu: float


@dataclasses.dataclass(frozen=True)
class TrainBench:
    """The report of `spc bench train`."""

    method: str
    size: str
    device: str
    threads: int
    precision: str
    with_model: Timing | None  # an update of world model, context encoder and policy, sampling included
    without_model: Timing  # an update of the policy alone
    mean: Timing  # of both, as often as each happens
    sampling_ms: float
    peak_mib: float  # resident memory of the process while it updates; on a GPU, what its tensors take
    gflop: float  # of an update, in the mean
    gflops: float  # achieved
    matmul_gflops: dict[str, float]  # measured here, by precision
    baseline_ms: float | None  # the plain equations, least, in the mean
    breakdown: dict[str, float]  # share of processor time of a pair of updates

    @property
    def ratio(self) -> float | None:
        """How many times faster than the baseline."""
        return None if self.baseline_ms is None else self.baseline_ms / self.mean.least

    def text(self) -> str:
        """The report for a terminal."""
        limit = self.matmul_gflops[self.precision]
        lines = [
            f"{self.method}, {self.size} size, {self.device}, {self.threads} threads, products in {self.precision}",
            f"{'ms per update':34} {'least':>8} {'median':>8} {'cpu':>8}",
        ]
        rows = (("with world model", self.with_model), ("policy alone", self.without_model), ("mean", self.mean))
        for name, timing in rows:
            if timing is not None:
                lines.append(f"  {name:32} {timing.least:8.1f} {timing.median:8.1f} {timing.cpu:8.1f}")
        lines.append(f"  of which sampling {self.sampling_ms:.2f} ms; peak memory {self.peak_mib:.0f} MiB")
        if self.ratio is not None:
            lines.append(f"  plain equations in fp32 {self.baseline_ms:.1f} ms: {self.ratio:.1f} times as long")
        measured = ", ".join(f"{name} {value:.0f}" for name, value in self.matmul_gflops.items())
        lines.append(
            f"  {self.gflop:.1f} GFLOP in the mean, {self.gflops:.0f} GFLOP/s, {self.gflops / limit:.0%} of a "
            f"{' x '.join(map(str, MATMUL))} product ({measured} GFLOP/s)"
        )
        lines += [f"  {share:6.1%} {name}" for name, share in self.breakdown.items()]
        return "\n".join(lines)


def bench_train(
    config: TrainConfig, size: str, rounds: int = ROUNDS, baseline: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> TrainBench:  # fmt: skip
    """Measure updates of `config` on random data of fixed sizes. Raises ConfigError."""
    config.check(f"bench of {size} size")
    device = pick_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    keep_freed_memory()
    torch.manual_seed(config.seed)
    data = random_dataset()
    sampler = Sampler(data, data_stats(data), config, config.seed)
    learner = FusedLearner(new_agent(data, config).to(device))

    def update(learner: Learner, number: int) -> None:
        learner.update(sampler.batch().to(device), number)

    progress("updates")
    has_model = "model" in learner.optimizers
    kinds = (0, 1) if has_model and config.world_model_every > 1 else (0,)
    timings = [_time(lambda kind=kind: update(learner, kind), rounds, device) for kind in kinds]
    peak = _peak_mib(device)  # before later measurements add to it
    share = 1 / config.world_model_every if len(kinds) == 2 else 1.0
    pairs = zip(dataclasses.astuple(timings[0]), dataclasses.astuple(timings[-1]), strict=True)
    mean = Timing(*(share * with_model + (1 - share) * without for with_model, without in pairs))
    sampling = _time(sampler.batch, 4 * rounds, torch.device("cpu"))
    batch = sampler.batch().to(device)
    gflop = share * _gflop(learner, batch, kinds[0]) + (1 - share) * _gflop(learner, batch, kinds[-1])
    progress("breakdown")
    breakdown = _breakdown(lambda: [update(learner, kind) for kind in kinds], device)
    progress("matrix products")
    limits = {name: _matmul_gflops(kind, device) for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    plain = None
    if baseline and has_model and config.method.latent in ("discrete", "continuous"):
        progress("plain equations")
        reference = Learner(new_agent(data, config).to(device))
        slow = [_time(lambda kind=kind: update(reference, kind), rounds, device).least for kind in kinds]
        plain = share * slow[0] + (1 - share) * slow[-1]
    return TrainBench(
        method=config.method.name, size=size, threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        precision="bf16" if learner.half else "fp32",
        with_model=timings[0] if has_model else None, without_model=timings[-1], mean=mean,
        sampling_ms=sampling.least, peak_mib=peak, gflop=gflop, gflops=gflop / mean.least * 1e3, matmul_gflops=limits,
        baseline_ms=plain, breakdown=breakdown,
    )  # fmt: skip


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Reports of several benchmarks, as dictionaries, as the Markdown table of docs/benchmarks.md."""
    lines = [
        "| | with model | without | mean | plain equations | peak memory | GFLOP/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        model, policy, mean = (
            row[key] and f"{row[key]['least']:.1f} ms" for key in ("with_model", "without_model", "mean")
        )
        plain = f"{row['baseline_ms']:,.1f} ms, {row['ratio']:.1f} times" if row["baseline_ms"] else ""
        lines.append(
            f"| {row['size']}, {row['method']} | {model or ''} | {policy} | **{mean}** | {plain} | "
            f"{row['peak_mib']:,.0f} MiB | {row['gflops']:,.0f} |"
        )
    first = rows[0]
    products = ", ".join(f"{name} {value:,.0f}" for name, value in first["matmul_gflops"].items())
    return "\n".join([*lines, "", f"{first['device']}, {first['threads']} threads; products alone: {products} GFLOP/s"])


def _time(work: Callable[[], object], rounds: int, device: torch.device) -> Timing:
    """Time `work` after one call to warm up."""
    work()
    walls, cpus = [], []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        walls.append(1e3 * (time.perf_counter() - wall))
        cpus.append(1e3 * (time.process_time() - cpu))
    return Timing(min(walls), statistics.median(walls), min(cpus))


def random_dataset() -> PackedDataset:
    """Random data of a walker's size, in memory."""
    rng = np.random.default_rng(0)
    episodes = TASKS * EPISODES
    steps = episodes * STEPS
    return PackedDataset(
        root=Path("random data"), contract=_contract(),
        tasks=tuple(TaskEntry(f"bench/{i}", {"number": float(i)}) for i in range(TASKS)),
        sha256="", observations=rng.normal(size=(steps + episodes, OBSERVATIONS)).astype(np.float32),
        actions=rng.uniform(-1, 1, (steps, ACTIONS)).astype(np.float32),
        rewards=rng.normal(size=steps).astype(np.float32), terminated=np.zeros(steps, np.bool_),
        episode_starts=np.arange(episodes + 1) * STEPS, episode_task=np.repeat(np.arange(TASKS), EPISODES),
    )  # fmt: skip


def new_agent(data: PackedDataset, config: TrainConfig) -> Agent:
    """An untrained agent for a dataset."""
    contract = data.contract
    return Agent(contract.observation_dim, contract.action_dim, [task.params for task in data.tasks], config)


def _contract() -> Contract:
    joints, efforts = [f"position.j{i}" for i in range(OBSERVATIONS)], [f"effort.j{i}" for i in range(ACTIONS)]
    limits = {"low": [-1] * ACTIONS, "high": [1] * ACTIONS, "safe": [0] * ACTIONS, "max_rate": [100] * ACTIONS}
    contract = {
        "name": "bench",
        "rate_hz": 50,
        "clock": "header",
        "observation": [{"topic": "joint_states", "type": JOINT_STATE, "fields": joints, "max_age_s": 0.05}],
        "action": {"topic": "commands", "type": JOINT_STATE, "fields": efforts, **limits},
        "reward": {"topic": "reward", "type": "geometry_msgs/msg/Vector3Stamped", "field": "vector.x"},
        "task": {"key": "spc.task_id"},
        "episode": {"segment": "bag"},
    }
    return parse_contract(yaml.safe_dump(contract), "bench.yaml")


def _gflop(learner: Learner, batch: Batch, number: int) -> float:
    """Billions of floating point operations of an update's matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        learner.update(batch, number)
    return counter.get_total_flops() / 1e9


def _breakdown(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Shares of the time of all operators by kind, largest first."""
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=kinds) as profiler:
        work()
    sums: dict[str, float] = dict.fromkeys([*GROUPS, "everything else"], 0.0)
    for event in profiler.key_averages():
        spent = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        sums[next((g for g, names in GROUPS.items() if event.key.startswith(names)), "everything else")] += spent
    total = sum(sums.values())
    return {name: spent / total for name, spent in sorted(sums.items(), key=lambda item: -item[1])}


def _matmul_gflops(dtype: torch.dtype, device: torch.device) -> float:
    rows, inner, columns = MATMUL
    a, b = torch.randn(rows, inner).to(device, dtype), torch.randn(inner, columns).to(device, dtype)
    few = a[: rows // 32]  # a processor without this precision would take minutes for the whole
    sample = _time(lambda: few @ b, 1, device).least
    if 32 * sample > SLOW_MS:
        return 2 * len(few) * inner * columns / sample / 1e6
    return 2 * rows * inner * columns / _time(lambda: a @ b, 2 * ROUNDS, device).least / 1e6
