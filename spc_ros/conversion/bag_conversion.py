# SPDX-License-Identifier: Apache-2.0
"""Converts one bag: its messages, decoded by columns, are aligned to ticks, and the ticks are cut into episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from spc_core.alignment.batch.aligner import Ticks
from spc_core.alignment.batch.sampling import Samples
from spc_core.alignment.command_lag import percentiles_ms
from spc_core.alignment.command_stamps import Stamped, reward_notes, stamp_notes
from spc_core.alignment.episode import Segment, Segmentation, split_ticks
from spc_core.alignment.episode_rewards import episode_rewards, infinite_reward
from spc_core.command_delay.survey import DelaySurvey
from spc_core.contract.contract import Contract, parse_contract
from spc_core.data.dataset import Episode, check_episode
from spc_core.data.jumps import Jumps, find_jumps
from spc_core.doctor.topic_report import TopicTimes
from spc_ros.bags.files import BagError, bag_sha256
from spc_ros.bags.reader import EPISODE_TOPIC, BagReader
from spc_ros.conversion.clock_topic import Arrivals, clock_topic
from spc_ros.conversion.conversion_report import BagReport
from spc_ros.conversion.episode_marks import (
    Episodes,
    FirstStream,
    MarkReader,
    Marks,
    bag_metadata,
    episode_infos,
    find_episodes,
    foreign_notes,
    marked_topics,
    published_counts,
    task_of,
)
from spc_ros.conversion.log_ticks import Aligned, align
from spc_ros.conversion.manifest import NO_METADATA, BagMetadata
from spc_ros.messages.columns import LONGER, RawColumn, Source, sources


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
class AlignedBag:
    """The aligned data of a bag."""

    aligned: Aligned
    marks: Mapping[str, Marks]  # by the contract's name of the topic, or `episode`
    first: FirstStream
    notes: Sequence[str]  # on the stamps of commands
    topics: Mapping[str, TopicTimes]


class _BagPass:
    """Decodes a bag's messages; each pass collects topics and marks anew."""

    def __init__(
        self, bag: BagReader, contract: Contract, progress: Callable[[], None], survey: DelaySurvey | None
    ) -> None:
        self.bag, self.contract, self.progress, self.survey = bag, contract, progress, survey
        self.marked = marked_topics(bag, contract)
        self.sources = sources(contract)
        self.names = {source.topic: bag.find_topic(source.topic, source.type) for source in self.sources}
        stores = {topic: bag.typestore_of(name) for topic, name in self.names.items()}
        self.readers = [source.columns(stores[source.topic]) for source in self.sources]
        self.clock = clock_topic(bag, self.sources[0])
        self._begin()

    def _begin(self) -> None:
        if self.survey is not None:
            self.survey.clear()
        for source in self.sources:
            source.reset()
        self.topics = {source.topic: TopicTimes(source.type) for source in self.sources}
        self.marks = {name: MarkReader(self.bag, *where) for name, where in self.marked.items()}
        self.arrivals = Arrivals(self.contract, self.clock)
        self.stamped: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}  # times and log indices, by source
        self.first: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # receive times, times, stamps of its stream
        self.rewards: list[tuple[np.ndarray, np.ndarray]] = []  # times, stamps of a reward topic

    def blocks(self) -> Iterator[list[Samples]]:
        """Start a new pass: samples of every source, block by block."""
        self._begin()
        names = [*self.names.values(), *(mark.topic for mark in self.marks.values())]
        for block in self.bag.blocks([*names, *([self.clock.name] if self.clock else [])]):
            self.arrivals.begin_block(block)
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
        stamps, values, absent = self.readers[index].read_partial(column)
        stamps = source.stamps(stamps, values)
        unset = stamps == 0 if source.clock == "header" else np.zeros(len(stamps), bool)
        t_ns = self.arrivals.times(index, source, column.log_index, column.receive_ns, stamps)
        if all(source.topic != before.topic for before in self.sources[:index]):
            bad = ~np.isfinite(values) if absent is None else ~(np.isfinite(values) | absent)
            if source.transforms is not None and bad.any():
                read = len(source.observed)
                bad[:, :read] &= ~(np.isinf(values[:, :read]) & source.transforms.clipped)
            counted = source.makes_sample(absent)
            nan_count = int(bad.any(axis=1).sum())
            delays_ns = np.where(unset, 0, column.receive_ns - t_ns)[counted] if source.clock == "header" else t_ns[:0]
            self.topics[source.topic].add(t_ns[counted], delays_ns, nan_count, int(unset[counted].sum()))
        samples = source.samples(column.log_index, t_ns, values, absent)
        if index < len(self.contract.observation) + len(self.contract.action.parts):
            self.stamped.setdefault(index, []).append((samples.t_ns, samples.log_index))
        if source is self.sources[-1] and self.contract.reward.topic:
            self.rewards.append((t_ns, stamps))
        if index == 0:
            made = slice(None) if absent is None else np.isin(column.log_index, samples.log_index)
            self.first.append((column.receive_ns[made], t_ns[made], stamps[made]))
            self.arrivals.add_states(samples.log_index, samples.t_ns)
        return samples

    def align(self) -> AlignedBag:
        """Raises BagError and MessageError."""
        aligned = align(self.contract, self.blocks)
        aligned = check_complete(aligned, self.sources, [reader.joints for reader in self.readers])
        self.arrivals.check(self.sources)
        none = np.empty(0, np.int64)
        first = FirstStream(*(np.concatenate([none, *(times[i] for times in self.first)]) for i in range(3)))
        marks = {name: mark.marks(first, self.contract.observation[0].clock) for name, mark in self.marks.items()}
        times = {i: [np.concatenate(c) for c in zip(*parts, strict=True)] for i, parts in self.stamped.items()}
        notes = [*self.arrivals.notes(self.sources), *command_notes(self.contract, times, self.arrivals)]
        if self.rewards and self.sources[-1].clock == "receive" and self.sources[0].clock == "receive":
            reward_ns, reward_stamp_ns = (np.concatenate(part) for part in zip(*self.rewards, strict=True))
            notes += reward_notes(reward_ns, reward_stamp_ns, first.t_ns, first.stamp_ns)
        return AlignedBag(aligned, marks, first, notes, self.topics)

    def notes(self) -> list[str]:
        """What was odd about the bytes."""
        longest = {reader.where: reader.surplus for reader in self.readers if reader.surplus}
        return [f"messages of {topic} are {LONGER.format(surplus)}" for topic, surplus in longest.items()]


def check_complete(aligned: Aligned, found: Sequence[Source], joints: Sequence[Collection[str]]) -> Aligned:
    """With the counts of incomplete messages; `joints` are those that each source's messages named.

    Raises MessageError for a joint that none of them has.
    """
    counts = dict(aligned.counts)
    for source, named in zip(found, joints, strict=True):
        source.check_complete(named)
        if source.newest is not None and source.newest.incomplete:
            counts[f"{source.topic} incomplete"] = source.newest.incomplete
    return dataclasses.replace(aligned, counts=counts)


def command_notes(contract: Contract, times: Mapping[int, Sequence[np.ndarray]], arrivals: Arrivals) -> list[str]:
    """Notes on the stamps of commands from the times and log indices of the sources, by their numbers."""
    observed, parts = contract.observation, contract.action.parts
    names = [*(stream.topic for stream in observed), *(part.topic for part in parts)]
    aging = [i for i, stream in enumerate(observed) if stream.max_age_ns is not None]
    found = {i: Stamped(names[i], t_ns, log_index) for i, (t_ns, log_index) in times.items()}
    notes = []
    for i in range(len(observed), len(names)):
        if i not in found or 0 not in found or arrivals.by_clock(i):
            continue
        own = stamp_notes(found[i], [found[j] for j in aging if j in found])
        notes += [f"{names[i]}: {note}" for note in own] if len(parts) > 1 else own
    return notes


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
        reading = _BagPass(bag, job.contract, lambda: progress(bag.bytes_read), survey)
        log = reading.align()
        return cut_episodes(bag, log, job, [*notes, *reading.notes()], sha256.result())


def cut_episodes(
    bag: BagReader, log: AlignedBag, job: Job, notes: Sequence[str], sha256: str
) -> tuple[BagReport, list[TaskEpisode]]:
    """A bag's report and episodes from its ticks. Raises BagError and DatasetError."""
    contract, path, ticks = job.contract, bag.path, log.aligned.ticks
    infos = episode_infos(log.marks.get(EPISODE_TOPIC, Marks()).values, str(path))
    found = find_episodes(log.marks, infos, ticks.t_ns, log.first, contract)
    metadata = bag_metadata(bag, contract, log.marks, found.infos or infos, job.manifest.get(path, NO_METADATA))
    folder = path.resolve().parent.name if job.task_from == "folder" else ""
    metadata = metadata.over(BagMetadata(folder)).over(BagMetadata(job.task))
    segmentation = split_ticks(ticks, found.spans, contract)
    if problem := infinite_reward(ticks, found.spans):
        raise BagError(f"{path}: {problem}")
    if not segmentation.segments:
        dropped = segmentation.dropped
        why = max(dropped, key=lambda reason: dropped[reason], default=_no_tick(ticks, found))
        raise BagError(f"{path}: holds no transition; {why}")
    behaviour = bag.info.custom_data.get("spc.behaviour", "")
    episodes = []
    rewards = episode_rewards(ticks, segmentation, contract)
    for segment in segmentation.segments:
        episode = _episode(segment, ticks, rewards, path.name, sha256, behaviour, metadata)
        check_episode(episode, contract, str(path))
        episodes.append(
            TaskEpisode(*task_of(found.spans[segment.span], found.several, metadata, bag, contract), episode)
        )
    ticks_ns = np.concatenate([entry.episode.times_ns for entry in episodes])
    observed = {stream.topic for stream in contract.observation}
    published = published_counts(found.infos or infos[-1:])
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
        notes=(*notes, *bag.notes, *bag.losses, *log.notes, *found.notes, *foreign_notes(bag)),
        outside_ticks=segmentation.outside,
        jumps=_jumps(ticks, segmentation, contract),
        lag_ms=percentiles_ms(ticks.command_lags_ns),
        skipped_states=log.aligned.skipped,
    )
    return report, episodes


def _jumps(ticks: Ticks, segmentation: Segmentation, contract: Contract) -> tuple[Jumps, ...]:
    """The jumps between the ticks of all segments."""
    joined = np.zeros(len(ticks), bool)
    for segment in segmentation.segments:
        joined[segment.first + 1 : segment.last + 1] = True
    return tuple(find_jumps(ticks.t_ns, ticks.observations, joined[1:], contract))


def _no_tick(ticks: Ticks, found: Episodes) -> str:
    """Why no tick is in an episode."""
    begins_ns = [span.begin_ns for span in found.spans if np.isfinite(span.begin_ns)]
    text = f"there is no tick in the episode: all {len(ticks)} ticks lie outside"
    if not begins_ns or not len(ticks):
        return f"{text}; no mark says that one begins"
    away_s = max(min(begins_ns) - ticks.t_ns[-1], ticks.t_ns[0] - max(begins_ns), 0) / 1e9
    if away_s == 0:
        return f"{text}, although episodes begin among them; look at what marks their ends"
    return (
        f"{text}, {away_s:.1f} s from where it begins; if the marks are of another clock than the states, set "
        "use_sim_time the same for all nodes, or say clock: receive"
    )


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
    segment: Segment, ticks: Ticks, rewards: np.ndarray, source: str, sha256: str, behaviour: str, metadata: BagMetadata
) -> Episode:
    states, acts = slice(segment.first, segment.last + 1), slice(segment.first + 1, segment.last + 1)
    return Episode(
        observations=ticks.observations[states],
        actions=ticks.actions[acts],
        rewards=rewards[acts],
        times_ns=ticks.t_ns[states],
        terminated=segment.terminated,
        truncated=segment.truncated,
        cut=None if segment.cut is None else str(segment.cut),
        source=source,
        source_sha256=sha256,
        behaviour=behaviour,
        labels=dict(metadata.labels),
    )
