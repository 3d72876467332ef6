# SPDX-License-Identifier: Apache-2.0
"""The policy's actions in recorded situations: how far from the recorded ones, from all data, and from the limits."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from spc_core.assessment.judged import Judged, evenly
from spc_core.assessment.recordings import Recordings, TaskRecording
from spc_core.assessment.value import KINDS, MOST_UNITS, zs_of

QUERIES = 400  # situations of a task
NEIGHBOURS = 30  # similar situations of other episodes, of all tasks
USUAL = 0.95  # share of the recorded actions that are as near to what was done in similar situations
NEAR_LIMIT = 0.01  # of a field's range
MOST_ROWS = 20_000  # recorded transitions among which similar ones are sought


@dataclasses.dataclass(frozen=True)
class Actions:
    """Shares of ticks and distances, mean over tasks; distances in [-1, 1] units of each field, root mean square."""

    distance: dict[str, float]  # to the recorded action, with each z
    change: float | None  # of the action from own z to another task's; None: z is always 0
    outside: float  # share of ticks further from what was done in similar situations than recorded actions usually are
    outside_recorded: float  # the same of recorded actions
    at_limits: float  # share of ticks with a field at its limit
    at_limits_recorded: float
    too_fast: float  # share of ticks with a field that changes faster than the contract's rate
    too_fast_recorded: float


def compare_actions(judged: Judged, recordings: Recordings) -> Actions:
    """On every recorded tick, but similar situations for QUERIES ticks of each task."""
    tasks, stats = recordings.tasks, judged.checkpoint.stats
    zs = zs_of(judged, tasks)
    kinds = KINDS[: len(zs[0])]
    seen = [np.clip(stats.observation(task.observations)[:, ~stats.ignored], -MOST_UNITS, MOST_UNITS) for task in tasks]
    acted = [stats.action(task.actions).astype(np.float64) for task in tasks]
    data = _Data.of(tasks, seen, acted)
    rows = []
    for number, (task, own) in enumerate(zip(tasks, zs, strict=True)):
        would = [judged.act(task.observations, z) for z in own]
        chosen = evenly(len(acted[number]), QUERIES)
        usual = data.distances(number, seen[number][chosen], task.episode[chosen], acted[number][chosen])
        ours = data.distances(number, seen[number][chosen], task.episode[chosen], would[0][chosen])
        edge = np.quantile(usual, USUAL)
        rate = np.asarray(recordings.contract.action.max_rate) / recordings.contract.rate_hz / stats.action_span * 2
        rows.append(
            [
                *(_rms(one - acted[number]) for one in would),
                _rms(would[0] - would[-1]),
                (ours > edge).mean(),
                (usual > edge).mean(),
                *(_at_limits(one) for one in (would[0], acted[number])),
                *(_too_fast(one, task, rate) for one in (would[0], acted[number])),
            ]
        )
    means = [float(value) for value in np.mean(rows, 0)]
    change, *shares = means[len(kinds) :]
    return Actions(dict(zip(kinds, means, strict=False)), change if len(kinds) > 1 else None, *shares)


@dataclasses.dataclass(frozen=True)
class _Data:
    """Recorded situations and actions of all tasks."""

    seen: torch.Tensor  # (M, O)
    acted: torch.Tensor  # (M, A)
    episode: np.ndarray  # (M, 2) task and episode

    @classmethod
    def of(cls, tasks: tuple[TaskRecording, ...], seen: list[np.ndarray], acted: list[np.ndarray]) -> _Data:
        episode = np.concatenate([np.stack([np.full(len(t.episode), n), t.episode], -1) for n, t in enumerate(tasks)])
        kept = evenly(len(episode), MOST_ROWS)
        return cls(
            torch.from_numpy(np.concatenate(seen)[kept].astype(np.float32)),
            torch.from_numpy(np.concatenate(acted)[kept].astype(np.float32)),
            episode[kept],
        )

    def distances(self, task: int, seen: np.ndarray, episode: np.ndarray, action: np.ndarray) -> np.ndarray:
        """(Q,) from actions (Q, A) to the nearest that was done in similar situations of other episodes."""
        far = torch.cdist(torch.from_numpy(seen.astype(np.float32)), self.seen)
        own = (self.episode[:, 0] == task) & (self.episode[:, 1] == episode[:, None])
        far[torch.from_numpy(own)] = torch.inf
        near = far.topk(min(NEIGHBOURS, max(1, far.shape[1] - 1)), largest=False).indices
        apart = self.acted[near] - torch.from_numpy(action.astype(np.float32))[:, None]
        return apart.square().mean(-1).sqrt().amin(-1).numpy()


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _at_limits(actions: np.ndarray) -> float:
    return float((np.abs(actions) > 1 - 2 * NEAR_LIMIT).any(1).mean())


def _too_fast(actions: np.ndarray, task: TaskRecording, rate: np.ndarray) -> float:
    """Of consecutive actions of one episode; `rate` (A,) is the most that each may change in a tick."""
    together = ~task.last[:-1]
    change = np.abs(np.diff(actions, axis=0))[together]
    return float((change > rate * (1 + 1e-6)).any(1).mean()) if len(change) else 0.0
