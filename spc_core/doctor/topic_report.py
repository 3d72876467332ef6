# SPDX-License-Identifier: Apache-2.0
"""The converter's statistics of a topic that a dataset was made from: all intervals, ages at the dataset's ticks.

Unknown numbers are NaN, in JSON null. The doctor's statistics of the recording itself are in topic_stats.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from spc_core.system.json_values import without_nan

GAP_FACTOR = 1.5  # an interval this many times the median is a gap


@dataclasses.dataclass(frozen=True)
class TopicReport:
    """One topic as a dataset was made from it. Over several bags, p50 is the median bag's and p99 the worst bag's."""

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
        return without_nan({**dataclasses.asdict(self), "rate_hz": self.rate_hz, "nan_share": self.nan_share})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TopicReport:
        """The inverse of as_dict()."""
        numbers: dict[str, Any] = {name: math.nan if value is None else value for name, value in data.items()}
        return cls(**{field.name: numbers[field.name] for field in dataclasses.fields(cls)})


class TopicTimes:
    """The times and counts of a topic's messages, kept while a bag is converted; no values."""

    def __init__(self, type_name: str) -> None:
        self.type, self.nan_count, self.unset_stamps = type_name, 0, 0
        self._stamps_ns: list[np.ndarray] = [np.empty(0, np.int64)]
        self._delays_ns: list[np.ndarray] = [np.empty(0, np.int64)]

    def add(self, t_ns: np.ndarray, delays_ns: np.ndarray, nan_count: int = 0, unset_stamps: int = 0) -> None:
        """(N,) int64 times that messages are aligned by; `delays_ns`, from stamp to receive time, may be empty."""
        self._stamps_ns.append(t_ns)
        self._delays_ns.append(delays_ns)
        self.nan_count += nan_count
        self.unset_stamps += unset_stamps

    def report(self, ticks_ns: np.ndarray, published: int = 0) -> TopicReport:
        """`ticks_ns` is empty for a topic that is not observed; `published` is the sender's own count, or 0."""
        stamps = np.sort(np.concatenate(self._stamps_ns))
        intervals_s = np.diff(stamps) / 1e9
        ticks_ns = ticks_ns[ticks_ns >= stamps[0]] if len(stamps) else np.empty(0, np.int64)
        ages_ns = ticks_ns - stamps[np.searchsorted(stamps, ticks_ns, "right") - 1] if len(ticks_ns) else ticks_ns
        age_p50_ms, _, age_p99_ms = percentiles_ms(ages_ns)
        delay_p50_ms, _, delay_p99_ms = percentiles_ms(np.concatenate(self._delays_ns))
        return TopicReport(
            type=self.type,
            count=len(stamps),
            intervals=len(intervals_s),
            span_s=float(intervals_s.sum()),
            jitter_ms=float(intervals_s.std() * 1e3) if len(intervals_s) else math.nan,
            gaps=int((intervals_s > GAP_FACTOR * np.median(intervals_s)).sum()) if len(intervals_s) else 0,
            age_p50_ms=age_p50_ms,
            age_p99_ms=age_p99_ms,
            delay_p50_ms=delay_p50_ms,
            delay_p99_ms=delay_p99_ms,
            nan_count=self.nan_count,
            unset_stamps=self.unset_stamps,
            lost=max(0, published - len(stamps)),
        )


def merge_reports(bags: Iterable[Mapping[str, TopicReport]]) -> dict[str, TopicReport]:
    """One report per topic over several bags."""
    groups: dict[str, list[TopicReport]] = {}
    for bag in bags:
        for name, report in bag.items():
            groups.setdefault(name, []).append(report)
    return {name: _merge_reports(group) for name, group in groups.items()}


def _merge_reports(group: Sequence[TopicReport]) -> TopicReport:
    totals: dict[str, Any] = {
        name: sum(getattr(part, name) for part in group)
        for name in ("count", "intervals", "span_s", "gaps", "nan_count", "unset_stamps", "lost")
    }
    spread = sum(part.intervals * part.jitter_ms**2 for part in group if part.intervals)
    ages_and_delays: dict[str, Any] = {
        f"{name}_{percent}_ms": known_over([getattr(part, f"{name}_{percent}_ms") for part in group], how)
        for name in ("age", "delay")
        for percent, how in (("p50", np.median), ("p99", np.max))
    }
    jitter_ms = math.sqrt(spread / totals["intervals"]) if totals["intervals"] else math.nan
    return TopicReport(type=group[0].type, jitter_ms=jitter_ms, **totals, **ages_and_delays)


def percentiles_ms(values_ns: np.ndarray) -> tuple[float, float, float]:
    """Percentiles 50, 95 and 99 in milliseconds; NaN of nothing."""
    if not len(values_ns):
        return (math.nan, math.nan, math.nan)
    p50, p95, p99 = (np.percentile(values_ns, (50, 95, 99)) / 1e6).tolist()
    return (p50, p95, p99)


def known_over(values: Sequence[float], how: Any) -> float:
    """One number from the finite ones."""
    known = np.array(values, float)
    known = known[np.isfinite(known)]
    return float(how(known)) if len(known) else math.nan
