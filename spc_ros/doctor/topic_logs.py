# SPDX-License-Identifier: Apache-2.0
"""A bag's topics as arrays for the doctor, which continues where the converter refuses, to report the cause."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from spc_core.alignment.batch.sampling import Samples
from spc_core.alignment.command_stamps import reward_notes
from spc_core.contract.contract import Contract
from spc_core.contract.transforms import JUMP_NS
from spc_core.doctor.diagnosis import Finding, Severity, Thresholds, TopicLog
from spc_core.doctor.topic_looks import Unchecked
from spc_core.doctor.topic_stats import MIN_MESSAGES
from spc_core.system.wording import plural
from spc_ros.bags.files import BagError
from spc_ros.bags.reader import EPISODE_TOPIC, BagReader, parse_episode
from spc_ros.conversion.bag_conversion import AlignedBag, check_complete, command_notes
from spc_ros.conversion.clock_topic import NO_ROWS, Arrivals, ClockTopic, clock_topic, find_clock
from spc_ros.conversion.episode_marks import FirstStream, MarkReader, marked_topics
from spc_ros.conversion.log_ticks import align
from spc_ros.doctor.clock_times import by_clock
from spc_ros.doctor.topic_reader import TopicReader
from spc_ros.doctor.unchecked_topics import unchecked_topics
from spc_ros.messages.columns import Source, sources
from spc_ros.messages.fields import JOINT_ARRAYS, MessageError
from spc_ros.messages.simulated_time import CLOCK

BLOCK_MESSAGES = 50_000  # aligned at a time


@dataclasses.dataclass
class BagLogs:
    """The result of one pass over a bag: topic logs, their problems, and the data for a conversion."""

    logs: list[TopicLog]  # of the messages that make a sample
    findings: list[Finding]
    marks: Mapping[str, MarkReader]
    sources: Sequence[tuple[Source, TopicLog, np.ndarray]]  # all messages of each, and (N,) indices in the bag's log
    named: Sequence[Collection[str]]  # by source, the joints or transforms that its messages name
    refusal: ValueError | None  # the error at which conversion stops
    arrivals: Arrivals | None  # of the contract's sources
    unchecked: list[Unchecked]

    @property
    def first(self) -> TopicLog:
        """The messages of the first stream that make a sample."""
        return next(log for log in self.logs if log.role == "observation" and log.fields == self.sources[0][0].observed)

    def aligned(self, contract: Contract) -> AlignedBag:
        """The ticks and marks of the bag, as for conversion. Raises the refusal."""
        if self.refusal is not None:
            raise self.refusal
        assert self.arrivals is not None
        aligned = align(contract, self._blocks)
        aligned = check_complete(aligned, [source for source, *_ in self.sources], self.named)
        self.arrivals.check([source for source, *_ in self.sources])
        first = self.first
        stamps = np.zeros(len(first), np.int64) if first.stamp_ns is None else first.stamp_ns
        times = FirstStream(first.receive_ns, first.time_ns, stamps)
        marks = {name: mark.marks(times, first.clock) for name, mark in self.marks.items()}
        count = len(contract.observation) + len(contract.action.parts)
        stamped = {i: (log.time_ns, index) for i, (_, log, index) in enumerate(self.sources[:count])}
        notes = command_notes(contract, stamped, self.arrivals)
        for _, log, _ in self.sources[count:]:
            if log.stamp_ns is not None and log.clock == first.clock == "receive":
                notes += reward_notes(log.time_ns, log.stamp_ns, first.time_ns, stamps)
        return AlignedBag(aligned, marks, times, notes, {})

    def _blocks(self) -> Iterator[list[Samples]]:
        for source, *_ in self.sources:
            source.reset()
        streams = [(source, log, log.time_ns, index) for source, log, index in self.sources]
        end = max((int(index[-1]) + 1 for *_, index in streams if len(index)), default=0)
        for begin in range(0, end, BLOCK_MESSAGES):
            samples = []
            for source, log, t_ns, index in streams:
                part = slice(*np.searchsorted(index, (begin, begin + BLOCK_MESSAGES)))
                absent = None if log.absent is None else log.absent[part]
                samples.append(source.samples(index[part], t_ns[part], log.values[part], absent))
            yield samples


def read_topic_logs(
    bag: BagReader,
    contract: Contract | None,
    progress: Callable[[int], None] = lambda _: None,
    thresholds: Thresholds | None = None,
) -> BagLogs:
    """Read the contract's topics, without a contract every topic with numbers.

    `progress` receives the bytes read so far. Memory: twice eight bytes per number read. Raises BagError.
    """
    findings: list[Finding] = []
    errors: list[ValueError] = []  # of conversion, in the order of their occurrence there
    marks = _mark_readers(bag, contract, errors)
    failed: dict[str, str] = {}
    readers = _topic_readers(bag, contract, failed, errors)
    severity: Severity = "fail" if contract else "warn"
    findings += [Finding(severity, topic, "topic", why) for topic, why in failed.items()]
    first = next((reader.source for reader in readers if reader.number == 0), None)
    clock = (clock_topic(bag, first) if first else None) if contract else find_clock(bag)
    arrivals = Arrivals(contract, clock) if contract else None
    clock_rows = _read(bag, marks, readers, errors, progress, clock)
    if arrivals is not None:
        arrivals.add_clock(clock_rows)
    texts = [text for _, _, text in marks[EPISODE_TOPIC].found] if EPISODE_TOPIC in marks else []
    info = parse_episode(texts, str(bag.path))
    published = {name.lstrip("/"): count for name, count in info.published.items()} if info else {}
    logs, kept, named, empty, places = {}, [], [], {}, {}
    for reader in readers:
        published_count = published.get(reader.topic.lstrip("/"), 0)
        log, whole, log_index, problems = reader.finish(
            bag.info.start_ns, published_count, thresholds or Thresholds(), arrivals
        )
        if arrivals is not None and reader.number == 0:
            arrivals.add_states(log_index[reader.made], whole.time_ns[reader.made])
        if log.fields or contract:
            logs.setdefault(reader.name, []).append(log)
        elif reader.type in JOINT_ARRAYS:
            failed[reader.name] = "no array of it has a number for each joint, by its messages and their definition"
        else:
            empty[reader.name] = log.decoded
        findings += problems
        if reader.source is not None:
            kept.append((reader.source, whole, log_index))
            named.append(reader.columns.joints)
        places[reader.name] = log_index
    if arrivals is not None and contract is not None:
        findings += [Finding("ok", "", "clock", note) for note in arrivals.notes(sources(contract, check=False))]
    elif len(clock_rows):
        logs = by_clock(logs, places, clock_rows)
    by_topic = [log for group in logs.values() for log in _told_apart(group)]
    simulated = any(topic.type == CLOCK for topic in bag.info.topics.values())
    by_topic = _with_span(_placed(by_topic) if simulated else by_topic)
    mark_topics = [mark.topic for mark in marks.values()]
    unchecked = unchecked_topics(bag, contract, list(logs), mark_topics, failed, empty)
    if contract is None and not logs:
        text = f"no check looked at its {plural(len(unchecked), 'topic')}; the list of topics says why"
        findings.append(Finding("warn", "", "topic", text))
    return BagLogs(by_topic, findings, marks, kept, named, next(iter(errors), None), arrivals, unchecked)


def _told_apart(logs: list[TopicLog]) -> list[TopicLog]:
    """Logs of one topic, named by their fields too where there are several."""
    if len(logs) == 1:
        return logs
    return [dataclasses.replace(log, topic=f"{log.topic} ({', '.join(log.fields)})") for log in logs]


def _mark_readers(bag: BagReader, contract: Contract | None, errors: list[ValueError]) -> dict[str, MarkReader]:
    """Readers of the topics that mark episodes; only of `episode` if the contract's cannot be read."""
    try:
        marked = marked_topics(bag, contract)
    except BagError as error:
        errors.append(error)
        marked = marked_topics(bag, None)
    return {name: MarkReader(bag, *where) for name, where in marked.items()}


def _topic_readers(
    bag: BagReader, contract: Contract | None, failed: dict[str, str], errors: list[ValueError]
) -> list[TopicReader]:
    """Readers of the contract's topics, or of all; `failed` receives topics that cannot be read, with the reason."""
    readers, later = [], []
    found = _of_contract(contract, errors) if contract else _all_topics(bag)
    for number, (topic, source, known) in enumerate(found):
        try:
            name = bag.find_topic(topic, source.type) if source else topic
            readers.append(TopicReader(bag, name, source, known, number))
        except (BagError, MessageError) as error:
            failed[topic] = str(error).removeprefix(f"{bag.path}: ").removeprefix(f"topic '{topic}': ")
            (errors if isinstance(error, BagError) else later).append(error)
    errors += later
    return readers


def _of_contract(contract: Contract, errors: list[ValueError]) -> Iterator[tuple[str, Source, dict[str, Any]]]:
    """(topic, source, attributes of its log) of each source of the contract."""
    try:
        sources(contract)
    except MessageError as error:
        errors.append(error)
    observed = len(contract.observation)
    commanded = range(observed, observed + len(contract.action.parts))
    for number, source in enumerate(sources(contract, check=False)):
        known: dict[str, Any] = {"role": "action" if number in commanded else "reward", "clock": source.clock}
        if source.transforms is not None:
            known["clipped"] = source.transforms.clipped
        if number < observed:
            max_age_s = contract.observation[number].max_age_s
            known |= {"role": "observation", "max_age_s": max_age_s, "latched": math.isinf(max_age_s)}
        if number == 0 or number >= observed:
            known |= {"nominal_hz": contract.rate_hz, "faster_is_fine": number < observed}
        if number in commanded and contract.action.parts[number - observed].hold:
            known |= {"nominal_hz": None, "latched": True}
        yield source.topic, source, known


def _all_topics(bag: BagReader) -> Iterator[tuple[str, None, dict[str, Any]]]:
    episodes = bag.episode_topics()
    for name, topic in bag.info.topics.items():
        if topic.type not in ("", CLOCK) and topic.count and name not in episodes and name not in bag.left_out:
            yield name, None, {"role": "other"}


def _read(
    bag: BagReader,
    marks: Mapping[str, MarkReader],
    readers: Sequence[TopicReader],
    errors: list[ValueError],
    progress: Callable[[int], None],
    clock: ClockTopic | None,
) -> np.ndarray:
    """Fills the readers; returns the messages of the clock, as ClockTopic.read."""
    topics = [*(reader.name for reader in readers), *(mark.topic for mark in marks.values())]
    rows = [NO_ROWS]
    for block in bag.blocks([*topics, *([clock.name] if clock else [])]) if readers else ():
        if clock is not None and clock.name in block:
            rows.append(clock.read(block[clock.name]))
        for name, mark in marks.items():
            try:
                if mark.topic in block:
                    mark.add(block[mark.topic])
            except MessageError as error:
                if name == EPISODE_TOPIC:
                    raise BagError(f"{bag.path}: {error}") from None
                errors.append(error)
        for reader in readers:
            if reader.name in block:
                reader.add(block[reader.name])
                if reader.columns.error is not None and not errors:
                    errors.append(reader.columns.error)
        progress(bag.bytes_read)
    return np.concatenate(rows)


def _placed(logs: list[TopicLog]) -> list[TopicLog]:
    """Place topics of a bag with a simulated clock by their stamps, as receive times come in bursts there.

    Not if the clock jumps back, which would place two times together, or if topics lack stamps.
    """
    logs = [dataclasses.replace(log, simulated=True) for log in logs]
    known = [log for log in logs if len(log)]
    for log in known:
        if not log.has_stamps or log.clock != "header" or np.diff(log.time_ns).min(initial=0) < -JUMP_NS:
            return logs
    begin_ns = min((int(log.time_ns.min()) for log in known), default=0)
    return [dataclasses.replace(log, place_ns=log.time_ns, begin_ns=begin_ns) for log in logs]


def _with_span(logs: list[TopicLog]) -> list[TopicLog]:
    """Set the time span that all steady topics should cover."""
    steady = [log for log in logs if len(log) >= MIN_MESSAGES and not log.latched]
    if not steady:
        return logs
    begin_s, end_s = min(float(log.seconds.min()) for log in steady), max(float(log.seconds.max()) for log in steady)
    return [dataclasses.replace(log, span=(begin_s, end_s)) for log in logs]
