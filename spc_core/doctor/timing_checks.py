# SPDX-License-Identifier: Apache-2.0
"""Checks of when messages came: rate, jitter, gaps, order of stamps, silence, losses."""

from __future__ import annotations

import numpy as np

from spc_core.doctor.diagnosis import Finding, Severity, Span, Thresholds, TopicLog, at_most_warn, message_spans, spans
from spc_core.doctor.topic_stats import MIN_MESSAGES, Intervals, advancing, intervals

WINDOW_S = 1.0  # rates are reported for windows of this length, and of at least ten messages


def check_rate(log: TopicLog, t: Thresholds) -> list[Finding]:
    """The rate between gaps against the nominal one."""
    found = intervals(log, t.clock_jump_s)
    if found is None:
        return []
    nominal_hz = log.nominal_hz or 1.0 / found.period_s
    off = found.rate_hz / nominal_hz - 1.0
    severity = t.grade(abs(off), t.rate_tolerance)
    if off > 0 and log.faster_is_fine and log.nominal_hz:
        severity = "ok"
    elif off > 0 and log.nominal_hz and severity == "fail":
        severity = "warn"  # conversion takes one sample of each period; the others are lost, but nothing is wrong
    if severity == "ok":
        return []
    whose = "the contract's rate" if log.nominal_hz else "its median"
    fix = "raise the publisher's rate or lower rate_hz" if off < 0 else "only one message of each period is used"
    text = (
        f"{found.rate_hz:.1f} Hz, {abs(off):.0%} {'above' if off > 0 else 'below'} {whose} of {nominal_hz:.1f} Hz "
        f"(allowed {t.rate_tolerance:.0%}); {fix}"
    )
    return [Finding(severity, log.topic, "rate", text, off, _slow_windows(found, nominal_hz, t))]


def _slow_windows(found: Intervals, nominal_hz: float, t: Thresholds) -> tuple[Span, ...]:
    """Windows in which the rate outside of gaps is off nominal."""
    size = max(10, round(WINDOW_S * nominal_hz))
    begin_s, end_s = [], []
    for i in range(0, len(found.length_s), size):
        part = found.length_s[i : i + size][~found.gap[i : i + size]]
        if len(part) and abs(1.0 / (part.mean() * nominal_hz) - 1.0) > t.warn_share * t.rate_tolerance:
            begin_s.append(found.begin_s[i])
            end_s.append(found.end_s[min(i + size, len(found.end_s)) - 1])
    return spans(np.array(begin_s), np.array(end_s), join_s=0.01)


def check_jitter(log: TopicLog, t: Thresholds) -> list[Finding]:
    """The spread of the intervals outside of gaps, in periods."""
    found = intervals(log, t.clock_jump_s)
    if found is None:
        return []
    whole = found.length_s[~found.gap]
    share = float(whole.std()) / found.period_s
    severity = t.grade(share, t.jitter_share)
    if not log.nominal_hz:
        severity = at_most_warn(severity)  # each tick takes the newest sample, whenever it came
    if severity == "ok":
        return []
    text = (
        f"the interval of {found.period_s * 1e3:.1f} ms spreads by {whole.std() * 1e3:.1f} ms ({share:.0%} of a "
        f"period, "
        f"allowed {t.jitter_share:.0%}); stamp in the driver when the sample is taken, or look for a busy machine"
    )
    uneven = np.abs(found.length_s - found.period_s) > t.jitter_share * found.period_s
    uneven &= ~found.gap
    places = spans(found.begin_s[uneven], found.end_s[uneven], join_s=5 * found.period_s)
    return [Finding(severity, log.topic, "jitter", text, share, places)]


def check_gaps(log: TopicLog, t: Thresholds) -> list[Finding]:
    """The share of time lost in gaps, and the longest one."""
    found = intervals(log, t.clock_jump_s)
    if found is None or not found.gap.any():
        return []
    severity = t.grade(found.gap_share, t.gap_share)
    longest, count = int(np.argmax(found.length_s)), int(found.gap.sum())
    length_s = float(found.length_s[longest])
    if severity == "ok" and length_s > log.max_age_s:
        severity = "warn"
    elif not log.nominal_hz and length_s <= log.max_age_s:
        severity = at_most_warn(severity)  # no sample was ever too old
    if severity == "ok":
        return []
    text = (
        f"{found.gap_share:.1%} of the time is lost in {count} gap{'s' * (count > 1)} (allowed {t.gap_share:.0%}), the "
        f"longest {length_s:.2f} s at {found.begin_s[longest]:.2f} s; look at the recorder's cache, the disk and the "
        f"network at that time"
    )
    places = spans(found.begin_s[found.gap], found.end_s[found.gap])
    return [Finding(severity, log.topic, "gaps", text, found.gap_share, places, cause="gaps")]


def check_order(log: TopicLog, t: Thresholds) -> list[Finding]:
    """Duplicate and late messages, by their alignment time."""
    time_ns = log.time_ns
    newer, epoch = advancing(time_ns, t.clock_jump_s)
    if log.latched or len(log) < MIN_MESSAGES:
        return []
    old = ~newer & (np.concatenate(([1], np.diff(epoch))) == 0)
    share = float(old.mean())
    severity = t.grade(share, t.out_of_order_share)
    if severity == "ok":
        return []
    equal = int((old[1:] & (np.diff(time_ns) == 0)).sum())
    if float((old & ~repeats(log)).mean()) <= t.out_of_order_share:
        severity = at_most_warn(severity)  # what is dropped was there before
    text = (
        f"{share:.1%} of the messages are not newer than the one before ({equal} duplicates, {int(old.sum()) - equal} "
        f"late; allowed {t.out_of_order_share:.0%}) and are dropped; look for two publishers or a relay that repeats"
    )
    return [Finding(severity, log.topic, "order", text, share, message_spans(log, old))]


def repeats(log: TopicLog) -> np.ndarray:
    """(N,) bool: messages with the time and the numbers of the one before them."""
    same = np.concatenate(([False], np.diff(log.time_ns) == 0))
    equal = (log.values[1:] == log.values[:-1]) | (np.isnan(log.values[1:]) & np.isnan(log.values[:-1]))
    same[1:] &= equal.all(axis=1)
    return same


def check_frozen_stamps(log: TopicLog, t: Thresholds) -> list[Finding]:
    """The same stamp in many messages in a row."""
    if log.stamp_ns is None or len(log) < t.frozen_stamps:
        return []
    same = np.concatenate(([False], (np.diff(log.stamp_ns) == 0) & (log.stamp_ns[1:] != 0)))
    edges = np.flatnonzero(np.diff(np.concatenate(([False], same, [False])).astype(int)))
    runs = [(begin - 1, end - 1) for begin, end in edges.reshape(-1, 2).tolist() if end - begin + 1 >= t.frozen_stamps]
    if not runs:
        return []
    count = sum(end - begin + 1 for begin, end in runs)
    at_s = log.seconds
    places = spans(at_s[[b for b, _ in runs]], at_s[[e for _, e in runs]])
    held = log.clock != "header" or log.latched or not (same & ~repeats(log)).any()
    severity: Severity = "warn" if held else "fail"
    text = (
        f"the stamp does not change for {count} messages in {len(runs)} runs (allowed {t.frozen_stamps - 1} in a row); "
        f"the driver repeats an old sample or its clock stopped"
    )
    return [Finding(severity, log.topic, "frozen stamps", text, count / len(log), places)]


def check_presence(log: TopicLog, t: Thresholds) -> list[Finding]:
    """A topic that begins late or stops early."""
    if log.span is None or log.latched or not len(log):
        return []
    (begin_s, end_s), first_s, last_s = log.span, float(log.seconds.min()), float(log.seconds.max())
    late_s, early_s = max(0.0, first_s - begin_s), max(0.0, end_s - last_s)
    share = (late_s + early_s) / max(1e-9, end_s - begin_s)
    found = intervals(log, t.clock_jump_s)
    if found is None or max(late_s, early_s) < 5 * found.period_s or share <= t.warn_share * t.gap_share:
        return []
    places = [(begin_s, first_s)] * (late_s > found.period_s) + [(last_s, end_s)] * (early_s > found.period_s)
    text = (
        f"begins {late_s:.1f} s after and stops {early_s:.1f} s before the other topics ({share:.0%} of the time); "
        f"start the recorder when all publish, and stop it first"
    )
    return [Finding("warn", log.topic, "presence", text, share, tuple(places))]


def check_lost(log: TopicLog, t: Thresholds) -> list[Finding]:
    """Messages that the robot counted but the bag does not hold."""
    share = log.lost / (log.lost + len(log)) if log.lost else 0.0
    severity = t.grade(share, t.lost_share)
    if severity == "ok":
        return []
    text = (
        f"{log.lost} messages ({share:.1%}, allowed {t.lost_share:.0%}) were published but are not in the bag; enlarge "
        f"the recorder's queue and cache, or record on the robot itself"
    )
    return [Finding(severity, log.topic, "lost", text, share)]


TIMING_CHECKS = (
    check_rate,
    check_jitter,
    check_gaps,
    check_order,
    check_frozen_stamps,
    check_presence,
    check_lost,
)
