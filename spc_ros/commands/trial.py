# SPDX-License-Identifier: Apache-2.0
"""Score a trained run on held-out tasks over ROS 2, node by node."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, TypeVar, get_type_hints

import tyro

from spc_core.trials.options import TrialOptions, TrialSettings
from spc_ros.progress_bar import Bar

T = TypeVar("T")
FLAG_ORDER = (  # of the command line stored in a report; options not named here follow
    "run", "out", "contract", "family", "tasks", "splits", "tasks_per_split", "few_shot_sizes", "episodes", "seed",
    "protocols", "recordings", "shuffle", "operator", "sim", "time_limit_s", "terminated_topic", "device",
)  # fmt: skip


def with_help(kind: type[T]) -> type[T]:
    """Show the help text in the metadata of a dataclass's fields."""
    types = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if text := field.metadata.get("help"):
            kind.__annotations__[field.name] = Annotated[types[field.name], tyro.conf.arg(help=text)]
    return kind


@with_help
@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial(TrialSettings):
    """Score a trained run on held-out tasks over ROS 2: sim or a robot, context encoder, policy, recorder, trial.

    The same command resumes a trial that was interrupted, from the files in its folder.

    examples:
      spc trial run --out trial
      spc trial run --out trial --no-sim --operator --tasks light heavy
    """

    run: tyro.conf.Positional[Path]  # training run or checkpoint
    out: Path  # folder for episodes.jsonl, bags/, log/ and report.html
    family: str = ""  # task family, or the path of a family.yaml; default: the name of the checkpoint's contract
    tasks: tuple[str, ...] = ()  # task ids, instead of splits; with --no-sim any names
    splits: tuple[str, ...] = ("id", "ood")  # held-out tasks: id, ood; val to choose settings by
    few_shot_sizes: tuple[int, ...] = (25, 100, 200)  # transitions collected before a few-shot episode
    recordings: Path | None = None  # for offline: a dataset, or bags, with recordings of each task
    device: str = "cpu"  # device of the networks: cpu, cuda or auto
    camera: str = ""  # the sim's camera for stills on the page: one of the model, or free; empty: none
    drift: bool = True  # add the drift test, where the sim changes its task in mid-episode


def run(options: Trial) -> int:
    from spc_core.deploy.checkpoint_files import checkpoint_folder
    from spc_core.deploy.deployable import load_deployed
    from spc_core.tasks import family_of, find_family, is_family
    from spc_core.trials.drift import NO_DRIFT
    from spc_core.trials.scores import score, table
    from spc_ros.trials.provenance import command_line
    from spc_ros.trials.trial import DRIFT_TASKS, STILLS_HZ, recordings_dataset, run_trial
    from spc_ros.trials.trial_report import report_trial

    name = options.family or load_deployed(options.run).contract.name
    found = None  # of a robot outside the families
    if options.family:
        found = find_family(options.family)
    elif options.sim or is_family(name):
        found = family_of(name)
    ends_early = found is not None and found.make(None).terminates
    if options.drift and options.sim and ends_early:
        print(f"{name}: {NO_DRIFT}")
    trained_by = checkpoint_folder(options.run) / "contract.yaml"
    asked = TrialOptions.of(
        options, family=found.reference if found else "", checkpoint=str(options.run), task_ids=options.tasks,
        recordings=recordings_dataset(options.recordings, options.out, trained_by),
        drift_tasks=DRIFT_TASKS if options.drift and options.sim and not ends_early else 0,
        contract=options.contract or ("" if found else str(trained_by)),
    )  # fmt: skip
    camera = None
    if options.camera:
        from spc_core.tasks.camera import CameraConfig  # loads the simulator, which a robot lacks

        camera = CameraConfig(options.camera, STILLS_HZ)
    with Bar(f"trial {options.run}", "episode") as bar:
        rows = run_trial(asked, options.device, camera, progress=bar)
    print(f"episodes: {options.out / 'episodes.jsonl'}, bags: {options.out / 'bags'}")
    if "no_context" not in options.protocols:
        print("no table and no page, whose zero would be the protocol no_context")
        return 0
    name, command = found.name if found else name, command_line("trial", options, FLAG_ORDER)
    report = report_trial(options.run, name, options.out, rows, command)
    print(table(score(report.results, report.experts)))
    print(f"report: {options.out / 'report.html'}  (open it in a browser)")
    return 0
