# SPDX-License-Identifier: Apache-2.0
"""A bag's episodes and tasks, from the topics that mark them, custom_data and the manifest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from spc_core.alignment.episode import EpisodeInfo, EpisodeSpan, episode_span, marker_spans, told_spans
from spc_core.contract.contract import Contract
from spc_ros.bags.files import BagError
from spc_ros.bags.reader import EPISODE_TOPIC, BagReader, parse_episode
from spc_ros.conversion.manifest import NO_METADATA, BagMetadata, stored_metadata
from spc_ros.messages.columns import ColumnReader
from spc_ros.messages.fields import MessageError
from spc_ros.messages.raw_column import RawColumn, deserialize

STRING = "std_msgs/msg/String"
CLOCKS_APART_NS = 1_000_000_000  # two clocks that far apart have nothing to do with each other


@dataclasses.dataclass(frozen=True)
class FirstStream:
    """Times of the messages of the contract's first stream, in the order of the log."""

    receive_ns: np.ndarray  # (N,)
    t_ns: np.ndarray  # (N,) on the clock of the ticks
    stamp_ns: np.ndarray  # (N,) 0 where there is none

    @property
    def delay_ns(self) -> int:
        """From stamp to receive time; 0 where the two are on unrelated clocks."""
        delay_ns = int(np.median(self.receive_ns - self.t_ns)) if len(self.t_ns) else 0
        return delay_ns if 0 < delay_ns < CLOCKS_APART_NS else 0


@dataclasses.dataclass(frozen=True)
class Marks:
    """Messages of a topic that marks episodes or tasks, and the times around them on the clock of the ticks."""

    begins_ns: tuple[int, ...] = ()  # the first time that is certainly after each mark
    ends_ns: tuple[int, ...] = ()  # the last time that is certainly before it
    receive_ns: tuple[int, ...] = ()
    values: tuple[float | str, ...] = ()


def marked_topics(bag: BagReader, contract: Contract | None) -> dict[str, tuple[str, str, str]]:
    """Topics that mark episodes and tasks: name to (the bag's topic, type, field). Raises BagError."""
    marked = {}
    for name in bag.episode_topics():
        marked[EPISODE_TOPIC] = (name, STRING, "data")
    if contract is None:
        return marked
    segments = contract.segments
    if segments.by == "topic" and segments.topic != EPISODE_TOPIC:
        marked[segments.topic] = (bag.find_topic(segments.topic, segments.type), segments.type, segments.field)
    elif segments.by == "topic" and not marked:
        other = "".join(f"; {note}" for note in foreign_notes(bag))
        raise BagError(
            f"{bag.path}: has no topic '{EPISODE_TOPIC}' that tells of episodes, by which the contract parts them; "
            f"name the topic, type and field that mark them in the contract's section 'episode'{other}"
        )
    if contract.task_topic:
        marked[contract.task_topic] = (bag.find_topic(contract.task_topic, STRING), STRING, "data")
    return marked


def foreign_notes(bag: BagReader) -> list[str]:
    """Topics that are called like ours but say something else."""
    return [
        f"topic '{name}' does not tell of episodes as this software does (it says {text[:40]!r}) and is not used; if "
        f"it marks them, the contract needs episode: {{segment: topic, topic: {name.lstrip('/')}, type: {STRING}}}"
        for name, text in bag.foreign_episode_topics().items()
    ]


class MarkReader:
    """Collects the few messages of one marking topic."""

    def __init__(self, bag: BagReader, topic: str, type_name: str, field: str) -> None:
        self.topic, self.type, self.field = topic, type_name, field
        self.typestore = bag.typestore_of(topic)
        self.found: list[tuple[int, int, Any]] = []  # receive time, stamp or 0, value

    def add(self, column: RawColumn) -> None:
        """Raises MessageError."""
        if self.type == STRING:
            for row, receive_ns in enumerate(column.receive_ns.tolist()):
                text = getattr(deserialize(self.typestore, column, row, self.type, self.topic), "data", None)
                if not isinstance(text, str):
                    raise MessageError(f"topic '{self.topic}': the bag defines {STRING} without text; record again")
                self.found.append((receive_ns, 0, text))
            return
        stamps, values = ColumnReader(self.typestore, self.type, (self.field,), self.topic).read(column)
        self.found += zip(column.receive_ns.tolist(), stamps.tolist(), values[:, 0].tolist(), strict=True)

    def marks(self, first: FirstStream, clock: str) -> Marks:
        """The marks in order of time, where the first stream counts by `clock` (header or receive).

        A stamp on the clock of the ticks says which ticks come after the mark. Without one it is not known to which
        side the state belongs that was the latest when the mark was received: it is on neither.
        """
        found = [(received, stamp if clock == "header" else 0, value) for received, stamp, value in self.found]
        if all(stamp for _, stamp, _ in found):
            found.sort(key=lambda mark: mark[1])
        begins, ends = [], []
        for received, stamp, _ in found:
            begin_ns, end_ns = (stamp, stamp - 1) if stamp else _around(received, first)
            begins.append(begin_ns)
            ends.append(end_ns)
        return Marks(tuple(begins), tuple(ends), tuple(f[0] for f in found), tuple(f[2] for f in found))


def _around(received_ns: int, first: FirstStream) -> tuple[int, int]:
    """(first time after a mark without a stamp, last time before it) on the clock of the ticks."""
    latest = int(np.searchsorted(first.receive_ns, received_ns, "right")) - 1
    if latest < 0:
        begin_ns = int(first.t_ns[0]) if len(first.t_ns) else received_ns
        return begin_ns, begin_ns - 1
    t_ns = int(first.t_ns[latest])
    if not first.delay_ns:
        return t_ns + 1, t_ns - 1
    return max(t_ns + 1, received_ns), min(t_ns - 1, received_ns)  # states come later than a mark of the same time


def episode_infos(texts: Iterable[float | str], where: str) -> list[EpisodeInfo]:
    """The messages of the topic `episode` in order. Raises BagError on foreign text."""
    found = [parse_episode([str(text)], where) for text in texts]
    return [info for info in found if info is not None]


def final_infos(infos: list[EpisodeInfo]) -> list[EpisodeInfo]:
    """The last message of each episode, whatever a recorder repeats; one that another interrupts is ended there."""
    last: dict[tuple[int, int], EpisodeInfo] = {}
    for info in infos:
        before = last.setdefault((info.episode, info.start_ns), info)
        if info.state == "ended" or before.state == "running":
            last[info.episode, info.start_ns] = info
    found = list(last.values())
    for i, (info, after) in enumerate(zip(found, found[1:], strict=False)):
        if after.start_ns > info.start_ns and (info.state == "running" or info.end_ns > after.start_ns):
            found[i] = dataclasses.replace(
                info, state="ended", end_ns=after.start_ns - 1, reason="another one began", terminated=False,
                truncated=False,
            )  # fmt: skip
    return found


def published_counts(infos: Iterable[EpisodeInfo]) -> dict[str, int]:
    """Messages published in the episodes as counted by their sender, by topic without leading slash."""
    published: dict[str, int] = {}
    for info in infos:
        for name, count in info.published.items():
            published[name.lstrip("/")] = published.get(name.lstrip("/"), 0) + count
    return published


@dataclasses.dataclass(frozen=True)
class Episodes:
    """The episodes of a bag in time, what the topic `episode` told of them, and what is odd about it."""

    spans: tuple[EpisodeSpan, ...]
    infos: tuple[EpisodeInfo, ...] = ()
    notes: tuple[str, ...] = ()
    several: bool = False  # each has a task of its own, if it names one


def find_episodes(
    marks: Mapping[str, Marks], infos: list[EpisodeInfo], ticks_ns: np.ndarray, first: FirstStream, contract: Contract
) -> Episodes:
    """The episodes of a bag with ticks at `ticks_ns` (N,); without any mark, the entire bag is one. Raises BagError."""
    segments = contract.segments
    if segments.by == "topic" and segments.topic != EPISODE_TOPIC:
        found = marks[segments.topic]
        spans = tuple(marker_spans(found.begins_ns, found.values, found.ends_ns))
        return Episodes(_in_one_clock(spans or (EpisodeSpan(math.inf, -math.inf),), ticks_ns), tuple(infos), (), True)
    finals = final_infos(infos)
    by_receive = contract.observation[0].clock == "receive"
    stamped = told_spans(finals, contract.period_ns)
    spans = [_by_receive(span, first) for span in stamped] if by_receive else stamped
    if segments.by == "topic":
        return Episodes(_in_one_clock(tuple(spans), ticks_ns), tuple(finals), (), True)
    held = [i for i, span in enumerate(spans) if np.sum((ticks_ns >= span.begin_ns) & (ticks_ns <= span.end_ns)) > 1]
    told = tuple(finals[i] for i in held)
    if len(held) > 1:
        note = (
            f"the topic '{EPISODE_TOPIC}' tells of several episodes, so that the bag is parted by it; say "
            "segment: topic in the contract"
        )
        return Episodes(_in_one_clock(tuple(spans[i] for i in held), ticks_ns), told, (note,), True)
    if not infos:
        return Episodes((EpisodeSpan(),))
    if not by_receive or (held and spans[held[0]] is not stamped[held[0]]):
        return Episodes((spans[held[0]],) if held else (episode_span(infos[-1], contract.period_ns),), told)
    span = episode_span(infos[-1], contract.period_ns)
    received_ns = marks[EPISODE_TOPIC].receive_ns[-1] + contract.period_ns // 2  # its times are on another clock
    end_ns = received_ns if infos[-1].state == "ended" else math.inf
    return Episodes((dataclasses.replace(span, begin_ns=-math.inf, end_ns=end_ns),), (infos[-1],))


def _by_receive(span: EpisodeSpan, first: FirstStream) -> EpisodeSpan:
    """The span in receive times of the states, if it is told in their stamps; else it is left as it is."""
    stamps = first.stamp_ns
    if not len(stamps) or not stamps.all() or (np.diff(stamps) < 0).any():
        return span
    begin, end = int(np.searchsorted(stamps, span.begin_ns)), int(np.searchsorted(stamps, span.end_ns, "right"))
    if begin == len(stamps) or end == 0:
        return span
    missing_ns = max(0.0, span.end_ns - stamps[-1]) if end == len(stamps) else 0.0
    return dataclasses.replace(
        span, begin_ns=int(first.receive_ns[begin]), end_ns=int(first.receive_ns[end - 1]) + missing_ns
    )


def _in_one_clock(spans: tuple[EpisodeSpan, ...], ticks_ns: np.ndarray) -> tuple[EpisodeSpan, ...]:
    """The spans. Raises BagError where a time may mean two ticks."""
    back = np.flatnonzero(np.diff(ticks_ns) < 0)
    if len(spans) > 1 and len(back):
        at = int(back[0])
        raise BagError(
            f"the clock of the states jumps back by {(ticks_ns[at] - ticks_ns[at + 1]) / 1e9:.3f} s, so that the times "
            "of its episodes mean two stretches each; cut the bag there, or use clock: receive"
        )
    return spans


def bag_metadata(
    bag: BagReader, contract: Contract, marks: Mapping[str, Marks], infos: Sequence[EpisodeInfo], manifest: BagMetadata
) -> BagMetadata:
    """The metadata of the entire bag; the manifest takes precedence. Raises BagError."""
    try:
        metadata = stored_metadata(bag.info.custom_data, contract.task_key, str(bag.path))
    except ValueError as error:
        raise BagError(str(error)) from None
    topic = contract.task_topic
    tasks = marks[topic].values if topic else ()
    if len(set(tasks)) > 1:
        raise BagError(
            f"{bag.path}: topic '{topic}' names several tasks, {', '.join(sorted(map(str, set(tasks))))}; "
            f"record one task per bag, or announce each episode on the topic '{EPISODE_TOPIC}' with segment: topic"
        )
    metadata = metadata.over(BagMetadata(str(tasks[-1])) if tasks else NO_METADATA)
    if infos:
        metadata = metadata.over(BagMetadata(infos[-1].task_id, infos[-1].params))
    return manifest.over(metadata)


def task_of(
    span: EpisodeSpan, several: bool, metadata: BagMetadata, bag: BagReader, contract: Contract
) -> tuple[str, Mapping[str, float]]:
    """Task id and parameters of an episode; a topic that parts `several` episodes also names their tasks."""
    if several and span.task_id:
        return span.task_id, span.params
    if not metadata.task_id:
        raise BagError(
            f"{bag.path}: names no task, neither as '{contract.task_key}' in custom_data nor on the topic "
            f"'{EPISODE_TOPIC}'; give one for all such bags with --task, by folder with --task-from folder, or with "
            f"--manifest"
        )
    return metadata.task_id, metadata.params or {}
