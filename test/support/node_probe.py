# SPDX-License-Identifier: Apache-2.0
"""A ROS node inside a test: publishes as a robot, listens, calls services. Each test gets a domain of its own."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import socket
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from spc_core.alignment.episode import EpisodeInfo
from spc_core.contract.contract import Contract
from spc_ros.messages.fields import FieldReader, message_class
from spc_ros.node_parts.contract_topics import StatePublishers
from spc_ros.node_parts.topics import latched_qos, stream_qos

TIMEOUT_S = 30.0
DOMAINS = (*range(61, 102), *range(1, 61))  # above 101, the ports of a domain may be taken by outgoing connections
HELD = 8  # domains of one process, used in turn; 12 processes can test at once
_turn = itertools.count()
_claims: dict[int, socket.socket] = {}


def own_domain() -> dict[str, str]:
    """The environment of nodes that only this test's nodes can hear."""
    if len(_claims) < HELD:
        _claim()
    domains = list(_claims)
    return {
        "ROS_DOMAIN_ID": str(domains[next(_turn) % len(domains)]),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    }


def _claim() -> None:
    """Hold one more domain until this process ends: an abstract socket's name is free again however that comes."""
    for domain in DOMAINS:
        if domain not in _claims:
            claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            with contextlib.suppress(OSError):
                claim.bind(f"\0spc_ros_test_domain_{domain}")
                _claims[domain] = claim
                return
            claim.close()
    if not _claims:
        raise RuntimeError(f"all {len(DOMAINS)} ROS domains are claimed by other test runs; wait until one has ended")


class Probe:
    """Use it as a context manager; everything happens in until() and call()."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.context = Context()
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = environment["ROS_AUTOMATIC_DISCOVERY_RANGE"]
        rclpy.init(context=self.context, domain_id=int(environment["ROS_DOMAIN_ID"]))
        self.node = Node("probe", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.heard: dict[str, list[Any]] = defaultdict(list)

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def listen(self, topic: str, type_name: str, qos: Any) -> None:
        """Keep what comes on a topic in `heard[topic]`."""
        self.node.create_subscription(message_class(type_name), topic, self.heard[topic].append, qos)

    def listen_commands(self, contract: Contract, reliable: bool = False) -> Callable[[], list[list[float]]]:
        """Hear the commands; returns a function that gives their values so far."""
        action = contract.action.parts[0]
        self.listen(action.topic, action.type, stream_qos(reliable))
        reader = FieldReader(action.type, action.fields, action.topic)
        return lambda: [reader.read(msg).tolist() for msg in self.heard[action.topic]]

    def listen_episodes(self) -> Callable[[], EpisodeInfo | None]:
        """Hear the topic `episode`; returns a function that gives the newest word."""
        self.listen("episode", "std_msgs/msg/String", latched_qos(depth=10))
        heard = self.heard["episode"]
        return lambda: EpisodeInfo.from_json(heard[-1].data) if heard else None

    def until(self, done: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> None:
        """Spin until `done()`; fails the test after the timeout."""
        deadline_s = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < deadline_s, f"{what}: not within {timeout_s} s"
            self.executor.spin_once(timeout_sec=0.02)

    def call(self, name: str, kind: Any, request: Any = None) -> Any:
        """The answer of a service."""
        client = self.node.create_client(kind, name)
        self.until(client.service_is_ready, f"service {name}")
        future = client.call_async(request or kind.Request())
        self.until(future.done, f"answer from {name}")
        self.node.destroy_client(client)
        return future.result()


class FakeRobot:
    """A robot's states from a probe: still, at a chosen time."""

    def __init__(self, probe: Probe, contract: Contract, reliable: bool = False, namespace: str = "") -> None:
        self.contract, self.t_ns, self._said_s = contract, 1_000_000_000, -math.inf
        node = probe.node
        if namespace:
            node = Node("robot", namespace=namespace, context=probe.context)
            probe.executor.add_node(node)
        self._out = StatePublishers(node, contract, reliable)
        self.first_stream = self._out.first_stream

    def keep_saying(self) -> None:
        """Publish the next tick's state, unless the last one is less than a period old.

        For conditions that are asked again and again: states as fast as a test can loop pile up behind the nodes.
        """
        now_s = time.monotonic()
        if now_s - self._said_s >= self.contract.period_ns / 1e9:
            self._said_s = now_s
            self.say()

    def say(self, observation: np.ndarray | None = None) -> None:
        """Publish the next tick's state."""
        self.t_ns += self.contract.period_ns
        values = np.full(self.contract.observation_dim, 0.1) if observation is None else observation
        self._out.publish(self.t_ns, values, reward=-0.5)
