# SPDX-License-Identifier: Apache-2.0
"""Converts one bag: its messages, decoded by columns, are aligned to ticks, and the ticks are cut into episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from spc_core.alignment import PATIENCE_NS
from spc_core.alignment.batch.aligner import BatchAligner, Irregular, Ticks
from spc_core.alignment.batch.sampling import Samples
from spc_core.alignment.command_lag import percentiles_ms, skipped_states
from spc_core.alignment.episode import Segment, split_ticks
from spc_core.alignment.streaming import Step, StreamingAligner
from spc_core.command_delay.survey import DelaySurvey
from spc_core.contract.contract import Contract, parse_contract
from spc_core.contract.sections import ACTION
from spc_core.data.dataset import Episode, check_episode
from spc_core.doctor.topic_report import TopicTimes
from spc_ros.bags.files import BagError, bag_sha256
from spc_ros.bags.reader import EPISODE_TOPIC, BagReader
from spc_ros.conversion.conversion_report import BagReport
from spc_ros.conversion.episode_marks import (
    MarkReader,
    Marks,
    bag_metadata,
    episode_infos,
    episode_spans,
    marked_topics,
    published_counts,
    task_of,
)
from spc_ros.conversion.manifest import NO_METADATA, BagMetadata
from spc_ros.messages.columns import ColumnReader, RawColumn, Source, sources


@dataclasses.dataclass(frozen=True)
class Job:
    """The settings of a conversion, the same for all bags."""

    contract: Contract
    own_contract: bool  # given by the user, so it may differ from the bags'
    task: str = ""  # task id of bags that do not name one
    task_from: str = ""  # 'folder': a bag's folder names its task
    manifest: Mapping[Path, BagMetadata] = dataclasses.field(default_factory=dict)
    definitions: Mapping[str, str] = dataclasses.field(default_factory=dict)  # message types by name, as .msg text
    surveyed: Set[Path] = frozenset()  # bags in which the delay from command to state is measured


@dataclasses.dataclass(frozen=True)
class TaskEpisode:
    """An episode and its task."""

    task_id: str
    params: Mapping[str, float]
    episode: Episode


@dataclasses.dataclass(frozen=True)
class Aligned:
    """The ticks of a log. `counts` are dropped samples by topic and kind (late, duplicate)."""

    ticks: Ticks
    counts: Mapping[str, int]
    skipped: int = 0  # samples of the first stream before the first tick, for the phase


@dataclasses.dataclass(frozen=True)
class AlignedBag:
    """The aligned data of a bag."""

    aligned: Aligned
    marks: Mapping[str, Marks]  # by the contract's name of the topic, or `episode`
    topics: Mapping[str, TopicTimes]


def align(contract: Contract, blocks: Callable[[], Iterable[list[Samples]]]) -> Aligned:
    """The ticks of a log; each call of `blocks` starts it again.

    Where the first stream is faster than the contract, a first pass shows after which of its samples the commands
    follow soonest, and a second one begins there.
    """
    states_ns: list[np.ndarray] = []

    def watched() -> Iterator[list[Samples]]:
        states_ns.clear()
        for samples in blocks():
            states_ns.append(samples[0].t_ns)
            yield samples

    ticks, counts = _align(contract, watched)
    steps_ns = np.diff(np.concatenate([np.empty(0, np.int64), *states_ns]))
    lags_ns = ticks.lags_ns[ticks.has_transition]
    steps_ns = steps_ns[steps_ns > 0]  # else a duplicate or a clock jump
    skip = skipped_states(lags_ns, float(np.median(steps_ns)), contract.period_ns) if len(steps_ns) else 0
    if not skip:
        return Aligned(ticks, counts)
    shifted, shifted_counts = _align(contract, lambda: _without_first(blocks(), skip))
    if np.median(shifted.lags_ns[shifted.has_transition]) < np.median(lags_ns):
        return Aligned(shifted, shifted_counts, skip)
    return Aligned(*_align(contract, blocks))  # once more, since the pass also collects marks and topics


def _without_first(blocks: Iterable[list[Samples]], skip: int) -> Iterator[list[Samples]]:
    """The log without the first samples of its first stream."""
    for first, *others in blocks:
        dropped = min(skip, len(first))
        skip -= dropped
        yield [first.part(slice(dropped, None)), *others]


def _align(contract: Contract, blocks: Callable[[], Iterable[list[Samples]]]) -> tuple[Ticks, Mapping[str, int]]:
    """(ticks, dropped samples by topic and kind).

    Each block holds the samples of every source. A log whose topics are more than PATIENCE_NS out of order takes the
    streaming path of a live node, sample by sample.
    """
    try:
        batch = BatchAligner(contract, PATIENCE_NS)
        parts = [batch.push(samples) for samples in blocks()]
        return Ticks.concatenate([*parts, batch.flush()]), batch.counts
    except Irregular:
        aligner = StreamingAligner(contract, PATIENCE_NS)
    roles = [source.role for source in sources(contract)]
    steps: list[Step] = []
    for samples in blocks():
        log_index = np.concatenate([part.log_index for part in samples])
        source = np.repeat(np.arange(len(samples)), [len(part) for part in samples])
        row = np.concatenate([np.arange(len(part)) for part in samples])
        for i in np.lexsort((source, log_index)).tolist():
            part, at = samples[source[i]], row[i]
            steps += aligner.push(roles[source[i]], int(part.t_ns[at]), part.values[at])
    steps += aligner.flush()
    return Ticks.from_steps(steps, contract), aligner.counts


class _BagPass:
    """Decodes a bag's messages; topics and marks are those of the latest pass."""

    def __init__(
        self, bag: BagReader, contract: Contract, progress: Callable[[], None], survey: DelaySurvey | None
    ) -> None:
        self.bag, self.contract, self.progress, self.survey = bag, contract, progress, survey
        self.marked = marked_topics(bag, contract)
        self.sources = sources(contract)
        self.names = {source.topic: bag.find_topic(source.topic, source.type) for source in self.sources}
        self.readers = [
            ColumnReader(bag.typestore, source.type, source.fields, source.topic, source.role == ACTION)
            for source in self.sources
        ]
        self._begin()

    def _begin(self) -> None:
        if self.survey is not None:
            self.survey.clear()
        for source in self.sources:
            source.reset()
        self.topics = {source.topic: TopicTimes(source.type) for source in self.sources}
        self.marks = {name: MarkReader(self.bag, *where) for name, where in self.marked.items()}
        self.first: list[tuple[np.ndarray, np.ndarray]] = []  # receive and sample times of the first stream

    def blocks(self) -> Iterator[list[Samples]]:
        """Start a new pass: samples of every source, block by block."""
        self._begin()
        for block in self.bag.blocks([*self.names.values(), *(mark.topic for mark in self.marks.values())]):
            for mark in self.marks.values():
                if mark.topic in block:
                    mark.add(block[mark.topic])
            samples = [
                self._samples(i, source, block[self.names[source.topic]])
                if self.names[source.topic] in block
                else source.nothing()
                for i, source in enumerate(self.sources)
            ]
            if self.survey is not None:
                self.survey.add(samples)
            yield samples
            self.progress()

    def _samples(self, index: int, source: Source, column: RawColumn) -> Samples:
        stamps, values = self.readers[index].read(column)
        unset = stamps == 0 if source.clock == "header" else np.zeros(len(stamps), bool)
        t_ns = np.where(unset, column.receive_ns, stamps) if source.clock == "header" else column.receive_ns
        if all(source.topic != before.topic for before in self.sources[:index]):
            nan_count = int((~np.isfinite(values)).any(axis=1).sum())
            delays_ns = column.receive_ns - t_ns if source.clock == "header" else np.empty(0, np.int64)
            self.topics[source.topic].add(t_ns, delays_ns, nan_count, int(unset.sum()))
        if index == 0:
            self.first.append((column.receive_ns, t_ns))
        return source.samples(column.log_index, t_ns, values)

    def align(self) -> AlignedBag:
        """Raises BagError and MessageError."""
        aligned = align(self.contract, self.blocks)
        none = np.empty(0, np.int64)
        received_ns, t_ns = (np.concatenate([none, *(pair[i] for pair in self.first)]) for i in range(2))
        marks = {name: mark.marks(received_ns, t_ns) for name, mark in self.marks.items()}
        return AlignedBag(aligned, marks, self.topics)


def align_bag(bag: BagReader, contract: Contract) -> AlignedBag:
    """A bag's ticks, marks and topics. Raises BagError and MessageError."""
    return _BagPass(bag, contract, lambda: None, None).align()


def convert_bag(
    path: Path, job: Job, progress: Callable[[int], None] = lambda _: None, survey: DelaySurvey | None = None
) -> tuple[BagReport, list[TaskEpisode]]:
    """One bag's report and episodes. `progress` receives the bytes read so far, `survey` the samples.

    Raises BagError and MessageError.
    """
    with ThreadPoolExecutor(1) as pool, BagReader(path, job.definitions) as bag:
        sha256 = pool.submit(bag_sha256, path)  # in parallel: reading the bag leaves the processor idle at times
        notes = compare_contract(bag, job)
        log = _BagPass(bag, job.contract, lambda: progress(bag.bytes_read), survey).align()
        return cut_episodes(bag, log, job, notes, sha256.result())


def cut_episodes(
    bag: BagReader, log: AlignedBag, job: Job, notes: Sequence[str], sha256: str
) -> tuple[BagReport, list[TaskEpisode]]:
    """A bag's report and episodes from its ticks. Raises BagError and DatasetError."""
    contract, path, ticks = job.contract, bag.path, log.aligned.ticks
    infos = episode_infos(log.marks.get(EPISODE_TOPIC, Marks()).values, str(path))
    metadata = bag_metadata(bag, contract, log.marks, infos, job.manifest.get(path, NO_METADATA))
    folder = path.resolve().parent.name if job.task_from == "folder" else ""
    metadata = metadata.over(BagMetadata(folder)).over(BagMetadata(job.task))
    spans = episode_spans(log.marks, infos, contract)
    segmentation = split_ticks(ticks, spans, contract)
    if not segmentation.segments:
        dropped = segmentation.dropped
        why = max(dropped, key=lambda reason: dropped[reason], default="there is no tick in the episode")
        raise BagError(f"{path}: holds no transition; {why}")
    behaviour = bag.info.custom_data.get("spc.behaviour", "")
    episodes = []
    for segment in segmentation.segments:
        episode = _episode(segment, ticks, path.name, sha256, behaviour, metadata)
        check_episode(episode, contract, str(path))
        episodes.append(TaskEpisode(*task_of(spans[segment.span], metadata, bag, contract), episode))
    ticks_ns = np.concatenate([entry.episode.times_ns for entry in episodes])
    observed = {stream.topic for stream in contract.observation}
    published = published_counts(infos, contract)
    first_ns = int(ticks.t_ns[0])
    report = BagReport(
        path=str(path),
        tasks=tuple(sorted({entry.task_id for entry in episodes})),
        transitions=sum(len(entry.episode) for entry in episodes),
        episodes=len(episodes),
        size_bytes=bag.size_bytes,
        cuts=tuple(((t_ns - first_ns) / 1e9, reason) for t_ns, reason in segmentation.cuts),
        dropped_ticks=segmentation.dropped,
        dropped_samples=dict(log.aligned.counts),
        topics={
            topic: times.report(ticks_ns if topic in observed else ticks_ns[:0], published.get(topic.lstrip("/"), 0))
            for topic, times in log.topics.items()
        },
        notes=(*notes, *bag.losses),
        lag_ms=percentiles_ms(ticks.lags_ns[ticks.has_transition]),
        skipped_states=log.aligned.skipped,
    )
    return report, episodes


def compare_contract(bag: BagReader, job: Job) -> tuple[str, ...]:
    """A note if the bag was recorded under another contract. Raises BagError if the user did not choose one."""
    text = bag.info.custom_data.get("spc.contract")
    if not text or text == job.contract.text:
        return ()
    differences = job.contract.differences(parse_contract(text, f"{bag.path} custom_data spc.contract"))
    if not differences:
        return ()
    if job.own_contract:
        return (f"recorded under another contract ({'; '.join(differences)})",)
    raise BagError(
        f"{bag.path}: recorded under another contract than the first bag, whose is meant by 'here' "
        f"({'; '.join(differences)}); convert them apart, or choose with --contract"
    )


def _episode(
    segment: Segment, ticks: Ticks, source: str, sha256: str, behaviour: str, metadata: BagMetadata
) -> Episode:
    states, acts = slice(segment.first, segment.last + 1), slice(segment.first + 1, segment.last + 1)
    return Episode(
        observations=ticks.observations[states],
        actions=ticks.actions[acts],
        rewards=ticks.rewards[acts],
        times_ns=ticks.t_ns[states],
        terminated=segment.terminated,
        truncated=segment.truncated,
        cut=None if segment.cut is None else str(segment.cut),
        source=source,
        source_sha256=sha256,
        behaviour=behaviour,
        labels=dict(metadata.labels),
    )
