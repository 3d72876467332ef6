# SPDX-License-Identifier: Apache-2.0
"""Tasks that are kept out of training, so that a run can be assessed by them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from spc_core.data.dataset import DatasetError
from spc_core.system.atomic_files import write_atomic

LEAST_TRAINED = 2  # tasks: adaptation is learnt from differences between them
NUMBER, FOLD = re.compile(r"\d+"), re.compile(r"(\d+)/(\d+)")


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Recordings of tasks that a run is not trained on."""

    dataset: Path
    tasks: tuple[str, ...]
    sha256: str  # of the dataset
    separate: bool  # a dataset of its own, not tasks of the training dataset

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint's metrics."""
        values = dataclasses.asdict(self)
        return values | {"dataset": str(self.dataset.resolve()), "tasks": list(self.tasks)}


def held_out_of(metrics: Mapping[str, Any]) -> HeldOut | None:
    """The recordings that a checkpoint's metrics name; None where it was trained without."""
    found = metrics.get("held_out")
    if not found:
        return None
    return HeldOut(Path(found["dataset"]), tuple(found["tasks"]), found["sha256"], found["separate"])


def name_held_out(checkpoint: Path, held_out: HeldOut, chosen_among: int = 0) -> None:
    """Have a checkpoint name these recordings, which may have come, or moved, since it was written.

    `chosen_among`: how many checkpoints they have scored, of which this is the best.
    """
    file = checkpoint / "metrics.json"
    metrics = json.loads(file.read_text())
    now = metrics | {"held_out": held_out.as_dict()} | ({"chosen_among": chosen_among} if chosen_among else {})
    if now != metrics:
        write_atomic(file, json.dumps(now, indent=1))


def trained_on(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Task ids that a checkpoint has learnt from, those of the runs that it goes on from included."""
    own = [task["task_id"] for task in metrics["tasks"]]
    return tuple(dict.fromkeys([*own, *metrics.get("trained_before", ())]))


def choose_held_out(asked: Sequence[str], task_ids: Sequence[str], known: Collection[str] = ()) -> tuple[str, ...]:
    """Task ids to hold out: `asked` is a number of them, a fold as 2/5, or their ids.

    A number is spread evenly over the sorted tasks; fold k/n is every n-th task from the k-th on. Tasks that are
    `known` from an earlier training are not chosen. Raises DatasetError for what cannot be held out.
    """
    free = sorted(task for task in task_ids if task not in known)
    if len(asked) == 1 and asked[0] not in task_ids and (fold := FOLD.fullmatch(asked[0])):
        chosen = _fold(int(fold[1]), int(fold[2]), free, asked[0])
    elif len(asked) == 1 and asked[0] not in task_ids and NUMBER.fullmatch(asked[0]):
        chosen = _spread(int(asked[0]), free, bool(known))
    else:
        chosen = _named(asked, task_ids, known)
    if chosen and len(task_ids) - len(chosen) < LEAST_TRAINED:
        raise DatasetError(
            f"--hold-out {' '.join(asked)}: keeps {len(chosen)} of {len(task_ids)} tasks out of training; "
            f"at least {LEAST_TRAINED} must remain"
        )
    return chosen


def _spread(count: int, free: list[str], some_known: bool) -> tuple[str, ...]:
    if count > len(free):
        which = "tasks that the earlier run was not trained on" if some_known else "tasks"
        raise DatasetError(f"--hold-out {count}: the dataset has {len(free)} {which}; hold out fewer")
    return tuple(free[(2 * number + 1) * len(free) // (2 * count)] for number in range(count))


def _fold(number: int, folds: int, free: list[str], text: str) -> tuple[str, ...]:
    if folds < 2 or not 1 <= number <= folds:
        raise DatasetError(f"--hold-out {text}: a fold is k/n with n at least 2 and k from 1 to n, such as 1/5")
    if not (chosen := tuple(free[number - 1 :: folds])):
        raise DatasetError(f"--hold-out {text}: this fold of {len(free)} tasks is empty; use fewer folds")
    return chosen


def _named(asked: Sequence[str], task_ids: Sequence[str], known: Collection[str]) -> tuple[str, ...]:
    if missing := [name for name in asked if name not in task_ids]:
        if len(asked) > 1 and all(NUMBER.fullmatch(name) or FOLD.fullmatch(name) for name in missing):
            raise DatasetError(f"--hold-out {' '.join(asked)}: give one number of tasks, one fold as 1/5, or task ids")
        shown = ", ".join(sorted(task_ids)[:5]) + (", ..." if len(task_ids) > 5 else "")
        raise DatasetError(
            f"--hold-out: '{missing[0]}' is no task of the dataset, nor a number of tasks or a fold as 1/5; "
            f"its {len(task_ids)} tasks: {shown}"
            + "; without --hold-out, it is what --from's run held out, so convert old and new bags together, name "
            "--recordings, or give --hold-out 0" * bool(known)
        )
    if learnt := [name for name in asked if name in known]:
        raise DatasetError(
            f"--hold-out: the earlier run was trained on '{learnt[0]}', which cannot be held out any more; "
            "hold out new tasks, or train anew, without --from"
        )
    return tuple(sorted(set(asked)))
