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
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

PROTOCOLS = ("no_context", "zero_shot", "few_shot", "offline")
LIVE_PROTOCOLS = PROTOCOLS[:3]  # those that need no recordings of the task
COLLECT = "collect"  # protocol of the unscored episodes in which a few-shot context is gathered
COLLECT_SEED_OFFSET = 10_000
COLLECT_PATIENCE = 3  # collection episodes in a row without a new transition before the trial gives up
ATTEMPTS = 5  # at an episode that is broken off again and again, before the trial gives up
TRAJECTORY_COUNTS = (0, 1, 2, 3, 5, 7, 10, 14, 20, 28, 40, 56, 80, 112, 160, 226, 320, 453, 640, 905)


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
    """One episode to run: arrange_context() first, then the robot's reset."""

    task: TaskLike
    protocol: str  # no_context | zero_shot | few_shot | offline | collect
    k: int  # transitions a few-shot context is made of; 0 in other protocols
    episode: int  # counts from 0 within its task, protocol and k
    seed: int
    reset_context: bool
    mode: str  # of the ContextTracker: online | collect | frozen
    limit: int | None  # most transitions in the context


class ContextControl(Protocol):
    """What a driver can do to the context that the policy acts on."""

    def reset_context(self) -> None:
        """Back to the prior."""

    def set_context_mode(self, mode: str, limit: int | None) -> None:
        """Mode of the ContextTracker, and most transitions in the context."""

    def load_context(self, task_id: str) -> None:
        """Fill the context from recordings of the task, whatever the mode."""


def arrange_context(request: EpisodeRequest, control: ContextControl) -> None:
    """What the policy knows of the task before the episode starts: the one place that decides it."""
    if request.reset_context:
        control.reset_context()
    control.set_context_mode(request.mode, request.limit)
    if request.reset_context and request.protocol == "offline":
        control.load_context(request.task.task_id)


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
    success: bool | None = None  # of the task, by the family or the operator; None: nobody can tell
    aborted: str = ""  # why the episode does not count, such as an emergency stop
    trajectory: Sequence[Any] = ()  # (count, context) on the way, at TRAJECTORY_COUNTS
    latency: Mapping[str, int] = dataclasses.field(default_factory=dict)  # ticks from state to command, by us


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeResult(Outcome):
    """One row of a trial's table: which episode it was, and its outcome, in the types that JSON gives back."""

    task_id: str
    split: str
    params: Mapping[str, float]
    protocol: str
    k: int
    episode: int
    seed: int

    @classmethod
    def of(cls, request: EpisodeRequest, outcome: Outcome) -> EpisodeResult:
        task = request.task
        which = {"task_id": task.task_id, "split": task.split, "params": dict(task.params)}
        which |= {name: getattr(request, name) for name in ("protocol", "k", "episode", "seed")}
        numbers = {"return_": float(outcome.return_), "seconds": round(outcome.seconds, 4)}
        return cls.from_json(json.dumps({**which, **vars(outcome), **numbers}))

    @property
    def scored(self) -> bool:
        return self.protocol != COLLECT and not self.aborted

    @property
    def block(self) -> tuple[str, str, int]:
        """Task id, protocol and K that the episode belongs to; collection belongs to few_shot."""
        return self.task_id, "few_shot" if self.protocol == COLLECT else self.protocol, self.k

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> EpisodeResult:
        return cls(**json.loads(text))


def protocol_label(protocol: str, k: int = 0) -> str:
    return f"{protocol}({k})" if protocol in ("few_shot", COLLECT) else protocol


def in_order(rows: Sequence[EpisodeResult]) -> list[EpisodeResult]:
    """Rows by task, protocol, K and episode, however their trial was shuffled; collection before what it is for."""

    def place(row: EpisodeResult) -> tuple:
        return (*row.block[:1], PROTOCOLS.index(row.block[1]), row.k, row.protocol != COLLECT, row.episode)

    return sorted(rows, key=place)


@dataclasses.dataclass(frozen=True)
class Block:
    """Episodes that belong together: one task under one protocol with one context."""

    task: TaskLike
    protocol: str
    k: int

    @property
    def key(self) -> tuple[str, str, int]:
        return self.task.task_id, self.protocol, self.k


class Trial:
    """Runs every task through every protocol; the same seeds in each, so that protocols compare pairwise."""

    def __init__(
        self,
        tasks: Sequence[TaskLike],
        protocols: Sequence[str] = LIVE_PROTOCOLS,
        episodes: int = 3,
        seed: int = 0,
        few_shot_sizes: Sequence[int] = (100,),
        shuffle: bool = False,
    ) -> None:
        """`shuffle`: blocks in an order drawn with `seed`, so that wear and warmth of a robot favour no protocol."""
        unknown = [name for name in protocols if name not in PROTOCOLS]
        if unknown:
            raise ValueError(f"protocol '{unknown[0]}' is unknown; use any of: {', '.join(PROTOCOLS)}")
        if "few_shot" in protocols and (not few_shot_sizes or min(few_shot_sizes) < 0):
            raise ValueError(f"few_shot needs context sizes of at least 0, got {list(few_shot_sizes)}")
        self.tasks, self.protocols = list(tasks), list(protocols)
        self.episodes, self.seed, self.few_shot_sizes = episodes, seed, list(dict.fromkeys(few_shot_sizes))
        self.shuffle = shuffle
        self.results: list[EpisodeResult] = []
        self._done: set[tuple[str, str, int, int]] = set()  # block and episode

    def __len__(self) -> int:
        """Scored episodes in the whole trial."""
        return len(self.blocks()) * self.episodes

    def blocks(self) -> list[Block]:
        """All blocks in the order in which they run."""
        sizes = {name: self.few_shot_sizes if name == "few_shot" else [0] for name in self.protocols}
        blocks = [Block(t, p, k) for t in self.tasks for p in PROTOCOLS if p in sizes for k in sizes[p]]
        if self.shuffle:
            random.Random(self.seed).shuffle(blocks)
        return blocks

    def resume(self, rows: Sequence[EpisodeResult]) -> list[EpisodeResult]:
        """Take over what an interrupted run of the same trial recorded; returns the rows to be done again.

        A few-shot block is kept only when it is whole: its context is lost, and episodes on two contexts would mix.
        Raises TrialError where a row is of no block of this trial.
        """
        blocks = {block.key for block in self.blocks()}
        strange = next((row for row in rows if row.block not in blocks), None)
        if strange is not None:
            raise TrialError(f"an episode of {strange.block} is not of this trial; give its folder another --out")
        scored = {(*row.block, row.episode) for row in rows if row.scored}
        whole = {key for key in blocks if all((*key, episode) in scored for episode in range(self.episodes))}

        def lost(row: EpisodeResult) -> bool:
            return row.block[1] == "few_shot" and row.block not in whole

        self.results = [row for row in rows if not lost(row)]
        self._done = {(*row.block, row.episode) for row in self.results if row.scored}
        return [row for row in rows if lost(row)]

    def requests(self) -> Iterator[EpisodeRequest]:
        """The episodes in order, but for those that are done; record() each one before asking for the next."""
        for block in self.blocks():
            left = [episode for episode in range(self.episodes) if (*block.key, episode) not in self._done]
            if left and block.protocol == "few_shot" and block.k > 0:
                yield from self._collection(block.task, block.k)
            for episode in left:
                yield from self._until_it_counts(self._scored(block, episode, first=episode == left[0]))

    def record(self, request: EpisodeRequest, outcome: Outcome) -> EpisodeResult:
        """Note what a request led to; returns its row."""
        result = EpisodeResult.of(request, outcome)
        self.results.append(result)
        return result

    def _scored(self, block: Block, episode: int, first: bool) -> EpisodeRequest:
        """zero_shot starts anew in each episode; a collected context is never reset, others once."""
        online = block.protocol == "zero_shot"
        reset = online or (first and (block.protocol != "few_shot" or block.k == 0))
        mode = "online" if online else "frozen"
        return EpisodeRequest(block.task, block.protocol, block.k, episode, self.seed + episode, reset, mode, None)

    def _until_it_counts(self, request: EpisodeRequest) -> Iterator[EpisodeRequest]:
        """The episode, and again while it is broken off."""
        for _ in range(ATTEMPTS):
            yield request
            if not (why := self._last(request).aborted):
                return
        raise TrialError(
            f"{request.task.task_id} {request.protocol}, episode {request.episode}: broken off {ATTEMPTS} times in a "
            f"row, at last by: {why}; mend that, then the same command goes on"
        )

    def _collection(self, task: TaskLike, k: int) -> Iterator[EpisodeRequest]:
        """Episodes with the prior context until k transitions are in, however many episodes that takes."""
        episode, idle, before = 0, 0, 0
        while before < k:
            seed = self.seed + COLLECT_SEED_OFFSET + episode
            request = EpisodeRequest(task, COLLECT, k, episode, seed, episode == 0, "collect", k)
            yield request
            count = self._last(request).context_count
            idle = idle + 1 if count <= before else 0
            if idle == COLLECT_PATIENCE:
                raise TrialError(
                    f"{task.task_id}: no transition was added in {idle} collection episodes "
                    f"({count} of {k} so far); look for cuts with `spc doctor` on their bags"
                )
            episode, before = episode + 1, count

    def _last(self, request: EpisodeRequest) -> EpisodeResult:
        last = self.results[-1] if self.results else None
        wanted = (request.task.task_id, request.protocol, request.k, request.episode)
        if last is None or (last.task_id, last.protocol, last.k, last.episode) != wanted:
            raise TrialError("requests() went on before the last episode was given to record()")
        return last
