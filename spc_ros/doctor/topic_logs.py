# SPDX-License-Identifier: Apache-2.0
"""A bag's topics as arrays for the doctor: tolerant where the converter is strict, so that it can tell why."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from spc_core.alignment.streaming import JUMP_NS
from spc_core.contract.contract import Contract
from spc_core.doctor.diagnosis import Finding, TopicLog
from spc_core.doctor.timing_checks import MIN_MESSAGES
from spc_ros.bags.reader import BagError, BagReader, parse_episode
from spc_ros.messages.columns import deserialize
from spc_ros.messages.fields import MessageError
from spc_ros.messages.raw_messages import RawColumn
from spc_ros.messages.tolerant_columns import Recorded, TolerantReader

CLOCK = "rosgraph_msgs/msg/Clock"


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
    clock: str = ""  # header | receive; '': the contract's


def contract_parts(contract: Contract) -> list[tuple[str, Part]]:
    """(type, part) of every topic that the contract reads."""
    rate_hz = contract.rate_hz
    parts = []
    for number, stream in enumerate(contract.observation):
        nominal_hz = rate_hz if number == 0 else None
        latched = math.isinf(stream.max_age_s)
        limit_s, clock = stream.max_age_s, stream.clock
        part = Part(stream.topic, "observation", stream.fields, nominal_hz, True, limit_s, latched, clock)
        parts.append((stream.type, part))
    action, reward = contract.action, contract.reward
    parts.append((action.type, Part(action.topic, "action", action.fields, rate_hz, False, clock=action.clock)))
    if reward.topic is not None and reward.type is not None and reward.field is not None:
        parts.append((reward.type, Part(reward.topic, "reward", (reward.field,), rate_hz, False, clock=reward.clock)))
    return parts


def read_topic_logs(
    bag: BagReader, contract: Contract | None, progress: Callable[[int], None] = lambda _: None
) -> tuple[list[TopicLog], list[Finding]]:
    """(logs, findings about topics that cannot be read). Without a contract, every topic that holds numbers.

    `progress` is told the bytes read so far. Memory: eight bytes for each number that is read, twice. Raises BagError.
    """
    wanted, findings = _wanted(bag, contract)
    types = bag.info.topics
    readers: list[tuple[str, Part, TolerantReader]] = []
    for name, parts in wanted.items():
        for part in parts:
            try:
                readers.append((name, part, TolerantReader(bag.typestore, types[name].type, part.fields, part.topic)))
            except MessageError as error:
                findings.append(Finding("fail" if contract else "warn", part.topic, "topic", str(error)))
    episodes = bag.episode_topics()
    texts: list[str] = []
    for block in bag.blocks([*wanted, *episodes]) if readers else ():
        for name in episodes:
            texts += _texts(bag, block[name]) if name in block else ()
        for name, _, reader in readers:
            if name in block:
                reader.add(block[name])
        progress(bag.bytes_read)
    info = parse_episode(texts, str(bag.path))
    published = {name.lstrip("/"): count for name, count in info.published.items()} if info else {}
    clock = contract.clock if contract else "header"
    logs: list[TopicLog] = []
    for name, part, reader in readers:
        found = reader.recorded()
        log = _log(part, types[name].type, found, clock, bag.info.start_ns, published.get(part.topic.lstrip("/"), 0))
        if log.fields or contract:
            logs.append(log)
        findings += _problems(part, found)
    simulated = any(topic.type == CLOCK for topic in types.values())
    return _with_span(_placed(logs) if simulated else logs), findings


def _texts(bag: BagReader, column: RawColumn) -> Iterator[str]:
    """Texts of a column of std_msgs/String. Raises BagError."""
    try:
        for row in range(len(column)):
            yield str(deserialize(bag.typestore, column, row, column.type, column.topic).data)
    except (MessageError, AttributeError) as error:
        raise BagError(f"{bag.path}: {error}") from None


def _log(part: Part, type_name: str, found: Recorded, clock: str, begin_ns: int, published: int) -> TopicLog:
    return TopicLog(
        topic=part.topic,
        type=type_name,
        role=part.role,
        receive_ns=found.receive_ns,
        stamp_ns=found.stamp_ns,
        fields=found.fields,
        values=found.values,
        clock=part.clock or clock,
        begin_ns=begin_ns,
        nominal_hz=part.nominal_hz,
        faster_is_fine=part.faster_is_fine,
        max_age_s=part.max_age_s,
        lost=max(0, published - len(found.receive_ns)),
        absent=found.absent,
        layouts=found.layouts,
        lengths=found.lengths,
        latched=part.latched,
    )


def _problems(part: Part, found: Recorded) -> list[Finding]:
    """What is wrong with messages, and joints that none of them has."""
    count = len(found.receive_ns)
    problems = dict(found.problems)
    joints = {joint for _, names in found.layouts for joint in names}
    never = sorted({field.partition(".")[2] for field in found.fields} - joints) if found.layouts else []
    if never:
        has = ", ".join(sorted(joints)) or "none"
        text = f"no message has the joint {', '.join(never)}; they have {has}; correct the contract or the driver"
        problems[text] = count
    return [
        Finding("fail", part.topic, "fields", f"{text} ({bad} of {count} messages)", bad / max(1, count))
        for text, bad in problems.items()
    ]


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
