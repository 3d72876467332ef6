# SPDX-License-Identifier: Apache-2.0
"""The few-shot trial: its episodes, their contexts and their results, independent of simulation or robot.

    trial = Trial(tasks, protocols, episodes=3, few_shot_sizes=(50, 200))
    for request in trial.requests():
        trial.record(request, driver.run(request))

The driver is a simulation in this process or the nodes.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

BASELINE = "baseline"  # the robot's own controller drives, and the policy rests
PROTOCOLS = ("no_context", "zero_shot", "few_shot", "offline", BASELINE)
SIM_PROTOCOLS = PROTOCOLS[:4]  # without a robot of its own controller
LIVE_PROTOCOLS = PROTOCOLS[:3]  # without recordings of the task
COLLECT = "collect"  # protocol of the unscored episodes that collect a few-shot context
COLLECT_SEED_OFFSET = 10_000
COLLECT_PATIENCE = 3  # consecutive collection episodes without a new transition before the trial fails
ATTEMPTS = 5  # at an episode that is aborted each time, before the trial fails
TRAJECTORY_COUNTS = (0, 1, 2, 3, 5, 7, 10, 14, 20, 28, 40, 56, 80, 112, 160, 226, 320, 453, 640, 905)


class TrialError(RuntimeError):
    """A trial cannot continue; the message says why."""


class TaskLike(Protocol):
    """The properties of a task that a trial needs."""

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
    protocol: str  # no_context | zero_shot | few_shot | offline | baseline | collect
    k: int  # transitions in a few-shot context; 0 in other protocols
    episode: int  # counts from 0 within its task, protocol and k
    seed: int
    reset_context: bool
    mode: str  # of the ContextTracker: online | collect | frozen
    limit: int | None  # maximum number of transitions in the context


class ContextControl(Protocol):
    """A driver's control over the context that the policy acts on."""

    def reset_context(self) -> None:
        """Reset to the prior."""

    def set_context_mode(self, mode: str, limit: int | None) -> None:
        """Set the ContextTracker's mode and the maximum number of transitions."""

    def load_context(self, task_id: str) -> None:
        """Fill the context from recordings of the task, in any mode."""


def arrange_context(request: EpisodeRequest, control: ContextControl) -> None:
    """Prepare the policy's context before an episode; all drivers use this function."""
    if request.protocol == BASELINE:
        return
    if request.reset_context:
        control.reset_context()
    control.set_context_mode(request.mode, request.limit)
    if request.reset_context and request.protocol == "offline":
        control.load_context(request.task.task_id)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A driver's report of an episode."""

    return_: float  # sum of the rewards of its transitions
    steps: int  # transitions
    context: Sequence[float]  # the task vector after the last transition
    context_count: int  # transitions in it
    reason: str = ""  # why the episode ended
    bag: str = ""  # path, if one was recorded
    seconds: float = 0.0  # real time of the episode
    interventions: Mapping[str, int] = dataclasses.field(default_factory=dict)  # of the safety chain, by kind
    uncertainty: Sequence[float] = ()  # standard error of `context`; empty: unknown
    success: bool | None = None  # judged by the family or the operator; None: unknown
    aborted: str = ""  # why the episode does not count, such as an emergency stop
    trajectory: Sequence[Any] = ()  # (count, context) at TRAJECTORY_COUNTS
    latency: Mapping[str, int] = dataclasses.field(default_factory=dict)  # ticks by upper edge of their latency, us


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeResult(Outcome):
    """One row of a trial's table: the episode and its outcome, in the types that JSON returns."""

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
        identity = {"task_id": task.task_id, "split": task.split, "params": dict(task.params)}
        identity |= {name: getattr(request, name) for name in ("protocol", "k", "episode", "seed")}
        numbers = {"return_": float(outcome.return_), "seconds": round(outcome.seconds, 4)}
        return cls.from_json(json.dumps({**identity, **vars(outcome), **numbers}))

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
    """Rows by task, protocol, K and episode, in spite of shuffling; collection before the episodes that use it."""

    def sort_key(row: EpisodeResult) -> tuple:
        return (*row.block[:1], PROTOCOLS.index(row.block[1]), row.k, row.protocol != COLLECT, row.episode)

    return sorted(rows, key=sort_key)


@dataclasses.dataclass(frozen=True)
class Block:
    """The episodes of one task under one protocol with one context."""

    task: TaskLike
    protocol: str
    k: int

    @property
    def key(self) -> tuple[str, str, int]:
        return self.task.task_id, self.protocol, self.k


class Trial:
    """Runs every task under every protocol, with the same seeds, so that protocols compare pairwise."""

    def __init__(
        self,
        tasks: Sequence[TaskLike],
        protocols: Sequence[str] = LIVE_PROTOCOLS,
        episodes: int = 3,
        seed: int = 0,
        few_shot_sizes: Sequence[int] = (100,),
        shuffle: bool = False,
    ) -> None:
        """`shuffle`: draw the order of blocks with `seed`, so that wear and warm-up of a robot favour no protocol."""
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
        self._recorded: dict[tuple[str, str, int, int], EpisodeResult] = {}  # by request, until it is looked at

    def __len__(self) -> int:
        """Number of scored episodes."""
        return len(self.blocks()) * self.episodes

    def blocks(self) -> list[Block]:
        """All blocks in running order."""
        sizes = {name: self.few_shot_sizes if name == "few_shot" else [0] for name in self.protocols}
        blocks = [Block(t, p, k) for t in self.tasks for p in PROTOCOLS if p in sizes for k in sizes[p]]
        if self.shuffle:
            random.Random(self.seed).shuffle(blocks)
        return blocks

    def resume(self, rows: Sequence[EpisodeResult]) -> list[EpisodeResult]:
        """Take over the rows of an interrupted run of the same trial; returns the rows to be repeated.

        A few-shot block is kept only if complete: its context is lost, and episodes on two contexts would mix.
        Raises TrialError for a row that belongs to no block of this trial.
        """
        blocks = {block.key for block in self.blocks()}
        unknown = next((row for row in rows if row.block not in blocks), None)
        if unknown is not None:
            raise TrialError(f"an episode of {unknown.block} is not of this trial; choose another --out")
        scored = {(*row.block, row.episode) for row in rows if row.scored}
        complete = {key for key in blocks if all((*key, episode) in scored for episode in range(self.episodes))}

        def lost(row: EpisodeResult) -> bool:
            return row.block[1] == "few_shot" and row.block not in complete

        self.results = [row for row in rows if not lost(row)]
        self._done = {(*row.block, row.episode) for row in self.results if row.scored}
        return [row for row in rows if lost(row)]

    def requests(self) -> Iterator[EpisodeRequest]:
        """The unfinished episodes in order; record() each one before requesting the next."""
        for block in self.blocks():
            yield from self.block_requests(block)

    def block_requests(self, block: Block) -> Iterator[EpisodeRequest]:
        """The unfinished episodes of a block in order, which do not depend on those of other blocks."""
        left = [episode for episode in range(self.episodes) if (*block.key, episode) not in self._done]
        if left and block.protocol == "few_shot" and block.k > 0:
            yield from self._collection(block.task, block.k)
        for episode in left:
            yield from self._with_retries(self._scored(block, episode, first=episode == left[0]))

    def record(self, request: EpisodeRequest, outcome: Outcome) -> EpisodeResult:
        """Store the outcome of a request; returns its row."""
        result = EpisodeResult.of(request, outcome)
        self.results.append(result)
        self._recorded[_identity(request)] = result
        return result

    def _scored(self, block: Block, episode: int, first: bool) -> EpisodeRequest:
        """zero_shot resets the context in each episode, few_shot never, other protocols once."""
        online = block.protocol == "zero_shot"
        reset = online or (first and (block.protocol != "few_shot" or block.k == 0))
        mode = "online" if online else "frozen"
        return EpisodeRequest(block.task, block.protocol, block.k, episode, self.seed + episode, reset, mode, None)

    def _with_retries(self, request: EpisodeRequest) -> Iterator[EpisodeRequest]:
        """The episode, repeated while it is aborted."""
        for _ in range(ATTEMPTS):
            yield request
            if not (why := self._last(request).aborted):
                return
        raise TrialError(
            f"{request.task.task_id} {request.protocol}, episode {request.episode}: aborted {ATTEMPTS} times in a "
            f"row, most recently by: {why}; fix that, then run the same command to resume"
        )

    def _collection(self, task: TaskLike, k: int) -> Iterator[EpisodeRequest]:
        """Episodes with the prior context, until k transitions are collected."""
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
        last = self._recorded.pop(_identity(request), None)
        if last is None:
            raise TrialError("pass the last episode to record() before requesting the next")
        return last


def _identity(request: EpisodeRequest) -> tuple[str, str, int, int]:
    return request.task.task_id, request.protocol, request.k, request.episode
