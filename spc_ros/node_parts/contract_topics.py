# SPDX-License-Identifier: Apache-2.0
"""Subscribes to and publishes a contract's topics."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from rosgraph_msgs.msg import Clock

from spc_core.alignment import NO_TIME
from spc_core.alignment.streaming import ObservationAligner, StreamingAligner
from spc_core.contract.contract import Contract
from spc_core.contract.sections import Role
from spc_ros.messages.contract_reader import ContractReader
from spc_ros.messages.field_writer import FieldWriter
from spc_ros.messages.fields import MessageError, message_class, set_stamp
from spc_ros.messages.lockstep import AnswerTimes
from spc_ros.messages.simulated_time import simulated_ns
from spc_ros.node_parts.matched_subscription import MatchedSubscription
from spc_ros.node_parts.topics import REWARD_TOPIC, latched_qos, now_ns, stream_qos

SILENT_S = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class ObservedTopic:
    """A topic and its columns of the observation vector."""

    topic: str
    type: str
    fields: tuple[str, ...]
    columns: tuple[int, ...]


def observed_topics(contract: Contract) -> list[ObservedTopic]:
    """Topics in publishing order: the first stream, which sets the ticks, comes last."""
    topics: dict[str, ObservedTopic] = {}
    column = 0
    for stream in contract.observation:
        columns = tuple(range(column, column + len(stream.fields)))
        column += len(columns)
        known = topics.get(stream.topic, ObservedTopic(stream.topic, stream.type, (), ()))
        topics[stream.topic] = ObservedTopic(
            stream.topic, stream.type, known.fields + stream.fields, known.columns + columns
        )
    return list(reversed(topics.values()))


class StatePublishers:
    """Publishes states on the contract's topics, `reward` and `/clock`, and counts messages by topic."""

    def __init__(self, node: Node, contract: Contract, reliable: bool, latched: Collection[str] = ()) -> None:
        """`latched`: observed topics to publish only when they change, and once in each episode, for latecomers too."""
        self.counts: Counter[str] = Counter()  # cleared when an episode begins
        self._latched: dict[str, np.ndarray | None] = dict.fromkeys(latched)  # the last values, by topic
        qos = stream_qos(reliable)
        self._clock = node.create_publisher(Clock, "/clock", qos)
        self._topics = [
            (observed, np.array(observed.columns), FieldWriter(observed.type, observed.fields, observed.topic),
             message_class(observed.type),
             node.create_publisher(
                 message_class(observed.type), observed.topic, latched_qos() if observed.topic in latched else qos
             ))
            for observed in observed_topics(contract)
        ]  # fmt: skip
        reward = contract.reward
        topic, kind, field = REWARD_TOPIC, "geometry_msgs/msg/Vector3Stamped", "vector.x"
        if reward.topic is not None and reward.type is not None and reward.field is not None:
            topic, kind, field = reward.topic, reward.type, reward.field
        self._reward_class = message_class(kind)
        self._reward_writer = FieldWriter(kind, (field,), topic)
        self._reward = node.create_publisher(self._reward_class, topic, qos)
        self.first_stream = self._topics[-1][-1]

    @property
    def streams(self) -> int:
        """Number of observation messages per tick."""
        return len(self._topics)

    def publish(
        self,
        t_ns: int,
        observation: np.ndarray,
        reward: float | None,
        lost: Collection[int] = (),
        resting: Collection[str] = (),
    ) -> None:
        """Publish the clock first and the stream that sets the ticks last.

        `lost`: indices, in publishing order, of observation messages to leave out. `resting`: topics without a message
        at this tick.
        """
        clock = Clock()
        clock.clock.sec, clock.clock.nanosec = divmod(t_ns, 1_000_000_000)
        self._send(self._clock, clock)
        if reward is not None:
            msg = self._reward_class()
            self._reward_writer.fill(msg, np.array([reward]))
            set_stamp(msg, t_ns)
            self._send(self._reward, msg)
        for i, (observed, columns, writer, kind, publisher) in enumerate(self._topics):
            if i in lost or observed.topic in resting or self._is_old(observed.topic, observation[columns], publisher):
                continue
            msg = kind()
            writer.fill(msg, observation[columns])
            set_stamp(msg, t_ns)
            self._send(publisher, msg)

    def _is_old(self, topic: str, values: np.ndarray, publisher: Any) -> bool:
        """Whether a latched topic has said this already in this episode; remembers the values."""
        if topic not in self._latched:
            return False
        last, self._latched[topic] = self._latched[topic], values
        return last is not None and self.counts[publisher.topic_name] > 0 and np.array_equal(values, last)

    def _send(self, publisher: Any, msg: Any) -> None:
        publisher.publish(msg)
        self.counts[publisher.topic_name] += 1


class ContractTopics:
    """Feeds a contract's topics to an aligner and passes the frames or steps that it decides to `on_decided`.

    The first stream, which sets the ticks, is subscribed last: discovery keeps that order, so once it is visible, all
    subscriptions are.
    """

    def __init__(
        self,
        node: Node,
        contract: Contract,
        aligner: ObservationAligner | StreamingAligner,
        on_decided: Callable[[list[Any]], None],
        reliable: bool,
        warn_once: Callable[[str, str], None],
        on_sample: Callable[[Role, int, np.ndarray], None] | None = None,
    ) -> None:
        """`reliable`: in lock-step. `on_sample` gets each sample first: (role, t_ns, values).

        `warn_once(kind, text)` is called for unreadable messages, which are skipped.
        """
        self._node, self._aligner, self._on_decided, self._on_sample = node, aligner, on_decided, on_sample
        self._reader, self._warn_once = ContractReader(contract), warn_once
        self._lockstep, self._simulated = reliable, bool(node.get_parameter("use_sim_time").value)
        self._newest_ns = NO_TIME  # the newest state's time
        self._arrived_ns: dict[str, int] = {}  # of each topic's last message without a stamp, in simulated time
        answering = self._reader.commands_by_arrival if reliable else ()
        self._answers: dict[str, AnswerTimes[tuple[Callable[[bytes], Any], bytes]]] = {
            t: AnswerTimes() for t in answering
        }
        self.received_s: dict[str, float] = {}  # steady time of each topic's last readable message; -inf for none
        self._subscriptions: dict[str, MatchedSubscription] = {}
        qos = {stream.topic: stream.qos for stream in contract.observation}
        depth = stream_qos(reliable).depth
        all_roles = isinstance(aligner, StreamingAligner)
        for topic, type_name in reversed(self._reader.types.items()):
            if all_roles or any(role.stream is not None for role in self._reader.route(topic)):
                self.received_s[topic] = -math.inf
                kind = message_class(type_name)
                callback = functools.partial(self._on_message, topic, deserializer(kind, topic))
                self._subscriptions[topic] = MatchedSubscription(
                    node, kind, topic, callback, depth, reliable, warn_once, qos.get(topic)
                )

    def receive_ns(self, topic: str) -> int:
        """When a message of the topic counts that was received now and has no stamp.

        In lock-step the nodes need no `/clock`: the newest state tells the time.
        """
        if self._lockstep and self._newest_ns != NO_TIME:
            return self._newest_ns + 1
        if not self._simulated:
            return now_ns(self._node)
        before_ns = self._arrived_ns.get(topic, NO_TIME)
        t_ns = self._arrived_ns[topic] = simulated_ns(now_ns(self._node), self._newest_ns, before_ns)
        return t_ns

    def _on_message(self, topic: str, deserialize: Callable[[bytes], Any], data: bytes) -> None:
        answers = self._answers.get(topic)
        if answers is None:
            self._take(topic, deserialize, data, lambda: self.receive_ns(topic))
        elif (t_ns := answers.time_ns((deserialize, data), time.monotonic())) is not None:
            self._take(topic, deserialize, data, lambda: t_ns)

    def _take(
        self, topic: str, deserialize: Callable[[bytes], Any], data: bytes, receive_ns: Callable[[], int]
    ) -> None:
        reader = self._reader
        unset = reader.unset_stamps[topic]
        try:
            samples = reader.live_samples(topic, data, receive_ns, deserialize)
        except MessageError as error:
            self._warn_once("unreadable", str(error))
            return
        self.received_s[topic] = time.monotonic()
        if reader.incomplete:
            self._warn_once("incomplete", reader.incomplete.pop(topic))
        if reader.unset_stamps[topic] > unset:
            self._warn_once("unset stamps", f"topic '{topic}': no stamp; using the time of arrival")
        for role, t_ns, values in samples:
            if role.stream == 0:
                self._newest_ns = t_ns
            if self._on_sample is not None:
                self._on_sample(role, t_ns, values)
            if decided := self._aligner.push(role, t_ns, values):
                self._on_decided(decided)
            for answering, answers in self._answers.items() if role.stream == 0 else ():
                for answer_ns, command in answers.state(t_ns, time.monotonic()):
                    self._take(answering, *command, lambda answer_ns=answer_ns: answer_ns)

    def missing(self, now_s: float) -> str:
        """The topics that have been silent for SILENT_S, with what is known of their publishers; empty if none is."""
        texts = []
        for topic in reversed(self.silent(now_s)):
            if not self._node.count_publishers(topic):
                texts.append(f"'{topic}' has no publisher")
            elif problem := self._subscriptions[topic].problem:
                texts.append(f"'{topic}': {problem}")
            elif self.received_s[topic] == -math.inf:
                texts.append(f"no readable message on '{topic}', which has a publisher")
            else:
                texts.append(f"'{topic}' has fallen silent")
        return "; ".join(texts)

    def silent(self, now_s: float) -> list[str]:
        """Topics without a readable message in the last SILENT_S; of a latched one, one message ever is enough."""
        return [
            topic
            for topic, at_s in self.received_s.items()
            if now_s - at_s > SILENT_S and (at_s == -math.inf or not self._subscriptions[topic].latched)
        ]

    def unheard(self, now_s: float) -> list[str]:
        """The silent topics that have a publisher."""
        return [topic for topic in self.silent(now_s) if self._node.count_publishers(topic)]

    def renew(self, topics: Collection[str]) -> None:
        """Subscribe to these topics again."""
        for topic in topics:
            self._subscriptions[topic].renew()


def deserializer(kind: Any, topic: str) -> Callable[[bytes], Any]:
    """A function from bytes to a message of class `kind`, which raises MessageError for invalid bytes."""

    def deserialize(data: bytes) -> Any:
        try:
            return deserialize_message(data, kind)
        except RuntimeError as error:  # raised by the middleware
            raise MessageError(f"topic '{topic}': not a {kind.__name__}, {len(data)} bytes: {error}") from None

    return deserialize
