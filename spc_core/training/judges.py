# SPDX-License-Identifier: Apache-2.0
"""Who scores the checkpoints of a training run: a simulation of the robot, or recordings of held-out tasks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from spc_core.assessment.recordings import Recordings, load_recordings
from spc_core.assessment.settings import Settings, Thresholds
from spc_core.assessment.verdict import too_few
from spc_core.data.dataset import DatasetError
from spc_core.data.held_out import HeldOut, choose_held_out, held_out_of, trained_on
from spc_core.data.packed import PackedDataset, load_dataset
from spc_core.data.reader import stored_tasks
from spc_core.method.config import ConfigError
from spc_core.training.judging import Judging

VALIDATION_SPLIT = "val"
TASKS = 5  # evenly spaced ones of the split
FEW_SHOT = 100  # transitions collected before a few-shot episode
EPISODES = 1  # of each task and protocol
PROTOCOLS = ("zero_shot", "few_shot")
NAMED = 20  # held-out tasks that are printed; a checkpoint's metrics name all
GAIN, OUTSIDE = "gain_over_recordings", "outside_data"

Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class Simulation:
    """Mean returns on validation tasks of a simulated family."""

    family: str
    columns = PROTOCOLS
    unit = "episode"
    name = "simulation"

    def rank(self, row: Mapping[str, Any]) -> tuple[bool, float]:
        """Of a line in validation.jsonl: the highest is best."""
        return True, row["few_shot"]

    def score(self, snapshot: Path, progress: Progress) -> dict[str, float]:
        """Mean return of each protocol, in this process."""
        from spc_core.deploy.checkpoint import load_checkpoint
        from spc_core.tasks import tasks
        from spc_core.trials.evaluate import run_in_process
        from spc_core.trials.protocol import Trial

        known = tasks(self.family, VALIDATION_SPLIT)
        count = min(TASKS, len(known))
        chosen = [known[number * len(known) // count] for number in range(count)]
        trial = Trial(chosen, PROTOCOLS, episodes=EPISODES, few_shot_sizes=(FEW_SHOT,))
        rows = [row for row in run_in_process(load_checkpoint(snapshot), trial, self.family, progress) if row.scored]
        returns = {name: [row.return_ for row in rows if row.protocol == name] for name in PROTOCOLS}
        return {name: sum(values) / len(values) for name, values in returns.items()} | {"tasks": count}


@dataclasses.dataclass(frozen=True)
class ByRecordings:
    """What the policy is worth more than recordings of held-out tasks, as `spc assess` judges it."""

    held_out: HeldOut
    columns = (GAIN, OUTSIDE)
    unit = "fit"

    @property
    def name(self) -> str:
        """Other recordings are another judge, whose scores are not compared."""
        what = json.dumps([self.held_out.sha256, *self.held_out.tasks])
        return f"recordings {hashlib.sha256(what.encode()).hexdigest()[:12]}"

    def rank(self, row: Mapping[str, Any]) -> tuple[bool, float]:
        """The highest is best: the gain, but that of a policy that leaves the data is not to be believed."""
        return row[OUTSIDE] <= Thresholds().outside, row[GAIN]

    def score(self, snapshot: Path, progress: Progress) -> dict[str, float]:
        """Mean gain of a step, and the share of ticks outside the data. Raises ValueError if it is not finite."""
        from spc_core.assessment.actions import compare_actions
        from spc_core.assessment.judged import load_judged
        from spc_core.assessment.value import gain_over_recordings

        judged, held_out = load_judged(snapshot), self.held_out
        checkpoint = judged.checkpoint
        found = load_recordings(held_out.dataset, checkpoint.contract, trained_on(checkpoint.metrics), held_out.tasks)
        gains = gain_over_recordings(judged, found, Settings(), progress)
        if not math.isfinite(mean := float(gains.mean())):
            raise ValueError(f"the gain over the recordings is {mean}")
        better = int((gains.mean(0) > 0).sum())
        return {
            GAIN: mean, OUTSIDE: compare_actions(judged, found).outside, "tasks": gains.shape[1], "tasks_better": better
        }  # fmt: skip


Judge = Simulation | ByRecordings


def to_json(judge: Judge) -> str:
    """For the process that scores."""
    if isinstance(judge, Simulation):
        return json.dumps({"family": judge.family})
    return json.dumps({"held_out": judge.held_out.as_dict()})


def from_json(text: str) -> Judge:
    values = json.loads(text)
    if "family" in values:
        return Simulation(values["family"])
    held_out = held_out_of(values)
    assert held_out is not None
    return ByRecordings(held_out)


def open_data(
    dataset: str | Path, judging: Judging, known: Collection[str] = ()
) -> tuple[PackedDataset, HeldOut | None]:
    """The training tasks of a dataset, and the recordings that the run is assessed by.

    `known` are tasks of earlier training. Raises DatasetError or ConfigError.
    """
    if judging.recordings is not None and judging.hold_out:
        raise ConfigError("--hold-out and --recordings both say what to assess by; give one of them")
    held_out: tuple[str, ...] = ()
    if judging.hold_out:
        task_ids = [store.entry.task_id for store in stored_tasks(Path(dataset))]
        held_out = choose_held_out(judging.hold_out, task_ids, known)
    data = load_dataset(dataset, held_out)
    if held_out:
        return data, HeldOut(data.root, held_out, data.sha256, separate=False)
    if judging.recordings is None:
        return data, None
    other = load_dataset(judging.recordings)
    if lines := data.contract.differences(other.contract):
        raise DatasetError(
            f"--recordings {other.root}: was converted by another contract than {data.root}:\n  " + "\n  ".join(lines)
        )
    learnt = {task.task_id for task in data.tasks} | set(known)
    tasks = tuple(task.task_id for task in other.tasks if task.task_id not in learnt)
    if not tasks:
        raise DatasetError(
            f"--recordings {other.root}: all {len(other.tasks)} tasks are training tasks; give recordings of others"
        )
    return data, HeldOut(other.root, tasks, other.sha256, separate=True)


def pick_judge(judge: str, name: str, held_out: HeldOut | None, too_little: str) -> Judge:
    """Who scores checkpoints of a contract called `name`; `too_little` says what recordings lack for it.

    Raises ConfigError where nobody can.
    """
    if judge != "recordings":
        try:
            return Simulation(simulated_family(name))
        except ConfigError as error:
            if held_out is None:
                raise ConfigError(
                    f"{error}, hold tasks out to judge by (--hold-out 4), or give --evaluate-every 0"
                ) from None
            if judge == "simulation":
                raise ConfigError(f"{error}, leave out --judge simulation, or give --evaluate-every 0") from None
    if held_out is None:
        raise ConfigError(
            "--judge recordings needs recordings of held-out tasks: --hold-out keeps some tasks out of training, "
            "--recordings names a dataset of others"
        )
    if too_little:
        raise ConfigError(
            f"evaluate_every needs more held-out recordings: {too_little}; hold out or record more, or give "
            "--evaluate-every 0"
        )
    return ByRecordings(held_out)


def simulated_family(name: str) -> str:
    """The task family that simulates a contract of this name. Raises ConfigError if there is none."""
    try:
        from spc_core.tasks import is_family
    except ImportError as error:
        raise ConfigError(
            f"evaluate_every needs a simulation, which does not load here ({error}); install mujoco and gymnasium"
        ) from None
    if not is_family(name):
        raise ConfigError(
            f"evaluate_every needs a simulation of '{name}', and no task family has that name; add one "
            "(docs/families.md)"
        )
    return name


def held_out_recordings(held_out: HeldOut, data: PackedDataset, known: Collection[str]) -> Recordings:
    """The recordings themselves."""
    learnt = [*(task.task_id for task in data.tasks), *known]
    return load_recordings(held_out.dataset, data.contract, learnt, held_out.tasks)


def too_little_text(recordings: Recordings) -> str:
    """Why they cannot say what a policy is worth; empty where they can."""
    return too_few(recordings, Thresholds()).partition(";")[0]


def held_out_text(held_out: HeldOut, recordings: Recordings, too_little: str) -> str:
    """What is held out, and what it is too little for."""
    episodes = sum(len(task.starts) for task in recordings.tasks)
    where = f" of {held_out.dataset}" if held_out.separate else ""
    named = ", ".join(held_out.tasks[:NAMED]) + (", ..." if len(held_out.tasks) > NAMED else "")
    text = f"held out, to assess by: {len(held_out.tasks)} tasks{where}, {episodes} episodes: {named}"
    return f"{text}\n{too_little}: too little to say what a policy is worth" if too_little else text


def judge_text(judge: Judge) -> str:
    """Who scores checkpoints."""
    if isinstance(judge, Simulation):
        return f"evaluations: by simulation of {judge.family}"
    return "evaluations: by the held-out recordings; best is what gains most over them, within the data"
