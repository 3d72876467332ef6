# SPDX-License-Identifier: Apache-2.0
"""Assesses a run by recordings of tasks that it was not trained on; writes nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spc_core.assessment.actions import Actions, compare_actions
from spc_core.assessment.foresight import Foresight, foresee
from spc_core.assessment.identify import Identification, identify
from spc_core.assessment.judged import Judged, load_judged
from spc_core.assessment.recordings import Recordings, load_recordings
from spc_core.assessment.settings import Settings, Thresholds
from spc_core.assessment.value import Values, value
from spc_core.assessment.verdict import Verdict, judge, too_few
from spc_core.data.dataset import DatasetError
from spc_core.data.held_out import HeldOut, held_out_of, trained_on
from spc_core.data.packed import packed_sha256


@dataclasses.dataclass(frozen=True)
class Assessment:
    """Everything that was found."""

    run: str
    judged: Judged
    recordings: Recordings
    values: Values | None  # None: too little data
    actions: Actions
    identification: Identification | None
    foresight: Foresight | None
    verdict: Verdict

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.judged.notes, *self.recordings.notes)

    def as_dict(self) -> dict[str, Any]:
        """All numbers, for JSON; what is not known is None."""
        return {
            "run": self.run,
            "recordings": str(self.recordings.root),
            "method": self.judged.checkpoint.config.method.name,
            "update": self.judged.checkpoint.metrics.get("update"),
            "notes": list(self.notes),
            "verdict": {
                "word": self.verdict.word,
                "code": self.verdict.code,
                "checks": [dataclasses.asdict(check) for check in self.verdict.checks],
            },
            "value": None if self.values is None else _value_dict(self.values),
            "actions": dataclasses.asdict(self.actions),
            "identification": None if self.identification is None else dataclasses.asdict(self.identification),
            "foresight": None if self.foresight is None else dataclasses.asdict(self.foresight),
        }

    def to_json(self) -> str:
        return json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n"

    def text(self) -> str:
        """For people, at a terminal."""
        recordings = self.recordings
        episodes = sum(len(task.starts) for task in recordings.tasks)
        steps = sum(len(task.rewards) for task in recordings.tasks)
        lines = [f"{self.run} by {len(recordings.tasks)} tasks, {episodes} episodes, {steps:,} transitions"]
        lines += [f"note: {note}" for note in self.notes]
        width = max(len(check.name) for check in self.verdict.checks)
        lines += [f"{check.name:{width}}  {check.result:9}  {check.text}" for check in self.verdict.checks]
        lines.append(f"Would I let it drive? {self.verdict.word}.")
        return "\n".join(lines)


def assess(
    run: str | Path,
    recordings: str | Path | None = None,
    settings: Settings | None = None,
    thresholds: Thresholds | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Assessment:
    """Assess a run's checkpoint by a dataset, or else by the tasks that were held out of its training.

    Raises CheckpointError, DatasetError or ConfigError for what cannot be assessed.
    """
    settings, thresholds = settings or Settings(), thresholds or Thresholds()
    settings.check()
    judged = load_judged(run)
    metrics, only = judged.checkpoint.metrics, ()
    if recordings is None:
        own = _own_recordings(run, metrics)
        recordings, only, notes = own.dataset, own.tasks, list(judged.notes)
        if among := metrics.get("chosen_among"):
            notes.append(
                f"the best of {among} checkpoints by these same recordings, so it looks a little better than it is"
            )
        if packed_sha256(own.dataset) != own.sha256:
            notes.append(
                f"{own.dataset} has changed, or was copied, since training: these may be other recordings than those "
                "held out then"
            )
        judged = dataclasses.replace(judged, notes=tuple(notes))
    found = load_recordings(recordings, judged.checkpoint.contract, trained_on(metrics), only)
    values = None
    if not too_few(found, thresholds):
        values = value(judged, found, settings, progress)
    actions, identification = compare_actions(judged, found), identify(judged, found)
    verdict = judge(found, values, actions, identification, thresholds)
    return Assessment(str(run), judged, found, values, actions, identification, foresee(judged, found), verdict)


def _own_recordings(run: str | Path, metrics: dict[str, Any]) -> HeldOut:
    own = held_out_of(metrics)
    if own is None:
        raise DatasetError(
            f"{run}: no task was held out of its training; give --recordings of tasks that it was not trained on, or "
            "train with --hold-out"
        )
    if not own.dataset.is_dir():
        raise DatasetError(
            f"{run}: {len(own.tasks)} tasks were held out, but their dataset {own.dataset} is not there; give "
            "--recordings"
        )
    return own


def _value_dict(values: Values) -> dict[str, Any]:
    return {
        "steps": values.horizon.steps,
        "discount": values.horizon.discount,
        "tasks": list(values.task_ids),
        "episodes": list(values.episodes),
        "policy": {kind: float(found.mean()) for kind, found in values.policy.items()},
        "policy_by_task": {kind: found.mean(0).tolist() for kind, found in values.policy.items()},
        "in_doubt_by_task": {kind: found.mean(0).tolist() for kind, found in values.in_doubt.items()},
        "behaviour": float(values.behaviour.mean()),
        "behaviour_by_task": values.behaviour.mean(0).tolist(),
        "recorded": values.recorded.tolist(),
        "judge_error": values.judge_error,
        "fitted_by_task": values.fitted.mean(0).tolist(),
        "better": dataclasses.asdict(values.better),
        "better_by_task": values.gain().mean(0).tolist(),
    }
