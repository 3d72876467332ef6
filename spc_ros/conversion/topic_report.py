# SPDX-License-Identifier: Apache-2.0
"""How well a topic was recorded: rate, jitter, gaps, age at the ticks, delay, losses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

GAP_FACTOR = 1.5  # an interval this many times the median counts as a gap


@dataclasses.dataclass(frozen=True)
class TopicReport:
    """How well a topic was recorded. Over several bags, p50 is the median bag's and p99 the worst bag's."""

    type: str
    count: int
    intervals: int
    span_s: float
    jitter_ms: float  # standard deviation of the interval between stamps
    gaps: int
    age_p50_ms: float  # at the ticks; NaN for topics that are not observed
    age_p99_ms: float
    delay_p50_ms: float  # from stamp to receive time; NaN without stamps
    delay_p99_ms: float
    nan_count: int
    unset_stamps: int
    lost: int  # published during the episode, by its own account, but not in the bag

    @property
    def rate_hz(self) -> float:
        return self.intervals / self.span_s if self.span_s > 0 else math.nan

    @property
    def nan_share(self) -> float:
        return self.nan_count / self.count if self.count else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which knows no NaN."""
        numbers = {**dataclasses.asdict(self), "rate_hz": self.rate_hz, "nan_share": self.nan_share}
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in numbers.items()}

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> TopicReport:
        """What as_dict() gave."""
        numbers: dict[str, Any] = {name: math.nan if value is None else value for name, value in said.items()}
        return cls(**{field.name: numbers[field.name] for field in dataclasses.fields(cls)})


def report_topic(
    type_name: str,
    stamps_ns: Sequence[int] | np.ndarray,
    ticks_ns: np.ndarray,
    delays_ns: Sequence[int] | np.ndarray,
    nan_count: int = 0,
    unset_stamps: int = 0,
    published: int = 0,
) -> TopicReport:
    """Statistics of one topic in one bag.

    `ticks_ns` is empty for a topic that is not observed, `delays_ns` for messages without stamps; `published`
    is the sender's own count, or 0.
    """
    stamps = np.sort(np.asarray(stamps_ns, np.int64))
    intervals_s = np.diff(stamps) / 1e9
    ticks_ns = ticks_ns[ticks_ns >= stamps[0]] if len(stamps) else np.empty(0)
    ages_ns = ticks_ns - stamps[np.searchsorted(stamps, ticks_ns, "right") - 1] if len(ticks_ns) else []
    return TopicReport(
        type=type_name,
        count=len(stamps),
        intervals=len(intervals_s),
        span_s=float(intervals_s.sum()),
        jitter_ms=float(intervals_s.std() * 1e3) if len(intervals_s) else math.nan,
        gaps=int((intervals_s > GAP_FACTOR * np.median(intervals_s)).sum()) if len(intervals_s) else 0,
        age_p50_ms=_percentile_ms(ages_ns, 50),
        age_p99_ms=_percentile_ms(ages_ns, 99),
        delay_p50_ms=_percentile_ms(delays_ns, 50),
        delay_p99_ms=_percentile_ms(delays_ns, 99),
        nan_count=nan_count,
        unset_stamps=unset_stamps,
        lost=max(0, published - len(stamps)),
    )


def merge_topics(bags: Iterable[Mapping[str, TopicReport]]) -> dict[str, TopicReport]:
    """One report per topic over several bags."""
    by_topic: dict[str, list[TopicReport]] = {}
    for bag in bags:
        for name, report in bag.items():
            by_topic.setdefault(name, []).append(report)
    return {name: _merge(parts) for name, parts in by_topic.items()}


def _merge(parts: list[TopicReport]) -> TopicReport:
    def total(name: str) -> Any:
        return sum(getattr(part, name) for part in parts)

    def known(name: str) -> list[float]:
        return [value for part in parts if not math.isnan(value := getattr(part, name))] or [math.nan]

    spread = sum(part.intervals * part.jitter_ms**2 for part in parts if part.intervals)
    return TopicReport(
        type=parts[0].type,
        count=total("count"),
        intervals=total("intervals"),
        span_s=total("span_s"),
        jitter_ms=math.sqrt(spread / total("intervals")) if total("intervals") else math.nan,
        gaps=total("gaps"),
        age_p50_ms=float(np.median(known("age_p50_ms"))),
        age_p99_ms=max(known("age_p99_ms")),
        delay_p50_ms=float(np.median(known("delay_p50_ms"))),
        delay_p99_ms=max(known("delay_p99_ms")),
        nan_count=total("nan_count"),
        unset_stamps=total("unset_stamps"),
        lost=total("lost"),
    )


def _percentile_ms(values_ns: Sequence[int] | np.ndarray, percent: float) -> float:
    return float(np.percentile(values_ns, percent) / 1e6) if len(values_ns) else math.nan
