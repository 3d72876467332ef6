# SPDX-License-Identifier: Apache-2.0
"""Input and output of the doctor's checks: logs of topics and ticks, and findings with their times.

The checks are in timing_checks.py, clock_checks.py, value_checks.py, tick_checks.py and across_checks.py.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spc_core.alignment.faults import Fault
from spc_core.doctor.next_steps import next_step
from spc_core.system.json_values import without_nan

Severity = Literal["ok", "warn", "fail"]
SEVERITIES: tuple[Severity, ...] = ("ok", "warn", "fail")
Span = tuple[float, float]
"""(begin, end) in seconds since the bag began, by receive time as a bag player shows it (see TopicLog.place_ns)."""
NEAR = 3  # messages apart that still form one span
MAX_SPANS = 50  # places in time that a finding names; the longest
NUMBER = re.compile(r"(?<![\w.'/])[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?(?!\w)")  # not those in names, as in joint_1
NUMBERS = re.compile(r"#(?:[,/-]? ?#)+")


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Beyond a threshold is a failure; beyond `warn_share` of it, a warning."""

    warn_share: float = 0.5  # a warning begins at this share of each threshold
    rate_tolerance: float = 0.10  # share by which a topic's rate may be off its nominal one
    gap_share: float = 0.05  # share of the time that may be lost in gaps
    jitter_share: float = 0.5  # standard deviation of the interval, in periods
    out_of_order_share: float = 0.02  # share of messages that are duplicate or late by their stamps
    clock_jump_s: float = 0.5  # a stamp this far before its predecessor, or ahead of the receive time's pace
    frozen_stamps: int = 5  # messages in a row with one and the same stamp
    unset_share: float = 0.01  # share of messages whose stamp was left at zero
    delay_s: float = 0.10  # 99th percentile of the header-to-receive delay
    drift_s: float = 0.05  # change of that delay from begin to end of a bag
    clocks_apart_s: float = 1.0  # topics whose clocks are further apart cannot be aligned
    lost_share: float = 0.05  # share of messages that were published, by the robot's own account, but not recorded
    nan_share: float = 0.01  # share of messages with NaN or infinity
    beyond_share: float = 0.01  # share of commands beyond the contract's limits
    saturated_share: float = 0.5  # share of commands at a limit (a warning at most)
    rate_limit_share: float = 0.05  # share of commands that change faster than the contract's max_rate
    command_delay_periods: float = 2.0  # delay from command to state, in the contract's periods
    stale_share: float = 0.05  # share of ticks at which a stream is older than its max_age_s
    dropped_share: float = 0.10  # share of ticks that conversion drops
    coverage: float = 0.2  # share of cells that a task must visit in each field (a warning at most)
    episode_steps: int = 10  # pieces shorter than this teach little (a warning at most)

    def grade(self, value: float, limit: float) -> Severity:
        """How bad `value` is against the threshold `limit`, both positive."""
        if value > limit:
            return "fail"
        return "warn" if value > self.warn_share * limit else "ok"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One problem (or, with 'ok', a note), with the number, the threshold and the fix."""

    severity: Severity
    topic: str  # '' where it is about the whole bag
    check: str
    text: str
    value: float = math.nan
    times: tuple[Span, ...] = ()
    bag: str = ""
    in_bags: tuple[str, ...] = ()  # all bags with this fault, the worst first, which the text describes
    cause: str = ""  # what tells one fault of a check from another; '': the text without its numbers
    given: str = ""  # options that the doctor was given, for what to type next

    @property
    def bags(self) -> int:
        """The number of bags with this fault."""
        return max(1, len(self.in_bags))

    @property
    def fault(self) -> tuple[str, str, str]:
        """Equal for findings of the same fault: topic, check and cause."""
        return self.topic, self.check, self.cause or kind_of(self.text, self.bag)

    @property
    def next(self) -> str:
        """What to type next; '' for a note."""
        return "" if self.severity == "ok" else next_step(self.check, self.topic, self.bag, self.given)

    def as_dict(self) -> dict[str, Any]:
        found = without_nan(dataclasses.asdict(self))
        del found["cause"], found["given"]
        return {**found, "bags": self.bags, "next": self.next}


@dataclasses.dataclass(frozen=True)
class TopicLog:
    """One topic of one bag: N messages in log order, F numeric fields."""

    topic: str
    type: str
    role: Literal["observation", "action", "reward", "other"]
    receive_ns: np.ndarray  # (N,) int64
    stamp_ns: np.ndarray | None  # (N,) int64, 0 where unset; None for a type without a header
    fields: tuple[str, ...]
    values: np.ndarray  # (N, F) float64
    clock: str = "header"  # header | receive: the time that messages are aligned by
    clock_ns: np.ndarray | None = None  # (N,) by `/clock`, of messages without a stamp; None: the receive time
    begin_ns: int = 0  # when the bag began, in the clock of `place_ns`
    place_ns: np.ndarray | None = None  # (N,) where in time to show the messages; None: the receive time
    simulated: bool = False  # recorded with a simulated clock, so that delays and receive times mean little
    span: Span | None = None  # between which times all topics should have been there
    nominal_hz: float | None = None  # None: its own median
    faster_is_fine: bool = True  # than nominal: an observation is downsampled to the contract's rate
    max_age_s: float = math.inf
    lost: int = 0  # published during the episode, by the robot's own account, but not in the bag
    absent: np.ndarray | None = None  # (N, F) bool: the message had no such field; None: never
    layouts: tuple[tuple[int, tuple[str, ...]], ...] = ()  # (first message, joint names), where the names change
    lengths: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # (N,) of a JointState's arrays
    clipped: np.ndarray | None = None  # (F,) bool: the contract's clip makes a number of infinity; None: of none
    breaks: tuple[Span, ...] = ()  # pauses between episodes, in which nothing is lost
    latched: bool = False  # any age is valid, so that silence is not a fault
    points: int = 1  # most points of a trajectory
    recorded: int = 0  # messages in the bag
    decoded: int = 0  # of them

    def __len__(self) -> int:
        return len(self.receive_ns)

    @property
    def bad(self) -> np.ndarray:
        """(N, F) bool: fields that the messages have, but not as a number that can be used."""
        bad: np.ndarray = ~np.isfinite(self.values)
        if self.absent is not None:
            bad = bad & ~self.absent
        return bad if self.clipped is None else bad & ~(np.isinf(self.values) & self.clipped)

    @property
    def used(self) -> np.ndarray:
        """(N,) bool: messages that are not in a pause between episodes or outside of them."""
        at_s, outside = self.seconds, np.zeros(len(self), bool)
        for begin_s, end_s in self.breaks:
            outside |= (at_s > begin_s) & (at_s < end_s)
        return ~outside

    @property
    def has_stamps(self) -> bool:
        return self.stamp_ns is not None and bool(np.any(self.stamp_ns))

    @property
    def by_clock(self) -> bool:
        """Whether most of the messages count by `/clock`."""
        if self.clock_ns is None or self.stamp_ns is None or self.clock == "receive":
            return self.clock_ns is not None
        return 2 * int(np.count_nonzero(self.stamp_ns)) < len(self)

    @property
    def time_ns(self) -> np.ndarray:
        """(N,) the time by which each message is aligned: its stamp, or where there is none when it came."""
        received_ns = self.receive_ns if self.clock_ns is None else self.clock_ns
        if self.clock == "receive" or self.stamp_ns is None:
            return received_ns
        return np.where(self.stamp_ns == 0, received_ns, self.stamp_ns)

    @property
    def seconds(self) -> np.ndarray:
        """(N,) the position of each message in seconds since the bag began."""
        return ((self.receive_ns if self.place_ns is None else self.place_ns) - self.begin_ns) / 1e9


@dataclasses.dataclass(frozen=True)
class TickLog:
    """Result of converting a bag."""

    transitions: int
    episodes: tuple[int, ...]  # transitions of each
    cuts: tuple[tuple[float, Fault], ...]  # (seconds since the bag began, why)
    dropped: Mapping[str, int]  # ticks by reason
    breaks: tuple[Span, ...] = ()  # pauses between episodes, as in TopicLog


def kind_of(text: str, bag: str = "") -> str:
    """The text without its numbers and the bag's own name: equal for texts on the same fault."""
    text = re.sub(rf"(?<!\w){re.escape(Path(bag).stem)}(?=[/._'])", "", text) if bag else text
    return NUMBERS.sub("#", NUMBER.sub("#", text))


def worst(severities: Iterable[Severity]) -> Severity:
    """The verdict on a list of findings."""
    return SEVERITIES[max((SEVERITIES.index(severity) for severity in severities), default=0)]


def at_most_warn(severity: Severity) -> Severity:
    """For what is worth a look, though conversion loses and distorts nothing."""
    return "warn" if severity == "fail" else severity


def spans(begin_s: np.ndarray, end_s: np.ndarray, join_s: float = 0.0) -> tuple[Span, ...]:
    """Places in time, sorted, those closer than `join_s` made one; at most MAX_SPANS, the longest."""
    joined: list[list[float]] = []
    for begin, end in sorted(zip(begin_s.tolist(), end_s.tolist(), strict=True)):
        if joined and begin <= joined[-1][1] + join_s:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([begin, end])
    longest = sorted(joined, key=lambda s: s[0] - s[1])[:MAX_SPANS]
    return tuple((begin, end) for begin, end in sorted(longest))


def message_spans(log: TopicLog, chosen: np.ndarray) -> tuple[Span, ...]:
    """Where the messages of a (N,) mask are, runs of near neighbours made one."""
    index = np.flatnonzero(chosen)
    if not len(index):
        return ()
    at_s = log.seconds
    first = np.concatenate(([True], np.diff(index) > NEAR))
    last = np.concatenate((first[1:], [True]))
    return spans(at_s[index[first]], at_s[index[last]])
