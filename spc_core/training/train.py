# SPDX-License-Identifier: Apache-2.0
"""Training: dataset in, run folder out. It can be stopped at any moment and resumes where it stopped.

RUN/checkpoint/       the latest agent, ready to run (deploy/checkpoint.py); votes.json and belief.json come at the end
RUN/best/             the agent with the best score, if `evaluate_every` is set (validation.py, judges.py)
RUN/resume.pt         weights, optimisers and random states, written every `checkpoint_every` updates
RUN/log.csv           mean losses every `log_every` updates; RUN/tensorboard/ has their curves

`load_checkpoint(RUN)` loads the last, `load_checkpoint(RUN/best)` the best. Under torchrun, several processes train
together (spc_core/training/distributed.py), and only the first of them writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from spc_core.data.dataset import DatasetError
from spc_core.data.held_out import HeldOut, name_held_out, trained_on
from spc_core.data.outliers import refuse_outliers
from spc_core.data.packed import PackedDataset, rows_of
from spc_core.deploy.checkpoint import load_checkpoint
from spc_core.deploy.checkpoint_files import weights_sha256
from spc_core.deploy.task_belief import FILE as BELIEF_FILE
from spc_core.deploy.task_belief import belief_is_for
from spc_core.deploy.vote_model import load_vote_model
from spc_core.method.config import ConfigError, TrainConfig
from spc_core.method.normalize import Stats, compute_stats
from spc_core.system.allocator import keep_freed_memory
from spc_core.system.signals import stop_on_signals
from spc_core.training.belief_fit import write_task_belief
from spc_core.training.continuing import beginning_text, open_beginning
from spc_core.training.distributed import Group, join_group
from spc_core.training.fitting import batch_text, discount_text, fit_batches
from spc_core.training.judges import (
    ByRecordings,
    Judge,
    held_out_recordings,
    held_out_text,
    judge_text,
    open_data,
    pick_judge,
    too_little_text,
)
from spc_core.training.judging import Judging
from spc_core.training.loop import Seat, train_together
from spc_core.training.run_log import RunLog
from spc_core.training.run_state import TrainingError, TrainingRun
from spc_core.training.threads import torch_threads, usual_threads
from spc_core.training.validation import Validator
from spc_core.training.vote_fit import LEAST_UPDATES, write_vote_model

STATS_STEPS = 200_000  # statistics are taken over at most this many evenly spaced steps
STATS_CHUNK = 10_000  # steps read at a time
NOT_JUDGED = Judging()


def train(
    dataset: str | Path, out: str | Path, config: TrainConfig, overwrite: bool = False, earlier: Path | None = None,
    judging: Judging = NOT_JUDGED,
) -> Path:  # fmt: skip
    """Train, or resume an interrupted run of the same dataset and config; returns the checkpoint's folder.

    `earlier`: a run of the same contract and networks, from whose weights this one goes on.
    `judging`: tasks that are held out of training, and who scores the checkpoints.
    SIGINT and SIGTERM end the current update, save, and raise KeyboardInterrupt.
    Raises DatasetError, ConfigError or TrainingError.
    """
    return _train(dataset, {Path(out): config}, overwrite, earlier, judging)[0]


def train_seeds(
    dataset: str | Path, out: str | Path, config: TrainConfig, seeds: Sequence[int], overwrite: bool = False,
    earlier: Path | None = None, judging: Judging = NOT_JUDGED,
) -> list[Path]:  # fmt: skip
    """Train a run for each seed in `out`/seed-<s>, side by side where that is faster (method/stacked.py).

    Each is the run of that seed alone, up to rounding, and goes on from the same seed in `earlier`. A seed that fails
    does not stop the others. As `train` else.
    """
    if repeated := [seed for seed in seeds if list(seeds).count(seed) > 1]:
        raise ConfigError(f"--seeds has '{repeated[0]}' twice; name each once")
    runs = {Path(out) / f"seed-{seed}": dataclasses.replace(config, seed=seed) for seed in seeds}
    return _train(dataset, runs, overwrite, earlier, judging)


def _train(
    dataset: str | Path, configs: Mapping[Path, TrainConfig], overwrite: bool, earlier: Path | None, judging: Judging
) -> list[Path]:
    """Train runs that differ in their seeds alone, by folder; returns the checkpoints' folders."""
    config = next(iter(configs.values()))
    config.check("training config")
    with join_group(config.device) as group, contextlib.ExitStack() as opened:
        begun_from = {} if earlier is None else {out: _earlier_run(earlier, out, len(configs)) for out in configs}
        known = {task for run in begun_from.values() for task in trained_on(load_checkpoint(run).metrics)}
        data, held_out = group.leader_first(lambda: open_data(dataset, judging, known))
        if group.world > 1 and len(configs) > 1:
            raise ConfigError("--seeds trains in one process; under torchrun, train one --seed at a time")
        if len(data.tasks) < 2:
            raise DatasetError(
                f"{dataset}: holds {len(data.tasks)} task; adaptation is learnt from differences between tasks, "
                "so record at least two"
            )
        said, judge = _judge(data, held_out, known, config, judging)
        opened.enter_context(torch_threads(config.threads or usual_threads(config, group.device.type)))
        keep_freed_memory()
        asked, config = config, fit_batches(config, len(data.tasks))
        stats, seats = data_stats(data), []
        begun = {out: open_beginning(folder, data, config) for out, folder in begun_from.items()}
        if group.is_leader:
            print(*said, batch_text(asked, config, data), discount_text(config.loss.discount, data), sep="\n")
            for beginning in list(begun.values())[:1]:
                print(beginning_text(beginning, data, stats))
        if group.is_leader and stats.ignored.any():
            names = [name for name, none in zip(data.contract.observation_names, stats.ignored, strict=True) if none]
            print(
                f"{', '.join(names)} never changes in the data, so it is ignored; is that sensor meant to be observed?"
            )
        for out, own in configs.items():
            beginning = begun.get(out)
            own_stats = stats if beginning is None else beginning.stats
            seeded = dataclasses.replace(config, seed=own.seed)
            run = TrainingRun(data, own_stats, out, seeded, group, beginning, held_out)
            _prepare(out, overwrite, group)
            run.resume()
            log = opened.enter_context(_open_log(run, judge))
            seats.append(Seat(run, log, opened.enter_context(_open_validator(run, log, judge))))
        with stop_on_signals() as stopped:
            failures = train_together(seats, stopped)
            group.close()  # other processes need not wait for the last evaluation
            for seat in seats:
                run, validator = seat.run, seat.validator
                if run.done and validator is not None and not validator.finish(config.updates, run.snapshot, stopped):
                    raise KeyboardInterrupt(
                        "trained, but stopped before the evaluation of the final weights; the same command resumes it"
                    )
                if run.done and group.is_leader:
                    with torch_threads(run.threads):
                        _forget_belief(run)
                        _learn_votes(run)
                        _learn_belief(run)
                    if held_out is not None:
                        _name_held_out(run, held_out, validator)
    if failures:
        raise TrainingError("\n".join(map(str, failures)))
    return [seat.run.checkpoint_folder for seat in seats]


def _earlier_run(earlier: Path, out: Path, runs: int) -> Path:
    """The earlier run of the seed that `out` is for. Raises ConfigError where several would go on from one."""
    if runs == 1 and not (earlier / out.name).is_dir():
        return earlier
    if not (earlier / out.name).is_dir():
        raise ConfigError(
            f"--from {earlier}: has no folder {out.name}; --seeds goes on from a run of each seed, as --seeds wrote "
            "them, so train one --seed at a time, or choose other seeds"
        )
    return earlier / out.name


def _forget_belief(run: TrainingRun) -> None:
    """Remove what was measured of other weights, or is damaged, which would keep a checkpoint from being loaded."""
    for folder in (run.checkpoint_folder, run.out / "best"):
        if folder.is_dir() and not belief_is_for(folder, weights_sha256(folder)):
            (folder / BELIEF_FILE).unlink(missing_ok=True)


def _learn_votes(run: TrainingRun) -> None:
    """Add the vote model, by which a running robot notices changes, to the checkpoints that lack it."""
    if run.config.updates < LEAST_UPDATES:
        return
    for folder in (run.checkpoint_folder, run.out / "best"):
        if folder.is_dir() and isinstance(load_vote_model(folder, weights_sha256(folder)), str):
            agent = load_checkpoint(folder).agent  # of its own weights, on the CPU
            if said := write_vote_model(folder, agent, run.stats, run.data, run.config.seed, run.config.updates):
                print(f"{folder}: {said}")


def _learn_belief(run: TrainingRun) -> None:
    """Add the task belief, by which a running robot asks the world model for its task, to checkpoints that lack it."""
    if run.config.updates < LEAST_UPDATES:
        return
    for folder in (run.checkpoint_folder, run.out / "best"):
        if folder.is_dir() and not belief_is_for(folder, weights_sha256(folder)):
            agent = load_checkpoint(folder).agent
            if said := write_task_belief(folder, agent, run.stats, run.data, run.config.seed):
                print(f"{folder}: {said}")


def _judge(
    data: PackedDataset, held_out: HeldOut | None, known: set[str], config: TrainConfig, judging: Judging
) -> tuple[list[str], Judge | None]:
    """What is said of the held-out recordings and of the judge, and the judge, where checkpoints are to be scored."""
    said, too_little = [], ""
    if held_out is not None:
        recordings = held_out_recordings(held_out, data, known)
        too_little = too_little_text(recordings)
        said.append(held_out_text(held_out, recordings, too_little))
    if not config.evaluate_every:
        if judging.judge != "auto":
            raise ConfigError(
                f"--judge {judging.judge} says who scores checkpoints, but evaluate_every is 0; set it, or leave out "
                "--judge"
            )
        return said, None
    judge = pick_judge(judging.judge, data.contract.name, held_out, too_little)
    return [*said, judge_text(judge)], judge


def _name_held_out(run: TrainingRun, held_out: HeldOut, validator: Validator | None) -> None:
    """Have the run's checkpoints name what they are assessed by, and the best how it was chosen."""
    name_held_out(run.checkpoint_folder, held_out)
    if (best := run.out / "best").is_dir():
        rows = validator.scores() if validator is not None and isinstance(validator.judge, ByRecordings) else []
        name_held_out(best, held_out, len(rows))


def _open_log(run: TrainingRun, judge: Judge | None) -> RunLog | nullcontext[None]:
    """The run's log, in the leading process if there is anything to log."""
    wanted = run.group.is_leader and (judge is not None or run.progress.update < run.config.updates)
    return RunLog(run.out, run.progress.update, () if judge is None else judge.columns) if wanted else nullcontext()


def _open_validator(run: TrainingRun, log: RunLog | None, judge: Judge | None) -> Validator | nullcontext[None]:
    """The process that scores checkpoints, if the run has one."""
    return nullcontext() if log is None or judge is None else Validator(run.out, judge, log.write_scores)


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
    """Normalisation statistics of a dataset. Raises DatasetError for an outlier, or where nothing changes."""
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
