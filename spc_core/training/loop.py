# SPDX-License-Identifier: Apache-2.0
"""The loop of training: draw, update, log, save and validate, of one run or of several seeds side by side."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from spc_core.data.sampler import rows_for
from spc_core.method.agent import Batch
from spc_core.method.config import ConfigError
from spc_core.method.stacked import StackedLearner, bytes_of_update, stacks
from spc_core.training.run_log import RunLog
from spc_core.training.run_state import TrainingError, TrainingRun
from spc_core.training.threads import torch_threads
from spc_core.training.validation import Validator


@dataclasses.dataclass(frozen=True)
class Seat:
    """A run in the loop, and what goes along with it."""

    run: TrainingRun
    log: RunLog | None
    validator: Validator | None

    def write(self, logs: bool, saves: bool) -> None:
        """After an update: the log's line, the checkpoint, and a snapshot to validate."""
        run, config, done = self.run, self.run.config, self.run.progress.update
        if logs:
            run.last_means = run.group.means(run.watch.take_means())
            if self.log is not None:
                self.log.write(done, run.progress.seconds, run.last_means)
        if saves:
            run.save()
        if self.validator is not None:
            self.validator.poll()
            if done % config.evaluate_every == 0 and not run.done:
                self.validator.offer(done, run.snapshot)


def train_together(seats: Sequence[Seat], stopped: list[int]) -> list[TrainingError]:
    """Train all runs to their end; returns the failures of those that did not get there.

    Runs that are behind catch up first, so that all make the same update at the same time. The failure of a run that
    is alone is raised. Raises KeyboardInterrupt, after saving, when `stopped`.
    """
    config, failures = seats[0].run.config, []
    if all(seat.run.done for seat in seats) and seats[0].run.group.is_leader:
        for seat in seats:
            print(f"{seat.run.out}: already trained for {config.updates} updates")
    total, name = config.updates * len(seats), seats[0].run.out
    with tqdm(
        total=total, initial=sum(seat.run.progress.update for seat in seats), unit="update",
        desc=f"train {name.name if len(seats) == 1 else f'{name.parent.name}, {len(seats)} seeds'}",
        disable=not seats[0].run.group.is_leader or all(seat.run.done for seat in seats),
    ) as bar:  # fmt: skip
        waiting = [seat for seat in seats if not seat.run.done]
        if waiting and not config.threads and seats[0].run.group.is_leader:
            tqdm.write(f"CPU threads: {waiting[0].run.threads}; --threads takes another number")
        while waiting:
            behind = min(seat.run.progress.update for seat in waiting)
            together = [seat for seat in waiting if seat.run.progress.update == behind]
            ahead = [seat.run.progress.update for seat in waiting if seat.run.progress.update > behind]
            if not _stacked([seat.run for seat in together]):
                together, ahead = together[:1], []
            with torch_threads(together[0].run.threads):
                failed = _train_until(together, min(ahead, default=config.updates), bar, stopped)
            if failed and len(seats) == 1:
                raise failed[together[0].run]
            failures += failed.values()
            waiting = [seat for seat in waiting if not seat.run.done and seat.run not in failed]
    return failures


def _train_until(seats: list[Seat], until: int, bar: tqdm, stopped: list[int]) -> dict[TrainingRun, TrainingError]:
    """Train runs that are equally far up to an update; returns after the first failure, with the others saved."""
    runs, config = [seat.run for seat in seats], seats[0].run.config
    for run in runs:
        run.threads = runs[0].threads
    update, share = _updater(runs)
    failed: dict[TrainingRun, TrainingError] = {}
    stop, began_s = False, time.monotonic()
    while runs[0].progress.update < until and not stop and not failed:
        number = runs[0].progress.update
        for run, losses in zip(runs, update([run.sampler.batch().to(run.device) for run in runs], number), strict=True):
            run.watch.add(number, losses)
        spent_s, began_s = time.monotonic() - began_s, time.monotonic()
        logs = (number + 1) % config.log_every == 0 or number + 1 == config.updates
        saves = (number + 1) % config.checkpoint_every == 0 or number + 1 == until
        for run in runs:
            run.progress.update += 1
            run.progress.seconds += spent_s / len(runs)
            try:
                stop = run.check(bool(stopped), logs or saves) or stop
            except TrainingError as error:
                failed[run] = error
        bar.update(len(runs))
        saves = saves or stop or bool(failed)
        if saves:
            share()
        for seat in seats:
            if seat.run not in failed:
                seat.write(logs, saves)
        if logs:
            bar.set_postfix({name: f"{mean:.3f}" for name, mean in runs[-1].last_means.items()}, refresh=False)
    if stop and runs[0].progress.update < config.updates:
        done = runs[0].progress.update
        raise KeyboardInterrupt(f"stopped at update {done} of {config.updates}; the same command resumes")
    return failed


def _updater(
    runs: Sequence[TrainingRun],
) -> tuple[Callable[[list[Batch], int], list[dict[str, Tensor]]], Callable[[], None]]:
    """The update of all runs at once, and what must be called before they are saved."""
    if not _stacked(runs):
        (run,) = runs
        return lambda batches, number: [run.learner.update(batches[0], number)], lambda: None
    _check_memory(runs)
    stack = StackedLearner([run.learner for run in runs], rows_for([run.sampler for run in runs]))
    return stack.update, stack.share


def _stacked(runs: Sequence[TrainingRun]) -> bool:
    """Whether the runs train as a stack, which does not share a batch with other processes."""
    run = runs[0]
    return run.group.world == 1 and stacks(run.config, len(runs), run.device.type)


def _check_memory(runs: Sequence[TrainingRun]) -> None:
    """Say what the stack takes. Raises ConfigError where that is more than there is."""
    run = runs[0]
    sampler = copy.copy(run.sampler)
    sampler.rng = np.random.default_rng(0)
    each = bytes_of_update(run.learner, sampler.batch().to(run.device))
    free = _free_bytes(run.device)
    text = f"{len(runs)} seeds as one model take about {len(runs) * each / 2**20:,.0f} MiB"
    if free is not None and len(runs) * each > free:
        raise ConfigError(
            f"{text}, but {free / 2**20:,.0f} MiB are free; train at most {free // each} --seeds at a time, "
            "or with --compile off one after the other"
        )
    if len(runs) > 1:
        tqdm.write(f"{text}; compiling takes minutes the first time")


def _free_bytes(device: torch.device) -> int | None:
    """Memory that is free for the stack; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
