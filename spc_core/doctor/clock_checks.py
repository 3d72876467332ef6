# SPDX-License-Identifier: Apache-2.0
"""Checks of clocks: unset stamps, jumps, header-to-receive delay and its drift, topics in different clocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spc_core.doctor.diagnosis import Finding, Severity, Thresholds, TopicLog, at_most_warn, message_spans, spans
from spc_core.doctor.topic_stats import MIN_MESSAGES, delays_ns, percentiles_ms
from spc_core.system.wording import plural

SLIGHT_NS = 1_000_000  # a stamp this little ahead of the receive time is rounding
BURST_NS, MOST_HELD = 1_000_000_000, 10  # latched messages come within this time at the start, and at most so many
YEAR_S = 31_557_600  # what seems older is of another clock


def offset_s(log: TopicLog, jump_s: float = 0.5) -> float:
    """Median receive time minus alignment time, seconds: 0 in the recorder's own clock."""
    delay_ns = (log.receive_ns - log.time_ns)[held(log, jump_s) :]
    delay_ns = delay_ns if len(delay_ns) else log.receive_ns[-1:] - log.time_ns[-1:]
    return float(np.median(delay_ns)) / 1e9 if len(log) else 0.0


def held(log: TopicLog, jump_s: float) -> int:
    """Number of messages at the start that latched publishers had kept: received in a burst, stamped long before.

    A topic may hold nothing but them.
    """
    if not len(log):
        return 0
    delay_ns = log.receive_ns - log.time_ns
    burst = int(np.argmax(log.receive_ns - log.receive_ns[0] > BURST_NS) or len(log))
    if burst > MOST_HELD:
        burst = MOST_HELD
    if burst == len(log):
        usual_ns = int(delay_ns.min())
        return len(log) if int(delay_ns.max()) - usual_ns > jump_s * 1e9 else 0
    old = delay_ns[:burst] > np.median(delay_ns[burst:]) + jump_s * 1e9
    return burst if old.all() else int(np.argmin(old))


def check_unset_stamps(log: TopicLog, t: Thresholds) -> list[Finding]:
    """Stamps left at zero where the messages are aligned by their stamps."""
    if log.clock != "header" or log.stamp_ns is None or not len(log):
        return []
    unset = log.stamp_ns == 0
    share = float(unset.mean())
    severity = t.grade(share, t.unset_share)
    if severity == "ok":
        return []
    if unset.all():
        severity = "warn"  # all by receive time: coarse but consistent; check_clock_domains covers the rest
    how = "receive time" if log.clock_ns is None else "/clock"
    text = (
        f"{share:.1%} of the stamps are unset (0, 0), allowed {t.unset_share:.0%}; these messages are aligned by "
        f"{how}; set header.stamp in the driver or use clock: receive for all topics"
    )
    return [Finding(severity, log.topic, "unset stamps", text, share, message_spans(log, unset))]


def check_clock_jumps(log: TopicLog, t: Thresholds) -> list[Finding]:
    """Stamps that run back, or ahead of the pace of the receive times.

    The values that latched topics had before the recording are received at its start, whenever they were stamped.
    """
    time_ns = log.time_ns
    if len(log) < 2:
        return []
    step_s = np.diff(time_ns) / 1e9
    any_pace = log.latched or log.by_clock  # `/clock` comes in steps, and begins when its first message comes
    ahead_s = np.zeros(len(step_s)) if any_pace else step_s - np.diff(log.receive_ns) / 1e9
    jumped = (step_s < -t.clock_jump_s) | (ahead_s > t.clock_jump_s)
    kept = held(log, t.clock_jump_s)
    findings = []
    if jumped[:kept].any() and kept < len(log):  # else _kept_whole tells it, with the age by other topics' clock
        text = (
            f"the first {kept} messages came in a burst, stamped up to {_duration(_oldest_s(log, kept))} before: a "
            "latched publisher had kept them"
        )
        findings.append(Finding("ok", log.topic, "kept messages", text, float(kept), cause="kept"))
    jumped[:kept] = False
    jumps = np.flatnonzero(jumped)
    if not len(jumps):
        return findings
    largest = int(jumps[np.argmax(np.abs(step_s[jumps]))])
    text = (
        f"the clock jumps {plural(len(jumps), 'time')}, most by {step_s[largest]:+.2f} s at "
        f"{log.seconds[largest]:.2f} s (allowed {t.clock_jump_s} s); each jump cuts the episode; look for a restarted "
        "simulation, a time synchronisation during the recording, or two publishers on one topic"
    )
    places = spans(log.seconds[jumps], log.seconds[jumps + 1])
    return [*findings, Finding("fail", log.topic, "clock jump", text, float(np.abs(step_s[largest])), places)]


def _oldest_s(log: TopicLog, kept: int) -> float:
    return float((log.receive_ns[:kept] - log.time_ns[:kept]).max()) / 1e9 - offset_s(log)


def check_delay(log: TopicLog, t: Thresholds) -> list[Finding]:
    """The delay from header to receive time, where both are in one clock."""
    delay_ns, index = delays_ns(log)
    if log.simulated or len(delay_ns) < MIN_MESSAGES or abs(float(np.median(delay_ns))) / 1e9 > t.clocks_apart_s:
        return []
    p50, p95, p99 = percentiles_ms(delay_ns)
    findings = []
    severity = t.grade(p99 / 1e3, t.delay_s)
    if severity != "ok":
        if log.clock == "header":
            severity = at_most_warn(severity)  # aligned by stamp, late or not
        slow = np.zeros(len(log), bool)
        slow[index] = delay_ns > t.warn_share * t.delay_s * 1e9
        text = (
            f"from header to receive it takes {p50:.1f} / {p95:.1f} / {p99:.1f} ms (50 / 95 / 99 %), allowed "
            f"{t.delay_s * 1e3:.0f} ms; a policy on the robot would act on data this old; look at the network, the "
            f"queues and the recorder"
        )
        findings.append(Finding(severity, log.topic, "delay", text, p99 / 1e3, message_spans(log, slow)))
    early = np.zeros(len(log), bool)
    early[index] = delay_ns < -SLIGHT_NS
    share = float(early.mean())
    if share > t.unset_share:
        text = (
            f"{share:.1%} of the stamps lie ahead of the receive time, by up to {-delay_ns.min() / 1e6:.1f} ms; the "
            "clocks of the driver's and the recorder's machine differ; synchronise them (chrony, PTP)"
        )
        findings.append(Finding("warn", log.topic, "delay", text, share, message_spans(log, early)))
    return findings


def check_drift(log: TopicLog, t: Thresholds) -> list[Finding]:
    """A delay that grows or shrinks over the bag: clocks that run at different speeds, or a queue that fills."""
    delay_ns, index = delays_ns(log)
    if log.simulated or len(delay_ns) < 10 * MIN_MESSAGES or abs(float(np.median(delay_ns))) / 1e9 > t.clocks_apart_s:
        return []
    tenth = len(delay_ns) // 10
    drift_s = float(np.median(delay_ns[-tenth:]) - np.median(delay_ns[:tenth])) / 1e9
    spread_s = float(np.subtract(*np.percentile(delay_ns, (75, 25)))) / 1e9
    severity = t.grade(abs(drift_s), t.drift_s)
    if severity == "ok" or abs(drift_s) < spread_s:
        return []
    if log.clock == "header":
        severity = at_most_warn(severity)
    text = (
        f"the delay from header to receive changes by {drift_s * 1e3:+.1f} ms over the bag (allowed "
        f"{t.drift_s * 1e3:.0f} ms); synchronise the clocks, or look for a queue that fills"
    )
    at_s = log.seconds[index]
    places = ((float(at_s[0]), float(at_s[-1])),)
    return [Finding(severity, log.topic, "drift", text, drift_s, places)]


def check_clock_domains(logs: Sequence[TopicLog], t: Thresholds) -> list[Finding]:
    """Topics that would be aligned by unrelated clocks."""
    notes = _kept_whole(logs, t)
    kept = {note.topic for note in notes}
    timed = [log for log in logs if len(log) >= 2 and not log.latched and log.topic not in kept]
    return [*notes, *_domains(timed, t)] if timed else notes


def _kept_whole(logs: Sequence[TopicLog], t: Thresholds) -> list[Finding]:
    """Notes on topics with nothing but what latched publishers had kept: few messages, at the start, stamped before."""
    steady = [offset_s(log, t.clock_jump_s) for log in logs if len(log) > MOST_HELD]
    if not steady:
        return []
    usual_s, begin_ns = float(np.median(steady)), min(int(log.receive_ns[0]) for log in logs if len(log))
    findings = []
    for log in logs:
        few = 0 < len(log) <= MOST_HELD and log.role == "other" and log.has_stamps
        if not few or log.receive_ns[-1] - begin_ns > BURST_NS:
            continue
        ages_s = (log.receive_ns - log.time_ns) / 1e9 - usual_s
        if t.clock_jump_s < ages_s.min() and ages_s.max() < YEAR_S:
            text = (
                f"{plural(len(log), 'message')}, at the start, stamped up to {_duration(float(ages_s.max()))} before: "
                "a latched publisher had kept what it said"
            )
            findings.append(Finding("ok", log.topic, "kept messages", text, float(len(log)), cause="kept"))
    return findings


def _domains(timed: Sequence[TopicLog], t: Thresholds) -> list[Finding]:
    offsets = {log.topic: offset_s(log, t.clock_jump_s) for log in timed}
    order = sorted(offsets, key=lambda topic: offsets[topic])
    apart_s = offsets[order[-1]] - offsets[order[0]]
    if apart_s <= t.clocks_apart_s:
        return _one_domain(timed, offsets, t)
    middle = (offsets[order[0]] + offsets[order[-1]]) / 2
    groups = [[topic for topic in order if (offsets[topic] > middle) == side] for side in (False, True)]
    clocks = "; ".join(f"{', '.join(group)}: {_clock(group, timed, offsets, t)}" for group in groups)
    severity: Severity = "fail" if any(log.role != "other" for log in timed) else "warn"
    text = (
        f"topics are in different clocks, {_duration(apart_s)} apart ({clocks}), so that they cannot be aligned; set "
        f"use_sim_time the same for all nodes, stamp all messages, or use clock: receive"
    )
    return [Finding(severity, "", "clock domains", text, apart_s, cause=clocks)]


def _one_domain(logs: Sequence[TopicLog], offsets: dict[str, float], t: Thresholds) -> list[Finding]:
    apart = [topic for topic, offset in offsets.items() if abs(offset) > t.clocks_apart_s]
    if not apart:
        return []
    offset = _duration(abs(float(np.median([offsets[topic] for topic in apart]))))
    text = (
        f"all topics are stamped by one clock, but another than the recorder's ({offset} apart), as in a simulation; "
        "they can still be aligned with each other, but delays from header to receive mean nothing"
    )
    apart_s = max(abs(o) for o in offsets.values())
    return [Finding("ok", "", "clock domains", text, apart_s, cause="another clock than the recorder's")]


def _clock(group: list[str], logs: Sequence[TopicLog], offsets: dict[str, float], t: Thresholds) -> str:
    mine = [log for log in logs if log.topic in group]
    if all(not log.has_stamps for log in mine):
        return "receive time, having no stamps"
    own = abs(float(np.median([offsets[topic] for topic in group])))
    return "stamps in the recorder's clock" if own <= t.clocks_apart_s else "stamps in a clock of their own"


def _duration(seconds: float) -> str:
    for unit, size in (("years", YEAR_S), ("days", 86_400), ("hours", 3_600)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2f} s"


CLOCK_CHECKS = (check_unset_stamps, check_clock_jumps, check_delay, check_drift)
