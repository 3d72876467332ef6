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
from spc_core.contract.contract import Contract, ContractError
from spc_core.data.dataset import DatasetError, Episode
from spc_core.doctor.clock_checks import CLOCK_CHECKS, check_clock_domains
from spc_core.doctor.diagnosis import Finding, Severity, Span, Thresholds, TickLog, TopicLog, worst
from spc_core.doctor.tick_checks import ages_at_ticks, check_ages, check_command_lag, check_ticks
from spc_core.doctor.timing_checks import TIMING_CHECKS
from spc_core.doctor.topic_stats import TopicStats, topic_stats
from spc_core.doctor.traces import Trace, trace
from spc_core.doctor.value_checks import VALUE_CHECKS, check_limits, check_rate_limits, value_range
from spc_ros.bags.files import BagError
from spc_ros.bags.reader import BagReader
from spc_ros.conversion.bag_conversion import Job, compare_contract, cut_episodes
from spc_ros.conversion.conversion_report import BagReport
from spc_ros.conversion.manifest import BagMetadata
from spc_ros.doctor.topic_logs import BagLogs, read_topic_logs
from spc_ros.doctor.topic_roles import find_command, find_states
from spc_ros.messages.fields import MessageError

UNNAMED = "(unnamed task)"  # the task of bags that do not name one
MAX_STATE_TOPICS = 3  # topics that are searched for a response to the commands
FINITE_SHARE = 0.9  # of a field's values must be finite to search it for a response to the commands
AGE_BINS = 40
MAX_KEPT = 2000  # transitions of a bag that are kept to measure coverage


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


@dataclasses.dataclass(frozen=True)
class DoctorJob:
    """The settings of a diagnosis."""

    contract: Contract | None
    own_contract: bool  # given by the user, so that it may differ from the bags'
    task: str | None
    thresholds: Thresholds
    task_from: str = ""  # these three are as in Job
    manifest: Mapping[Path, BagMetadata] = dataclasses.field(default_factory=dict)
    definitions: Mapping[str, str] = dataclasses.field(default_factory=dict)


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
        report, ticks, states, actions, conversion_findings = _convert(bag, read, contract, job, first)
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
        findings=tuple(dataclasses.replace(finding, bag=str(path)) for finding in findings),
    )
    return diagnosis, _bag_data(logs, ages, contract, states, actions)


def _topic_findings(logs: list[TopicLog], ages: Ages, contract: Contract | None, t: Thresholds) -> list[Finding]:
    """Findings on single topics, their clocks and their ages."""
    findings = [finding for log in logs for finding in check_topic(log, contract, t)]
    findings += check_clock_domains(logs, t)
    for log in logs:
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
    if log.role == "action" and contract is not None:
        named = log.topic.partition(" (")[0]  # of several logs of one topic, the name goes on with its fields
        action = next(part for part in contract.action.parts if part.topic == named)
        findings += check_limits(log, action.low, action.high, t)
        findings += check_rate_limits(log, action.max_rate, t)
    return findings


def _empty(log: TopicLog) -> TopicLog:
    """The log with only its first and last message, to refer to it later."""
    ends = [0, -1]
    place = None if log.place_ns is None else log.place_ns[ends]
    return dataclasses.replace(
        log, receive_ns=log.receive_ns[ends], stamp_ns=None, values=log.values[ends], place_ns=place, absent=None,
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


Converted = tuple[BagReport, TickLog | None, np.ndarray | None, np.ndarray | None, list[Finding]]


def _convert(bag: BagReader, read: BagLogs, contract: Contract, job: DoctorJob, first: TopicLog | None) -> Converted:
    """The result of a trial conversion: report, ticks, (n, O) states, (n, A) actions, findings."""
    conversion = Job(contract, True, job.task or UNNAMED, job.task_from, job.manifest)
    try:
        notes = compare_contract(bag, conversion)
        report, entries = cut_episodes(bag, read.aligned(contract), conversion, notes, sha256="")
    except (BagError, MessageError, ContractError, DatasetError) as error:
        text = f"conversion refuses this bag: {str(error).removeprefix(f'{bag.path}: ')}"
        return BagReport(str(bag.path)), None, None, None, [Finding("fail", "", "conversion", text)]
    findings = []
    episodes = [entry.episode for entry in entries]
    if UNNAMED in report.tasks:
        text = (
            f"names no task, neither as '{contract.task_key}' in custom_data nor on the topic 'episode'; give one with "
            f"--task, --task-from folder or --manifest, as conversion will need it"
        )
        findings.append(Finding("fail", "", "task", text))
    for note in report.notes:
        if note.startswith("recorded under another contract"):
            findings.append(Finding("warn" if job.own_contract else "fail", "", "contract", note))
        elif note not in bag.losses:
            findings.append(Finding("warn", "", "episodes", note))
    for jumps in report.jumps:
        places = tuple((at_s, at_s) for at_s in _bag_seconds(jumps.at_s, first))
        findings.append(Finding("warn", "", "jumps", jumps.text, jumps.count / jumps.steps, places))
    if report.outside_ticks:
        text = f"{report.outside_ticks} ticks lie outside all episodes, as their marks tell, and are not used"
        findings.append(Finding("ok", "", "outside episodes", text, report.outside_ticks))
    findings += check_command_lag(report.lag_ms, report.skipped_states, contract.period_ns)
    ticks = TickLog(
        transitions=report.transitions,
        episodes=tuple(len(episode) for episode in episodes),
        cuts=_places(report.cuts, first),
        dropped=report.dropped_ticks,
        breaks=_breaks(episodes, first),
    )
    return report, ticks, *_sample(episodes), findings


def _places(cuts: Sequence[tuple[float, Fault]], first: TopicLog | None) -> tuple[tuple[float, Fault], ...]:
    """Cuts, given in seconds since the first tick, in seconds since the bag began."""
    at_s = _bag_seconds([cut_s for cut_s, _ in cuts], first)
    return tuple((s, fault) for s, (_, fault) in zip(at_s, cuts, strict=True))


def _breaks(episodes: Sequence[Episode], first: TopicLog | None) -> tuple[Span, ...]:
    """Between episodes of which the one did not end for want of data."""
    pairs = [(a, b) for a, b in zip(episodes, episodes[1:], strict=False) if a.terminated or a.truncated]
    if first is None or not len(first):
        return ()
    ends = [[(time - first.time_ns[0]) / 1e9 for time in (a.times_ns[-1], b.times_ns[0])] for a, b in pairs]
    return tuple((begin, end) for begin, end in (_bag_seconds(both, first) for both in ends))


def _bag_seconds(tick_s: Sequence[float], first: TopicLog | None) -> tuple[float, ...]:
    """Seconds since the first tick in seconds since the bag began."""
    if first is None or not len(first):
        return tuple(tick_s)
    order = np.argsort(first.time_ns, kind="stable")
    since_s = (first.time_ns[order] - first.time_ns[0]) / 1e9
    return tuple(np.interp(tick_s, since_s, first.seconds[order]).tolist())


def _sample(episodes: Sequence[Episode]) -> tuple[np.ndarray, np.ndarray]:
    """(n, O) states and (n, A) actions, evenly spaced, of at most MAX_KEPT transitions."""
    states = np.concatenate([episode.observations[:-1] for episode in episodes])
    actions = np.concatenate([episode.actions for episode in episodes])
    kept = np.unique(np.linspace(0, len(states) - 1, min(MAX_KEPT, len(states))).round().astype(int))
    return states[kept], actions[kept]


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
