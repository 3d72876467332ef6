# SPDX-License-Identifier: Apache-2.0
"""Checks of the conversion of a bag: ages at the ticks, dropped ticks, cuts, episodes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from spc_core.alignment.command_lag import CommandLag
from spc_core.doctor.diagnosis import Finding, Thresholds, TickLog, TopicLog, spans
from spc_core.doctor.topic_stats import advancing


def ages_at_ticks(log: TopicLog, first: TopicLog, rate_hz: float) -> tuple[np.ndarray, np.ndarray]:
    """((K,) ages in seconds, (K,) seconds since the bag began) of the newest message, at steady ticks.

    The ticks cover the time of the first stream, `first`, at the contract's rate; ages are NaN before `log` begins.
    """
    clock_ns, epoch = first.time_ns, advancing(first.time_ns, 0.5)[1]
    time_ns = np.sort(log.time_ns)
    ages, at_s = [], []
    for number in range(int(epoch.max(initial=-1)) + 1):
        mine = np.flatnonzero(epoch == number)
        order = mine[np.argsort(clock_ns[mine], kind="stable")]
        count = min((clock_ns[order[-1]] - clock_ns[order[0]]) * rate_hz / 1e9, 20 * len(order)) if len(order) else -1
        ticks_ns = clock_ns[order[0]] + np.round(np.arange(math.floor(count) + 1) * 1e9 / rate_hz).astype(np.int64)
        place = np.searchsorted(time_ns, ticks_ns, "right") - 1
        age_s = (ticks_ns - time_ns[np.maximum(place, 0)]) / 1e9 if len(time_ns) else np.full(len(ticks_ns), np.nan)
        ages.append(np.where(place >= 0, age_s, np.nan))
        at_s.append(np.interp(ticks_ns, clock_ns[order], first.seconds[order]))
    return (np.concatenate(ages), np.concatenate(at_s)) if ages else (np.empty(0), np.empty(0))


def check_command_lag(lag_ms: Sequence[float], skipped: int, period_ns: int) -> list[Finding]:
    """The time from a tick to its command, from its percentiles at LEVELS; `skipped` states gave the phase."""
    if not lag_ms:
        return []
    lag = CommandLag.pooled([(1, lag_ms)])
    text = f"from state to command: {lag}"
    if skipped:
        text += f"; states are faster than the contract's rate, and the first {skipped} of them skipped: the ticks are "
        text += "those that the commands follow soonest"
    late = lag is not None and lag.p95_ms - lag.median_ms > 0.5 * period_ns / 1e6
    if late:
        text += "; it varies by more than half a period, so commands belong to no fixed state: drive the controller by "
        text += "the states instead of by a timer of its own"
    return [Finding("warn" if late else "ok", "", "command lag", text)]


def check_ages(log: TopicLog, age_s: np.ndarray, at_s: np.ndarray, t: Thresholds) -> list[Finding]:
    """The share of ticks at which the newest message is older than max_age_s; ages as ages_at_ticks gives them."""
    known = np.isfinite(age_s)
    if log.latched or not known.any():
        return []
    stale = known & (age_s > log.max_age_s)
    share = float(stale[known].mean())
    severity = t.grade(share, t.stale_share)
    if severity == "ok":
        return []
    p50, p99 = np.percentile(age_s[known], (50, 99)) * 1e3
    text = (
        f"at {share:.1%} of the ticks (allowed {t.stale_share:.0%}) the newest message is older than max_age_s "
        f"{log.max_age_s:g} s (age {p50:.0f} ms at 50 %, {p99:.0f} ms at 99 %); raise its rate, or max_age_s if the "
        "policy can live with older data"
    )
    period_s = float(np.median(np.diff(at_s))) if len(at_s) > 1 else 0.0
    places = spans(at_s[stale] - period_s / 2, at_s[stale] + period_s / 2, join_s=period_s)
    return [Finding(severity, log.topic, "age at ticks", text, share, places)]


def check_ticks(ticks: TickLog, t: Thresholds) -> list[Finding]:
    """The share of ticks that conversion drops, and the commonest reason."""
    dropped = sum(ticks.dropped.values())
    share = dropped / max(1, dropped + ticks.transitions)
    places = tuple((at_s, at_s) for at_s, fault in ticks.cuts if not fault.is_end_of_recording)
    findings = []
    severity = t.grade(share, t.dropped_share)
    if severity != "ok":
        reasons = Counter(dict(ticks.dropped)).most_common()
        why = "; ".join(f"{n} times {reason}" for reason, n in reasons)
        text = f"conversion drops {dropped} ticks ({share:.1%}, allowed {t.dropped_share:.0%}): {why}"
        findings.append(Finding(severity, "", "dropped ticks", text, share, places, cause=reasons[0][0]))
    short = [steps for steps in ticks.episodes if steps < t.episode_steps]
    if short:
        text = (
            f"{len(short)} of {len(ticks.episodes)} pieces are shorter than {t.episode_steps} transitions; fix the "
            "causes of the cuts, which are listed"
        )
        findings.append(Finding("warn", "", "short episodes", text, len(short) / len(ticks.episodes), places))
    return findings
