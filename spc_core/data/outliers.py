# SPDX-License-Identifier: Apache-2.0
"""Detection of values that would break training, before it starts and when it fails."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from spc_core.data.dataset import DatasetError
from spc_core.data.packed import PackedDataset, rows_of
from spc_core.method.agent import Batch

LARGEST = 1e15  # in the contract's units; the squares of larger values do not add up in float32
CHUNK_STEPS = 10_000


def refuse_outliers(data: PackedDataset, steps: np.ndarray) -> None:
    """Look at the observations, actions and rewards of some steps, in rising order.

    Raises DatasetError naming the first one that is not finite or too large, and where it is.
    """
    names = data.contract.observation_names
    fields = data.contract.action.fields
    observations, actions, rewards, _ = rows_of(data)
    for begin in range(0, len(steps), CHUNK_STEPS):
        chosen = steps[begin : begin + CHUNK_STEPS]
        episodes = np.searchsorted(data.episode_starts, chosen, side="right") - 1
        _refuse(data, observations[chosen + episodes], chosen, [f"observation {name}" for name in names])
        _refuse(data, actions[chosen], chosen, [f"action {name}" for name in fields])
        _refuse(data, rewards[chosen][:, None], chosen, ["the reward"])


def _refuse(data: PackedDataset, values: np.ndarray, steps: np.ndarray, names: Sequence[str]) -> None:
    """`values` (N, F) of `steps` (N,), the columns called `names`."""
    bad = np.argwhere(~(np.abs(values) <= LARGEST))  # NaN is not smaller than anything
    if len(bad):
        row, column = bad[0]
        step, value = int(steps[row]), values[row, column]
        episode = int(np.searchsorted(data.episode_starts, step, side="right")) - 1
        task = int(data.episode_task[episode])
        number = int(np.count_nonzero(data.episode_task[:episode] == task))  # within its task
        raise DatasetError(
            f"{data.root}: {names[column]} is {value:g} at step {step - data.episode_starts[episode]} of "
            f"episode {number} of task {data.tasks[task].task_id}; repair or leave out that recording, convert again"
        )


def describe(batch: Batch, task_ids: Sequence[str]) -> str:
    """Which tasks are in a batch, and for each field its largest magnitude, whose it is, and what is not finite."""
    tasks = [task_ids[int(index)] for index in batch.task.tolist()]
    lines = [f"its batch holds the tasks {', '.join(tasks)}"]
    for field in dataclasses.fields(batch):
        values = getattr(batch, field.name)
        if values.dim() < 3 or not values.is_floating_point():  # indices
            continue
        largest = values.abs().nan_to_num(nan=math.inf, posinf=math.inf).flatten(1).amax(1)  # of each task
        bad = int(values.isfinite().logical_not().sum())
        odd = f", {bad} of {values.numel()} not finite" if bad else ""
        finite = values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs().max()
        lines.append(f"{field.name} up to {float(finite):.3g} on unit scale{odd} ({tasks[int(largest.argmax())]})")
    return "\n  ".join(lines)
