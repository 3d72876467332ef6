# SPDX-License-Identifier: Apache-2.0
"""Checks of what messages hold: NaN, constants, joints that go missing, arrays that are empty, commands at limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from spc_core.doctor.diagnosis import Finding, Severity, Thresholds, TopicLog, at_most_warn, message_spans, spans
from spc_core.doctor.topic_stats import paced_ns

LIMIT_SLACK = 1e-6  # share of a limit's range that rounding may take
NEAR_LIMIT = 0.01  # share of the range that counts as at the limit


def check_finite(log: TopicLog, t: Thresholds) -> list[Finding]:
    """NaN and infinity in fields that the messages do have."""
    bad = log.bad & log.used[:, None]
    rows, columns = np.any(bad, axis=1), np.any(bad, axis=0).tolist()
    if not np.any(rows):
        return []
    share = float(np.mean(rows))
    severity: Severity = "fail" if share > t.nan_share else "warn"
    names = [name for name, hit in zip(log.fields, columns, strict=True) if hit]
    cost = "no contract reads it" if log.role == "other" else "each one cuts the episode"
    text = (
        f"{np.count_nonzero(rows)} messages ({share:.1%}, allowed {t.nan_share:.0%}) hold NaN or infinity in "
        f"{_listed(names)}; {cost}; fix the driver or the sensor"
    )
    return [Finding(severity, log.topic, "not finite", text, share, message_spans(log, rows))]


def check_joints(log: TopicLog, t: Thresholds) -> list[Finding]:
    """Joints that go missing or change places within the recording."""
    layouts = log.layouts
    if len(layouts) < 2:
        return []
    ends = [start for start, _ in layouts[1:]] + [len(log)]
    usual = max(layouts, key=lambda layout: ends[layouts.index(layout)] - layout[0])[1]
    odd = np.zeros(len(log), bool)
    missing: set[str] = set()
    for (start, names), end in zip(layouts, ends, strict=True):
        odd[start:end] = names != usual
        missing |= set(usual) - set(names)
    places, at_s = message_spans(log, odd), log.seconds
    first_s = float(at_s[int(np.argmax(odd))])
    if not missing:
        text = (
            f"the joints change their order within the recording, first at {first_s:.2f} s ({int(odd.sum())} "
            f"messages are not in the order {', '.join(usual)}); they are read by name, so that nothing is lost; "
            "look for two publishers"
        )
        return [Finding("warn", log.topic, "joints", text, float(odd.mean()), places)]
    severity: Severity = "warn" if log.role == "other" or _only_others(log, missing) else "fail"
    text = (
        f"the joints {_listed(sorted(missing))} are missing from {int(odd.sum())} messages, first at {first_s:.2f} "
        "s; look for two publishers on this topic (merge them, or remap one)"
    )
    return [Finding(severity, log.topic, "joints", text, float(odd.mean()), places)]


def _only_others(log: TopicLog, missing: set[str]) -> bool:
    """Whether none of the missing joints is read."""
    return not any(field.partition(".")[2] in missing for field in log.fields)


def check_arrays(log: TopicLog, t: Thresholds) -> list[Finding]:
    """Fields that are wanted but whose array is empty or too short, always or at times."""
    findings = []
    for name, length in log.lengths.items():
        mine = [i for i, field in enumerate(log.fields) if field.partition(".")[0] == name]
        if not mine or log.absent is None or not len(log):
            continue
        short = log.absent[:, mine].any(axis=1) & (length < _joint_counts(log))
        if not short.any():
            continue
        share = float(short.mean())
        if log.role == "other" and short.all():
            continue
        fix = f"make the driver fill '{name}' or take {log.fields[mine[0]]} out of the contract"
        if log.role == "other":
            fix = f"make the driver fill '{name}' in every message"
        text = f"the array '{name}' is empty or too short in {share:.1%} of the messages (allowed 0 %); {fix}"
        findings.append(Finding("fail", log.topic, "empty array", text, share, message_spans(log, short)))
    return findings


def _joint_counts(log: TopicLog) -> np.ndarray:
    """(N,) joints that each message names."""
    counts = np.zeros(len(log), np.int64)
    for start, names in log.layouts:
        counts[start:] = len(names)
    return counts


Ranges = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""(F,) smallest and largest finite value of each field by topic, over all bags; NaN where there was none."""


def value_range(log: TopicLog) -> tuple[np.ndarray, np.ndarray]:
    """(F,) smallest and largest finite value of each field; NaN where there is none."""
    finite = np.isfinite(log.values)
    low = np.where(finite, log.values, np.inf).min(axis=0, initial=np.inf)
    high = np.where(finite, log.values, -np.inf).max(axis=0, initial=-np.inf)
    none = ~finite.any(axis=0)
    return np.where(none, np.nan, low), np.where(none, np.nan, high)


def check_constant(log: TopicLog, low: np.ndarray, high: np.ndarray) -> list[Finding]:
    """Fields that never change; `low` and `high` (F,) are over all bags, since a target may be constant in one."""
    names = [name for name, a, b in zip(log.fields, low, high, strict=True) if a == b]
    if not names or len(log) < 2:
        return []
    text = f"never changes: {_listed(names)}; "
    text += "take it out of the contract, or find out whether the sensor works" if log.role != "other" else "no use"
    places = spans(log.seconds[:1], log.seconds[-1:])
    return [
        Finding("ok" if log.role == "other" else "warn", log.topic, "constant", text, len(names) / len(low), places)
    ]


def check_limits(log: TopicLog, low: Sequence[float], high: Sequence[float], t: Thresholds) -> list[Finding]:
    """Commands beyond the contract's limits, and commands at a limit."""
    lows, highs, v = np.array(low), np.array(high), log.values
    slack, near = LIMIT_SLACK * (highs - lows), NEAR_LIMIT * (highs - lows)
    beyond: np.ndarray = (v < lows - slack) | (v > highs + slack)
    at: np.ndarray = (v <= lows + near) | (v >= highs - near)
    findings = []
    outside = np.asarray(np.any(beyond, axis=1)) & log.used
    share = float(outside.mean()) if len(log) else 0.0
    severity = t.grade(share, t.beyond_share)
    if severity != "ok":
        excess = np.nan_to_num(np.maximum(lows - v, v - highs), nan=-np.inf).max(axis=0)
        worst = int(np.argmax(excess / (highs - lows)))
        text = (
            f"{share:.1%} of the commands (allowed {t.beyond_share:.0%}) are beyond the contract's limits, most "
            f"{log.fields[worst]}, by {excess[worst]:.3g} outside [{lows[worst]:g}, {highs[worst]:g}]; the robot "
            "clips the actions that the data record; correct low and high, or clip before publishing"
        )
        findings.append(Finding(severity, log.topic, "limits", text, share, message_spans(log, outside)))
    shares = at.mean(axis=0) if len(log) else np.zeros(len(lows))
    worst = int(np.argmax(shares))
    if shares[worst] > t.saturated_share:
        text = (
            f"{log.fields[worst]} is at a limit in {shares[worst]:.0%} of the commands (allowed "
            f"{t.saturated_share:.0%}); nothing can be learnt about values in between; lower the gains, or widen the "
            "limits if the robot may go further"
        )
        places = message_spans(log, at[:, worst])
        findings.append(Finding("warn", log.topic, "saturation", text, float(shares[worst]), places))
    return findings


def check_rate_limits(log: TopicLog, max_rate: Sequence[float], t: Thresholds) -> list[Finding]:
    """Commands that change faster than the contract's max_rate, as a policy's commands could not."""
    if len(log) < 2:
        return []
    step_s = np.diff(paced_ns(log)) / 1e9
    usable = (step_s > 0) & (step_s < t.clock_jump_s)
    with np.errstate(over="ignore", invalid="ignore"):
        rate = np.abs(np.diff(log.values, axis=0)) / np.where(usable, step_s, np.inf)[:, None]
    fast = rate > np.array(max_rate) * (1 + 1e-3)
    rows = np.concatenate(([False], fast.any(axis=1)))
    share = float(rows[1:].mean())
    severity = at_most_warn(t.grade(share, t.rate_limit_share))  # the data stay as they are
    if severity == "ok":
        return []
    worst = int(np.argmax(fast.mean(axis=0)))
    text = (
        f"{share:.1%} of the commands (allowed {t.rate_limit_share:.0%}) change faster than max_rate, most "
        f"{log.fields[worst]}, by up to {np.nan_to_num(rate[:, worst]).max():.3g} per second against "
        f"{max_rate[worst]:g}; a policy will be held to max_rate; raise it if the robot allows, or smooth the "
        "commands"
    )
    return [Finding(severity, log.topic, "rate limit", text, share, message_spans(log, rows))]


def _listed(names: Sequence[str], most: int = 6) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


VALUE_CHECKS = (check_finite, check_joints, check_arrays)
