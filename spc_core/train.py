# SPDX-License-Identifier: Apache-2.0
"""Training: dataset in, run folder out. It can be stopped at any moment and goes on where it was.

RUN/checkpoint/       the agent, ready to run (spc_core/checkpoint.py)
RUN/resume.pt         weights, optimisers and random states, written whole every `checkpoint_every` updates
RUN/log.csv           mean losses of every `log_every` updates; RUN/tensorboard/ has the same as curves
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from spc_core.agent import Agent, Batch, Learner
from spc_core.checkpoint import Checkpoint, pick_device, save_checkpoint
from spc_core.config import ConfigError, TrainConfig, to_dict
from spc_core.dataset import DatasetError
from spc_core.normalize import Stats, compute_stats
from spc_core.packed import PackedDataset, load_dataset
from spc_core.rows import rows_of
from spc_core.sampler import Sampler

STATS_STEPS = 200_000  # statistics are taken over at most this many evenly spaced steps
STATS_PIECE = 10_000  # steps that statistics read at a time
LOSSES = ("consistency", "reward", "contrast", "v", "q", "actor")


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped and why."""


@dataclasses.dataclass
class Progress:
    """Where a run stands; written to resume.pt."""

    update: int = 0
    seconds: float = 0.0


def train(dataset: str | Path, out: str | Path, config: TrainConfig, overwrite: bool = False) -> Path:
    """Train, or go on with an interrupted run of the same dataset and config; returns the checkpoint's folder.

    SIGINT and SIGTERM end the current update, save, and raise KeyboardInterrupt.
    Raises DatasetError, ConfigError or TrainingError.
    """
    config.check("training config")
    data, out = load_dataset(dataset), Path(out)
    if len(data.tasks) < 2:
        raise DatasetError(
            f"{dataset}: holds {len(data.tasks)} task; adapting is learnt from differences between tasks, "
            "so record at least two"
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    run = _Run(data, out, config, device)
    if overwrite and out.exists():
        if any(out.iterdir()) and not (out / "resume.pt").is_file():
            raise ConfigError(f"{out}: is not a training run, so it is not overwritten; choose another --out")
        shutil.rmtree(out)
    run.resume()
    with _stop_on_signals() as stopped:
        run.loop(stopped)
    if run.progress.update < config.updates:
        raise KeyboardInterrupt(
            f"stopped at update {run.progress.update} of {config.updates}; the same command goes on"
        )
    return run.checkpoint_folder


def data_stats(data: PackedDataset) -> Stats:
    """Normalisation statistics of a dataset. Raises DatasetError naming a field that never changes."""
    steps = np.unique(np.linspace(0, data.step_count - 1, STATS_STEPS).astype(np.int64))
    rows = steps + np.searchsorted(data.episode_starts, steps, side="right") - 1
    pairs = np.stack([rows, rows + 1], -1)  # read at once
    observations, _, rewards, _ = rows_of(data)
    pieces = (slice(begin, begin + STATS_PIECE) for begin in range(0, len(steps), STATS_PIECE))
    try:
        return compute_stats(data.contract, ((observations[pairs[p]], rewards[steps[p]]) for p in pieces))
    except ValueError as error:
        raise DatasetError(f"{data.root}: {error}") from None


class _Run:
    """One training run: its state, and how it is written down."""

    def __init__(self, data: PackedDataset, out: Path, config: TrainConfig, device: torch.device) -> None:
        self.data, self.out, self.config, self.device = data, out, config, device
        self.checkpoint_folder = out / "checkpoint"
        torch.manual_seed(config.seed)
        self.stats = data_stats(data)
        contract = data.contract
        self.agent = Agent(contract.observation_dim, contract.action_dim, len(data.tasks), config).to(device)
        self.learner = Learner(self.agent)
        self.sampler = Sampler(data, self.stats, config, config.seed)
        self.progress = Progress()
        self.pending: dict[str, list[Tensor]] = {}  # losses since the last log line

    def loop(self, stopped: list[int]) -> None:
        """Update until done or told to stop; saves at intervals and at the end."""
        config, progress = self.config, self.progress
        self.out.mkdir(parents=True, exist_ok=True)
        if progress.update == config.updates:
            print(f"{self.out}: already trained for {config.updates} updates")
            return
        began = time.monotonic() - progress.seconds
        bar = tqdm(total=config.updates, initial=progress.update, desc=f"train {self.out.name}", unit="update")
        with bar, _Log(self.out, progress.update) as log:
            while progress.update < config.updates and not stopped:
                batch = to_device(self.sampler.batch(), self.device)
                for name, loss in self.learner.update(batch, progress.update).items():
                    self.pending.setdefault(name, []).append(loss)
                progress.update += 1
                bar.update()
                if progress.update % config.log_every == 0 or progress.update == config.updates:
                    means = self._means()
                    progress.seconds = time.monotonic() - began
                    log.write(progress.update, progress.seconds, means)
                    bar.set_postfix({k: f"{v:.3f}" for k, v in means.items()}, refresh=False)
                    self.pending = {}
                if progress.update % config.checkpoint_every == 0:
                    self.save(log.last)
            progress.seconds = time.monotonic() - began
            self.save(log.last)

    def _means(self) -> dict[str, float]:
        means = {name: float(torch.stack(losses).mean()) for name, losses in self.pending.items()}
        for name, mean in means.items():
            if not math.isfinite(mean):
                losses = torch.stack(self.pending[name]).cpu()
                bad = int(torch.isfinite(losses).logical_not().nonzero()[0])
                raise TrainingError(
                    f"{self.out}: the {name} loss became {float(losses[bad])} within the {len(losses)} values up to "
                    f"update {self.progress.update} (value {bad + 1}); lower the learning rates or look for outliers "
                    f"in the data. The last good state is kept; nothing was overwritten."
                )
        return means

    def save(self, losses: dict[str, float]) -> None:
        """Write the checkpoint, then what a later process needs to go on as if nothing had happened.

        Raises TrainingError, and writes nothing, when a weight is not finite.
        """
        bad = [name for name, weight in self.agent.state_dict().items() if not bool(torch.isfinite(weight).all())]
        if bad:
            raise TrainingError(
                f"{self.out}: {bad[0]} is not finite after update {self.progress.update}; lower the learning rates or "
                f"look for outliers in the data. The last good state is kept; nothing was overwritten."
            )
        metrics = {
            "update": self.progress.update,
            "updates": self.config.updates,
            "seconds": round(self.progress.seconds, 1),
            "seed": self.config.seed,
            "losses": losses,
            "dataset_sha256": self.data.sha256,
            "contract_sha256": self.data.contract.sha256,
            "tasks": [{"task_id": task.task_id, "params": dict(task.params)} for task in self.data.tasks],
        }
        save_checkpoint(
            self.checkpoint_folder,
            Checkpoint(self.agent, self.config, self.data.contract, self.stats, metrics, self.device),
        )
        state = {
            "agent": self.agent.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.learner.optimizers.items()},
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            "sampler_rng": json.dumps(self.sampler.rng.bit_generator.state),
            "progress": dataclasses.asdict(self.progress),
            "pending": {name: torch.stack(losses) for name, losses in self.pending.items()},
            "config": json.dumps(to_dict(self.config)),
            "dataset": self.data.sha256,
        }
        beside = self.out / ".resume.pt.partial"
        torch.save(state, beside)
        beside.replace(self.out / "resume.pt")

    def resume(self) -> None:
        """Take up an earlier run in the same folder, if there is one and it is the same run."""
        file = self.out / "resume.pt"
        if not file.is_file():
            return
        try:
            state = torch.load(file, weights_only=True, map_location=self.device)
        except Exception as error:  # a damaged archive raises anything
            raise TrainingError(f"{file}: corrupt ({error}); start again with --overwrite") from error
        theirs, mine = json.loads(state["config"]), to_dict(self.config)
        changed = [key for key in mine if key not in ("device", "threads") and mine[key] != theirs.get(key)]
        if changed:
            lines = "; ".join(f"{key} was {theirs.get(key)}, is {mine[key]}" for key in changed)
            raise ConfigError(
                f"{self.out}: holds a run with other settings ({lines}); choose another --out or --overwrite"
            )
        if state["dataset"] != self.data.sha256:
            raise DatasetError(f"{self.out}: holds a run on another dataset; choose another --out or --overwrite")
        self.agent.load_state_dict(state["agent"])
        for name, optimizer in self.learner.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        torch.set_rng_state(state["torch_rng"].cpu())
        if self.device.type == "cuda" and state["cuda_rng"]:
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda_rng"]])
        self.sampler.rng.bit_generator.state = json.loads(state["sampler_rng"])
        self.progress = Progress(**state["progress"])
        self.pending = {name: list(losses.unbind()) for name, losses in state["pending"].items()}


class _Log:
    """log.csv and TensorBoard; rows after the update that is resumed from are dropped."""

    def __init__(self, out: Path, update: int) -> None:
        file = out / "log.csv"
        rows = list(csv.reader(file.read_text().splitlines())) if file.is_file() else []
        kept = [row for row in rows[1:] if len(row) == len(LOSSES) + 2 and int(row[0]) <= update]
        beside = out / ".log.csv.partial"
        with beside.open("w", newline="") as stream:
            csv.writer(stream).writerows([["update", "seconds", *LOSSES], *kept])
        beside.replace(file)
        self._stream = file.open("a", newline="")
        self._writer = csv.writer(self._stream)
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=update + 1 if update else None)
        self.last: dict[str, float] = {}

    def write(self, update: int, seconds: float, means: dict[str, float]) -> None:
        self.last = means
        self._writer.writerow([update, f"{seconds:.1f}", *(f"{means.get(name, math.nan):.6g}" for name in LOSSES)])
        self._stream.flush()
        for name, value in means.items():
            self._board.add_scalar(f"loss/{name}", value, update)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stream.close()
        self._board.close()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on another device; the same object when it is there already."""
    if device.type == "cpu":
        return batch
    moved = {f.name: getattr(batch, f.name).to(device, non_blocking=True) for f in dataclasses.fields(batch)}
    return Batch(**moved)


@contextmanager
def _stop_on_signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM append to, instead of tearing an update apart."""
    received: list[int] = []
    handlers = {s: signal.signal(s, lambda number, _: received.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
