# SPDX-License-Identifier: Apache-2.0
"""`spc doctor`: finds problems in bags before they affect training. No ROS, no torch."""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from spc_core.command_delay.correlogram import Correlogram, Response, responses
from spc_core.contract.contract import Contract
from spc_core.doctor.across_checks import Coverage, check_command_delay, check_coverage, measure
from spc_core.doctor.diagnosis import SEVERITIES, Finding, Severity, Thresholds, TopicLog, worst
from spc_core.doctor.topic_looks import Unchecked, merge_unchecked
from spc_core.doctor.topic_stats import TopicStats, merge_stats
from spc_core.doctor.value_checks import check_constant
from spc_core.system.wording import plural
from spc_ros.bags.files import find_bags, stored_bytes
from spc_ros.bags.reader import contract_in
from spc_ros.conversion.conversion_report import BagTotals
from spc_ros.conversion.engines import run
from spc_ros.conversion.manifest import read_manifest
from spc_ros.doctor.bag_diagnosis import BagData, BagDiagnosis, diagnose_bag
from spc_ros.doctor.doctor_text import HEAD, finding_line, row, unchecked_row
from spc_ros.doctor.trial_conversion import DoctorJob
from spc_ros.messages.message_types import read_definitions

EXIT_WARN, EXIT_FAIL = 3, 4
MAX_VIEWS = 6  # bags whose messages are drawn: the worst
MAX_SAMPLES = 20_000  # transitions per task to measure coverage


@dataclasses.dataclass(frozen=True)
class View:
    """A bag that is drawn."""

    diagnosis: BagDiagnosis
    data: BagData


@dataclasses.dataclass(frozen=True)
class DoctorReport(BagTotals):
    """The report on all bags; `text()` is for people, `as_dict()` for machines."""

    contract: Contract | None
    thresholds: Thresholds
    bags: tuple[BagDiagnosis, ...]
    findings: tuple[Finding, ...]  # over all bags, worst first
    topics: tuple[TopicStats, ...]  # over all bags
    unchecked: tuple[Unchecked, ...]  # over all bags
    coverage: Coverage | None
    answers: tuple[Response, ...]  # of the commands
    ages: Mapping[str, tuple[np.ndarray, np.ndarray]]  # histogram by topic: (bins,) counts, (bins+1,) edges in ms
    views: tuple[View, ...]  # the worst bags

    @property
    def verdict(self) -> Severity:
        return worst(finding.severity for finding in self.findings)

    def exit_code(self, strict: bool = False) -> int:
        """0: ok, or warnings that are not strict; EXIT_WARN: warnings, strict; EXIT_FAIL: failures."""
        return {"fail": EXIT_FAIL, "warn": EXIT_WARN if strict else 0, "ok": 0}[self.verdict]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(sorted({bag.task_id for bag in self.bags if bag.episodes}))

    def as_dict(self) -> dict[str, Any]:
        contract = self.contract and {"name": self.contract.name, "sha256": self.contract.sha256}
        verdicts = Counter(bag.verdict for bag in self.bags)
        return {
            "verdict": self.verdict,
            "contract": contract,
            "thresholds": dataclasses.asdict(self.thresholds),
            "totals": {
                "bags": {severity: verdicts[severity] for severity in SEVERITIES},
                "tasks": len(self.tasks),
                "episodes": self.episodes,
                "transitions": self.transitions,
            },
            "findings": [finding.as_dict() for finding in self.findings],
            "topics": [topic.as_dict() for topic in self.topics],
            "unchecked": [topic.as_dict() for topic in self.unchecked],
            "command_delay": [_answer_dict(answer) for answer in self.answers],
            "coverage": self.coverage and _coverage_dict(self.coverage),
            "bags": [bag.as_dict() for bag in self.bags],
        }

    def text(self) -> str:
        """A table of the topics, and the findings, worst first."""
        lines = [HEAD]
        lines += [row(topic) for topic in self.topics]
        lines += [unchecked_row(topic, len(self.bags)) for topic in self.unchecked]
        if self.contract is not None:
            made = (len(self.tasks), "task"), (self.episodes, "episode"), (self.transitions, "transition")
            lines.append(", ".join(plural(count, noun) for count, noun in made))
            cuts = Counter(fault.summary for bag in self.bags for _, fault in bag.cuts)
            lines += [f"  cut {count} times: {reason}" for reason, count in cuts.most_common()]
        else:
            lines.append("no contract: topics alone are checked; `spc contract init BAG` proposes one")
            lines.append("what a contract would need is not known, so findings on topics are warnings at most")
        lines += [finding_line(finding, len(self.bags)) for finding in self.findings]
        verdicts = Counter(bag.verdict for bag in self.bags)
        counts = ", ".join(f"{verdicts[severity]} {severity}" for severity in SEVERITIES if verdicts[severity])
        return "\n".join([*lines, f"verdict: {self.verdict} ({plural(len(self.bags), 'bag')}: {counts})"])


def diagnose(
    bags: Sequence[str | Path],
    contract: Contract | None = None,
    thresholds: Thresholds | None = None,
    task: str | None = None,
    progress: bool = True,
    workers: int | None = None,
    task_from: str = "",
    manifest: Path | None = None,
    types: Sequence[Path] = (),
    given: str = "",
) -> DoctorReport:
    """Diagnose bags, or folders with bags at any depth, in `workers` processes, by default one per core.

    Without a contract, the one stored in the bags is used; without that one, only topics are checked. `task_from`,
    `manifest` and `types` are those of ConvertOptions, `given` is what was typed of these options.
    The report is the same for any number of processes. Raises BagError where a path holds no bag, ManifestError,
    MessageError and EngineError.
    """
    paths = find_bags(bags)
    job = DoctorJob(
        contract or contract_in(paths)[0],
        contract is not None,
        task,
        thresholds or Thresholds(),
        task_from,
        read_manifest(manifest, paths) if manifest else {},
        read_definitions(types),
    )
    collected = _Collected(job)
    sizes = [stored_bytes(path) for path in paths]
    with tqdm(desc="doctor", total=sum(sizes), unit="B", unit_scale=True, disable=not progress) as bar:
        diagnosed = run(paths, diagnose_bag, job, bar.update, workers, sum(sizes))
        for number, found in enumerate(diagnosed, 1):
            collected.add(*found)
            bar.set_postfix_str(f"{number} of {len(paths)} bags", refresh=False)
        bar.update(bar.total - bar.n)
    report = collected.report()
    return dataclasses.replace(report, findings=tuple(dataclasses.replace(f, given=given) for f in report.findings))


class _Collected:
    """Collects bags into a report; its size does not grow with their length."""

    def __init__(self, job: DoctorJob) -> None:
        self.job = job
        self.bags: list[BagDiagnosis] = []
        self.worst: list[tuple[tuple[int, float, int], View]] = []  # a heap, the least bad on top
        self.samples: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        self.sampled: Counter[str] = Counter()
        self.answers: dict[str, Correlogram] = {}
        self.ranges: dict[str, tuple[TopicLog, np.ndarray, np.ndarray]] = {}
        self.ages: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, bag: BagDiagnosis, data: BagData) -> None:
        self.bags.append(bag)
        badness = sum(finding.severity == "fail" for finding in bag.findings)
        badness += 0.01 * sum(finding.severity == "warn" for finding in bag.findings)
        entry = ((SEVERITIES.index(bag.verdict), badness, -len(self.bags)), View(bag, data))
        if data.traces:
            (heapq.heappushpop if len(self.worst) == MAX_VIEWS else heapq.heappush)(self.worst, entry)
        if data.states is not None and data.actions is not None and self.sampled[bag.task_id] < MAX_SAMPLES:
            self.sampled[bag.task_id] += len(data.states)
            self.samples.setdefault(bag.task_id, []).append((data.states, data.actions))
        for topic, found in data.answers.items():
            before = self.answers.get(topic)
            same = before is not None and (before.commands, before.states) == (found.commands, found.states)
            self.answers[topic] = before + found if before is not None and same else before or found
        for topic, (log, low, high) in data.ranges.items():
            _, low0, high0 = self.ranges.get(topic, (log, low, high))
            if len(low0) == len(low):
                self.ranges[topic] = (log, np.fmin(low, low0), np.fmax(high, high0))
        for topic, (counts, edges) in data.ages.items():
            self.ages[topic] = (self.ages.get(topic, (np.zeros(len(counts)), edges))[0] + counts, edges)

    def report(self) -> DoctorReport:
        contract, t = self.job.contract, self.job.thresholds
        findings = merge_findings([finding for bag in self.bags for finding in bag.findings])
        findings += check_across(self.bags, t)
        for log, low, high in self.ranges.values():
            findings += check_constant(log, *_without_parts(log, low, high, contract))
        coverage = None
        if contract is not None and self.samples:
            joined = {k: (np.concatenate([s for s, _ in v]), np.concatenate([a for _, a in v]))
                      for k, v in sorted(self.samples.items())}  # fmt: skip
            action = contract.action
            coverage = measure(joined, contract.observation_names, action.fields, action.low, action.high)
            findings += check_coverage(coverage, t)
        topic = max(self.answers, key=lambda name: _clarity(self.answers[name]), default=None)
        answers: list[Response] = []
        if topic is not None:
            period_s = 1.0 / contract.rate_hz if contract else None
            answers = responses(self.answers[topic])
            findings += check_command_delay(topic, self.answers[topic], period_s, t)
        findings.sort(key=lambda finding: (-SEVERITIES.index(finding.severity), -finding.bags, finding.topic))
        views = [view for _, view in sorted(self.worst, key=lambda entry: entry[0], reverse=True)]
        topics = merge_stats(bag.topics for bag in self.bags)
        unchecked = merge_unchecked(bag.unchecked for bag in self.bags)
        return DoctorReport(
            contract, t, tuple(self.bags), tuple(findings), topics, unchecked, coverage, tuple(answers), self.ages,
            tuple(views),
        )  # fmt: skip


def _without_parts(
    log: TopicLog, low: np.ndarray, high: np.ndarray, contract: Contract | None
) -> tuple[np.ndarray, np.ndarray]:
    """Ranges with NaN for constant parts of a field that changes as a whole, such as x and y of a turn about z."""
    low, high = low.copy(), high.copy()
    for stream in contract.observation if contract else ():
        for field in stream.observed if stream.fields == log.fields and log.role == "observation" else ():
            parts = [log.fields.index(path) for path in field.inputs]
            if np.any(low[parts] != high[parts]):
                low[parts] = high[parts] = np.nan
    return low, high


def _clarity(found: Correlogram) -> tuple[int, float]:
    sure = [answer for answer in responses(found) if not answer.why_not]
    return len(sure), max((abs(answer.correlation) for answer in sure), default=0.0)


def _answer_dict(answer: Response) -> dict[str, Any]:
    known = {"command": answer.command, "state": answer.state, "order": answer.order}
    if answer.why_not:
        return {**known, "delay_s": None, "correlation": None, "why_not": answer.why_not}
    return {**known, "delay_s": answer.delay_s, "correlation": answer.correlation, "why_not": ""}


def _coverage_dict(coverage: Coverage) -> dict[str, Any]:
    return {
        task: {
            "transitions_sampled": coverage.samples[i],
            "states": dict(zip(coverage.state_names, coverage.states[i].tolist(), strict=True)),
            "actions": dict(zip(coverage.action_names, coverage.actions[i].tolist(), strict=True)),
        }
        for i, task in enumerate(coverage.tasks)
    }


def merge_findings(findings: Sequence[Finding]) -> list[Finding]:
    """One finding for each fault, that of the worst bag, with all bags that have it, the worst first."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.fault, []).append(finding)
    merged = []
    for group in groups.values():
        ranked = sorted(group, key=_badness, reverse=True)
        bags = tuple(dict.fromkeys(finding.bag for finding in ranked))
        merged.append(dataclasses.replace(ranked[0], in_bags=bags))
    return merged


def _badness(finding: Finding) -> tuple[int, float]:
    return SEVERITIES.index(finding.severity), 0.0 if math.isnan(finding.value) else abs(finding.value)


def check_across(bags: Sequence[BagDiagnosis], t: Thresholds) -> list[Finding]:
    """Topics whose rate in some bags differs from that in most."""
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
            odd.sort(reverse=True)
            share, rate_hz, path = odd[0]
            text = (
                f"{rate_hz:.1f} Hz in this bag, {usual_hz:.1f} Hz in most (allowed {t.rate_tolerance:.0%} off); bags "
                f"of different set-ups should not be mixed"
            )
            in_bags = tuple(path for *_, path in odd)
            findings.append(Finding("warn", topic, "rate across bags", text, share, bag=path, in_bags=in_bags))
    return findings
