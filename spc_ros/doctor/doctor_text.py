# SPDX-License-Identifier: Apache-2.0
"""The doctor's printed report: a line for each topic and for each finding."""

from __future__ import annotations

import math
from pathlib import Path

from spc_core.doctor.diagnosis import Finding
from spc_core.doctor.topic_looks import Unchecked
from spc_core.doctor.topic_stats import TopicStats

LOUD = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}

COLUMNS = ("jitter", "gaps", "longest", "age p99", "delay p50", "p99")
HEAD = f"{'topic':28} {'messages':>9} {'rate':>10} " + " ".join(f"{name:>9}" for name in COLUMNS) + "  looked at"
NAMED_BAGS = 3


def row(topic: TopicStats) -> str:
    """A topic as a line of the table under HEAD."""

    def cell(value: float, unit: str, digits: int = 1, width: int = 9) -> str:
        if not math.isfinite(value):
            return "-".rjust(width)
        return f"{value:.{digits}f}{unit}".rjust(width) if abs(value) < 1e5 else f"{value / 1e3:.2g} s".rjust(width)

    return (
        f"{topic.topic:28} {topic.count:9} {cell(topic.rate_hz, ' Hz', 1, 10)} {cell(topic.jitter_ms, ' ms', 2)} "
        f"{cell(topic.gap_share * 100, ' %')} {cell(topic.longest_gap_s, ' s', 2)} {cell(topic.age_ms[2], ' ms')} "
        f"{cell(topic.delay_ms[0], ' ms')} {cell(topic.delay_ms[2], ' ms')}  {topic.look}"
    )


def unchecked_row(topic: Unchecked, bag_count: int) -> str:
    """A topic that no check saw as a line of the table."""
    bags = f" [{topic.bags} of {bag_count} bags]" if bag_count > 1 else ""
    return f"{topic.topic:28} {topic.count:9} {topic.why}{bags}"


def finding_line(finding: Finding, bag_count: int) -> str:
    """A finding as a line of text."""
    where = f" {finding.topic}:" if finding.topic else ""
    bag = f" [{named_bags(finding)}]" if finding.bag and bag_count > 1 else ""
    places = show_times(finding, 5)
    at = f"\n       at {places}" if places else ""
    following = f"\n       next: {finding.next}" if finding.next else ""
    return f"{LOUD[finding.severity]}{where} {finding.check}: {finding.text}{bag}{at}{following}"


def named_bags(finding: Finding) -> str:
    """How many bags have the fault, and the first of them by name, the worst first."""
    names = [Path(bag).name for bag in finding.in_bags or (finding.bag,)]
    more = f" and {len(names) - NAMED_BAGS} more" if len(names) > NAMED_BAGS else ""
    count = f"{len(names)} bags: " if len(names) > 1 else ""
    return f"{count}{', '.join(names[:NAMED_BAGS])}{more}"


def show_times(finding: Finding, most: int) -> str:
    """The first places in time, in seconds since the bag began."""
    places = ", ".join(f"{b:.2f}" if e - b < 0.005 else f"{b:.2f}-{e:.2f}" for b, e in finding.times[:most])
    more = f" and {len(finding.times) - most} more" if len(finding.times) > most else ""
    return f"{places} s{more}" if places else ""
