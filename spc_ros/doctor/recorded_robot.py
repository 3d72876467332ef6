# SPDX-License-Identifier: Apache-2.0
"""What the recordings of one robot hold, topic by topic over all bags, whatever their order."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from spc_core.doctor.diagnosis import TopicLog
from spc_core.doctor.topic_stats import intervals, stamp_pace
from spc_ros.bags.files import BagError, find_bags
from spc_ros.bags.reader import BagReader
from spc_ros.doctor.scan_beams import with_beams
from spc_ros.doctor.topic_logs import read_topic_logs
from spc_ros.doctor.topic_roles import STRING, Marks, find_marks, merge_marks

MAX_BAGS = 30  # read of a folder; they are alike, and a proposal needs no more
SAME_PACE = 0.02  # of real time, within which stamps and receive times tell the same rate
DESCRIPTION = "robot_description"  # latched std_msgs/String with the robot's URDF


@dataclasses.dataclass(frozen=True)
class RecordedTopic:
    """A topic of the robot's bags."""

    topic: str
    type: str  # '' when it changes
    logs: tuple[TopicLog, ...]  # of the bags that hold its numbers
    bags: int  # read in all
    messages: int
    problem: str = ""  # why its numbers could not be read
    frames: str = ""  # the transforms that it holds, in words
    pace: float = 1.0  # seconds of the stamps for each second of receive time, where messages count by the latter

    @functools.cached_property
    def log(self) -> TopicLog:
        """All messages in one log, fields in the order of the fullest messages; its times are not one sequence."""
        return self.logs[0] if len(self.logs) == 1 else _joined(self.logs)

    def by_bag(self, field: str) -> list[np.ndarray]:
        """The values of a field in each bag that has it."""
        return [log.values[:, log.fields.index(field)] for log in self.logs if field in log.fields]

    @property
    def everywhere(self) -> bool:
        return len(self.logs) == self.bags

    @functools.cached_property
    def rate_hz(self) -> float | None:
        """The median rate; None where most bags have too few messages of it, or irregular ones."""
        found = [self.pace * known.rate_hz for log in self.logs if (known := intervals(log))]
        return float(np.median(found)) if 2 * len(found) > len(self.logs) else None

    @property
    def per_second(self) -> float:
        """Messages per second of the bags, regular or not."""
        lengths = [float(log.seconds.max() - log.seconds.min()) for log in self.logs]
        return (self.messages - len(lengths)) / sum(lengths) if sum(lengths) > 0 else 0.0

    def received(self) -> RecordedTopic:
        """The topic with its rate by receive times, which come in bursts, so that its stamps tell the intervals."""
        paces = [stamp_pace(log.time_ns, log.receive_ns) for log in self.logs if len(log) > 1]
        pace = float(np.median(paces)) if paces else 1.0
        return dataclasses.replace(self, pace=pace if abs(pace - 1) > SAME_PACE else 1.0)


@dataclasses.dataclass(frozen=True)
class RecordedRobot:
    """The topics of a robot's bags, sorted by name."""

    bags: tuple[Path, ...]  # those read
    found: int  # bags at the given paths
    unread: tuple[str, ...]  # errors of bags that cannot be read
    topics: tuple[RecordedTopic, ...]
    logs: tuple[dict[str, TopicLog], ...]  # of each bag, by topic
    marks: Marks
    description: str  # URDF of the robot; '' where no bag has one


@dataclasses.dataclass(frozen=True)
class _Bag:
    """What one bag holds."""

    logs: dict[str, TopicLog]
    topics: dict[str, tuple[str, int, str]]  # type, messages, and why they cannot be read
    marks: Marks
    descriptions: set[str]
    frames: dict[str, str]  # transforms in words, by topic


def read_robot(paths: Iterable[str | Path], definitions: Mapping[str, str] | None = None) -> RecordedRobot:
    """Read the bags at the paths, of many some spread over all. Raises BagError where none can be read."""
    found = sorted(find_bags(paths))
    read: dict[Path, _Bag] = {}
    failed: dict[Path, BagError] = {}
    for path in (found[i] for i in sorted({round(at) for at in np.linspace(0, len(found) - 1, MAX_BAGS)})):
        try:
            read[path] = _read_bag(path, definitions)
        except BagError as error:
            failed[path] = error
    if not read:
        raise next(iter(failed.values()))
    bags = list(read.values())
    logs = tuple(bag.logs for bag in bags)
    names = sorted({name for bag in bags for name in bag.topics})
    topics = tuple(
        dataclasses.replace(
            _topic(name, [bag.topics[name] for bag in bags if name in bag.topics], logs),
            frames=max((bag.frames.get(name, "") for bag in bags), key=lambda text: (len(text), text)),
        )
        for name in names
    )
    errors = tuple(str(error).replace(f"{path}: ", f"{path.name}: ", 1) for path, error in failed.items())
    descriptions = Counter(text for bag in bags for text in bag.descriptions)
    description = min(descriptions, key=lambda text: (-descriptions[text], text), default="")
    marks = merge_marks([bag.marks for bag in bags])
    return RecordedRobot(tuple(read), len(found), errors, topics, logs, marks, description)


def _read_bag(path: Path, definitions: Mapping[str, str] | None) -> _Bag:
    with BagReader(path, definitions) as bag:
        found = read_topic_logs(bag, None)
        logs = {log.topic: with_beams(bag, log) for log in found.logs if len(log)}
        problems = {finding.topic: finding.text for finding in found.findings if finding.check == "topic"}
        frames = {finding.topic: finding.text for finding in found.findings if finding.check == "frames"}
        topics = {name: (topic.type, topic.count, problems.get(name, "")) for name, topic in bag.info.topics.items()}
        return _Bag(logs, topics, find_marks(bag, found.logs), _descriptions(bag), frames)


def _topic(name: str, seen: Sequence[tuple[str, int, str]], logs: Sequence[dict[str, TopicLog]]) -> RecordedTopic:
    types = sorted({kind for kind, _, _ in seen})
    problem = min((problem for _, _, problem in seen if problem), default="")
    if len(types) > 1 or not types[0]:
        several = f" ({', '.join(filter(None, types))})" if any(types) else ""
        return RecordedTopic(name, "", (), len(logs), sum(n for _, n, _ in seen), f"it is of several types{several}")
    own = sorted((log for bag in logs if (log := bag.get(name))), key=lambda log: (log.begin_ns, len(log)))
    return RecordedTopic(name, types[0], tuple(own), len(logs), sum(n for _, n, _ in seen), problem)


def _joined(logs: Sequence[TopicLog]) -> TopicLog:
    """One log of all messages; a field that some bags lack is absent there."""
    fullest = min(logs, key=lambda log: (-len(log.fields), log.fields))
    fields = tuple(dict.fromkeys([*fullest.fields, *sorted({name for log in logs for name in log.fields})]))
    values, absent = [], []
    for log in logs:
        columns = [log.fields.index(name) if name in log.fields else -1 for name in fields]
        padded = np.concatenate([log.values, np.full((len(log), 1), np.nan)], axis=1)
        lacks = np.zeros((len(log), len(log.fields)), bool) if log.absent is None else log.absent
        values.append(padded[:, columns])
        absent.append(np.concatenate([lacks, np.ones((len(log), 1), bool)], axis=1)[:, columns])
    stamped = [log.stamp_ns for log in logs if log.stamp_ns is not None]
    missing = np.concatenate(absent)
    return dataclasses.replace(
        logs[0],
        receive_ns=np.concatenate([log.receive_ns for log in logs]),
        stamp_ns=np.concatenate(stamped) if len(stamped) == len(logs) else None,
        fields=fields,
        values=np.concatenate(values),
        absent=missing if missing.any() else None,
        place_ns=None,
        clock_ns=None,
        layouts=(),
        lengths={},
        points=max(log.points for log in logs),
    )


def _descriptions(bag: BagReader) -> set[str]:
    """The texts on the topic robot_description."""
    names = [name for name, topic in bag.info.topics.items() if name.endswith(DESCRIPTION) and topic.type == STRING]
    return {message.data for _, _, message in bag.messages(names) if message.data.strip()} if names else set()
