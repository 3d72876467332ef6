# SPDX-License-Identifier: Apache-2.0
"""A bag, decoded by columns and aligned: its ticks, what its topics were like, and what it says of its episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from spc_core.alignment.batch.aligner import BatchAligner, Irregular, Ticks
from spc_core.alignment.batch.sampling import Samples
from spc_core.alignment.streaming import PATIENCE_NS, Step, StreamingAligner
from spc_core.command_delay.survey import DelaySurvey
from spc_core.contract.contract import Contract
from spc_ros.bags.reader import BagReader
from spc_ros.messages.columns import ColumnReader, deserialize
from spc_ros.messages.contract_reader import Source, sources
from spc_ros.messages.fields import MessageError
from spc_ros.messages.raw_messages import RawColumn

STRING = "std_msgs/msg/String"


@dataclasses.dataclass(frozen=True)
class TopicLog:
    """What one topic of the contract was like in a bag."""

    type: str
    t_ns: np.ndarray  # (N,) int64, what its messages were aligned by
    delay_ns: np.ndarray  # (N,) int64, from stamp to receive time; empty where aligned by receive time
    nan_count: int
    unset_stamps: int


@dataclasses.dataclass(frozen=True)
class Marks:
    """Messages of a topic that marks episodes or tasks: times on the clock of the ticks, and values."""

    t_ns: tuple[int, ...]
    receive_ns: tuple[int, ...]
    values: tuple[float | str, ...]


@dataclasses.dataclass(frozen=True)
class AlignedBag:
    """A bag as its contract sees it. `counts` are late and duplicate samples that were dropped, by topic and kind."""

    ticks: Ticks
    topics: Mapping[str, TopicLog]
    counts: Mapping[str, int]
    marks: Mapping[str, Marks]  # by the contract's name of the topic, and `episode`


def align_bag(
    bag: BagReader,
    contract: Contract,
    marked: Mapping[str, tuple[str, str, str]],
    progress: Callable[[], None] = lambda: None,
    survey: DelaySurvey | None = None,
) -> AlignedBag:
    """Decode and align all that the contract names. Raises BagError and MessageError.

    `marked` are topics that mark episodes or tasks: name to (the bag's topic, type, field). `survey` gets the samples.
    A log is aligned in blocks. One whose topics are more than PATIENCE_NS out of order goes through the same code as a
    node's messages, sample by sample.
    """
    try:
        return _Reading(bag, contract, marked, progress, survey).in_blocks()
    except Irregular:
        return _Reading(bag, contract, marked, progress, survey).one_by_one()


class _Reading:
    """One pass over a bag."""

    def __init__(
        self,
        bag: BagReader,
        contract: Contract,
        marked: Mapping[str, tuple[str, str, str]],
        progress: Callable[[], None],
        survey: DelaySurvey | None,
    ) -> None:
        self.bag, self.contract, self.progress, self.survey = bag, contract, progress, survey
        if survey is not None:
            survey.clear()
        self.sources = sources(contract)
        self.names = {source.topic: bag.find_topic(source.topic, source.type) for source in self.sources}
        self.readers = [
            ColumnReader(bag.typestore, source.type, source.fields, source.topic) for source in self.sources
        ]
        self.seen: dict[str, list[tuple[np.ndarray, np.ndarray, int, int]]] = {topic: [] for topic in self.names}
        self.marks = {name: _Marking(bag, *where) for name, where in marked.items()}
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []  # receive and sample times of the first stream

    def in_blocks(self) -> AlignedBag:
        aligner = BatchAligner(self.contract, PATIENCE_NS)
        parts = [aligner.push(samples) for samples in self._blocks()]
        return self._log(Ticks.concatenate([*parts, aligner.flush()]), aligner.counts)

    def one_by_one(self) -> AlignedBag:
        aligner = StreamingAligner(self.contract, PATIENCE_NS)
        steps: list[Step] = []
        for samples in self._blocks():
            log_index = np.concatenate([part.log_index for part in samples])
            source = np.repeat(np.arange(len(samples)), [len(part) for part in samples])
            row = np.concatenate([np.arange(len(part)) for part in samples])
            for i in np.lexsort((source, log_index)).tolist():
                part, at = samples[source[i]], row[i]
                steps += aligner.push(self.sources[source[i]].role, int(part.t_ns[at]), part.values[at])
        steps += aligner.flush()
        return self._log(Ticks.of(steps, self.contract), aligner.counts)

    def _blocks(self) -> Iterator[list[Samples]]:
        """Samples of every source, block by block."""
        topics = [*self.names.values(), *(mark.topic for mark in self.marks.values())]
        for block in self.bag.blocks(topics):
            for mark in self.marks.values():
                if mark.topic in block:
                    mark.add(block[mark.topic])
            samples = [
                self._samples(i, source, block[self.names[source.topic]])
                if self.names[source.topic] in block
                else Samples.none(_width(source))
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
        if self._is_first_of_topic(index):
            nan_count = int((~np.isfinite(values)).any(axis=1).sum())
            delay = column.receive_ns - t_ns if source.clock == "header" else np.empty(0, np.int64)
            self.seen[source.topic].append((t_ns, delay, nan_count, int(unset.sum())))
        if index == 0:
            self.pairs.append((column.receive_ns, t_ns))
        return Samples(column.order, t_ns, values if source.transforms is None else source.transforms(t_ns, values))

    def _is_first_of_topic(self, index: int) -> bool:
        return all(source.topic != self.sources[index].topic for source in self.sources[:index])

    def _log(self, ticks: Ticks, counts: Mapping[str, int]) -> AlignedBag:
        receive, t_ns = (_joined([pair[i] for pair in self.pairs]) for i in range(2))
        topics = {
            topic: TopicLog(
                next(source.type for source in self.sources if source.topic == topic),
                _joined([part[0] for part in parts]),
                _joined([part[1] for part in parts]),
                sum(part[2] for part in parts),
                sum(part[3] for part in parts),
            )
            for topic, parts in self.seen.items()
        }
        marks = {name: mark.marks(receive, t_ns) for name, mark in self.marks.items()}
        return AlignedBag(ticks, topics, counts, marks)


class _Marking:
    """Collects the messages of one marking topic, which are few."""

    def __init__(self, bag: BagReader, topic: str, type_name: str, field: str) -> None:
        self.bag, self.topic, self.type, self.field = bag, topic, type_name, field
        self.found: list[tuple[int, int, Any]] = []  # receive time, stamp or 0, value

    def add(self, column: RawColumn) -> None:
        if self.type == STRING:
            for row, receive_ns in enumerate(column.receive_ns.tolist()):
                text = getattr(deserialize(self.bag.typestore, column, row, self.type, self.topic), "data", None)
                if not isinstance(text, str):
                    raise MessageError(f"topic '{self.topic}': the bag defines {STRING} without text; record again")
                self.found.append((receive_ns, 0, text))
            return
        stamps, values = ColumnReader(self.bag.typestore, self.type, (self.field,), self.topic).read(column)
        self.found += zip(column.receive_ns.tolist(), stamps.tolist(), values[:, 0].tolist(), strict=True)

    def marks(self, receive_ns: np.ndarray, t_ns: np.ndarray) -> Marks:
        """A mark without a stamp stands where the first stream stood when it was received."""
        times = []
        for received, stamp, _ in self.found:
            place = int(np.searchsorted(receive_ns, received, "right")) - 1
            known = stamp or (int(t_ns[max(place, 0)]) if len(t_ns) else received)
            times.append(known)
        return Marks(tuple(times), tuple(f[0] for f in self.found), tuple(f[2] for f in self.found))


def _width(source: Source) -> int:
    return len(source.fields) if source.transforms is None else source.transforms.width


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
