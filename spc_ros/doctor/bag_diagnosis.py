# SPDX-License-Identifier: Apache-2.0
"""Diagnoses one bag: every check on every topic, and a trial conversion."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spc_core.alignment.faults import Fault
from spc_core.command_delay.correlogram import Correlogram, correlogram
from spc_core.contract.contract import Contract
from spc_core.doctor.clock_checks import CLOCK_CHECKS, check_clock_domains
from spc_core.doctor.command_checks import check_hold
from spc_core.doctor.diagnosis import Finding, Severity, Span, Thresholds, TopicLog, at_most_warn, worst
from spc_core.doctor.tick_checks import ages_at_ticks, check_ages, check_ticks
from spc_core.doctor.timing_checks import TIMING_CHECKS
from spc_core.doctor.topic_looks import Unchecked
from spc_core.doctor.topic_stats import TopicStats, topic_stats
from spc_core.doctor.traces import Trace, trace
from spc_core.doctor.value_checks import VALUE_CHECKS, check_limits, check_rate_limits, value_range
from spc_ros.bags.files import BagError
from spc_ros.bags.reader import BagReader
from spc_ros.conversion.conversion_report import BagReport
from spc_ros.doctor.topic_logs import read_topic_logs
from spc_ros.doctor.topic_roles import find_command, find_states
from spc_ros.doctor.trial_conversion import DoctorJob, trial_conversion
from spc_ros.messages.fields import MessageError

MAX_STATE_TOPICS = 3  # topics that are searched for a response to the commands
FINITE_SHARE = 0.9  # of a field's values must be finite to search it for a response to the commands
AGE_BINS = 40


@dataclasses.dataclass(frozen=True)
class BagDiagnosis:
    """The results for one bag; their size does not depend on its length."""

    path: str
    duration_s: float = 0.0
    task_id: str = ""
    transitions: int = 0
    episodes: int = 0
    cuts: tuple[tuple[float, Fault], ...] = ()  # (seconds since the bag began, why)
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)  # ticks by reason
    topics: tuple[TopicStats, ...] = ()
    unchecked: tuple[Unchecked, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def verdict(self) -> Severity:
        return worst(finding.severity for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self),
            "cuts": [(at_s, str(fault)) for at_s, fault in self.cuts],
            "verdict": self.verdict,
            "topics": [topic.as_dict() for topic in self.topics],
            "findings": [finding.as_dict() for finding in self.findings],
        }


@dataclasses.dataclass(frozen=True)
class BagData:
    """The data of a bag for the page and for the report over all bags; small, too."""

    traces: tuple[Trace, ...] = ()
    ages: Mapping[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)  # see age_histogram
    states: np.ndarray | None = None  # (n, O) of at most MAX_KEPT transitions
    actions: np.ndarray | None = None  # (n, A)
    answers: Mapping[str, Correlogram] = dataclasses.field(default_factory=dict)  # by topic of the states
    ranges: Mapping[str, tuple[TopicLog, np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)


Ages = dict[str, tuple[np.ndarray, np.ndarray]]  # of each observed topic at the ticks, in the form of check_ages


def diagnose_bag(
    path: Path, job: DoctorJob, progress: Callable[[int], None] = lambda _: None
) -> tuple[BagDiagnosis, BagData]:
    """All checks on one bag; a bag that cannot be read is a finding, not an error.

    `progress` receives the bytes read so far.
    """
    contract, thresholds = job.contract, job.thresholds
    try:
        with BagReader(path, job.definitions) as bag:
            read = read_topic_logs(bag, contract, progress, thresholds)
    except (BagError, MessageError) as error:
        text = str(error).removeprefix(f"{path}: ")
        return BagDiagnosis(str(path), findings=(Finding("fail", "", "bag", text, bag=str(path)),)), BagData()
    logs, findings = read.logs, read.findings
    findings += [Finding("ok", "", "bag", note) for note in bag.notes]
    findings += [Finding("warn", "", "bag", loss) for loss in bag.losses]  # final now that the bag was read
    fields = contract.observation[0].fields if contract else ()
    first = next((log for log in logs if log.role == "observation" and log.fields == fields), None)
    ages = _ages(logs, first, contract)
    report, ticks, states, actions, conversion_findings = BagReport(str(path)), None, None, None, []
    if contract is not None:
        report, ticks, states, actions, conversion_findings = trial_conversion(bag, read, contract, job, first)
    if ticks is not None:
        conversion_findings = [*conversion_findings, *check_ticks(ticks, thresholds)]
        logs = [dataclasses.replace(log, breaks=ticks.breaks) for log in logs]
        ages = {topic: _outside(ticks.breaks, *entry) for topic, entry in ages.items()}
    findings += _topic_findings(logs, ages, contract, thresholds) + conversion_findings
    diagnosis = BagDiagnosis(
        path=str(path),
        duration_s=bag.info.duration_s,
        task_id=", ".join(report.tasks),
        transitions=report.transitions,
        episodes=report.episodes,
        cuts=ticks.cuts if ticks else (),
        dropped=dict(report.dropped_ticks),
        topics=tuple(topic_stats(log, ages[log.topic][0] if log.topic in ages else None, thresholds) for log in logs),
        unchecked=tuple(read.unchecked),
        findings=tuple(dataclasses.replace(finding, bag=str(path)) for finding in findings),
    )
    return diagnosis, _bag_data(logs, ages, contract, states, actions)


def _topic_findings(logs: list[TopicLog], ages: Ages, contract: Contract | None, t: Thresholds) -> list[Finding]:
    """Findings on single topics, their clocks and their ages."""
    findings = [finding for log in logs for finding in check_topic(log, contract, t)]
    findings += check_clock_domains(logs, t)
    states = next((log for log in logs if log.role == "observation"), None)
    for log in logs:
        if log.role == "action" and contract is not None and states is not None:
            hold = next((part.hold for part in contract.action.parts if part.topic == log.topic), False)
            findings += check_hold(log, states, hold, contract.rate_hz)
        if log.role == "observation" and log.topic in ages:
            findings += check_ages(log, *ages[log.topic], t)
    return findings


def _bag_data(
    logs: list[TopicLog], ages: Ages, contract: Contract | None, states: np.ndarray | None, actions: np.ndarray | None
) -> BagData:
    """Data to draw the bag and to compare it with others."""
    ranges = {log.topic: (dataclasses.replace(_empty(log)), *value_range(log)) for log in logs if len(log)}
    command = find_command(logs) if contract is None else None
    traces = tuple(trace(log, log.role == "action" or log is command) for log in logs if len(log))
    counted = {
        log.topic: age_histogram(log, ages[log.topic][0], contract.rate_hz)
        for log in logs
        if log.topic in ages and contract
    }
    return BagData(traces, counted, states, actions, _answers(logs, contract), ranges)


def check_topic(log: TopicLog, contract: Contract | None, t: Thresholds) -> list[Finding]:
    """Checks of one topic by itself."""
    if not len(log):
        return [Finding("fail", log.topic, "topic", "holds no message; check that its publisher ran", 0.0)]
    findings = [finding for check in (*TIMING_CHECKS, *CLOCK_CHECKS, *VALUE_CHECKS) for finding in check(log, t)]
    if log.role == "other":  # without a contract nothing says what is needed
        findings = [dataclasses.replace(f, severity=at_most_warn(f.severity)) for f in findings]
    if log.role == "action" and contract is not None:
        named = log.topic.partition(" (")[0]  # of several logs of one topic, the name goes on with its fields
        action = next(part for part in contract.action.parts if part.topic == named)
        findings += check_limits(log, action.low, action.high, t)
        findings += check_rate_limits(log, action.max_rate, t)
    return findings


def _empty(log: TopicLog) -> TopicLog:
    """The log with only its first and last message, to refer to it later."""
    ends = [0, -1]
    place, clock = (None if times is None else times[ends] for times in (log.place_ns, log.clock_ns))
    return dataclasses.replace(
        log, receive_ns=log.receive_ns[ends], stamp_ns=None, values=log.values[ends], place_ns=place, clock_ns=clock,
        absent=None,
        layouts=(), lengths={},
    )  # fmt: skip


def _ages(logs: Sequence[TopicLog], first: TopicLog | None, contract: Contract | None) -> Ages:
    """Ages of each observed topic at the ticks."""
    if first is None or contract is None or not len(first):
        return {}
    observed = [log for log in logs if log.role == "observation" and len(log)]
    return {log.topic: ages_at_ticks(log, first, contract.rate_hz) for log in observed}


def _outside(breaks: Sequence[Span], age_s: np.ndarray, at_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ages and their places without those in a pause between episodes."""
    kept = np.ones(len(at_s), bool)
    for begin_s, end_s in breaks:
        kept &= (at_s <= begin_s) | (at_s >= end_s)
    return age_s[kept], at_s[kept]


def age_histogram(log: TopicLog, age_s: np.ndarray, rate_hz: float) -> tuple[np.ndarray, np.ndarray]:
    """((AGE_BINS,) counts, edges in ms) of ages at the ticks; the last bin includes all older ones."""
    top_s = 1.5 * log.max_age_s if math.isfinite(log.max_age_s) else 5 / rate_hz
    edges = np.linspace(0, top_s * 1e3, AGE_BINS + 1)
    counts, _ = np.histogram(np.clip(age_s[np.isfinite(age_s)] * 1e3, 0, edges[-1]), edges)
    return counts, edges


def _mostly_finite(log: TopicLog) -> list[int]:
    """Indices of fields that can be correlated."""
    return np.flatnonzero(np.isfinite(log.values).mean(axis=0) > FINITE_SHARE).tolist() if len(log) else []


def _answers(logs: Sequence[TopicLog], contract: Contract | None) -> dict[str, Correlogram]:
    """Correlation of command and states, by topic of the states."""
    if contract is None:
        command = find_command(logs)
        states = [log for log in find_states(logs) if log is not command]
    else:
        command = next((log for log in logs if log.role == "action"), None)
        states = [log for log in logs if log.role == "observation" and not log.latched]
    found = {}
    for log in states[:MAX_STATE_TOPICS] if command is not None else ():
        assert command is not None
        known, asked = _mostly_finite(log), _mostly_finite(command)
        names = tuple(f"{log.topic}.{log.fields[i]}" for i in known)
        commands = tuple(command.fields[i] for i in asked)
        if not names or not commands:
            continue
        result = correlogram(
            command.time_ns, command.values[:, asked], commands, log.time_ns, log.values[:, known], names
        )
        if result is not None:
            found[log.topic] = result
    return found
