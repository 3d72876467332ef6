# SPDX-License-Identifier: Apache-2.0
"""The few-shot trial: which episodes to run, with which context, and what they scored; never where they run.

    trial = Trial(tasks, protocols, episodes=3, few_shot_sizes=(50, 200))
    for request in trial.requests():
        trial.record(request, driver.run(request))

The driver is a simulation in this process or a robot behind topics.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

PROTOCOLS = ("no_context", "zero_shot", "few_shot")
COLLECT = "collect"  # protocol of the unscored episodes in which a few-shot context is gathered
COLLECT_SEED_OFFSET = 10_000
COLLECT_PATIENCE = 3  # collection episodes in a row without a new transition before the trial gives up


class TrialError(RuntimeError):
    """Why a trial cannot go on."""


class TaskLike(Protocol):
    """What a trial needs to know of a task."""

    @property
    def task_id(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def params(self) -> Mapping[str, float]: ...


@dataclasses.dataclass(frozen=True)
class EpisodeRequest:
    """One episode to run. The order: reset_context, then mode and limit, then the robot's reset."""

    task: TaskLike
    protocol: str  # no_context | zero_shot | few_shot | collect
    k: int  # transitions a few-shot context is made of; 0 in other protocols
    episode: int  # counts from 0 within its task, protocol and k
    seed: int
    reset_context: bool
    mode: str  # of the ContextTracker: online | collect | frozen
    limit: int | None  # most transitions in the context


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a driver reports about an episode."""

    return_: float  # sum of the rewards of its transitions
    steps: int  # transitions
    context: Sequence[float]  # the task vector after the last transition
    context_count: int  # transitions in it
    reason: str = ""  # why the episode ended
    bag: str = ""  # path, where one was recorded
    seconds: float = 0.0  # of real time that the episode took
    interventions: Mapping[str, int] = dataclasses.field(default_factory=dict)  # of the safety chain, by kind
    uncertainty: Sequence[float] = ()  # standard error of `context` by its transitions; empty: not told


@dataclasses.dataclass(frozen=True)
class EpisodeResult:
    """One row of a trial's table."""

    task_id: str
    split: str
    params: Mapping[str, float]
    protocol: str
    k: int
    episode: int
    seed: int
    return_: float
    steps: int
    context: list[float]
    context_count: int
    bag: str
    reason: str
    seconds: float
    interventions: Mapping[str, int]
    uncertainty: list[float] = dataclasses.field(default_factory=list)  # empty in rows older than this field

    @property
    def scored(self) -> bool:
        return self.protocol != COLLECT

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> EpisodeResult:
        return cls(**json.loads(text))


class Trial:
    """Runs every task through every protocol; the same seeds in each, so that protocols compare pairwise."""

    def __init__(
        self,
        tasks: Sequence[TaskLike],
        protocols: Sequence[str] = PROTOCOLS,
        episodes: int = 3,
        seed: int = 0,
        few_shot_sizes: Sequence[int] = (100,),
    ) -> None:
        unknown = [name for name in protocols if name not in PROTOCOLS]
        if unknown:
            raise ValueError(f"protocol '{unknown[0]}' is unknown; use any of: {', '.join(PROTOCOLS)}")
        if "few_shot" in protocols and (not few_shot_sizes or min(few_shot_sizes) < 1):
            raise ValueError(f"few_shot needs context sizes of at least 1, got {list(few_shot_sizes)}")
        self.tasks, self.protocols = list(tasks), list(protocols)
        self.episodes, self.seed, self.few_shot_sizes = episodes, seed, list(few_shot_sizes)
        self.results: list[EpisodeResult] = []

    def __len__(self) -> int:
        """Scored episodes in the whole trial."""
        runs = sum(len(self.few_shot_sizes) if name == "few_shot" else 1 for name in self.protocols)
        return len(self.tasks) * runs * self.episodes

    def requests(self) -> Iterator[EpisodeRequest]:
        """The episodes in order; record() each one before asking for the next."""
        for task in self.tasks:
            if "no_context" in self.protocols:
                yield from self._scored(task, "no_context", 0, mode="frozen", reset_until=1)
            if "zero_shot" in self.protocols:
                yield from self._scored(task, "zero_shot", 0, mode="online", reset_until=self.episodes)
            for k in self.few_shot_sizes if "few_shot" in self.protocols else ():
                yield from self._collection(task, k)
                yield from self._scored(task, "few_shot", k, mode="frozen")

    def record(self, request: EpisodeRequest, outcome: Outcome) -> EpisodeResult:
        """Note what a request led to; returns its row."""
        result = EpisodeResult(
            task_id=request.task.task_id,
            split=request.task.split,
            params=dict(request.task.params),
            protocol=request.protocol,
            k=request.k,
            episode=request.episode,
            seed=request.seed,
            return_=float(outcome.return_),
            steps=outcome.steps,
            context=[float(value) for value in outcome.context],
            context_count=outcome.context_count,
            bag=outcome.bag,
            reason=outcome.reason,
            seconds=round(outcome.seconds, 4),
            interventions=dict(outcome.interventions),
            uncertainty=[float(value) for value in outcome.uncertainty],
        )
        self.results.append(result)
        return result

    def _scored(
        self, task: TaskLike, protocol: str, k: int, mode: str, reset_until: int = 0
    ) -> Iterator[EpisodeRequest]:
        """`reset_until`: the context starts anew in so many of the first episodes."""
        for episode in range(self.episodes):
            reset = episode < reset_until
            yield EpisodeRequest(task, protocol, k, episode, self.seed + episode, reset, mode, None)

    def _collection(self, task: TaskLike, k: int) -> Iterator[EpisodeRequest]:
        """Episodes with the prior context until k transitions are in, however many episodes that takes."""
        episode, idle, before = 0, 0, 0
        while before < k:
            seed = self.seed + COLLECT_SEED_OFFSET + episode
            yield EpisodeRequest(task, COLLECT, k, episode, seed, episode == 0, "collect", k)
            count = self._last_count(task, k, episode)
            idle = idle + 1 if count <= before else 0
            if idle == COLLECT_PATIENCE:
                raise TrialError(
                    f"{task.task_id}: no transition was added in {idle} collection episodes "
                    f"({count} of {k} so far); look for cuts with `spc doctor` on their bags"
                )
            episode, before = episode + 1, count

    def _last_count(self, task: TaskLike, k: int, episode: int) -> int:
        last = self.results[-1] if self.results else None
        if last is None or (last.task_id, last.protocol, last.k, last.episode) != (
            task.task_id,
            COLLECT,
            k,
            episode,
        ):
            raise TrialError("requests() went on before the last episode was given to record()")
        return last.context_count
