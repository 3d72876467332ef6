# SPDX-License-Identifier: Apache-2.0
"""The drift test over ROS: the sim changes its task within an episode, and the trial records how the context adapts.

Unannounced, the context is kept (`kept`), or the encoder has to notice (`noticed`); announced, it resets (`reset`). In
lock-step the numbers equal those of spc_core.trials.drift in one process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from spc_core.alignment.streaming import Transition
from spc_core.trials.drift import AFTER, BEFORE, NOTICED, STRATEGIES, DriftLog, DriftRun, drift_pairs, drift_run
from spc_core.trials.protocol import ATTEMPTS, EpisodeRequest, TaskLike
from spc_ros.node_parts.episode_driver import DriverError

PROTOCOL = "drift"
OFF = {"change_task_id": "", "change_after_steps": 0, "episode_steps": 0}  # the sim's parameters in normal episodes


@dataclasses.dataclass(frozen=True)
class Played:
    """The data that the trial received during an episode."""

    seen: Sequence[Transition]
    contexts: Mapping[int, np.ndarray]  # by tick, ns
    end_ns: int
    bag: str
    spoiled: str  # why the episode is invalid; empty if valid


class DriftScript:
    """Runs the task changes that are not in the log yet."""

    def __init__(
        self,
        play: Callable[[EpisodeRequest, Mapping[str, Any], bool], Played],
        log: DriftLog,
        period_ns: int,
        before: int = BEFORE,
        after: int = AFTER,
    ) -> None:
        """`play` runs an episode with the given parameters of the sim; the encoder detects changes or does not."""
        self._play, self._log, self._period_ns = play, log, period_ns
        self._before, self._after = before, after
        self._settled: dict[tuple[str, int], np.ndarray] = {}

    def run(self, tasks: Sequence[TaskLike], seed: int) -> Iterator[str]:
        """Change from each task to the one half a list away; yield a description after each change.

        Raises DriverError, and ValueError for fewer than two tasks.
        """
        pairs = drift_pairs(tasks, (seed,))
        for done, (first, second, _) in enumerate(pairs, 1):
            if not self._log.has(first.task_id, second.task_id, seed):
                self._log.append(self._pair(first, second, seed))
            yield f"drift {first.task_id} to {second.task_id} ({done} of {len(pairs)})"

    def _pair(self, first: TaskLike, second: TaskLike, seed: int) -> list[DriftRun]:
        """The same change under each strategy, from the same start."""
        target = self._settled_context(second, seed)
        start = np.empty(0)
        runs = []
        for strategy in STRATEGIES:
            played = self._change_episode(first, second, seed, strategy)
            change_ns = played.end_ns - self._after * self._period_ns
            if strategy != "reset":  # the announced run never publishes it
                start = played.contexts[change_ns]
            contexts = [played.contexts[change_ns + (i + 1) * self._period_ns] for i in range(self._after)]
            rewards = [t.reward for t in played.seen]
            run = drift_run(
                first.task_id, second.task_id, strategy, seed, start, contexts, target,
                rewards[: self._before], rewards[self._before :],
            )  # fmt: skip
            runs.append(dataclasses.replace(run, bag=played.bag))
        return runs

    def _settled_context(self, task: TaskLike, seed: int) -> np.ndarray:
        """The final context (Z,) of an episode on this task alone."""
        key = (task.task_id, seed)
        if key not in self._settled:
            played = self._episode(task, seed, self._after, {}, False)
            self._settled[key] = played.contexts[played.end_ns]
        return self._settled[key]

    def _change_episode(self, first: TaskLike, second: TaskLike, seed: int, strategy: str) -> Played:
        change = {"change_task_id": second.task_id, "change_after_steps": self._before,
                  "change_announced": strategy == "reset"}  # fmt: skip
        return self._episode(first, seed, self._before + self._after, change, strategy == NOTICED)

    def _episode(self, task: TaskLike, seed: int, steps: int, change: Mapping[str, Any], detect: bool) -> Played:
        """An episode of `steps` steps, repeated if it is aborted or some of its messages are missing."""
        request = EpisodeRequest(task, PROTOCOL, 0, 0, seed, True, "online", None)
        for _ in range(ATTEMPTS):
            played = self._play(request, {**OFF, "episode_steps": steps, **change}, detect)
            missing = steps - len(played.seen)
            first_ns = played.end_ns - (steps - 1) * self._period_ns
            missing_ticks = [t for t in range(first_ns, played.end_ns + 1, self._period_ns) if t not in played.contexts]
            if not (played.spoiled or missing or missing_ticks):
                return played
            reason = played.spoiled or f"{missing} transitions and {len(missing_ticks)} contexts were not seen"
        raise DriverError(
            f"drift test on {task.task_id}: {ATTEMPTS} episodes in a row failed, the last one because: {reason}"
        )
