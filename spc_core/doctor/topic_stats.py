# SPDX-License-Identifier: Apache-2.0
"""The doctor's statistics of a recorded topic: rate and jitter outside gaps and clock jumps, which have checks of
their own; gaps, age at the ticks, delay, losses. Unknown numbers are NaN, in JSON null.

The converter's statistics are in topic_report.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from spc_core.doctor.diagnosis import Span, Thresholds, TopicLog
from spc_core.doctor.topic_report import GAP_FACTOR, known_over, percentiles_ms
from spc_core.system.json_values import without_nan

Percentiles = tuple[float, float, float]
"""50, 95 and 99 %."""
BREAK_PERIODS = 2.5  # by which a pause between two episodes may begin earlier and end later than the ticks do
MIN_MESSAGES = 10  # fewer do not determine a rate
EVENT_SPREAD = 3.0  # 90th percentile of the interval over the median: a topic with more spread is not periodic


@dataclasses.dataclass(frozen=True)
class Intervals:
    """The M steps of a topic's time from message to message, without late ones and clock jumps."""

    length_s: np.ndarray  # (M,)
    begin_s: np.ndarray  # (M,) where in the bag
    end_s: np.ndarray  # (M,)
    period_s: float  # the median length

    @property
    def gap(self) -> np.ndarray:
        """(M,) bool: the gaps."""
        return self.length_s > GAP_FACTOR * self.period_s

    @property
    def rate_hz(self) -> float:
        """The rate outside gaps, which are reported separately."""
        whole = self.length_s[~self.gap]
        return 1.0 / float(whole.mean())

    @property
    def gap_share(self) -> float:
        """Share of the time that gaps took beyond a period each."""
        return float((self.length_s[self.gap] - self.period_s).sum() / self.length_s.sum())


def advancing(time_ns: np.ndarray, jump_s: float) -> tuple[np.ndarray, np.ndarray]:
    """((N,) messages newer than all before them, (N,) clock epochs): a jump back by `jump_s` starts a new epoch."""
    restarts = np.zeros(len(time_ns) + 1, np.int64)
    newer = np.ones(len(time_ns), bool)
    begin = 0
    while begin < len(time_ns):
        size, end = 32, begin
        while end == begin:  # a growing window, so that many jumps do not cost the square of their number
            size *= 2
            window = time_ns[begin : begin + size]
            back = np.flatnonzero(window < np.maximum.accumulate(window) - round(jump_s * 1e9))
            if len(back) or begin + size >= len(time_ns):
                end = begin + int(back[0]) if len(back) else len(time_ns)
        newer[begin + 1 : end] = np.diff(np.maximum.accumulate(time_ns[begin:end])) > 0
        restarts[end] = 1
        begin = end
    return newer, np.cumsum(restarts[:-1])


def paced_ns(log: TopicLog) -> np.ndarray:
    """(N,) the times between which messages change: where they count by `/clock`, receive times at its pace.

    `/clock` comes in steps, which would look like gaps and jumps of the messages.
    """
    if not log.by_clock or len(log) < 2:
        return log.time_ns
    since_ns = (log.receive_ns - log.receive_ns[0]) * stamp_pace(log.time_ns, log.receive_ns)
    return int(log.time_ns[0]) + since_ns.astype(np.int64)


def stamp_pace(time_ns: np.ndarray, receive_ns: np.ndarray) -> float:
    """Seconds told for each second of receive time, of two messages and more; 1 where it cannot be."""
    lag = max(1, len(time_ns) // 10)  # few pairs so far apart have a restart of the clock between them
    told_ns, received_ns = (times[lag:] - times[:-lag] for times in (time_ns, receive_ns))
    pace = float(np.median(told_ns / np.maximum(received_ns, 1)))
    return pace if pace > 0 else 1.0


def intervals(log: TopicLog, jump_s: float = 0.5) -> Intervals | None:
    """Steps from message to message; None for a topic that is latched, too short, or not periodic."""
    if len(log) < MIN_MESSAGES or log.latched:
        return None
    time_ns = paced_ns(log)
    newer, epoch = advancing(time_ns, jump_s)
    kept = np.flatnonzero(newer)
    time, receive, at_s = time_ns[kept], log.receive_ns[kept], log.seconds[kept]
    length_s = np.diff(time) / 1e9
    usable = (np.diff(epoch[kept]) == 0) & (length_s - np.diff(receive) / 1e9 <= jump_s)
    if usable.sum() < MIN_MESSAGES - 1:
        return None
    period_s = float(np.median(length_s[usable]))
    usable &= ~_in_breaks(at_s[:-1], at_s[1:], log.breaks, BREAK_PERIODS * period_s)
    found = Intervals(length_s[usable], at_s[:-1][usable], at_s[1:][usable], period_s)
    irregular = np.percentile(found.length_s, 90) > EVENT_SPREAD * found.period_s
    return None if log.role == "other" and irregular else found


def _in_breaks(begin_s: np.ndarray, end_s: np.ndarray, breaks: Sequence[Span], slack_s: float) -> np.ndarray:
    """(M,) bool: steps that are a pause between episodes."""
    inside = np.zeros(len(begin_s), bool)
    for since_s, until_s in breaks:
        inside |= (begin_s >= since_s - slack_s) & (end_s <= until_s + slack_s) & (end_s - begin_s > slack_s)
    return inside


def delays_ns(log: TopicLog) -> tuple[np.ndarray, np.ndarray]:
    """(receive time minus stamp, index) of the M messages that have a stamp, both (M,)."""
    if log.stamp_ns is None:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    index = np.flatnonzero(log.stamp_ns)
    return (log.receive_ns - log.stamp_ns)[index], index


@dataclasses.dataclass(frozen=True)
class TopicStats:
    """One topic of one bag, or of several: see merge_stats."""

    topic: str
    type: str
    role: str
    count: int
    rate_hz: float
    nominal_hz: float
    jitter_ms: float  # standard deviation of the interval
    gaps: int
    gap_share: float
    longest_gap_s: float
    age_ms: Percentiles  # at the ticks
    delay_ms: Percentiles  # from header to receive
    nan_share: float
    lost: int
    recorded: int
    decoded: int

    @property
    def look(self) -> str:
        """What was looked at."""
        return f"decoded {self.decoded:,} of {self.recorded:,}"

    def as_dict(self) -> dict[str, Any]:
        return without_nan(dataclasses.asdict(self))


def topic_stats(log: TopicLog, age_s: np.ndarray | None, t: Thresholds) -> TopicStats:
    """The doctor's account of a topic; `age_s` are its ages at the ticks, None where it is not observed."""
    found = intervals(log, t.clock_jump_s)
    bad = log.bad
    ages = np.empty(0) if age_s is None else age_s[np.isfinite(age_s)]
    return TopicStats(
        topic=log.topic,
        type=log.type,
        role=log.role,
        count=len(log),
        rate_hz=found.rate_hz if found else math.nan,
        nominal_hz=log.nominal_hz or math.nan,
        jitter_ms=float(found.length_s[~found.gap].std() * 1e3) if found else math.nan,
        gaps=int(found.gap.sum()) if found else 0,
        gap_share=found.gap_share if found else math.nan,
        longest_gap_s=float(found.length_s.max()) if found else math.nan,
        age_ms=percentiles_ms(ages * 1e9),
        delay_ms=percentiles_ms(delays_ns(log)[0] if not log.simulated else np.empty(0)),
        nan_share=float(bad.any(axis=1).mean()) if len(log) else 0.0,
        lost=log.lost,
        recorded=log.recorded,
        decoded=log.decoded,
    )


def merge_stats(bags: Iterable[Sequence[TopicStats]]) -> tuple[TopicStats, ...]:
    """One row for each topic: counts added up, medians of rates, the worst bag's gaps, ages and delays."""
    groups: dict[tuple[str, str], list[TopicStats]] = {}
    for topics in bags:
        for topic in topics:
            groups.setdefault((topic.topic, topic.role), []).append(topic)
    return tuple(map(_merge_stats, groups.values()))


def _merge_stats(group: Sequence[TopicStats]) -> TopicStats:
    def worst(name: str) -> Percentiles:
        p50, p95, p99 = (known_over([getattr(topic, name)[i] for topic in group], np.max) for i in range(3))
        return (p50, p95, p99)

    def over(name: str, how: Any) -> float:
        return known_over([getattr(topic, name) for topic in group], how)

    count = sum(topic.count for topic in group)
    return dataclasses.replace(
        group[0],
        count=count,
        rate_hz=over("rate_hz", np.median),
        jitter_ms=over("jitter_ms", np.max),
        gaps=sum(topic.gaps for topic in group),
        gap_share=over("gap_share", np.mean),
        longest_gap_s=over("longest_gap_s", np.max),
        age_ms=worst("age_ms"),
        delay_ms=worst("delay_ms"),
        nan_share=sum(topic.nan_share * topic.count for topic in group) / max(1, count),
        lost=sum(topic.lost for topic in group),
        recorded=sum(topic.recorded for topic in group),
        decoded=sum(topic.decoded for topic in group),
    )
