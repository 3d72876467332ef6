# SPDX-License-Identifier: Apache-2.0
"""The drift test over ROS: the sim changes its task in mid-episode, the trial sees how the context follows.

Without announcement the context goes on as it is (`kept`); announced, the encoder starts it anew (`reset`). In
lock-step the numbers equal those of spc_core.trials.drift in one process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from spc_core.alignment.streaming import Transition
from spc_core.trials.drift import AFTER, BEFORE, DriftLog, DriftRun, drift_pairs, drift_run
from spc_core.trials.protocol import ATTEMPTS, EpisodeRequest, TaskLike
from spc_ros.node_parts.episode_driver import DriverError

PROTOCOL = "drift"
OFF = {"change_task_id": "", "change_after_steps": 0, "episode_steps": 0}  # the sim's parameters in normal episodes


@dataclasses.dataclass(frozen=True)
class Played:
    """What the trial saw of an episode."""

    seen: Sequence[Transition]
    contexts: Mapping[int, np.ndarray]  # by tick, ns
    end_ns: int
    bag: str
    spoiled: str  # why it does not count


class DriftScript:
    """Runs the changes that are not in the log yet."""

    def __init__(
        self,
        play: Callable[[EpisodeRequest, Mapping[str, Any]], Played],
        log: DriftLog,
        period_ns: int,
        before: int = BEFORE,
        after: int = AFTER,
    ) -> None:
        """`play` runs an episode with these parameters of the sim."""
        self._play, self._log, self._period_ns = play, log, period_ns
        self._before, self._after = before, after
        self._settled: dict[tuple[str, int], np.ndarray] = {}

    def run(self, tasks: Sequence[TaskLike], seed: int) -> Iterator[str]:
        """A change from each task to the one half the list away; yields after each one, with its name.

        Raises DriverError, and ValueError for fewer than two tasks.
        """
        pairs = drift_pairs(tasks, (seed,))
        for done, (first, second, _) in enumerate(pairs, 1):
            if not self._log.has(first.task_id, second.task_id, seed):
                self._log.append(self._pair(first, second, seed))
            yield f"drift {first.task_id} to {second.task_id} ({done} of {len(pairs)})"

    def _pair(self, first: TaskLike, second: TaskLike, seed: int) -> list[DriftRun]:
        """The same change, unannounced and announced; both begin alike."""
        target = self._settled_context(second, seed)
        kept, reset = (self._changed(first, second, seed, announced) for announced in (False, True))
        change_ns = kept.end_ns - self._after * self._period_ns
        start = kept.contexts[change_ns]  # announced, this one is never shown
        runs = []
        for strategy, played in (("kept", kept), ("reset", reset)):
            change_ns = played.end_ns - self._after * self._period_ns
            contexts = [played.contexts[change_ns + (i + 1) * self._period_ns] for i in range(self._after)]
            rewards = [t.reward for t in played.seen]
            run = drift_run(
                first.task_id, second.task_id, strategy, seed, start, contexts, target,
                rewards[: self._before], rewards[self._before :],
            )  # fmt: skip
            runs.append(dataclasses.replace(run, bag=played.bag))
        return runs

    def _settled_context(self, task: TaskLike, seed: int) -> np.ndarray:
        """Where the context ends up when there never was another task, (Z,)."""
        key = (task.task_id, seed)
        if key not in self._settled:
            played = self._whole(task, seed, self._after, {})
            self._settled[key] = played.contexts[played.end_ns]
        return self._settled[key]

    def _changed(self, first: TaskLike, second: TaskLike, seed: int, announced: bool) -> Played:
        change = {"change_task_id": second.task_id, "change_after_steps": self._before, "change_announced": announced}
        return self._whole(first, seed, self._before + self._after, change)

    def _whole(self, task: TaskLike, seed: int, steps: int, change: Mapping[str, Any]) -> Played:
        """An episode of so many steps, again while it breaks off or something of it was not seen."""
        request = EpisodeRequest(task, PROTOCOL, 0, 0, seed, True, "online", None)
        for _ in range(ATTEMPTS):
            played = self._play(request, {**OFF, "episode_steps": steps, **change})
            lacking = steps - len(played.seen)
            first_ns = played.end_ns - (steps - 1) * self._period_ns
            lost = [t for t in range(first_ns, played.end_ns + 1, self._period_ns) if t not in played.contexts]
            if not (played.spoiled or lacking or lost):
                return played
            why = played.spoiled or f"{lacking} transitions and {len(lost)} contexts were not seen"
        raise DriverError(f"drift test on {task.task_id}: {ATTEMPTS} episodes in a row broke off, at last by: {why}")
