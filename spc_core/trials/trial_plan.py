# SPDX-License-Identifier: Apache-2.0
"""What a trial over ROS is asked to do: its options, its tasks, and the plan by which it is known again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from spc_core.contract.contract import load_contract
from spc_core.data.reader import stored_tasks
from spc_core.deploy.adaptation import LIVE_PROTOCOLS, TaskLike, Trial, TrialError
from spc_core.deploy.checkpoint_files import ONNX_CARD, model_id, weights_sha256
from spc_core.system.config_files import find_config
from spc_core.tasks import SPLITS, find_task, tasks

SAME = (  # what makes it this trial and no other, beside tasks, contract and weights
    *("family", "protocols", "few_shot_sizes", "episodes", "seed", "shuffle", "record", "operator"),
    *("sim", "recordings", "time_limit_s", "terminated_topic", "drift_tasks"),
)


@dataclasses.dataclass(frozen=True)
class TrialOptions:
    """The options of one trial; a subset of the parameters of the node `trial`, by the same names."""

    family: str
    checkpoint: str  # folder, or the SHA-256 of its weights
    out: str
    contract: str = ""  # file or name; empty: the family's
    splits: tuple[str, ...] = ("id",)
    task_ids: tuple[str, ...] = ()  # instead of splits
    tasks_per_split: int = 0  # 0: all
    protocols: tuple[str, ...] = LIVE_PROTOCOLS
    few_shot_sizes: tuple[int, ...] = (100,)
    episodes: int = 3
    seed: int = 0
    shuffle: bool = True
    operator: bool = False
    record: bool = True
    sim: bool = True  # off: a robot, which a human brings to its start
    recordings: str = ""  # dataset for the protocol offline
    time_limit_s: float = 10.0  # of an episode without sim
    terminated_topic: str = ""  # of a robot, std_msgs/Bool; empty: none
    drift_tasks: int = 0  # tried tasks that change into one another at the end; 0: no drift test
    silence_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # lists and paths are as good
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
            elif isinstance(value, Path):
                object.__setattr__(self, field.name, str(value))

    def params(self) -> dict[str, Any]:
        """The parameters of the node `trial`. ROS knows no empty list, so empty ones are left out."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}
        return {name: value for name, value in values.items() if value != []}


@dataclasses.dataclass(frozen=True)
class RobotTask:
    """A task of a robot that no family describes: all that is known is its name."""

    task_id: str
    split: str
    params: Mapping[str, float] = dataclasses.field(default_factory=lambda: MappingProxyType({}))


def make_trial(options: Any) -> Trial:
    """The trial of a TrialOptions, or of a node's parameters of the same names. Raises ValueError."""
    ids = [task_id for task_id in options.task_ids if task_id]
    if not options.sim and not options.operator:
        raise ValueError("without a sim somebody must bring the robot to its start; set operator, or leave sim on")
    if not options.sim and options.drift_tasks:
        raise ValueError("the drift test needs a sim, which can change the task; set drift_tasks to 0")
    if ids:
        chosen = [find_task(task_id) if options.sim else robot_task(task_id) for task_id in ids]
    elif options.family:
        limit = options.tasks_per_split or None
        chosen = [task for split in options.splits for task in tasks(options.family, split)[:limit]]
    else:
        raise ValueError("there is neither a family nor a task; give task_ids, such as bench/light bench/heavy")
    trial = Trial(
        chosen, options.protocols, options.episodes, options.seed, options.few_shot_sizes, options.shuffle
    )  # fmt: skip
    if "offline" in options.protocols:
        require_recordings(options.recordings, chosen)
    return trial


def robot_task(task_id: str) -> TaskLike:
    """A task by its name: of a family, where one has it; the part between slashes, as in a/ood/b, is its split."""
    try:
        return find_task(task_id)
    except ValueError:
        parts = task_id.split("/")
        return RobotTask(task_id, parts[1] if len(parts) == 3 and parts[1] in SPLITS else "id")


def require_recordings(root: str, wanted: Sequence[TaskLike]) -> None:
    """Raises TrialError where the dataset lacks recordings of a task."""
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


def make_plan(options: Any, trial: Trial) -> dict[str, Any]:
    """What makes it this trial and no other. Raises CheckpointError for a folder without weights."""
    contract = load_contract(find_config("contracts", options.contract or options.family))
    return {
        **{name: _plain(getattr(options, name)) for name in SAME},
        "checkpoint": checkpoint_name(options.checkpoint),
        "tasks": [task.task_id for task in trial.tasks],
        "contract_sha256": contract.sha256,
    }


def checkpoint_name(checkpoint: str) -> str:
    """The SHA-256 of the weights in a folder, or what an export came from; what is no folder is a name already."""
    folder = Path(checkpoint)
    if not checkpoint or not folder.is_dir():
        return checkpoint
    return f"export of model {model_id(folder)}" if (folder / ONNX_CARD).is_file() else weights_sha256(folder)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value
