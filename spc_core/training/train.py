# SPDX-License-Identifier: Apache-2.0
"""Training: dataset in, run folder out. It can be stopped at any moment and resumes where it stopped.

RUN/checkpoint/       the latest agent, ready to run (deploy/checkpoint.py); votes.json is added at the end of training
RUN/best/             the agent with the best return on validation tasks, if `evaluate_every` is set (validation.py)
RUN/resume.pt         weights, optimisers and random states, written every `checkpoint_every` updates
RUN/log.csv           mean losses every `log_every` updates; RUN/tensorboard/ has their curves

`load_checkpoint(RUN)` loads the last, `load_checkpoint(RUN/best)` the best. Under torchrun, several processes train
together (spc_core/training/distributed.py), and only the first of them writes.
"""

from __future__ import annotations

import shutil
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from spc_core.data.dataset import DatasetError
from spc_core.data.outliers import refuse_outliers
from spc_core.data.packed import PackedDataset, load_dataset, rows_of
from spc_core.deploy.checkpoint import load_checkpoint
from spc_core.deploy.checkpoint_files import weights_sha256
from spc_core.deploy.vote_model import load_vote_model
from spc_core.method.config import ConfigError, TrainConfig
from spc_core.method.normalize import Stats, compute_stats
from spc_core.system.allocator import keep_freed_memory
from spc_core.system.signals import stop_on_signals
from spc_core.training.distributed import Group, join_group
from spc_core.training.run_log import RunLog
from spc_core.training.run_state import TrainingRun
from spc_core.training.validation import Validator, simulated_family
from spc_core.training.vote_fit import LEAST_UPDATES, write_vote_model

STATS_STEPS = 200_000  # statistics are taken over at most this many evenly spaced steps
STATS_CHUNK = 10_000  # steps read at a time


def train(dataset: str | Path, out: str | Path, config: TrainConfig, overwrite: bool = False) -> Path:
    """Train, or resume an interrupted run of the same dataset and config; returns the checkpoint's folder.

    SIGINT and SIGTERM end the current update, save, and raise KeyboardInterrupt.
    Raises DatasetError, ConfigError or TrainingError.
    """
    config.check("training config")
    with join_group(config.device) as group:
        data, out = group.leader_first(lambda: load_dataset(dataset)), Path(out)
        if len(data.tasks) < 2:
            raise DatasetError(
                f"{dataset}: holds {len(data.tasks)} task; adaptation is learnt from differences between tasks, "
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
        with stop_on_signals() as stopped, _open_log(run) as log, _open_validator(run, log) as validator:
            _loop(run, log, validator, stopped)
            group.close()  # other processes need not wait for the last evaluation
            if validator is not None and not validator.finish(config.updates, run.snapshot, stopped):
                raise KeyboardInterrupt(
                    "trained, but stopped before the evaluation of the final weights; the same command resumes it"
                )
            if group.is_leader:
                _learn_votes(run)
    return run.checkpoint_folder


def _learn_votes(run: TrainingRun) -> None:
    """Add the vote model, by which a running robot notices changes, to the checkpoints that lack it."""
    if run.config.updates < LEAST_UPDATES:
        return
    for folder in (run.checkpoint_folder, run.out / "best"):
        if folder.is_dir() and isinstance(load_vote_model(folder, weights_sha256(folder)), str):
            agent = load_checkpoint(folder).agent  # of its own weights, on the CPU
            if said := write_vote_model(folder, agent, run.stats, run.data, run.config.seed, run.config.updates):
                print(f"{folder}: {said}")


def _loop(run: TrainingRun, log: RunLog | None, validator: Validator | None, stopped: list[int]) -> None:
    """Draw, update, log, save and validate until done or stopped; saves at the end."""
    config, group, progress = run.config, run.group, run.progress
    if progress.update == config.updates:
        if group.is_leader:
            print(f"{run.out}: already trained for {config.updates} updates")
        return
    began = time.monotonic() - progress.seconds
    stop = False
    with tqdm(
        total=config.updates, initial=progress.update, desc=f"train {run.out.name}", unit="update",
        disable=not group.is_leader,
    ) as bar:  # fmt: skip
        while progress.update < config.updates and not stop:
            batch = run.sampler.batch().to(run.device)
            run.watch.add(progress.update, run.learner.update(batch, progress.update))
            progress.update += 1
            progress.seconds = time.monotonic() - began
            bar.update()

            logs = progress.update % config.log_every == 0 or progress.update == config.updates
            saves = progress.update % config.checkpoint_every == 0
            stop = run.check(bool(stopped), logs or saves)
            if logs:
                run.last_means = group.means(run.watch.take_means())
                bar.set_postfix({name: f"{mean:.3f}" for name, mean in run.last_means.items()}, refresh=False)
                if log is not None:
                    log.write(progress.update, progress.seconds, run.last_means)
            if saves:
                run.save()
            if validator is not None:
                validator.poll()
                if progress.update % config.evaluate_every == 0 and progress.update < config.updates:
                    validator.offer(progress.update, run.snapshot)
        run.save()
    if stop and progress.update < config.updates:
        raise KeyboardInterrupt(f"stopped at update {progress.update} of {config.updates}; the same command resumes")


def _open_log(run: TrainingRun) -> RunLog | nullcontext[None]:
    """The run's log, in the leading process if there is anything to log."""
    wanted = run.group.is_leader and (run.config.evaluate_every or run.progress.update < run.config.updates)
    return RunLog(run.out, run.progress.update) if wanted else nullcontext()


def _open_validator(run: TrainingRun, log: RunLog | None) -> Validator | nullcontext[None]:
    """The process that scores checkpoints, if the run has one."""
    if log is None or not run.config.evaluate_every:
        return nullcontext()
    return Validator(run.out, simulated_family(run.data.contract.name), log.write_scores)


def _prepare(out: Path, overwrite: bool, group: Group) -> None:
    """Make the run's folder, without an older run if that is to be overwritten."""
    if overwrite and out.exists() and any(out.iterdir()) and not (out / "resume.pt").is_file():
        raise ConfigError(f"{out}: is not a training run, so it is not overwritten; choose another --out")
    group.wait()
    if group.is_leader:
        if overwrite and out.exists():
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
    group.wait()


def data_stats(data: PackedDataset) -> Stats:
    """Normalisation statistics of a dataset. Raises DatasetError for a constant field or an outlier."""
    steps = np.unique(np.linspace(0, data.step_count - 1, STATS_STEPS).astype(np.int64))
    refuse_outliers(data, steps)
    rows = steps + np.searchsorted(data.episode_starts, steps, side="right") - 1
    pairs = np.stack([rows, rows + 1], -1)  # read at once
    observations, _, rewards, _ = rows_of(data)
    chunks = (slice(begin, begin + STATS_CHUNK) for begin in range(0, len(steps), STATS_CHUNK))
    try:
        return compute_stats(data.contract, ((observations[pairs[p]], rewards[steps[p]]) for p in chunks))
    except ValueError as error:
        raise DatasetError(f"{data.root}: {error}") from None
