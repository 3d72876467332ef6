# SPDX-License-Identifier: Apache-2.0
"""What a contract reads: which topic gives which part of a tick, decoded one by one as a node gets messages."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from spc_core.alignment.batch.sampling import Samples
from spc_core.alignment.streaming import Step, StreamingAligner
from spc_core.contract.contract import Contract
from spc_core.contract.sections import ACTION, REWARD, Role, observed
from spc_core.contract.transforms import FieldTransforms
from spc_ros.messages.columns import has_stamp
from spc_ros.messages.fields import NS_PER_S, FieldReader, MessageError, sample_time
from spc_ros.messages.live import LiveReader, typestore


@dataclasses.dataclass(frozen=True)
class Source:
    """What one role takes from a topic, and how."""

    role: Role
    topic: str  # the contract's name
    type: str
    fields: tuple[str, ...]
    clock: str  # header | receive
    transforms: FieldTransforms | None  # None where the numbers are taken as they are

    def samples(self, log_index: np.ndarray, t_ns: np.ndarray, values: np.ndarray) -> Samples:
        """(N, R) numbers of the topic's messages as (N, F) samples; `log_index` and `t_ns` are (N,) as in Samples."""
        if not len(t_ns):
            return self.nothing()
        return Samples(log_index, t_ns, values if self.transforms is None else self.transforms(t_ns, values))

    def nothing(self) -> Samples:
        return Samples.none(len(self.fields) if self.transforms is None else self.transforms.width)


def sources(contract: Contract) -> list[Source]:
    """As list_sources(). Raises MessageError where a topic is given two types."""
    found = list_sources(contract)
    types: dict[str, str] = {}
    for source in found:
        if types.setdefault(source.topic, source.type) != source.type:
            both = f"{types[source.topic]}, {source.type}"
            raise MessageError(f"topic '{source.topic}': the contract gives it the types {both}; keep one")
    return found


def list_sources(contract: Contract) -> list[Source]:
    """All that a contract reads: observation streams, action, and reward if a topic carries it."""
    found = []
    for index, stream in enumerate(contract.observation):
        transforms = None if stream.transforms.is_plain else stream.transforms
        found.append(Source(observed(index), stream.topic, stream.type, stream.fields, stream.clock, transforms))
    action, reward = contract.action, contract.reward
    found.append(Source(ACTION, action.topic, action.type, action.fields, action.clock, None))
    if reward.topic is not None and reward.type is not None and reward.field is not None:
        found.append(Source(REWARD, reward.topic, reward.type, (reward.field,), reward.clock, None))
    return found


class LiveTopic:
    """All that a contract takes from one topic, as numbers of its serialised messages: the stamp, then each source."""

    def __init__(self, readers: Sequence[tuple[Source, FieldReader]]) -> None:
        type_name = readers[0][0].type
        self.begin = 2 if has_stamp(typestore(), type_name) else 0
        self.parts: list[tuple[Source, int, int]] = []
        end = self.begin
        for source, _ in readers:
            self.parts.append((source, end, end + len(source.fields)))
            end += len(source.fields)

        def numbers(message: Any) -> list[float]:
            stamp = [message.header.stamp.sec, message.header.stamp.nanosec] if self.begin else []
            return stamp + [value for _, reader in readers for value in reader.read(message).tolist()]

        self.reader = LiveReader(type_name, numbers)


class ContractReader:
    """Decodes messages of a contract's topics into stamped samples, one by one as a node gets them."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.unset_stamps: Counter[str] = Counter()  # messages by topic that should have had a stamp
        self.types: dict[str, str] = {}
        self._readers: dict[str, list[tuple[Source, FieldReader]]] = {}
        for source in sources(contract):
            self.types[source.topic] = source.type
            reader = FieldReader(source.type, source.fields, source.topic)
            self._readers.setdefault(source.topic, []).append((source, reader))
        self._live: dict[str, LiveTopic] = {}

    def route(self, topic: str) -> list[Role]:
        """What a topic is for, by the contract's own name of it; empty for a topic outside the contract."""
        return [source.role for source, _ in self._readers.get(topic, [])]

    def samples(self, topic: str, message: Any, receive_ns: int) -> list[tuple[Role, int, np.ndarray]]:
        """(role, t_ns, values) for each role of the topic. Raises MessageError."""
        samples, any_unset = [], False
        for source, reader in self._readers.get(topic, ()):
            t_ns, unset = sample_time(message, receive_ns, source.clock)
            values = reader.read(message)
            if source.transforms is not None:
                values = source.transforms(np.array([t_ns]), values[None])[0]
            any_unset |= unset
            samples.append((source.role, t_ns, values))
        self.unset_stamps[topic] += any_unset
        return samples

    def live_samples(
        self, topic: str, data: bytes, receive_ns: Callable[[], int], deserialize: Callable[[bytes], Any]
    ) -> list[tuple[Role, int, np.ndarray]]:
        """As `samples` of the message that `data` is, deserialised only where its layout is a new one."""
        live = self._live.get(topic)
        if live is None:
            live = self._live[topic] = LiveTopic(self._readers[topic])
        numbers = live.reader.read(data)
        if numbers is None:
            message = deserialize(data)
            samples = self.samples(topic, message, receive_ns())
            live.reader.learn(data, message)
            return samples
        stamp_ns = numbers[0] * NS_PER_S + numbers[1] if live.begin else 0
        samples, any_unset = [], False
        for source, begin, end in live.parts:
            unset = not stamp_ns and source.clock != "receive"
            t_ns = stamp_ns if stamp_ns and source.clock != "receive" else receive_ns()
            values = np.array(numbers[begin:end], float)
            if source.transforms is not None:
                values = source.transforms(np.array([t_ns]), values[None])[0]
            any_unset |= unset
            samples.append((source.role, t_ns, values))
        if any_unset:
            self.unset_stamps[topic] += 1
        return samples

    def feed(self, aligner: StreamingAligner, topic: str, message: Any, receive_ns: int) -> list[Step]:
        """Push a message into the aligner; returns the steps that it decides. Raises MessageError."""
        samples = self.samples(topic, message, receive_ns)
        return [step for sample in samples for step in aligner.push(*sample)]
