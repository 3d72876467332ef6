# SPDX-License-Identifier: Apache-2.0
"""The doctor's trial conversion of one bag: what `spc convert` would make of it, as findings with their places."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from spc_core.alignment.faults import Fault
from spc_core.contract.contract import Contract, ContractError
from spc_core.data.dataset import DatasetError, Episode
from spc_core.doctor.diagnosis import Finding, Span, Thresholds, TickLog, TopicLog
from spc_core.doctor.tick_checks import check_command_lag
from spc_ros.bags.files import BagError
from spc_ros.bags.reader import BagReader
from spc_ros.conversion.bag_conversion import Job, compare_contract, cut_episodes
from spc_ros.conversion.conversion_report import BagReport
from spc_ros.conversion.manifest import BagMetadata
from spc_ros.doctor.topic_logs import BagLogs
from spc_ros.messages.fields import MessageError

MAX_KEPT = 2000  # transitions of a bag that are kept to measure coverage
UNNAMED = "(unnamed task)"  # the task of bags that do not name one


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


Converted = tuple[BagReport, TickLog | None, np.ndarray | None, np.ndarray | None, list[Finding]]


def trial_conversion(
    bag: BagReader, read: BagLogs, contract: Contract, job: DoctorJob, first: TopicLog | None
) -> Converted:
    """The result of a trial conversion: report, ticks, (n, O) states, (n, A) actions, findings."""
    conversion = Job(contract, True, job.task or UNNAMED, job.task_from, job.manifest)
    try:
        notes = compare_contract(bag, conversion)
        report, entries = cut_episodes(bag, read.aligned(contract), conversion, notes, sha256="")
    except (BagError, MessageError, ContractError, DatasetError) as error:
        why = str(error).removeprefix(f"{bag.path}: ")
        told = any(finding.severity == "fail" and finding.text == why for finding in read.findings)
        refusal = [] if told else [Finding("fail", "", "conversion", f"conversion refuses this bag: {why}")]
        return BagReport(str(bag.path)), None, None, None, refusal
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
            findings.append(Finding("warn" if job.own_contract else "fail", "", "contract", note, cause=note))
        elif note not in (*bag.losses, *bag.notes):
            findings.append(Finding("warn", "", "episodes", note))
    for jumps in report.jumps:
        places = tuple((at_s, at_s) for at_s in _bag_seconds(jumps.at_s, first))
        cause = f"{jumps.guess.name}: {', '.join(jumps.fields)}"
        findings.append(Finding("warn", "", "jumps", jumps.text, jumps.count / jumps.steps, places, cause=cause))
    if report.outside_ticks:
        text = f"{report.outside_ticks} ticks lie outside all episodes, as their marks tell, and are not used"
        findings.append(Finding("ok", "", "outside episodes", text, report.outside_ticks))
    findings += check_command_lag(report.lag_ms, report.skipped_states, contract.period_ns)
    ticks = TickLog(
        transitions=report.transitions,
        episodes=tuple(len(episode) for episode in episodes),
        cuts=_places(report.cuts, first),
        dropped=report.dropped_ticks,
        breaks=_breaks(episodes, first, report.outside_ticks > 0),
    )
    return report, ticks, *_sample(episodes), findings


def _places(cuts: Sequence[tuple[float, Fault]], first: TopicLog | None) -> tuple[tuple[float, Fault], ...]:
    """Cuts, given in seconds since the first tick, in seconds since the bag began."""
    at_s = _bag_seconds([cut_s for cut_s, _ in cuts], first)
    return tuple((s, fault) for s, (_, fault) in zip(at_s, cuts, strict=True))


def _breaks(episodes: Sequence[Episode], first: TopicLog | None, marked: bool) -> tuple[Span, ...]:
    """Between episodes of which the one did not end for want of data; where marks leave out ticks, around them too."""
    pairs = [(a, b) for a, b in zip(episodes, episodes[1:], strict=False) if a.terminated or a.truncated]
    if first is None or not len(first):
        return ()
    found = _between(pairs, first)
    if marked and episodes:
        ends_ns = episodes[0].times_ns[0], episodes[-1].times_ns[-1]
        at_s = _bag_seconds([(time - first.time_ns[0]) / 1e9 for time in ends_ns], first)
        found = ((-math.inf, at_s[0]), *found)
        found += ((at_s[1], math.inf),) if episodes[-1].terminated or episodes[-1].truncated else ()
    return found


def _between(pairs: Sequence[tuple[Episode, Episode]], first: TopicLog) -> tuple[Span, ...]:
    """The pauses between two episodes each, in seconds since the bag began."""
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
