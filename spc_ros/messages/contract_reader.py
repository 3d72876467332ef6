# SPDX-License-Identifier: Apache-2.0
"""Decodes the messages of a contract's topics one by one, as a node receives them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from spc_core.alignment.streaming import Step, StreamingAligner
from spc_core.contract.contract import Contract
from spc_core.contract.frames import TF
from spc_core.contract.sections import Role
from spc_ros.messages.columns import Source, has_stamp, sources
from spc_ros.messages.fields import NS_PER_S, FieldReader, MessageError, sample_time
from spc_ros.messages.frames_reader import pair_name
from spc_ros.messages.live import LiveReader
from spc_ros.messages.message_types import distro_types

MISSING_NS = 1_000_000_000  # after which a joint that was never named is an error


class LiveTopic:
    """The stamp and the numbers of all sources of one topic, read from serialised messages."""

    def __init__(self, readers: Sequence[tuple[Source, FieldReader]]) -> None:
        type_name = readers[0][0].type
        self.begin = 2 if has_stamp(distro_types(), type_name) else 0
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
        self.unset_stamps: Counter[str] = Counter()  # messages by topic that lack their stamp
        self.types: dict[str, str] = {}
        self._readers: dict[str, list[tuple[Source, FieldReader]]] = {}
        for source in sources(contract):
            self.types[source.topic] = source.type
            self._readers.setdefault(source.topic, []).append((source, source.reader()))
        self.incomplete: dict[str, str] = {}  # by topic, why its last message made no sample
        self._live: dict[str, LiveTopic] = {}
        self._named: dict[str, dict[str, int]] = {}  # joints by topic, and when they were first named

    @property
    def commands_by_arrival(self) -> list[str]:
        """Topics whose commands count by when they are received: by the contract's choice, or for want of a header."""
        parts = self.contract.action.parts
        return [p.topic for p in parts if p.clock == "receive" or not has_stamp(distro_types(), p.type)]

    def route(self, topic: str) -> list[Role]:
        """The roles of a topic, by its name in the contract; empty for a topic outside the contract."""
        return [source.role for source, _ in self._readers.get(topic, [])]

    def samples(self, topic: str, message: Any, receive_ns: int) -> list[tuple[Role, int, np.ndarray]]:
        """(role, t_ns, values) for each role of the topic. Raises MessageError."""
        samples, any_unset = [], False
        for source, reader in self._readers.get(topic, ()):
            t_ns, unset = sample_time(message, receive_ns, source.clock)
            if source.newest is None:
                values = reader.read(message)
            else:
                t_ns, unset, values = self._completed(source, reader, message, t_ns, unset)
            any_unset |= unset
            if values is None:
                continue
            if source.transforms is not None:
                values = source.transforms(np.array([t_ns]), values[None])[0]
            samples.append((source.role, t_ns, values))
        self.unset_stamps[topic] += any_unset
        return samples

    def _completed(
        self, source: Source, reader: FieldReader, message: Any, t_ns: int, unset: bool
    ) -> tuple[int, bool, np.ndarray | None]:
        """(time, whether the stamp is unset, the fields (F,) with the newest values of those that the message lacks).

        `t_ns` and `unset` are those of the message. Without fields if it makes no sample.
        """
        assert source.newest is not None
        numbers, problem = reader.find(message)
        if problem:
            raise MessageError(problem)
        absent, incomplete = np.array([[number is None for number in numbers]]), source.newest.incomplete
        row = np.array([numbers], float)
        if source.type == TF and source.clock == "header":
            own_ns = int(source.stamps(np.zeros(1, np.int64), row)[0])
            t_ns, unset = own_ns or t_ns, not own_ns and not absent[0, 0]
        made, times, values = source.newest.complete(np.array([t_ns]), row, absent if absent.any() else None)
        if source.newest.incomplete > incomplete:
            lacking = [field for field, number in zip(source.observed, numbers, strict=False) if number is None]
            self.incomplete[source.topic] = (
                f"topic '{source.topic}': a message lacks {', '.join(lacking)}, and some value is older than max_age_s"
            )
        names = map(pair_name, message.transforms) if source.type == TF else message.name
        named = self._named[source.topic] = {**dict.fromkeys(names, t_ns), **self._named.get(source.topic, {})}
        if len(source.newest.never) and t_ns - min(named.values(), default=t_ns) > MISSING_NS:
            source.check_complete(named)
        return (int(times[0]), unset, values[0]) if len(made) else (t_ns, unset, None)

    def live_samples(
        self, topic: str, data: bytes, receive_ns: Callable[[], int], deserialize: Callable[[bytes], Any]
    ) -> list[tuple[Role, int, np.ndarray]]:
        """As `samples` of the serialised message, which is deserialised only if its layout is new."""
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
        samples, any_unset, received_ns = [], False, None
        for source, begin, end in live.parts:
            values = np.array(numbers[begin:end], float)
            own_ns = int(source.stamps(np.array([stamp_ns]), values[None])[0]) if source.type == TF else stamp_ns
            unset = not own_ns and source.clock != "receive"
            t_ns = own_ns
            if not own_ns or source.clock == "receive":
                t_ns = received_ns = receive_ns() if received_ns is None else received_ns
            if source.newest is not None:
                _, (t_ns,), (values,) = source.newest.complete(np.array([t_ns]), values[None], None)
                t_ns = int(t_ns)
            if source.transforms is not None:
                values = source.transforms(np.array([t_ns]), values[None])[0]
            any_unset |= unset
            samples.append((source.role, t_ns, values))
        if any_unset:
            self.unset_stamps[topic] += 1
        return samples

    def feed(self, aligner: StreamingAligner, topic: str, message: Any, receive_ns: int) -> list[Step]:
        """Push a message into the aligner; returns the decided steps. Raises MessageError."""
        samples = self.samples(topic, message, receive_ns)
        return [step for sample in samples for step in aligner.push(*sample)]
