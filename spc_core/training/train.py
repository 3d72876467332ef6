# SPDX-License-Identifier: Apache-2.0
"""Training: dataset in, run folder out. It can be stopped at any moment and goes on where it was.

RUN/checkpoint/       the agent as it is now, ready to run (deploy/checkpoint.py)
RUN/best/             the agent that did best on validation tasks, if `evaluate_every` is set (validation.py)
RUN/resume.pt         weights, optimisers and random states, written whole every `checkpoint_every` updates
RUN/log.csv           mean losses of every `log_every` updates; RUN/tensorboard/ has the same as curves

`load_checkpoint(RUN)` loads the last, `load_checkpoint(RUN/best)` the best. Under torchrun, several processes train
together (spc_core/training/distributed.py), and only the first of them writes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from spc_core.data.dataset import DatasetError
from spc_core.data.outliers import refuse_outliers
from spc_core.data.packed import PackedDataset, load_dataset
from spc_core.data.rows import rows_of
from spc_core.method.config import ConfigError, TrainConfig
from spc_core.method.normalize import Stats, compute_stats
from spc_core.system.allocator import keep_freed_memory
from spc_core.system.signals import stop_on_signals
from spc_core.training.distributed import Group, join_group
from spc_core.training.training_run import TrainingRun
from spc_core.training.validation import simulated_family

STATS_STEPS = 200_000  # statistics are taken over at most this many evenly spaced steps
STATS_PIECE = 10_000  # steps that statistics read at a time


def train(dataset: str | Path, out: str | Path, config: TrainConfig, overwrite: bool = False) -> Path:
    """Train, or go on with an interrupted run of the same dataset and config; returns the checkpoint's folder.

    SIGINT and SIGTERM end the current update, save, and raise KeyboardInterrupt.
    Raises DatasetError, ConfigError or TrainingError.
    """
    config.check("training config")
    with join_group(config.device) as group:
        data, out = group.leader_first(lambda: load_dataset(dataset)), Path(out)
        if len(data.tasks) < 2:
            raise DatasetError(
                f"{dataset}: holds {len(data.tasks)} task; adapting is learnt from differences between tasks, "
                "so record at least two"
            )
        if config.evaluate_every:
            simulated_family(data.contract.name)
        if config.threads:
            torch.set_num_threads(config.threads)
        keep_freed_memory()
        run = TrainingRun(data, data_stats(data), out, config, group)
        _prepare(out, overwrite, group)
        run.resume()
        with stop_on_signals() as stopped, run:
            run.loop(stopped)
            group.close()  # the other processes need not wait for the last evaluation
            run.finish(stopped)
    return run.checkpoint_folder


def _prepare(out: Path, overwrite: bool, group: Group) -> None:
    """Make the run's folder; an older run in it goes if it is to be overwritten."""
    if overwrite and out.exists() and any(out.iterdir()) and not (out / "resume.pt").is_file():
        raise ConfigError(f"{out}: is not a training run, so it is not overwritten; choose another --out")
    group.wait()
    if group.leads:
        if overwrite and out.exists():
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
    group.wait()


def data_stats(data: PackedDataset) -> Stats:
    """Normalisation statistics of a dataset. Raises DatasetError naming a field that never changes or is not sane."""
    steps = np.unique(np.linspace(0, data.step_count - 1, STATS_STEPS).astype(np.int64))
    refuse_outliers(data, steps)
    rows = steps + np.searchsorted(data.episode_starts, steps, side="right") - 1
    pairs = np.stack([rows, rows + 1], -1)  # read at once
    observations, _, rewards, _ = rows_of(data)
    pieces = (slice(begin, begin + STATS_PIECE) for begin in range(0, len(steps), STATS_PIECE))
    try:
        return compute_stats(data.contract, ((observations[pairs[p]], rewards[steps[p]]) for p in pieces))
    except ValueError as error:
        raise DatasetError(f"{data.root}: {error}") from None
