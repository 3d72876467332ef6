# SPDX-License-Identifier: Apache-2.0
"""A bag's messages, decoded by columns, aligned to ticks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from spc_core.alignment import PATIENCE_NS
from spc_core.alignment.batch.aligner import BatchAligner, Irregular, Ticks
from spc_core.alignment.batch.sampling import Samples
from spc_core.alignment.streaming import Step, StreamingAligner
from spc_core.command_delay.survey import DelaySurvey
from spc_core.contract.contract import Contract
from spc_core.doctor.topic_stats import TopicTimes
from spc_ros.bags.reader import BagReader
from spc_ros.conversion.episode_marks import MarkReader, Marks, marked_topics
from spc_ros.messages.columns import ColumnReader, RawColumn
from spc_ros.messages.contract_reader import Source, sources


@dataclasses.dataclass(frozen=True)
class AlignedBag:
    """A bag as its contract sees it. `counts` are late and duplicate samples that were dropped, by topic and kind."""

    ticks: Ticks
    counts: Mapping[str, int]
    marks: Mapping[str, Marks]  # by the contract's name of the topic, and `episode`
    topics: Mapping[str, TopicTimes]


def align_bag(
    bag: BagReader,
    contract: Contract,
    progress: Callable[[], None] = lambda: None,
    survey: DelaySurvey | None = None,
) -> AlignedBag:
    """Decode and align all that the contract names; `survey` gets the samples. Raises BagError and MessageError."""
    reading = _Reading(bag, contract, progress, survey)
    ticks, counts = align(contract, reading.blocks)
    return reading.aligned(ticks, counts)


def align(contract: Contract, blocks: Callable[[], Iterable[list[Samples]]]) -> tuple[Ticks, Mapping[str, int]]:
    """The ticks of a log, and what was dropped; `blocks` begins the log again with each call.

    Each block holds the samples of every source. A log whose topics are more than PATIENCE_NS out of order goes
    through the same code as a node's messages, sample by sample.
    """
    try:
        return _align_in_blocks(contract, blocks())
    except Irregular:
        return _align_one_by_one(contract, blocks())


def _align_in_blocks(contract: Contract, blocks: Iterable[list[Samples]]) -> tuple[Ticks, Mapping[str, int]]:
    aligner = BatchAligner(contract, PATIENCE_NS)
    parts = [aligner.push(samples) for samples in blocks]
    return Ticks.concatenate([*parts, aligner.flush()]), aligner.counts


def _align_one_by_one(contract: Contract, blocks: Iterable[list[Samples]]) -> tuple[Ticks, Mapping[str, int]]:
    aligner = StreamingAligner(contract, PATIENCE_NS)
    roles = [source.role for source in sources(contract)]
    steps: list[Step] = []
    for samples in blocks:
        log_index = np.concatenate([part.log_index for part in samples])
        source = np.repeat(np.arange(len(samples)), [len(part) for part in samples])
        row = np.concatenate([np.arange(len(part)) for part in samples])
        for i in np.lexsort((source, log_index)).tolist():
            part, at = samples[source[i]], row[i]
            steps += aligner.push(roles[source[i]], int(part.t_ns[at]), part.values[at])
    steps += aligner.flush()
    return Ticks.of(steps, contract), aligner.counts


class _Reading:
    """Passes over a bag; what is kept of its topics and marks is of the latest."""

    def __init__(
        self, bag: BagReader, contract: Contract, progress: Callable[[], None], survey: DelaySurvey | None
    ) -> None:
        self.bag, self.progress, self.survey = bag, progress, survey
        self.marked = marked_topics(bag, contract)
        self.sources = sources(contract)
        self.names = {source.topic: bag.find_topic(source.topic, source.type) for source in self.sources}
        self.readers = [
            ColumnReader(bag.typestore, source.type, source.fields, source.topic) for source in self.sources
        ]
        self._begin()

    def _begin(self) -> None:
        if self.survey is not None:
            self.survey.clear()
        self.topics = {source.topic: TopicTimes(source.type) for source in self.sources}
        self.marks = {name: MarkReader(self.bag, *where) for name, where in self.marked.items()}
        self.first: list[tuple[np.ndarray, np.ndarray]] = []  # receive and sample times of the first stream

    def blocks(self) -> Iterator[list[Samples]]:
        """Samples of every source, block by block, from the beginning of the bag."""
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
        return source.samples(column.order, t_ns, values)

    def aligned(self, ticks: Ticks, counts: Mapping[str, int]) -> AlignedBag:
        none = np.empty(0, np.int64)
        received_ns, t_ns = (np.concatenate([none, *(pair[i] for pair in self.first)]) for i in range(2))
        marks = {name: mark.marks(received_ns, t_ns) for name, mark in self.marks.items()}
        return AlignedBag(ticks, counts, marks, self.topics)
