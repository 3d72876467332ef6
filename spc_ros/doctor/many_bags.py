# SPDX-License-Identifier: Apache-2.0
"""The doctor over many bags: like findings and like topics made one, and bags that are not like the others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from spc_core.doctor.diagnosis import SEVERITIES, Finding, Thresholds, TopicStats
from spc_ros.doctor.bag_diagnosis import BagDiagnosis


def merge_findings(findings: Sequence[Finding]) -> list[Finding]:
    """One finding for each topic and check, that of the worst bag, with the number of bags."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.topic, finding.check), []).append(finding)
    merged = []
    for group in groups.values():
        worst_of = max(group, key=lambda f: (SEVERITIES.index(f.severity), abs(f.value) if f.value == f.value else 0))
        merged.append(dataclasses.replace(worst_of, bags=len({finding.bag for finding in group})))
    return merged


def check_across(bags: Sequence[BagDiagnosis], t: Thresholds) -> list[Finding]:
    """Topics whose rate in some bags is not what it is in most."""
    rates: dict[str, list[tuple[float, str]]] = {}
    for bag in bags:
        for topic in bag.topics:
            if math.isfinite(topic.rate_hz):
                rates.setdefault(topic.topic, []).append((topic.rate_hz, bag.path))
    findings = []
    for topic, found in rates.items():
        usual_hz = float(np.median([rate for rate, _ in found]))
        off = [(abs(rate / usual_hz - 1), rate, path) for rate, path in found]
        odd = [entry for entry in off if entry[0] > t.rate_tolerance]
        if len(found) > 2 and odd:
            share, rate_hz, path = max(odd)
            text = (
                f"{rate_hz:.1f} Hz in this bag, {usual_hz:.1f} Hz in most (allowed {t.rate_tolerance:.0%} off); bags "
                f"of "
                f"different set-ups should not be mixed"
            )
            findings.append(Finding("warn", topic, "rate across bags", text, share, bag=path, bags=len(odd)))
    return findings


def merge_stats(bags: Sequence[BagDiagnosis]) -> tuple[TopicStats, ...]:
    """One row for each topic: counts added up, medians of rates, the worst bag's gaps, ages and delays."""
    groups: dict[tuple[str, str], list[TopicStats]] = {}
    for bag in bags:
        for topic in bag.topics:
            groups.setdefault((topic.topic, topic.role), []).append(topic)
    return tuple(_merge(group) for group in groups.values())


def _merge(group: Sequence[TopicStats]) -> TopicStats:
    def over(name: str, how: Any) -> float:
        values = np.array([getattr(topic, name) for topic in group], float)
        return float(how(values[np.isfinite(values)])) if np.isfinite(values).any() else math.nan

    def each(name: str) -> tuple[float, float, float]:
        values = np.array([getattr(topic, name) for topic in group], float)
        known = values[np.isfinite(values[:, 0])]
        return tuple(known.max(axis=0).tolist()) if len(known) else (math.nan, math.nan, math.nan)

    count = sum(topic.count for topic in group)
    return dataclasses.replace(
        group[0],
        count=count,
        rate_hz=over("rate_hz", np.median),
        jitter_ms=over("jitter_ms", np.max),
        gaps=sum(topic.gaps for topic in group),
        gap_share=over("gap_share", np.mean),
        longest_gap_s=over("longest_gap_s", np.max),
        age_ms=each("age_ms"),
        delay_ms=each("delay_ms"),
        nan_share=sum(topic.nan_share * topic.count for topic in group) / max(1, count),
        lost=sum(topic.lost for topic in group),
    )
