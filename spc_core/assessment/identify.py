# SPDX-License-Identifier: Apache-2.0
"""How well z tells tasks apart: from how many transitions, by how much, and whether its uncertainty is true."""

from __future__ import annotations

import dataclasses

import numpy as np

from spc_core.assessment.judged import Judged
from spc_core.assessment.recordings import Recordings

COUNTS = (1, 2, 5, 10, 20, 50, 100)  # transitions in a row, from the beginning of an episode
PROMISED = 0.9  # share of the z that should lie within 1.645 standard errors of the task's
WITHIN = 1.645


@dataclasses.dataclass(frozen=True)
class Identification:
    """Of the z of single episodes against the mean z of each task's other episodes."""

    counts: tuple[int, ...]
    accuracy: tuple[float, ...]  # share of episodes whose z is nearest to their own task's
    chance: float
    within: float  # mean distance of an episode's z, of its most transitions, to its task's
    between: float  # mean distance of two tasks' z
    calibration: float | None  # share of directions of z within WITHIN standard errors; PROMISED is right
    regression: dict[str, float]  # task parameter: R^2 of a linear fit on z, leaving one task out each time
    walks: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]  # z of each task's first episode, on two axes
    means: tuple[tuple[float, float], ...]  # of the tasks, on the same axes

    @property
    def last(self) -> float:
        return self.accuracy[-1]


def identify(judged: Judged, recordings: Recordings) -> Identification | None:
    """None for a policy without a context encoder, or fewer than two tasks of two episodes."""
    tasks = [task for task in recordings.tasks if len(task.starts) > 1]
    if judged.context != "learnt" or len(tasks) < 2:
        return None
    votes = [judged.embed(task, np.arange(len(task.rewards))) for task in tasks]
    wholes = np.array([judged.z(one) for one in votes])
    counts = tuple(n for n in COUNTS if n <= max(task.lengths.max() for task in tasks))
    hits, apart, inside = np.zeros(len(counts)), [], []
    episodes = 0
    for number, (task, one) in enumerate(zip(tasks, votes, strict=True)):
        for episode, start in enumerate(task.starts):
            others = wholes.copy()
            others[number] = judged.z(one[task.episode != episode])
            own = one[start : start + task.lengths[episode]]
            zs = [judged.z(own[:count]) for count in counts]
            hits += [np.linalg.norm(others - z, axis=-1).argmin() == number for z in zs]
            apart.append(np.linalg.norm(zs[-1] - others[number]))
            if len(own) > 1:
                shown = own[: counts[-1]]
                error = judged.error(shown)
                inside.append(np.abs(zs[-1] - others[number]) <= WITHIN * error + 1e-6)
            episodes += 1
    centre = wholes.mean(0)
    axes = np.linalg.svd(wholes - centre, full_matrices=False)[2][:2].T
    distances = np.linalg.norm(wholes[:, None] - wholes[None], axis=-1)
    walks = []
    for task, one in zip(tasks, votes, strict=True):
        own = one[: task.lengths[0]]
        places = [(judged.z(own[:count]) - centre) @ axes for count in counts]
        walks.append((task.task_id, tuple(_pair(place) for place in places)))
    return Identification(
        counts=counts,
        accuracy=tuple((hits / episodes).tolist()),
        chance=1 / len(tasks),
        within=float(np.mean(apart)),
        between=float(distances[~np.eye(len(tasks), dtype=bool)].mean()),
        calibration=float(np.mean(inside)) if inside else None,
        regression=_regression([dict(task.params) for task in tasks], (wholes - centre) @ axes),
        walks=tuple(walks),
        means=tuple(_pair((z - centre) @ axes) for z in wholes),
    )


def _pair(place: np.ndarray) -> tuple[float, float]:
    return float(place[0]), float(place[1]) if len(place) > 1 else 0.0


def _regression(params: list[dict[str, float]], z: np.ndarray) -> dict[str, float]:
    """R^2 on tasks left out, of each parameter that all tasks have and that varies; none of fewer than five tasks."""
    if len(params) < 5:
        return {}
    names = [name for name in params[0] if all(name in one for one in params)]
    inputs, found = np.column_stack([np.ones(len(z)), z]), {}
    for name in names:
        target = np.array([one[name] for one in params])
        if target.std() == 0:
            continue
        missed = []
        for left in range(len(z)):
            kept = np.arange(len(z)) != left
            fit = np.linalg.lstsq(inputs[kept], target[kept], rcond=None)[0]
            missed.append(target[left] - inputs[left] @ fit)
        found[name] = float(1 - np.mean(np.square(missed)) / target.var())
    return found
