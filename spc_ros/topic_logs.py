# SPDX-License-Identifier: Apache-2.0
"""A bag's topics as arrays for the doctor: tolerant where the converter is strict, so that it can tell why."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from spc_core.contract import Contract
from spc_core.diagnosis import Finding, TopicLog
from spc_core.timing_checks import MIN_MESSAGES
from spc_ros.bag_reader import BagError, BagReader, parse_episode
from spc_ros.messages import JOINT_ARRAYS, FieldReader, MessageError, array_names, stamp_ns

CLOCK = "rosgraph_msgs/msg/Clock"
JUMP_NS = 500_000_000
MAX_FIELDS = 64  # numbers of a message that are read where no contract chooses
MAX_ARRAY = 32  # longer arrays are images and scans, not states
SKIPPED = ("header", "layout")  # and covariances


@dataclasses.dataclass(frozen=True)
class Part:
    """What is wanted of a topic, by the contract's name of it; without `fields`, all numbers of the messages."""

    topic: str
    role: Any
    fields: tuple[str, ...] | None = None
    nominal_hz: float | None = None
    faster_is_fine: bool = True
    max_age_s: float = math.inf
    latched: bool = False


def contract_parts(contract: Contract) -> list[tuple[str, Part]]:
    """(type, part) of every topic that the contract reads."""
    rate_hz = contract.rate_hz
    parts = []
    for number, stream in enumerate(contract.observation):
        nominal_hz = rate_hz if number == 0 else None
        latched = math.isinf(stream.max_age_s)
        part = Part(stream.topic, "observation", stream.fields, nominal_hz, True, stream.max_age_s, latched)
        parts.append((stream.type, part))
    action, reward = contract.action, contract.reward
    parts.append((action.type, Part(action.topic, "action", action.fields, rate_hz, False)))
    if reward.topic is not None and reward.type is not None and reward.field is not None:
        parts.append((reward.type, Part(reward.topic, "reward", (reward.field,), rate_hz, False)))
    return parts


def read_topic_logs(bag: BagReader, contract: Contract | None) -> tuple[list[TopicLog], list[Finding]]:
    """(logs, findings about topics that cannot be read). Without a contract, every topic that holds numbers.

    Memory: eight bytes for each number that is read. Raises BagError.
    """
    wanted, findings = _wanted(bag, contract)
    types = bag.info.topics
    collectors = {name: [_Collector(part, types[name].type) for part in parts] for name, parts in wanted.items()}
    episodes = bag.episode_topics()
    texts: list[str] = []
    for name, receive_ns, message in bag.messages([*collectors, *episodes]) if collectors else ():
        if name in episodes:
            texts.append(message.data)
        for collector in collectors.get(name, ()):
            collector.add(receive_ns, message)
    info = parse_episode(texts, str(bag.path))
    published = {name.lstrip("/"): count for name, count in info.published.items()} if info else {}
    clock = contract.clock if contract else "header"
    logs: list[TopicLog] = []
    for collector in (c for several in collectors.values() for c in several):
        log = collector.log(clock, bag.info.start_ns, published.get(collector.part.topic.lstrip("/"), 0))
        if log.fields or contract:
            logs.append(log)
        findings += collector.findings
    simulated = any(topic.type == CLOCK for topic in bag.info.topics.values())
    return _with_span(_placed(logs) if simulated else logs), findings


def _placed(logs: list[TopicLog]) -> list[TopicLog]:
    """Topics of a bag with a simulated clock, shown by their stamps: receive times come in bursts there.

    A clock that jumps back would show two times at one place, and topics without stamps have another clock.
    """
    logs = [dataclasses.replace(log, simulated=True) for log in logs]
    known = [log for log in logs if len(log)]
    for log in known:
        if not log.has_stamps or log.clock != "header" or np.diff(log.time_ns).min(initial=0) < -JUMP_NS:
            return logs
    begin_ns = min((int(log.time_ns.min()) for log in known), default=0)
    return [dataclasses.replace(log, place_ns=log.time_ns, begin_ns=begin_ns) for log in logs]


def _wanted(bag: BagReader, contract: Contract | None) -> tuple[dict[str, list[Part]], list[Finding]]:
    """The bag's names of the topics to read, with what is wanted of each."""
    if contract is None:
        episodes = bag.episode_topics()
        return {
            name: [Part(name, "other")]
            for name, topic in bag.info.topics.items()
            if topic.type not in ("", CLOCK) and topic.count and name not in episodes
        }, []
    wanted: dict[str, list[Part]] = {}
    findings = []
    for type_name, part in contract_parts(contract):
        try:
            wanted.setdefault(bag.find_topic(part.topic, type_name), []).append(part)
        except BagError as error:
            findings.append(Finding("fail", part.topic, "topic", str(error).removeprefix(f"{bag.path}: ")))
    return wanted, findings


def _with_span(logs: list[TopicLog]) -> list[TopicLog]:
    """Tell each log between which times all of them should have been there."""
    steady = [log for log in logs if len(log) >= MIN_MESSAGES and not log.latched]
    if not steady:
        return logs
    begin_s, end_s = min(float(log.seconds.min()) for log in steady), max(float(log.seconds.max()) for log in steady)
    return [dataclasses.replace(log, span=(begin_s, end_s)) for log in logs]


class _Collector:
    """Gathers one part of one topic, message by message."""

    def __init__(self, part: Part, type_name: str) -> None:
        self.part, self.type_name = part, type_name
        self.receive: list[int] = []
        self.stamps: list[int] = []
        self.has_header = False
        self.findings: list[Finding] = []
        joints = type_name in JOINT_ARRAYS
        self.reader: _Joints | _Fields = _Joints(type_name, part) if joints else _Fields(type_name, part)

    def add(self, receive_ns: int, message: Any) -> None:
        self.receive.append(receive_ns)
        self.has_header = self.has_header or hasattr(message, "header")
        self.stamps.append(stamp_ns(message) or 0)
        self.reader.add(message)

    def log(self, clock: str, begin_ns: int, published: int) -> TopicLog:
        part = self.part
        fields, values, absent, layouts, lengths = self.reader.arrays()
        for problem, count in self.reader.problems.items():
            text = f"{problem} ({count} of {len(self.receive)} messages)"
            self.findings.append(Finding("fail", part.topic, "fields", text, count / max(1, len(self.receive))))
        return TopicLog(
            topic=part.topic,
            type=self.type_name,
            role=part.role,
            receive_ns=np.array(self.receive, np.int64),
            stamp_ns=np.array(self.stamps, np.int64) if self.has_header else None,
            fields=fields,
            values=values,
            clock=clock,
            begin_ns=begin_ns,
            nominal_hz=part.nominal_hz,
            faster_is_fine=part.faster_is_fine,
            max_age_s=part.max_age_s,
            lost=max(0, published - len(self.receive)),
            absent=absent if absent.any() else None,
            layouts=layouts,
            lengths=lengths,
            latched=part.latched,
        )


Arrays = tuple[
    tuple[str, ...], np.ndarray, np.ndarray, tuple[tuple[int, tuple[str, ...]], ...], Mapping[str, np.ndarray]
]
"""(field names, (N, F) values, (N, F) absent, joint layouts, (N,) lengths by array)."""


class _Joints:
    """JointState and JointTrajectory (first point): by joint name, whatever joints each message has."""

    def __init__(self, type_name: str, part: Part) -> None:
        self.names = JOINT_ARRAYS[type_name]
        self.fields = part.fields
        self.blocks: list[tuple[tuple[str, ...], list[tuple[np.ndarray, ...]]]] = []  # messages in a row, one layout
        self.key: Any = None
        self.problems: dict[str, int] = {}

    def add(self, message: Any) -> None:
        joints = message.name if hasattr(message, "name") else message.joint_names
        holder = message
        if hasattr(message, "points"):
            holder = message.points[0] if len(message.points) else None
        arrays = tuple(np.asarray(getattr(holder, name, ())) for name in self.names)
        key = (joints, *map(len, arrays))
        if key != self.key:
            self.key = key
            self.blocks.append((tuple(joints), []))
        self.blocks[-1][1].append(arrays)

    def arrays(self) -> Arrays:
        fields = self.fields if self.fields is not None else tuple(self._fields())
        values, absent, lengths = [], [], {name: [] for name in self.names}
        layouts: list[tuple[int, tuple[str, ...]]] = []
        begin = 0
        for joints, messages in self.blocks:
            stacked = {name: np.array([m[i] for m in messages], float) for i, name in enumerate(self.names)}
            block = np.full((len(messages), len(fields)), math.nan)
            lacking = np.ones_like(block, bool)
            for place, field in enumerate(fields):
                name, _, joint = field.partition(".")
                column = joints.index(joint) if joint in joints else -1
                if name in stacked and 0 <= column < stacked[name].shape[1]:
                    block[:, place], lacking[:, place] = stacked[name][:, column], False
            values.append(block)
            absent.append(lacking)
            for name in self.names:
                lengths[name].append(np.full(len(messages), stacked[name].shape[1]))
            if not layouts or layouts[-1][1] != joints:
                layouts.append((begin, joints))
            begin += len(messages)
        none = np.empty((0, len(fields)))
        joined = {name: np.concatenate(parts) for name, parts in lengths.items() if parts}
        self._find_missing(fields, {joint for joints, _ in self.blocks for joint in joints})
        absent_all = np.concatenate(absent) if absent else none.astype(bool)
        return fields, np.concatenate(values) if values else none, absent_all, tuple(layouts), joined

    def _fields(self) -> Iterator[str]:
        """All fields that any message has."""
        seen: dict[str, None] = {}
        for joints, messages in self.blocks:
            for name, array in zip(self.names, messages[0], strict=True):
                seen.update(dict.fromkeys(f"{name}.{joint}" for joint, _ in zip(joints, array, strict=False)))
        yield from list(seen)[:MAX_FIELDS]

    def _find_missing(self, fields: Sequence[str], joints: set[str]) -> None:
        never = sorted({f.partition(".")[2] for f in fields} - joints)
        if never and self.blocks:
            problem = f"no message has the joint {', '.join(never)}; they have {', '.join(sorted(joints)) or 'none'}"
            self.problems[f"{problem}; correct the contract or the driver"] = sum(len(m) for _, m in self.blocks)


class _Fields:
    """Any other type: the contract's fields, or all numbers of the first message."""

    def __init__(self, type_name: str, part: Part) -> None:
        self.type_name, self.topic = type_name, part.topic
        self.fields: tuple[str, ...] | None = part.fields
        self.reader = None if part.fields is None else FieldReader(type_name, part.fields, part.topic)
        self.rows: list[np.ndarray | None] = []
        self.problems: dict[str, int] = {}

    def add(self, message: Any) -> None:
        if self.fields is None:
            self.fields = tuple(numeric_fields(message))
            self.reader = FieldReader(self.type_name, self.fields, self.topic)
        try:
            self.rows.append(self.reader.read(message) if self.fields and self.reader else np.empty(0))
        except MessageError as error:
            problem = str(error).removeprefix(f"topic '{self.topic}': ")
            self.problems[problem] = self.problems.get(problem, 0) + 1
            self.rows.append(None)

    def arrays(self) -> Arrays:
        fields = self.fields or ()
        nothing = np.full(len(fields), math.nan)
        values = np.array([nothing if row is None else row for row in self.rows]).reshape(len(self.rows), len(fields))
        absent = np.array([row is None for row in self.rows], bool)
        return fields, values, np.repeat(absent[:, None], len(fields), axis=1), (), {}


def numeric_fields(message: Any) -> list[str]:
    """Paths of the numbers that a robot's state or command may be made of, as a contract writes them.

    Left out are headers, layouts, covariances, long arrays, and whole numbers outside of std_msgs.
    """
    type_name = getattr(message, "__msgtype__", "")
    if type_name.endswith("MultiArray"):
        count = min(len(message.data), MAX_FIELDS)
        return array_names(message)[:MAX_FIELDS] or [f"data.{i}" for i in range(count)]
    return list(_paths(message, "", type_name.startswith("std_msgs/")))[:MAX_FIELDS]


def _paths(value: Any, path: str, whole: bool) -> Iterator[str]:
    if isinstance(value, float) or (whole and isinstance(value, (int, np.number)) and not isinstance(value, bool)):
        yield path
    elif isinstance(value, np.ndarray) and value.ndim == 1 and len(value) <= MAX_ARRAY:
        if value.dtype.kind == "f" or whole:
            yield from (f"{path}.{i}" for i in range(len(value)))
    elif hasattr(value, "__dataclass_fields__"):
        for name in vars(value):
            if not name.startswith("_") and name not in SKIPPED and "covariance" not in name:
                yield from _paths(getattr(value, name), f"{path}.{name}" if path else name, whole)
