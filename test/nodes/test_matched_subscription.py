# SPDX-License-Identifier: Apache-2.0
"""A subscription whose QoS follows its publishers, against real publishers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from std_msgs.msg import String

from spc_core.contract.sections import Qos
from spc_ros.node_parts.matched_subscription import MatchedSubscription
from support.node_probe import own_domain

DEADLINE_S = 10.0
TOPIC = "goal"


class World:
    """A listener and a node for publishers, on one executor."""

    def __init__(self, context: Context) -> None:
        self.listener, self.robot = (Node(name, context=context) for name in ("listener", "robot"))
        self.executor = SingleThreadedExecutor(context=context)
        for node in (self.listener, self.robot):
            self.executor.add_node(node)
        self.heard: list[str] = []
        self.warnings: list[str] = []

    def publisher(self, latched: bool = False, reliable: bool = True) -> Publisher:
        durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        qos = QoSProfile(depth=10, durability=durability, reliability=reliability)
        return self.robot.create_publisher(String, TOPIC, qos)

    def subscribe(self, qos: Qos | None = None, follow: bool = False) -> MatchedSubscription:
        def hear(data: bytes) -> None:
            self.heard.append(deserialize_message(data, String).data)

        def warn(_: str, text: str) -> None:
            self.warnings.append(text)

        return MatchedSubscription(self.listener, String, TOPIC, hear, 10, True, warn, qos, follow)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline_s, (self.heard, self.warnings)
            self.executor.spin_once(timeout_sec=0.05)

    def say_until_heard(self, publisher: Publisher, text: str) -> None:
        """Publish until it arrives: a volatile publisher reaches whom discovery has connected."""

        def heard() -> bool:
            publisher.publish(String(data=text))
            return text in self.heard

        self.until(heard)


@pytest.fixture
def world() -> Iterator[World]:
    context = Context()
    rclpy.init(context=context, domain_id=int(own_domain()["ROS_DOMAIN_ID"]))
    world = World(context)
    yield world
    world.executor.shutdown()
    for node in (world.listener, world.robot):
        node.destroy_node()
    rclpy.shutdown(context=context)


def test_a_latched_message_sent_before_is_heard_once(world: World) -> None:
    goal = world.publisher(latched=True)
    goal.publish(String(data="first"))
    subscription = world.subscribe()
    world.until(lambda: subscription.latched and "first" in world.heard)
    goal.publish(String(data="second"))
    world.until(lambda: "second" in world.heard)
    assert world.heard == ["first", "second"]


def test_subscribing_anew_does_not_repeat_what_was_heard(world: World) -> None:
    goal = world.publisher(latched=True)
    subscription = world.subscribe(Qos("transient_local"))
    goal.publish(String(data="first"))
    world.until(lambda: world.heard == ["first"])
    subscription.renew()
    goal.publish(String(data="second"))
    world.until(lambda: "second" in world.heard)
    assert world.heard == ["first", "second"]


def test_a_volatile_successor_of_a_latched_publisher_is_heard(world: World) -> None:
    before = world.publisher(latched=True)
    subscription = world.subscribe()
    before.publish(String(data="first"))
    world.until(lambda: subscription.latched and "first" in world.heard)
    world.robot.destroy_publisher(before)
    world.until(lambda: not world.listener.count_publishers(TOPIC))
    world.say_until_heard(world.publisher(), "second")
    assert not subscription.latched


def test_publishers_that_differ_are_reported(world: World) -> None:
    _ = world.publisher(latched=True), world.publisher()
    world.subscribe()
    world.until(lambda: bool(world.warnings))
    assert world.warnings == [
        "topic 'goal': some publishers latch it and others do not: a message sent before is not received"
    ]


def test_what_the_contract_fixes_is_kept_and_reported(world: World) -> None:
    _ = world.publisher()
    subscription = world.subscribe(Qos("transient_local"))
    world.until(lambda: bool(world.warnings))
    assert subscription.latched
    assert "qos.durability is transient_local, which no publisher offers: nothing arrives" in world.warnings[0]


def test_best_effort_publishers_are_followed_where_asked_and_reported_where_not_allowed(world: World) -> None:
    publisher = world.publisher(reliable=False)
    world.subscribe(follow=True)
    world.say_until_heard(publisher, "hello")
    assert world.warnings == ["topic 'goal': published best effort: messages may be lost"]
    world.warnings.clear()
    world.subscribe(Qos(reliability="reliable"), follow=True)
    world.until(lambda: bool(world.warnings))
    assert "qos.reliability is reliable, which no publisher offers: nothing arrives" in world.warnings[0]
