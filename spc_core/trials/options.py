# SPDX-License-Identifier: Apache-2.0
"""The options of a trial over ROS, its tasks, and the plan that identifies it when it resumes.

Each option is declared once, with its default, help text and range. The parameters of the node `trial`, the flags of
`spc trial` and the entries of plan.json are derived from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from spc_core.contract.contract import load_contract
from spc_core.deploy.checkpoint_files import ONNX_CARD, model_id, weights_sha256
from spc_core.trials.protocol import BASELINE, LIVE_PROTOCOLS, TaskLike, Trial, TrialError


def option(default: Any, help: str, low: float | None = None, high: float | None = None, plan: bool = True) -> Any:
    """A field with a range; `plan`: it is stored in plan.json, and a resumed trial must have the same value."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high, "plan": plan})


@dataclasses.dataclass(frozen=True)
class TrialSettings:
    """The options that the command and the node share."""

    family: str = option("arm_reach", "task family: its name, or the path of a family.yaml; empty: your own robot")
    contract: str = option("", "contract file or name; empty: the family's", plan=False)
    splits: tuple[str, ...] = option(("id",), "tasks to try, any of: train, val, id, ood", plan=False)
    tasks_per_split: int = option(0, "maximum number of tasks per split; 0: all", 0, 1000, plan=False)
    few_shot_sizes: tuple[int, ...] = option((100,), "transitions of a few-shot context; each size is tried")
    episodes: int = option(3, "scored episodes of each task and protocol", 1, 100_000)
    seed: int = option(0, "seed of the first scored episode", 0, 2**30)
    protocols: tuple[str, ...] = option(
        LIVE_PROTOCOLS, "no_context | zero_shot | few_shot | offline | baseline (no sim)"
    )
    shuffle: bool = option(True, "run blocks of task and protocol in an order drawn with the seed")
    operator: bool = option(
        False, "wait for ~/continue of the node trial before each episode, and for ~/success after it"
    )
    sim: bool = option(True, "the node sim resets itself; false: a robot, which an operator brings to its start")
    time_limit_s: float = option(10.0, "without sim: time limit of an episode, by the robot's stamps", 0.1, 86_400.0)
    terminated_topic: str = option("", "without sim: std_msgs/Bool, true when the robot ended its task; empty: none")
    record: bool = option(True, "record a bag of each episode and wait for it")


@dataclasses.dataclass(frozen=True)
class TrialOptions(TrialSettings):
    """All options of one trial, which are the parameters of the node `trial`."""

    task_ids: tuple[str, ...] = option((), "tasks to try instead of splits; without a sim, any names", plan=False)
    recordings: str = option("", "dataset with recordings of each task, for the protocol offline")
    drift_tasks: int = option(0, "tasks that change into one another in the drift test at the end; 0: none", 0, 1000)
    checkpoint: str = option(
        "", "identity of the checkpoint: its folder, or the SHA-256 of its weights; fixed for a trial", plan=False
    )
    out: str = option("trial", "folder for episodes.jsonl; a trial that was interrupted there is resumed", plan=False)
    silence_timeout_s: float = option(
        10.0, "fail when nothing arrives from the simulation for this long", 1.0, 3600.0, plan=False
    )

    def __post_init__(self) -> None:
        """Lists and paths become tuples and strings; ROS writes an empty list as `[""]`."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, tuple):
                object.__setattr__(self, field.name, () if list(value) == [""] else tuple(value))
            elif isinstance(value, Path):
                object.__setattr__(self, field.name, str(value))

    @classmethod
    def of(cls, source: Any, **others: Any) -> TrialOptions:
        """From the attributes of the same names, of the command's options or of a node's parameters."""
        names = [field.name for field in dataclasses.fields(cls) if hasattr(source, field.name)]
        return cls(**{name: getattr(source, name) for name in names} | others)

    def params(self) -> dict[str, Any]:
        """The parameters of the node `trial`, without empty lists, which ROS cannot express."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}
        return {name: value for name, value in values.items() if value != []}


@dataclasses.dataclass(frozen=True)
class RobotTask:
    """A task of a robot outside the families, known by its name only."""

    task_id: str
    split: str
    params: Mapping[str, float] = dataclasses.field(default_factory=lambda: MappingProxyType({}))


def make_trial(options: TrialOptions) -> Trial:
    """The trial described by the options. Raises ValueError, and TrialError for missing recordings."""
    from spc_core.tasks import find_task, make_env, tasks  # loads the simulator, which --help does not need
    from spc_core.trials.drift import NO_DRIFT

    if not options.sim and not options.operator:
        raise ValueError(
            "without a sim an operator must bring the robot to its start; set operator (spc trial: --operator), or "
            "leave sim on"
        )
    if not options.sim and options.drift_tasks:
        raise ValueError("the drift test needs a sim, which can change the task; set drift_tasks to 0")
    if options.sim and BASELINE in options.protocols:
        raise ValueError(
            "the protocol baseline is an episode of a robot's own controller; the sim has none: use --no-sim, or leave "
            "baseline out (the expert is the scale there)"
        )
    if options.task_ids:
        chosen = [find_task(task_id) if options.sim else robot_task(task_id) for task_id in options.task_ids]
    elif options.family:
        limit = options.tasks_per_split or None
        chosen = [task for split in options.splits for task in tasks(options.family, split)[:limit]]
    else:
        raise ValueError(
            "neither a family nor a task is given; set task_ids (spc trial: --tasks) to names of your own, such as "
            "bench/light bench/heavy"
        )
    trial = Trial(
        chosen, options.protocols, options.episodes, options.seed, options.few_shot_sizes, options.shuffle
    )  # fmt: skip
    if options.drift_tasks and make_env(chosen[0].task_id.split("/")[0]).terminates:
        raise ValueError(f"{options.family}: {NO_DRIFT}; set drift_tasks to 0")
    if "offline" in options.protocols:
        require_recordings(options.recordings, chosen)
    return trial


def robot_task(task_id: str) -> TaskLike:
    """The family's task of this name, or else a robot's, whose split is the middle part of a name such as a/ood/b."""
    from spc_core.tasks import SPLITS, find_task

    try:
        return find_task(task_id)
    except ValueError:
        parts = task_id.split("/")
        return RobotTask(task_id, parts[1] if len(parts) == 3 and parts[1] in SPLITS else "id")


def require_recordings(root: str, wanted: Sequence[TaskLike]) -> None:
    """Raises TrialError if the dataset lacks recordings of a task."""
    from spc_core.data.reader import stored_tasks

    if not root:
        raise TrialError("protocol 'offline' needs recordings of each task; give a dataset, or leave the protocol out")
    known = [store.entry.task_id for store in stored_tasks(Path(root)) if store.step_count]
    missing = [task.task_id for task in wanted if task.task_id not in known]
    if missing:
        raise TrialError(
            f"{root}: has no recordings of {', '.join(missing)}, which the protocol offline needs; it has "
            f"{', '.join(known[:20])}{' ...' if len(known) > 20 else ''}. Record and convert them, try those tasks, or "
            "leave the protocol out"
        )


def make_plan(options: TrialOptions, trial: Trial) -> dict[str, Any]:
    """The values that identify a trial. Raises CheckpointError for a folder without weights."""
    from spc_core.tasks import contract_file

    contract = load_contract(contract_file(options.contract, options.family))
    return {
        **{field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.metadata["plan"]},
        "checkpoint": checkpoint_name(options.checkpoint),
        "tasks": [task.task_id for task in trial.tasks],
        "contract_sha256": contract.sha256,
    }


def checkpoint_name(checkpoint: str) -> str:
    """The SHA-256 of a folder's weights, or an export's model id; any other text is already such a name."""
    folder = Path(checkpoint)
    if not checkpoint or not folder.is_dir():
        return checkpoint
    return f"export of model {model_id(folder)}" if (folder / ONNX_CARD).is_file() else weights_sha256(folder)
