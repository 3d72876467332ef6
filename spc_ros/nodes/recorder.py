# SPDX-License-Identifier: Apache-2.0
"""Node `recorder`: writes one bag per episode, with contract and task, without losing messages."""

from __future__ import annotations

import dataclasses
import functools
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rclpy.serialization import deserialize_message
from std_msgs.msg import String
from std_srvs.srv import Trigger

from spc_core.alignment.episode import EpisodeInfo
from spc_core.contract.contract import load_contract
from spc_core.contract.sections import Qos
from spc_core.deploy.health import Health, Level
from spc_core.system.config_files import find_config
from spc_ros.bags.episode_bags import BagResult, EpisodeBags
from spc_ros.messages.contract_reader import ContractReader
from spc_ros.messages.fields import message_class
from spc_ros.messages.lockstep import AnswerTimes
from spc_ros.node_parts.diagnostics import steady_timer
from spc_ros.node_parts.matched_subscription import MatchedSubscription
from spc_ros.node_parts.plain_node import Param, PlainNode, run
from spc_ros.node_parts.topics import BAGS_TOPIC, CONTEXT_TOPIC, EPISODE_TOPIC, latched_qos, now_ns

KNOWN_TYPES = {
    CONTEXT_TOPIC: "std_msgs/msg/Float32MultiArray",
    "/diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
}
PARAMS = [
    Param("contract", "arm_reach", "contract file or name, which lists the topics to record", read_only=True),
    Param("directory", "bags", "folder for the bags", read_only=True),
    Param("storage", "mcap", "bag format", choices=("mcap", "sqlite3"), read_only=True),
    Param("extra_topics", [""], "more topics: 'context', '/diagnostics', or 'topic:package/msg/Type'",
          read_only=True),
    Param("behaviour", "", "name of the behaviour, stored in bags opened from now on"),
    Param("lockstep", False, "one command for each state: one without a stamp counts right after its state",
          read_only=True),
    Param("auto_episode", True, "record each episode automatically; false: on ~/start and ~/stop", read_only=True),
]  # fmt: skip
DEPTH = 10_000  # messages queued while the disk is busy
HOUSEKEEPING_S = 0.05
MISSING_AFTER_S = 3.0  # of recording
QUIET_S = 0.3  # at shutdown, recording continues until no message has arrived for this long


class RecorderNode(PlainNode):
    """Writes serialised messages to bags; a worker thread flushes and closes them."""

    def __init__(self) -> None:
        super().__init__("recorder", PARAMS)
        contract = load_contract(find_config("contracts", self.params.contract))
        streams = {stream.topic: stream.type for stream in contract.observation}
        topics = {"/clock": "rosgraph_msgs/msg/Clock", **{part.topic: part.type for part in contract.action.parts}}
        if contract.reward.topic is not None and contract.reward.type is not None:
            topics[contract.reward.topic] = contract.reward.type
        topics |= {name: kind for name, kind in map(_extra_topic, self.params.extra_topics) if name}
        topics |= dict(reversed(streams.items()))  # the first stream last, as in ContractTopics
        self._types = {self.resolve_topic_name(topic): kind for topic, kind in topics.items()}
        self._episode_topic = self.resolve_topic_name(EPISODE_TOPIC)
        self._worker = ThreadPoolExecutor(1)
        self._last_result: BagResult | None = None
        self._latest: EpisodeInfo | None = None
        self._last_ns, self._received_s = 0, 0.0
        self._received: set[str] = set()  # topics with a message so far
        self._recording_since_s: float | None = None
        self._ticks = self.resolve_topic_name(contract.observation[0].topic)
        held = (part.topic for part in contract.action.parts if part.hold)
        self._held = {*map(self.resolve_topic_name, held)}  # of which each bag starts with the last command
        answering = ContractReader(contract).commands_by_arrival if self.params.lockstep else ()
        self._answers: dict[str, AnswerTimes[tuple[bool, bytes]]] = {
            self.resolve_topic_name(topic): AnswerTimes() for topic in answering
        }
        self._simulated, self._stamp_ns = bool(self.get_parameter("use_sim_time").value), 0  # the newest header's
        recorded = {**self._types, self._episode_topic: "std_msgs/msg/String"}
        self.bags = EpisodeBags(
            Path(self.params.directory), contract, recorded,
            self._on_closed, self._worker.submit, self.params.storage, self._episode_topic,
        )  # fmt: skip
        self.bags.behaviour = self.params.behaviour
        self._results = self.create_publisher(String, BAGS_TOPIC, latched_qos(depth=100))
        self.create_service(Trigger, "~/start", self._on_start)
        self.create_service(Trigger, "~/stop", self._on_stop)
        self.create_subscription(String, EPISODE_TOPIC, self._on_episode, latched_qos(depth=10), raw=True)
        qos = {self.resolve_topic_name(stream.topic): stream.qos for stream in contract.observation}
        qos[self.resolve_topic_name(CONTEXT_TOPIC)] = Qos("volatile")  # the last episode's is of no use in a bag
        self._topics = {topic: self._subscribe(topic, qos.get(topic)) for topic in self._types}
        steady_timer(self, HOUSEKEEPING_S, self._housekeeping)

    def on_parameters(self) -> None:
        self.bags.behaviour = self.params.behaviour

    def diagnose(self) -> dict[str, Any]:
        latched = ", ".join(sorted(self.bags.latched))
        known = {"received": ", ".join(sorted(self._received)), "latched": latched}
        return {"recording": self.bags.recording, "directory": self.params.directory, **known}

    def health(self, now_s: float) -> Health:
        if not self.bags.recording:
            self._recording_since_s = None
            return Health()
        self._recording_since_s = self._recording_since_s or now_s
        missing = [topic for topic in self._types if topic not in self._received and topic != "/clock"]
        if missing and now_s - self._recording_since_s > MISSING_AFTER_S:
            return Health(Level.WARN, f"recording, and nothing was ever received on {', '.join(missing)}")
        return Health()

    def busy(self) -> bool:
        """Wait for messages that have already arrived."""
        quiet_s = time.monotonic() - self._received_s
        return self.bags.recording and quiet_s < QUIET_S

    def close(self) -> None:
        self.bags.close_all("the recorder was stopped")
        self._worker.shutdown()

    def _subscribe(self, topic: str, qos: Qos | None) -> MatchedSubscription:
        kind = message_class(self._types[topic])
        first = next(iter(kind.get_fields_and_field_types().values()))
        callback = functools.partial(self._on_message, topic, first in ("std_msgs/Header", "builtin_interfaces/Time"))
        return MatchedSubscription(
            self, kind, topic, callback, DEPTH, True, self.diagnostics.warn_once, qos, follow_reliability=True
        )

    def _receive_ns(self) -> int:
        """The node's clock, made strictly increasing so that the bag keeps the order of arrival.

        Simulated time stands still between states and may be received late: there the newest header counts.
        """
        time_ns = (self._simulated and self._stamp_ns) or now_ns(self)
        jumped = time_ns < self._last_ns - 1_000_000_000
        self._last_ns = time_ns if jumped else max(time_ns, self._last_ns + 1)
        return self._last_ns

    def _on_message(self, topic: str, stamped: bool, data: bytes) -> None:
        self._received.add(topic)
        self._received_s = time.monotonic()
        if stamped:
            self._stamp_ns = _stamp_ns(data)
        receive_ns, now_s = self._receive_ns(), time.monotonic()
        if (answers := self._answers.get(topic)) is not None:
            answer_ns = answers.time_ns((stamped, data), now_s)
            if answer_ns is not None:
                self._record(topic, stamped, answer_ns, data)
            return
        self._record(topic, stamped, receive_ns, data)
        for answering, answers in self._answers.items() if topic == self._ticks else ():
            for answer_ns, command in answers.state(self._stamp_ns if stamped else receive_ns, now_s):
                self._record(answering, command[0], answer_ns, command[1])

    def _record(self, topic: str, stamped: bool, receive_ns: int, data: bytes) -> None:
        t_ns = _stamp_ns(data) if stamped else receive_ns
        holds = self._topics[topic].latched or topic in self._held
        self.bags.message(topic, t_ns, receive_ns, data, time.monotonic(), holds)

    def _on_episode(self, data: bytes) -> None:
        try:
            info = EpisodeInfo.from_json(deserialize_message(data, String).data)
        except ValueError as error:
            self.diagnostics.warn_once("unreadable", str(error))
            return
        self._latest = info
        if self.params.auto_episode:
            self.bags.episode(info, self._receive_ns(), data, time.monotonic())

    def _housekeeping(self) -> None:
        self.bags.poll(time.monotonic())

    def _on_closed(self, result: BagResult) -> None:
        """Runs on the worker thread, where publishing is safe."""
        self._last_result = result
        self.diagnostics.counts["bags"] += 1
        self.diagnostics.problem = "" if result.path else result.reason
        if result.missing or not result.path:
            problem = f"missing {dict(result.missing)}" if result.path else result.reason
            self.diagnostics.warn_once("incomplete bags", f"bag {result.path}: {problem}")
        self._results.publish(String(data=result.to_json()))

    def _on_start(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = not self.params.auto_episode and not self.bags.recording
        if response.success:
            start_ns = now_ns(self)
            info = EpisodeInfo("running", "", {}, 0, 0, start_ns)
            if self._latest is not None:
                info = dataclasses.replace(self._latest, state="running", start_ns=start_ns)
            try:
                response.message = str(self.bags.open(info))
            except (ValueError, OSError) as error:
                response.success, response.message = False, str(error)
        else:
            auto = "auto_episode is on: bags follow the topic `episode`"
            response.message = auto if self.params.auto_episode else "a recording is running; stop it first"
        return response

    def _on_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self.bags.recording
        if not response.success:
            response.message = "no recording is running"
            return response
        self.bags.close_all("stopped on request")
        self._worker.submit(lambda: None).result()  # one worker: what was submitted before is done
        response.message = self._last_result.to_json() if self._last_result else ""
        return response


def _extra_topic(text: str) -> tuple[str, str]:
    """('context', its type) of 'context' or 'context:std_msgs/msg/Float32MultiArray'."""
    topic, _, kind = text.partition(":")
    if topic and not kind and topic not in KNOWN_TYPES:
        raise ValueError(f"extra_topics: the type of '{topic}' is not known; write {topic}:package/msg/Type")
    return topic, kind or KNOWN_TYPES.get(topic, "")


def _stamp_ns(data: bytes) -> int:
    """The stamp at the start of a CDR message: seconds and nanoseconds after a 4-byte header."""
    seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return seconds * 1_000_000_000 + nanoseconds


def main() -> int:
    return run(RecorderNode)


if __name__ == "__main__":
    raise SystemExit(main())
