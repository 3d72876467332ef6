# SPDX-License-Identifier: Apache-2.0
"""The report of a conversion, for each bag and for all of them, as text and as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spc_core.alignment.command_lag import CommandLag
from spc_core.alignment.faults import Fault
from spc_core.command_delay.estimate import DelayEstimate
from spc_core.contract.contract import Contract
from spc_core.data.jumps import Jumps
from spc_core.doctor.diagnosis import kind_of
from spc_core.doctor.topic_report import TopicReport
from spc_core.system.wording import plural
from spc_ros.conversion.clock_topic import BY_CLOCK

NAMED_BAGS = 3


@dataclasses.dataclass(frozen=True)
class BagReport:
    """The conversion of one bag. `cuts` are (seconds since the bag's first tick, why)."""

    path: str
    tasks: tuple[str, ...] = ()
    transitions: int = 0
    episodes: int = 0
    size_bytes: int = 0
    cuts: tuple[tuple[float, Fault], ...] = ()
    dropped_ticks: Mapping[str, int] = dataclasses.field(default_factory=dict)  # by reason
    dropped_samples: Mapping[str, int] = dataclasses.field(default_factory=dict)  # late and duplicate, by topic
    topics: Mapping[str, TopicReport] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    error: str = ""
    lag_ms: tuple[float, ...] = ()  # percentiles of the time from a tick to its command
    outside_ticks: int = 0  # in no episode
    jumps: tuple[Jumps, ...] = ()  # steps of observations far beyond all others
    skipped_states: int = 0  # before the first tick, so that commands follow their ticks soonest

    def as_dict(self) -> dict[str, Any]:
        topics = {name: topic.as_dict() for name, topic in self.topics.items()}
        cuts, jumps = [(t, str(fault)) for t, fault in self.cuts], [jumps.as_dict() for jumps in self.jumps]
        return {**dataclasses.asdict(self), "cuts": cuts, "jumps": jumps, "topics": topics}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BagReport:
        """The inverse of as_dict(), also through JSON."""
        topics = {name: TopicReport.from_dict(topic) for name, topic in data["topics"].items()}
        cuts = tuple((float(t), Fault.parse(text)) for t, text in data["cuts"])
        changed = {"topics": topics, "cuts": cuts, "tasks": tuple(data["tasks"]), "notes": tuple(data["notes"])}
        changed["jumps"] = tuple(Jumps.from_dict(jumps) for jumps in data.get("jumps", ()))
        return cls(**{**data, **changed, "lag_ms": tuple(data.get("lag_ms", ()))})


class BagTotals:
    """Sums over the bags of a report."""

    bags: tuple[Any, ...]  # each with `transitions` and `episodes`

    @property
    def transitions(self) -> int:
        return sum(bag.transitions for bag in self.bags)

    @property
    def episodes(self) -> int:
        return sum(bag.episodes for bag in self.bags)


@dataclasses.dataclass(frozen=True)
class ConversionReport(BagTotals):
    """The whole conversion; `summary()` is for people, `as_dict()` for conversion.json."""

    out: Path
    contract: Contract
    bags: tuple[BagReport, ...]
    topics: Mapping[str, TopicReport]
    seconds: float
    command_delay: DelayEstimate = DelayEstimate(why_not="not looked for")

    @property
    def failed(self) -> tuple[BagReport, ...]:
        return tuple(bag for bag in self.bags if bag.error)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(sorted({task for bag in self.bags for task in bag.tasks}))

    @property
    def command_lag(self) -> CommandLag | None:
        """The time from a tick to its command; None for too few transitions."""
        return CommandLag.pooled([(bag.transitions, bag.lag_ms) for bag in self.bags])

    @property
    def messages(self) -> int:
        return sum(topic.count for topic in self.topics.values())

    def as_dict(self) -> dict[str, Any]:
        totals = {
            "bags": len(self.bags),
            "failed": len(self.failed),
            "tasks": len(self.tasks),
            "episodes": self.episodes,
            "transitions": self.transitions,
            "messages": self.messages,
        }
        return {
            "contract": {"name": self.contract.name, "sha256": self.contract.sha256},
            "totals": totals,
            "cuts": dict(self._cuts()),
            "command_delay": self.command_delay.as_dict(),
            "command_lag": None if self.command_lag is None else self.command_lag.as_dict(),
            "topics": {name: topic.as_dict() for name, topic in self.topics.items()},
            "bags": [bag.as_dict() for bag in self.bags],
        }

    def summary(self) -> str:
        seconds = max(self.seconds, 1e-9)
        megabytes = sum(bag.size_bytes for bag in self.bags) / 1e6
        lines = [
            f"{self.out}: {plural(len(self.tasks), 'task')}, {plural(self.episodes, 'episode')}, "
            f"{plural(self.transitions, 'transition')} from {plural(len(self.bags) - len(self.failed), 'bag')} in "
            f"{self.seconds:.1f} s "
            f"({self.messages / seconds:,.0f} messages/s, {megabytes / seconds:,.1f} MB/s)",
            *topic_lines(self.topics, any(note.startswith(BY_CLOCK) for bag in self.bags for note in bag.notes)),
            f"from command to state: {self.command_delay}",
            f"from state to command: {self.command_lag or 'too few transitions to tell'}",
        ]
        if topic := self.contract.reward.topic:
            lines.append(
                f"reward: the topic {topic}; the robot must publish it whenever a policy runs too, or the context "
                "encoder learns nothing (a reward in the contract itself needs no topic)"
            )
        if shifted := [bag for bag in self.bags if bag.skipped_states]:
            lines.append(
                f"{plural(len(shifted), 'bag')}: states are faster than the contract's rate; the "
                "ticks are those that the commands follow soonest"
            )
        if outside := sum(bag.outside_ticks for bag in self.bags):
            lines.append(f"{plural(outside, 'tick')} outside all episodes, as their marks tell: not used")
        if jumping := [bag for bag in self.bags if bag.jumps]:
            lines.append(f"{plural(len(jumping), 'bag')} with steps far beyond all others:")
            kinds = [
                (f"{jumps.guess.name} {jumps.fields}", jumps.text, bag.path) for bag in jumping for jumps in bag.jumps
            ]
            lines += [f"  {line}" for line in note_lines(kinds)]
        lines += [f"cut {plural(n, 'time')}: {reason}" for reason, n in self._cuts().most_common()]
        lines += note_lines([(kind_of(note, bag.path), note, bag.path) for bag in self.bags for note in bag.notes])
        lines += [f"left out {bag.error}" for bag in self.failed]
        return "\n".join(lines)

    def _cuts(self) -> Counter[str]:
        return Counter(fault.summary for bag in self.bags for _, fault in bag.cuts)


def note_lines(notes: Iterable[tuple[str, str, str]]) -> list[str]:
    """A line for each kind of note, with the number of bags, the first by name; notes are (kind, text, bag)."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for kind, text, bag in notes:
        kinds.setdefault(kind, []).append((text, bag))
    lines = []
    for found in sorted(kinds.values(), key=len, reverse=True):
        bags = list(dict.fromkeys(Path(bag).name for _, bag in found))
        more = f" and {len(bags) - NAMED_BAGS} more, see conversion.json" if len(bags) > NAMED_BAGS else ""
        where = f"{', '.join(bags[:NAMED_BAGS])}{more}"
        lines.append(f"{plural(len(bags), 'bag')}: {found[0][0]} [{where}]")
    return lines


def topic_lines(topics: Mapping[str, TopicReport], by_clock: bool) -> list[str]:
    """A table of the topics, with a line below where something is wrong.

    `by_clock`: a note tells that messages without a stamp count by `/clock`.
    """
    lines = [f"{'topic':24} {'messages':>9} {'rate':>9} {'jitter':>9} {'gaps':>6} {'age p99':>9} {'lost':>6}"]
    for name, topic in topics.items():
        age = "" if math.isnan(topic.age_p99_ms) else f"{topic.age_p99_ms:.1f} ms"
        rate = "-" if math.isnan(topic.rate_hz) else f"{topic.rate_hz:.1f} Hz"
        jitter = "-" if math.isnan(topic.jitter_ms) else f"{topic.jitter_ms:.2f} ms"
        lines.append(f"{name:24} {topic.count:9} {rate:>9} {jitter:>9} {topic.gaps:6} {age:>9} {topic.lost:6}")
        if topic.unset_stamps:
            how = "" if by_clock else ": aligned by receive time"
            lines.append(f"  {plural(topic.unset_stamps, 'message')} without a stamp{how}")
        if topic.nan_count:
            lines.append(f"  {plural(topic.nan_count, 'message')} with NaN or infinity")
    return lines
