# SPDX-License-Identifier: Apache-2.0
"""Summary of a dataset: tasks, episodes and their ends, returns, and spreads of all fields."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from spc_core.alignment.command_lag import CommandLag
from spc_core.alignment.faults import Fault
from spc_core.contract.contract import Contract
from spc_core.data.column_stats import ColumnStats
from spc_core.data.dataset import Episode, TaskEntry
from spc_core.data.earnings import EarningsCounter
from spc_core.data.jumps import Guess, Jumps, find_jumps
from spc_core.data.packed import conversion_report
from spc_core.data.reader import dataset_contract, stored_tasks
from spc_core.system.wording import plural

ENDS = ("terminated", "truncated", "cut")
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
TASK_ROWS = 16_384  # of a task that quantiles are taken from; exact below
SAMPLES = 4  # episodes that are kept whole
AT_LIMIT = 1e-6  # an action is at a limit when it is as near as this share of the range
OFTEN_AT_LIMIT = 0.2
TEXT_TASKS = 40  # lines of tasks in the text
LONG_NAME = 60  # letters of a task's name in the text


@dataclasses.dataclass(frozen=True)
class Spread:
    """Distribution of one number over transitions or episodes."""

    low: float
    q05: float
    q25: float
    median: float
    q75: float
    q95: float
    high: float
    mean: float
    std: float


@dataclasses.dataclass(frozen=True)
class Part:
    """A task, or the whole dataset; tuples of spreads and shares have an entry for each field of the contract."""

    task_id: str  # empty: the whole dataset
    params: Mapping[str, float]
    episodes: int
    transitions: int
    hours: float
    ends: Mapping[str, int]  # episodes by terminated, truncated, cut
    behaviours: Mapping[str, int]  # episodes by who acted; '' where that is not known
    returns: Spread
    lengths: Spread
    observation: tuple[Spread, ...]
    action: tuple[Spread, ...]
    reward: Spread
    at_low: tuple[float, ...]  # shares of the actions at their lower and upper limit, and beyond either
    at_high: tuple[float, ...]
    beyond: tuple[float, ...]
    earned: Mapping[str, float]  # by each term of a computed reward, the mean of a step


@dataclasses.dataclass(frozen=True, slots=True)
class EpisodeLine:
    """One episode, as plots need it."""

    task: int  # index into the tasks
    steps: int
    return_: float
    end: str
    behaviour: str


@dataclasses.dataclass(frozen=True)
class Description:
    """The summary of a dataset."""

    root: Path
    contract: Contract
    whole: Part
    tasks: tuple[Part, ...]
    episodes: tuple[EpisodeLine, ...]
    sources: int  # bags
    cuts: Mapping[str, int]  # by reason, without its numbers
    command_lag: CommandLag | None  # the time from a state to its command; None: not known
    jumps: tuple[str, ...]  # steps far beyond all others, by what they look like
    samples: tuple[tuple[str, Episode], ...]  # (task id, episode): one of each end and behaviour, at most SAMPLES

    def notes(self) -> list[str]:
        """Possible problems for training."""
        contract, whole = self.contract, self.whole
        notes = [
            f"observation {name} never changes: training ignores it; record it where it does, or leave it out"
            for name, spread in zip(contract.observation_names, whole.observation, strict=True)
            if spread.low == spread.high
        ]
        if whole.reward.low == whole.reward.high:
            notes.append(f"the reward is {whole.reward.low:g} in every transition: nothing can be learnt from it")
        for i, name in enumerate(contract.action.fields):
            if whole.beyond[i] > 0:
                notes.append(f"action {name} is beyond its limits in {whole.beyond[i]:.2%} of transitions")
            if whole.at_low[i] + whole.at_high[i] > OFTEN_AT_LIMIT:
                notes.append(f"action {name} is at a limit in {whole.at_low[i] + whole.at_high[i]:.0%} of transitions")
        typical = float(np.median([task.transitions for task in self.tasks]))
        few = [task.task_id for task in self.tasks if task.transitions < typical / 4]
        if few:
            notes.append(f"far fewer transitions than the median task ({typical:,.0f}): {_some(few)}")
        return [*notes, *self.jumps]

    def text(self) -> str:
        """For people, at a terminal."""
        contract, whole = self.contract, self.whole
        lines = [
            f"{self.root}: {plural(len(self.tasks), 'task')}, {plural(whole.episodes, 'episode')}, "
            f"{whole.transitions:,} transitions, {whole.hours:.2f} h, from {plural(self.sources, 'source')}",
            f"contract {contract.name} ({contract.sha256[:12]}), {contract.rate_hz:g} Hz, reward: {contract.reward}",
            "ends:       " + ", ".join(f"{count} {end}" for end, count in whole.ends.items()),
        ]
        if set(whole.behaviours) != {""}:
            known = (f"{count} {name or 'not known'}" for name, count in whole.behaviours.items())
            lines.append("behaviours: " + ", ".join(known))
        if self.command_lag is not None:
            lines.append(f"from state to command: {self.command_lag}")
        lines += [f"cut {count} times: {reason}" for reason, count in Counter(self.cuts).most_common()]
        return "\n".join([*lines, "", *self._task_table(), "", *self._field_table(), *self._note_lines()])

    def to_json(self) -> str:
        """For programs: everything but single episodes."""
        value = {
            "contract": {"name": self.contract.name, "sha256": self.contract.sha256},
            "observation": self.contract.observation_names,
            "action": self.contract.action.fields,
            "sources": self.sources,
            "cuts": dict(self.cuts),
            "command_lag": None if self.command_lag is None else self.command_lag.as_dict(),
            "notes": self.notes(),
            "whole": dataclasses.asdict(self.whole),
            "tasks": [dataclasses.asdict(task) for task in self.tasks],
        }
        return json.dumps(value, indent=1, allow_nan=False) + "\n"

    def _task_table(self) -> list[str]:
        width = max(4, *(len(_short(task.task_id)) for task in self.tasks))
        lines = [f"{'task':{width}} {'episodes':>8} {'transitions':>11} {'term':>5} {'trunc':>5} {'cut':>5}"
                 f" {'return: low':>12} {'median':>10} {'high':>10}"]  # fmt: skip
        for task in self.tasks[:TEXT_TASKS]:
            ends = " ".join(f"{task.ends[end]:5}" for end in ENDS)
            spread = " ".join(f"{value:10.4g}" for value in (task.returns.low, task.returns.median, task.returns.high))
            lines.append(f"{_short(task.task_id):{width}} {task.episodes:8} {task.transitions:11,} {ends}   {spread}")
        left = len(self.tasks) - TEXT_TASKS
        return [*lines, f"and {left} more tasks"] if left > 0 else lines

    def _field_table(self) -> list[str]:
        fields = list(zip(self.contract.observation_names, self.whole.observation, strict=True))
        fields += [(f"action {n}", s) for n, s in zip(self.contract.action.fields, self.whole.action, strict=True)]
        fields.append(("reward", self.whole.reward))
        width = max(len(name) for name, _ in fields)
        lines = [
            f"{'field':{width}} {'low':>10} {'5 %':>10} {'median':>10} {'95 %':>10} {'high':>10} {'at limits':>10}"
        ]
        shares = dict(zip((f"action {n}" for n in self.contract.action.fields), self._at_limits(), strict=True))
        for name, spread in fields:
            values = (spread.low, spread.q05, spread.median, spread.q95, spread.high)
            share = f"{shares[name]:10.1%}" if name in shares else ""
            lines.append(f"{name:{width}} {' '.join(f'{value:10.4g}' for value in values)} {share}".rstrip())
        return lines

    def _at_limits(self) -> list[float]:
        return [low + high for low, high in zip(self.whole.at_low, self.whole.at_high, strict=True)]

    def _note_lines(self) -> list[str]:
        return ["", *(f"note: {note}" for note in self.notes())] if self.notes() else []


def describe(dataset: str | Path) -> Description:
    """Read a dataset once, a few episodes at a time. Raises DatasetError."""
    root = Path(dataset)
    stores = stored_tasks(root)
    contract = dataset_contract(root, stores)
    whole, tasks, lines = _Counter(contract), [], []
    sources: set[str] = set()
    cuts: Counter[str] = Counter()
    jumping: dict[Guess, list[tuple[str, Jumps]]] = {}
    samples: dict[tuple[str, str], tuple[str, Episode]] = {}
    for number, store in enumerate(stores):
        counter, last = _Counter(contract), None
        for episode in store.episodes():
            end = end_of(episode)
            for part in (counter, whole):
                part.add(episode, end, last)
            last = episode
            lines.append(EpisodeLine(number, len(episode), float(episode.rewards.sum()), end, episode.behaviour))
            sources.add(episode.source_sha256 or episode.source)
            for jumps in find_jumps(episode.times_ns, episode.observations, np.ones(len(episode), bool), contract):
                jumping.setdefault(jumps.guess, []).append((episode.source, jumps))
            if episode.cut is not None:
                cuts[Fault.parse(episode.cut).summary] += 1
            if len(samples) < SAMPLES:
                samples.setdefault((end, episode.behaviour), (store.entry.task_id, episode))
        tasks.append(counter.part(store.entry))
    lag = conversion_report(root).get("command_lag")
    return Description(
        root, contract, whole.part(TaskEntry("", {})), tuple(tasks), tuple(lines), len(sources), dict(cuts),
        None if lag is None else CommandLag.from_dict(lag), tuple(map(_jump_note, jumping.values())),
        tuple(samples.values()),
    )  # fmt: skip


def _jump_note(found: Sequence[tuple[str, Jumps]]) -> str:
    """Of (bag, jumps) of one guess in each episode that has some: their number, and the most striking."""
    source, jumps = max(found, key=lambda entry: entry[1].count)
    which = f"{len(found)} episodes have jumps, most of them that" if len(found) > 1 else "an episode has jumps, that"
    return f"{which} of {source}: {jumps.text}"


def end_of(episode: Episode) -> str:
    return "terminated" if episode.terminated else "truncated" if episode.truncated else "cut"


class _Counter:
    """Accumulates episodes; part() summarises them."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._low, self._high = np.array(contract.action.low), np.array(contract.action.high)
        self._steps = ColumnStats(TASK_ROWS)  # observation, action, reward
        self._episodes = ColumnStats(TASK_ROWS)  # return, length
        self._ends, self._behaviours = Counter[str](), Counter[str]()
        self._at = np.zeros((3, contract.action_dim), np.int64)  # lower limit, upper limit, beyond
        self._ns = 0
        function = contract.reward_function()
        self._terms = () if function is None else function.names
        self._earned = None if function is None else EarningsCounter(function)

    def add(self, episode: Episode, end: str, last: Episode | None) -> None:
        """`last` is the task's episode before."""
        actions = episode.actions
        self._steps.add(np.column_stack([episode.observations[:-1], actions, episode.rewards]))
        self._episodes.add(np.array([[episode.rewards.sum(), len(episode)]]))
        if self._earned is not None:
            self._earned.add(episode, last)
        self._ends[end] += 1
        self._behaviours[episode.behaviour] += 1
        near = AT_LIMIT * (self._high - self._low)
        low, high = actions <= self._low + near, actions >= self._high - near
        beyond = (actions < self._low - near) | (actions > self._high + near)
        self._at += np.stack([low.sum(0), high.sum(0), beyond.sum(0)])
        self._ns += int(episode.times_ns[-1] - episode.times_ns[0])

    def part(self, entry: TaskEntry) -> Part:
        steps, (returns, lengths) = _spreads(self._steps), _spreads(self._episodes)
        o, a = self._contract.observation_dim, self._contract.action_dim
        shares = self._at / self._steps.count
        low, high, beyond = (tuple(row.tolist()) for row in shares)
        return Part(
            task_id=entry.task_id,
            params=dict(entry.params),
            episodes=self._episodes.count,
            transitions=self._steps.count,
            hours=self._ns / 3.6e12,
            ends={end: self._ends[end] for end in ENDS},
            behaviours=dict(sorted(self._behaviours.items())),
            returns=returns,
            lengths=lengths,
            observation=tuple(steps[:o]),
            action=tuple(steps[o : o + a]),
            reward=steps[-1],
            at_low=low,
            at_high=high,
            beyond=beyond,
            earned={} if self._earned is None else dict(zip(self._terms, self._earned.total("").per_step, strict=True)),
        )


def _spreads(stats: ColumnStats) -> list[Spread]:
    """One for each column."""
    rows = np.vstack([stats.low, stats.quantiles(SHARES), stats.high, stats.mean, stats.std])
    return [Spread(*column) for column in rows.T.tolist()]


def _short(name: str) -> str:
    return name if len(name) <= LONG_NAME else f"{name[: LONG_NAME - 3]}..."


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(map(_short, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
