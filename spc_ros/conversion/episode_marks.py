# SPDX-License-Identifier: Apache-2.0
"""A bag's episodes and tasks, from the topics that mark them, custom_data and the manifest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from spc_core.alignment.episode import EpisodeInfo, EpisodeSpan, episode_span, marker_spans
from spc_core.contract.contract import Contract
from spc_ros.bags.files import BagError
from spc_ros.bags.reader import EPISODE_TOPIC, BagReader, parse_episode
from spc_ros.conversion.manifest import NO_METADATA, BagMetadata, stored_metadata
from spc_ros.messages.columns import ColumnReader
from spc_ros.messages.fields import MessageError
from spc_ros.messages.raw_column import RawColumn, deserialize

STRING = "std_msgs/msg/String"


@dataclasses.dataclass(frozen=True)
class Marks:
    """Messages of a topic that marks episodes or tasks; `t_ns` is on the clock of the ticks."""

    t_ns: tuple[int, ...] = ()
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
    if contract.task_topic:
        marked[contract.task_topic] = (bag.find_topic(contract.task_topic, STRING), STRING, "data")
    return marked


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

    def marks(self, receive_ns: np.ndarray, t_ns: np.ndarray) -> Marks:
        """A mark without a stamp gets the time of the first stream's latest sample when it was received."""
        times = []
        for received, stamp, _ in self.found:
            latest = int(np.searchsorted(receive_ns, received, "right")) - 1
            times.append(stamp or (int(t_ns[max(latest, 0)]) if len(t_ns) else received))
        return Marks(tuple(times), tuple(f[0] for f in self.found), tuple(f[2] for f in self.found))


def episode_infos(texts: Iterable[float | str], where: str) -> list[EpisodeInfo]:
    """The messages of the topic `episode` in order. Raises BagError on foreign text."""
    found = [parse_episode([str(text)], where) for text in texts]
    return [info for info in found if info is not None]


def final_infos(infos: list[EpisodeInfo]) -> list[EpisodeInfo]:
    """The last message of each episode; one that another follows without an end is ended there."""
    last: list[EpisodeInfo] = []
    for info in infos:
        if last and (info.episode, info.start_ns) == (last[-1].episode, last[-1].start_ns):
            last[-1] = info
            continue
        if last and last[-1].state == "running":
            reason = "another one began"
            last[-1] = dataclasses.replace(last[-1], state="ended", end_ns=info.start_ns, reason=reason)
        last.append(info)
    return last


def published_counts(infos: list[EpisodeInfo], contract: Contract) -> dict[str, int]:
    """Messages published in the episodes as counted by their sender, by topic without leading slash."""
    published: dict[str, int] = {}
    for info in final_infos(infos) if contract.segments.by == "topic" else infos[-1:]:
        for name, count in info.published.items():
            published[name.lstrip("/")] = published.get(name.lstrip("/"), 0) + count
    return published


def episode_spans(marks: Mapping[str, Marks], infos: list[EpisodeInfo], contract: Contract) -> list[EpisodeSpan]:
    """The episodes of the bag; without any mark, the entire bag is one."""
    segments = contract.segments
    if segments.by == "topic" and segments.topic != EPISODE_TOPIC:
        found = marks[segments.topic]
        return marker_spans(found.t_ns, found.values) or [EpisodeSpan(math.inf, -math.inf)]
    if segments.by == "topic":
        return [episode_span(info, contract.period_ns) for info in final_infos(infos)]
    if not infos:
        return [EpisodeSpan()]
    span = episode_span(infos[-1], contract.period_ns)
    if contract.observation[0].clock == "header":
        return [span]
    received_ns = marks[EPISODE_TOPIC].receive_ns[-1] + contract.period_ns // 2  # its times are on another clock
    end_ns = received_ns if infos[-1].state == "ended" else math.inf
    return [dataclasses.replace(span, begin_ns=-math.inf, end_ns=end_ns)]


def bag_metadata(
    bag: BagReader, contract: Contract, marks: Mapping[str, Marks], infos: list[EpisodeInfo], manifest: BagMetadata
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
    span: EpisodeSpan, metadata: BagMetadata, bag: BagReader, contract: Contract
) -> tuple[str, Mapping[str, float]]:
    """Task id and parameters of an episode; a topic that separates episodes also names their tasks."""
    if contract.segments.by == "topic" and span.task_id:
        return span.task_id, span.params
    if not metadata.task_id:
        raise BagError(
            f"{bag.path}: names no task, neither as '{contract.task_key}' in custom_data nor on the topic "
            f"'{EPISODE_TOPIC}'; give one for all such bags with --task, by folder with --task-from folder, or with "
            f"--manifest"
        )
    return metadata.task_id, metadata.params or {}
