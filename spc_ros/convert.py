# SPDX-License-Identifier: Apache-2.0
"""Bags to a dataset: decode, align, cut, and report what was there and what was lost. No ROS, no torch."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from spc_core.contract import Contract, ContractError, parse_contract
from spc_core.dataset import DatasetError, DatasetWriter, Episode
from spc_core.episode import EpisodeInfo
from spc_core.frames import Step, Transition, TransitionAssembler
from spc_ros.bag_reader import EPISODE_TOPIC, BagError, BagReader, bag_sha256, find_bags, parse_episode
from spc_ros.messages import ContractReader, MessageError, push
from spc_ros.topic_report import TopicReport, merge_topics, report_topic

PATIENCE_NS = 1_000_000_000  # how far topics may be out of order against each other in a bag
END_PERIODS = 2.5  # an episode's last transition ends at most this many periods before the episode does


class ConversionError(ValueError):
    """Bags that cannot be converted; the message lists each of them with its reason."""


@dataclasses.dataclass(frozen=True)
class BagReport:
    """What became of one bag. `cuts` are (seconds since the bag's first tick, reason)."""

    path: str
    task_id: str = ""
    transitions: int = 0
    episodes: int = 0
    cuts: tuple[tuple[float, str], ...] = ()
    dropped_ticks: Mapping[str, int] = dataclasses.field(default_factory=dict)  # by reason
    topics: Mapping[str, TopicReport] = dataclasses.field(default_factory=dict)
    note: str = ""
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        topics = {name: topic.as_dict() for name, topic in self.topics.items()}
        return {**dataclasses.asdict(self), "topics": topics}


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """The whole conversion; `summary()` is for people, `as_dict()` for conversion.json."""

    out: Path
    contract: Contract
    bags: tuple[BagReport, ...]
    topics: Mapping[str, TopicReport]
    seconds: float

    @property
    def failed(self) -> tuple[BagReport, ...]:
        return tuple(bag for bag in self.bags if bag.error)

    @property
    def transitions(self) -> int:
        return sum(bag.transitions for bag in self.bags)

    @property
    def episodes(self) -> int:
        return sum(bag.episodes for bag in self.bags)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(sorted({bag.task_id for bag in self.bags if bag.episodes}))

    @property
    def messages(self) -> int:
        return sum(topic.count for topic in self.topics.values())

    def as_dict(self) -> dict[str, Any]:
        totals = {
            "bags": len(self.bags),
            "failed": len(self.failed),
            "tasks": len(self.tasks),
            "episodes": self.episodes,
            "transitions": self.transitions,
            "messages": self.messages,
        }
        return {
            "contract": {"name": self.contract.name, "sha256": self.contract.sha256},
            "totals": totals,
            "cuts": dict(self._cuts()),
            "topics": {name: topic.as_dict() for name, topic in self.topics.items()},
            "bags": [bag.as_dict() for bag in self.bags],
        }

    def summary(self) -> str:
        rate = self.messages / max(self.seconds, 1e-9)
        lines = [
            f"{self.out}: {len(self.tasks)} tasks, {self.episodes} episodes, {self.transitions} transitions "
            f"from {len(self.bags) - len(self.failed)} bags in {self.seconds:.1f} s ({rate:,.0f} messages/s)",
            f"{'topic':24} {'messages':>9} {'rate':>9} {'jitter':>9} {'gaps':>6} {'age p99':>9} {'lost':>6}",
        ]
        for name, topic in self.topics.items():
            age = "" if math.isnan(topic.age_p99_ms) else f"{topic.age_p99_ms:.1f} ms"
            lines.append(
                f"{name:24} {topic.count:9} {topic.rate_hz:6.1f} Hz {topic.jitter_ms:6.2f} ms {topic.gaps:6} "
                f"{age:>9} {topic.lost:6}"
            )
            if topic.unset_stamps:
                lines.append(f"  {topic.unset_stamps} messages without a stamp: aligned by receive time")
            if topic.nan_count:
                lines.append(f"  {topic.nan_count} messages with NaN or infinity")
        lines += [f"cut {n} times: {reason}" for reason, n in self._cuts().most_common(8)]
        notes = Counter(bag.note for bag in self.bags if bag.note)
        lines += [f"{n} bags: {note}" for note, n in notes.most_common(4)]
        lines += [f"left out {bag.error}" for bag in self.failed]
        return "\n".join(lines)

    def _cuts(self) -> Counter[str]:
        return Counter(_kind(reason) for bag in self.bags for _, reason in bag.cuts)


@dataclasses.dataclass(frozen=True)
class _Job:
    """What a worker needs to convert a bag."""

    contract: Contract
    own_contract: bool  # given by the user, so that it may differ from the bags'
    task: str | None


def convert(
    bags: Sequence[str | Path],
    contract: Contract | None,
    out: str | Path,
    overwrite: bool = False,
    skip_bad: bool = False,
    task: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> ConversionReport:
    """Convert bags, or folders with bags at any depth, into a dataset at `out`.

    Without a contract, the one that the bags carry is used. `task` is the task id of bags that name none. Bad
    bags raise ConversionError and nothing is written, unless `skip_bad`. Raises BagError, DatasetError too.
    """
    begin_s = time.monotonic()
    paths = find_bags(bags)
    job = _Job(contract or _contract_in(paths), contract is not None, task)
    reports: list[BagReport] = []
    with DatasetWriter(out, job.contract, overwrite) as writer:
        results = tqdm(_results(paths, job, workers), "convert", len(paths), unit="bag", disable=not progress)
        for report, params, episodes in results:
            for episode in episodes:
                writer.add_episode(report.task_id, params, episode)
            reports.append(report)
        _refuse_bad(reports, skip_bad)
        topics = merge_topics([bag.topics for bag in reports])
        report = ConversionReport(Path(out), job.contract, tuple(reports), topics, time.monotonic() - begin_s)
        writer.write_text("conversion.json", json.dumps(report.as_dict(), indent=1))
    return dataclasses.replace(report, seconds=time.monotonic() - begin_s)


def _refuse_bad(reports: list[BagReport], skip_bad: bool) -> None:
    failed = [bag.error for bag in reports if bag.error]
    if failed and (not skip_bad or len(failed) == len(reports)):
        advice = "correct them or leave them out (--skip-bad)" if len(failed) < len(reports) else "nothing is left"
        lines = "\n  ".join(failed)
        raise ConversionError(f"{len(failed)} of {len(reports)} bags cannot be converted; {advice}:\n  {lines}")


def _contract_in(paths: list[Path]) -> Contract:
    """The contract that the first bag with one carries."""
    unreadable = []
    for path in paths:
        try:
            with BagReader(path) as bag:
                text = bag.info.custom_data.get("spc.contract")
        except BagError as error:
            unreadable.append(str(error))
            continue
        if text:
            return parse_contract(text, f"{path} custom_data spc.contract")
    if len(unreadable) == len(paths):
        raise ConversionError("no bag can be read:\n  " + "\n  ".join(unreadable))
    raise ConversionError(f"none of the {len(paths)} bags carries a contract; give one with --contract")


Result = tuple[BagReport, Mapping[str, float], list[Episode]]


def _results(paths: list[Path], job: _Job, workers: int | None) -> Iterator[Result]:
    """Results in the order of `paths`, whatever the number of processes."""
    available = workers or len(os.sched_getaffinity(0))
    count = min(available, len(paths) // 4)  # a process takes as long to start as a few bags to convert
    if count <= 1:
        yield from (_try_bag(path, job) for path in paths)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy whatever threads the caller has
    chunk = max(1, min(16, len(paths) // (4 * count)))
    with ProcessPoolExecutor(count, context, initializer=_start_worker, initargs=(job,)) as pool:
        try:
            yield from pool.map(_work, paths, chunksize=chunk)
        except BrokenProcessPool:
            raise ConversionError("a worker process died, most likely for want of memory; use fewer workers") from None
        finally:
            pool.shutdown(cancel_futures=True)


_worker_job: _Job | None = None


def _start_worker(job: _Job) -> None:
    global _worker_job
    _worker_job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business


def _work(path: Path) -> Result:
    if _worker_job is None:
        raise RuntimeError("worker was not started by convert()")
    return _try_bag(path, _worker_job)


def _try_bag(path: Path, job: _Job) -> Result:
    try:
        return convert_bag(path, job.contract, job.own_contract, job.task)
    except BagError as error:
        return BagReport(str(path), error=str(error)), {}, []
    except (MessageError, ContractError, DatasetError) as error:
        return BagReport(str(path), error=f"{path}: {error}"), {}, []


def convert_bag(path: Path, contract: Contract, own_contract: bool = False, task: str | None = None) -> Result:
    """One bag's report, task parameters and episodes. Raises BagError and MessageError."""
    with BagReader(path) as bag:
        note = _compare_contract(bag, contract, own_contract)
        log = _read(bag, contract)
        info = parse_episode(log.episode_texts, str(path))
        task_id, params = _task(bag, contract, info, task)
        custom = bag.info.custom_data
    pieces, cuts, dropped = _pieces(log, info, contract)
    if not pieces:
        why = dropped.most_common(1)
        raise BagError(f"{path}: holds no transition; {why[0][0] if why else 'there is no tick in the episode'}")
    sha256, behaviour = bag_sha256(path), custom.get("spc.behaviour", "")
    episodes = [_episode(piece, path.name, sha256, behaviour) for piece in pieces]
    first_ns = log.steps[0].t_ns
    report = BagReport(
        path=str(path),
        task_id=task_id,
        transitions=sum(len(episode) for episode in episodes),
        episodes=len(episodes),
        cuts=tuple(((t_ns - first_ns) / 1e9, reason) for t_ns, reason in cuts),
        dropped_ticks=dict(dropped),
        topics=_topic_reports(log, episodes, contract, info),
        note=note,
    )
    return report, params, episodes


def _compare_contract(bag: BagReader, contract: Contract, own_contract: bool) -> str:
    """A note when the bag was recorded under another contract; an error where the user did not choose one."""
    text = bag.info.custom_data.get("spc.contract")
    if not text or text == contract.text:
        return ""
    differences = contract.differences(parse_contract(text, f"{bag.path} custom_data spc.contract"))
    if not differences:
        return ""
    if own_contract:
        return f"recorded under another contract ({'; '.join(differences)})"
    raise BagError(
        f"{bag.path}: recorded under another contract than the first bag, whose is meant by 'here' "
        f"({'; '.join(differences)}); convert them apart, or choose with --contract"
    )


class _Log:
    """A bag, decoded. Topics go by the contract's names."""

    def __init__(self, reader: ContractReader) -> None:
        self.types: Mapping[str, str] = reader.types
        self.unset: Mapping[str, int] = reader.unset_stamps
        self.steps: list[Step] = []
        self.stamps: dict[str, list[int]] = {topic: [] for topic in reader.types}
        self.delays: dict[str, list[int]] = {topic: [] for topic in reader.types}
        self.nan: Counter[str] = Counter()
        self.episode_texts: list[str] = []
        self.episode_ns = 0  # when the last message of the topic `episode` was received


def _read(bag: BagReader, contract: Contract) -> _Log:
    """Decode all messages that matter, in log order, and align them. Raises BagError and MessageError."""
    reader = ContractReader(contract)
    names = {bag.find_topic(topic, type_name): topic for topic, type_name in reader.types.items()}
    assembler = TransitionAssembler(contract, PATIENCE_NS)
    log = _Log(reader)
    for name, receive_ns, message in bag.messages([*names, *bag.episode_topics()]):
        if name not in names:
            log.episode_texts.append(message.data)
            log.episode_ns = receive_ns
            continue
        topic = names[name]
        samples = reader.samples(topic, message, receive_ns)
        log.stamps[topic].append(samples[0][1])
        log.delays[topic].append(receive_ns - samples[0][1])
        for role, t_ns, values in samples:
            if not all(map(math.isfinite, values.tolist())):
                log.nan[topic] += 1
            log.steps.extend(push(assembler, role, t_ns, values))
    log.steps.extend(assembler.flush())
    return log


def _task(
    bag: BagReader, contract: Contract, info: EpisodeInfo | None, task: str | None
) -> tuple[str, Mapping[str, float]]:
    """Task id and parameters: from custom_data, else from the topic `episode`, else what the user says."""
    custom = bag.info.custom_data
    task_id = custom.get(contract.task_key) or (info.task_id if info else "") or task
    if not task_id:
        raise BagError(
            f"{bag.path}: names no task, neither as '{contract.task_key}' in custom_data nor on the topic "
            f"'{EPISODE_TOPIC}'; give one for all such bags with --task"
        )
    if "spc.task_params" not in custom:
        return task_id, dict(info.params) if info else {}
    try:
        params = json.loads(custom["spc.task_params"])
        return task_id, {str(key): float(value) for key, value in params.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise BagError(f"{bag.path}: custom_data spc.task_params is not a mapping of numbers ({error})") from None


Piece = tuple[list[Step], bool, bool, str | None]
"""Steps without a gap, all with a transition; terminated, truncated, cut."""


def _pieces(
    log: _Log, info: EpisodeInfo | None, contract: Contract
) -> tuple[list[Piece], list[tuple[int, str]], Counter[str]]:
    """(pieces, cuts as (t_ns, reason), ticks lost by reason) in the time that the topic `episode` gives."""
    begin_ns, end_ns = _window(log, info, contract)
    pieces: list[Piece] = []
    cuts: list[tuple[int, str]] = []
    dropped: Counter[str] = Counter()
    current: list[Step] = []
    for step in log.steps:
        if not begin_ns <= step.t_ns <= end_ns:
            continue
        if step.transition is not None:
            if step.transition.t_ns >= begin_ns:
                current.append(step)
        elif step.cut and step.cut != "start":
            dropped[_kind(step.cut)] += 1
            if current:
                pieces.append((current, False, False, step.cut))
                cuts.append((step.t_ns, step.cut))
                current = []
    if current:
        terminated, truncated, cut = _end(info, end_ns - current[-1].t_ns, contract.period_ns)
        pieces.append((current, terminated, truncated, cut))
        if cut is not None:
            cuts.append((current[-1].t_ns, cut))
    return pieces, cuts, dropped


def _window(log: _Log, info: EpisodeInfo | None, contract: Contract) -> tuple[float, float]:
    """The time of the episode; all time where the bag does not tell."""
    if info is None:
        return -math.inf, math.inf
    slack_ns = contract.period_ns // 2
    ended = info.state == "ended"
    if contract.clock == "receive":
        return -math.inf, log.episode_ns + slack_ns if ended else math.inf
    return info.start_ns - slack_ns, info.end_ns + slack_ns if ended and info.end_ns else math.inf


def _end(info: EpisodeInfo | None, missing_ns: float, period_ns: int) -> tuple[bool, bool, str | None]:
    """(terminated, truncated, cut) of the last piece, which stops `missing_ns` before the episode does."""
    if info is None:
        return False, False, "the recording ended"
    if info.state != "ended":
        return False, False, "the recording ended while the episode ran"
    if math.isfinite(missing_ns) and missing_ns > END_PERIODS * period_ns:
        return False, False, f"no data at the end of the episode, {missing_ns / 1e9:.2f} s of it"
    if info.terminated or info.truncated:
        return info.terminated, info.truncated and not info.terminated, None
    return False, False, f"episode given up, {info.reason or 'no reason given'}"


def _episode(piece: Piece, source: str, source_sha256: str, behaviour: str) -> Episode:
    steps, terminated, truncated, cut = piece
    transitions: list[Transition] = [step.transition for step in steps if step.transition is not None]
    return Episode(
        observations=np.array([transitions[0].observation, *(t.next_observation for t in transitions)]),
        actions=np.array([t.action for t in transitions]),
        rewards=np.array([t.reward for t in transitions]),
        times_ns=np.array([transitions[0].t_ns, *(step.t_ns for step in steps)], np.int64),
        terminated=terminated,
        truncated=truncated,
        cut=cut,
        source=source,
        source_sha256=source_sha256,
        behaviour=behaviour,
    )


def _kind(reason: str) -> str:
    """A cut's reason without its numbers, so that like cuts can be counted."""
    return reason.partition(", ")[0].partition(" back by ")[0]


def _topic_reports(
    log: _Log, episodes: list[Episode], contract: Contract, info: EpisodeInfo | None
) -> dict[str, TopicReport]:
    ticks_ns = np.concatenate([episode.times_ns for episode in episodes])
    observed = {stream.topic for stream in contract.observation}
    published = {name.lstrip("/"): n for name, n in info.published.items()} if info else {}
    return {
        topic: report_topic(
            type_name,
            log.stamps[topic],
            ticks_ns if topic in observed else np.empty(0, np.int64),
            log.delays[topic] if contract.clock == "header" else [],
            log.nan[topic],
            log.unset.get(topic, 0),
            published.get(topic.lstrip("/"), 0),
        )
        for topic, type_name in log.types.items()
    }
