# SPDX-License-Identifier: Apache-2.0
"""A robot in real time that is not ours: headerless commands, a goal that is published once, a stop button."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from geometry_msgs.msg import Twist, Vector3Stamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool

from spc_core.contract.contract import Contract, parse_contract
from spc_ros.messages.fields import set_stamp
from spc_ros.node_parts.topics import stream_qos
from spc_ros.processes import NodeGroup
from support.contracts import TOPIC_REWARD, action_section, contract_text, stream_section
from support.node_probe import Probe
from support.random_checkpoint import write_random_checkpoint

STATES = stream_section("wheels", ["velocity.left", "velocity.right"], max_age_s=0.1)
GOAL = {**stream_section("goal", ["vector.x"], "geometry_msgs/msg/Vector3Stamped"), "max_age_s": ".inf"}
TWIST = action_section(["linear.x", "angular.z"], [1.0, 1.0], [100.0, 100.0], "cmd_vel", "geometry_msgs/msg/Twist")
SAFE = (0.0, 0.0)
VOLATILE = QoSProfile(depth=10)
BEST_EFFORT = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
OK, WARN, ERROR = b"\x00", b"\x01", b"\x02"
DEADLINE_S = 30.0


def base_contract(goal_qos: dict[str, str] | None = None, **sections: Any) -> Contract:
    """A base at 25 Hz with a goal; `goal_qos` is the contract's `qos` of the goal."""
    goal = {**GOAL, "qos": goal_qos} if goal_qos else GOAL
    base = {"name": "base", "rate_hz": 25, "clock": "receive", "observation": [STATES, goal], "action": TWIST}
    text = contract_text(None, None, **{**base, "reward": TOPIC_REWARD, **sections}).replace("'.inf'", ".inf")
    return parse_contract(text, "base.yaml")


class BaseRobot:
    """Publishes states in `until`, and hears commands and diagnostics."""

    def __init__(self, nodes: NodeGroup, probe: Probe, folder: Path, contract: Contract | None = None) -> None:
        self.nodes, self.probe, self.contract = nodes, probe, contract or base_contract()
        self.checkpoint = write_random_checkpoint(folder / "checkpoint", "arm_reach", self.contract)
        self.commands: list[tuple[float, tuple[float, float]]] = []
        self.rewards = self.states = True
        self.period_s = self.contract.period_ns / 1e9
        node, sensor = probe.node, stream_qos(reliable=False)
        self._states = node.create_publisher(JointState, "wheels", sensor)
        self._reward = node.create_publisher(Vector3Stamped, "reward", sensor)
        self._goals: Any = None
        self.subscribe()
        probe.listen("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", 10)
        self._due_s = time.monotonic()

    def subscribe(self) -> None:
        """Hear the commands."""

        def on_command(msg: Twist) -> None:
            self.commands.append((time.monotonic(), (msg.linear.x, msg.angular.z)))

        self.ear = self.probe.node.create_subscription(Twist, "cmd_vel", on_command, VOLATILE)

    def start(self, name: str = "policy", each: Any = None, **params: Any) -> None:
        """Start a node with the checkpoint, and wait until it is ready."""
        common = {} if name == "recorder" else {"checkpoint": str(self.checkpoint)}
        process = self.nodes.start(name, {**common, **params})
        self.until(lambda: process.is_ready, f"{name} ready", each=each)

    def goal(self, x: float = 0.5, qos: QoSProfile = LATCHED) -> None:
        if self._goals is None:
            self._goals = self.probe.node.create_publisher(Vector3Stamped, "goal", qos)
        msg = Vector3Stamped()
        msg.vector.x = x
        self._goals.publish(msg)

    def listeners(self) -> int:
        """Subscribers of the states."""
        return self._states.get_subscription_count()

    def call(self, name: str, kind: Any, request: Any = None) -> Any:
        """The answer of a service; the robot goes on meanwhile."""
        client = self.probe.node.create_client(kind, name)
        self.until(client.service_is_ready, f"service {name}")
        future = client.call_async(request or kind.Request())
        self.until(future.done, f"answer from {name}")
        self.probe.node.destroy_client(client)
        return future.result()

    def change(self, transition: int) -> bool:
        """Ask the policy for a change of its lifecycle; returns whether it agreed."""
        request = ChangeState.Request(transition=Transition(id=transition))
        return self.call("policy/change_state", ChangeState, request).success

    def activate(self) -> bool:
        return self.change(Transition.TRANSITION_ACTIVATE)

    def stop_button(self, qos: QoSProfile = VOLATILE, topic: str = "emergency_stop") -> Callable[[bool], None]:
        """A publisher of the stop; call it with whether the button is pressed."""
        publisher = self.probe.node.create_publisher(Bool, topic, qos)
        return lambda pressed: publisher.publish(Bool(data=pressed))

    def tick(self) -> None:
        if self.states:
            msg = JointState(name=["left", "right"], velocity=[0.1, 0.2])
            set_stamp(msg, time.time_ns())
            self._states.publish(msg)
        if self.rewards:
            reward = Vector3Stamped()
            set_stamp(reward, time.time_ns())
            self._reward.publish(reward)

    def until(self, done: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S, each: Any = None) -> None:
        """Go on until `done()`; `each` is called once a period. Fails the test after a while."""
        deadline_s = time.monotonic() + timeout_s
        while not done():
            now_s = time.monotonic()
            assert now_s < deadline_s, f"{what}: not within {timeout_s:g} s; last {self.status_text()}"
            if now_s >= self._due_s:
                self._due_s = max(self._due_s + self.period_s, now_s)
                self.tick()
                if each is not None:
                    each()
            self.probe.executor.spin_once(timeout_sec=0.005)

    def run(self, seconds: float, each: Any = None) -> None:
        """Let time pass, for what must not happen in it."""
        end_s = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end_s, "time", seconds + 10.0, each)

    def own(self, since: int = 0) -> int:
        """Commands of the policy's own, since the command with this number."""
        return sum(values != SAFE for _, values in self.commands[since:])

    def acts(self) -> None:
        """Wait for a few more own commands."""
        count = self.own()
        self.until(lambda: self.own() >= count + 5, "commands of the policy's own")

    def rests(self) -> None:
        """Wait until the last commands are the safe one only."""
        self.until(lambda: self.commands and self.commands[-1][1] == SAFE, "the safe action")
        count = len(self.commands)
        self.until(lambda: len(self.commands) >= count + 10, "answers to observations")
        assert self.own(count) == 0

    def status(self, name: str = "policy") -> Any:
        """The newest status of a node, or None."""
        found = [s for array in self.probe.heard["/diagnostics"] for s in array.status if s.name == f"/{name}"]
        return found[-1] if found else None

    def values(self, name: str) -> dict[str, str]:
        status = self.status(name)
        return {pair.key: pair.value for pair in status.values} if status else {}

    def status_text(self) -> str:
        found = {name: self.status(name) for name in self.nodes.nodes}
        return "; ".join(f"{name}: {status and (status.level, status.message)}" for name, status in found.items())

    def says(self, level: bytes, text: str, name: str = "policy", each: Any = None) -> float:
        """Wait until a node's status has this level and this text in its message; returns how long that took."""
        began_s = time.monotonic()
        self.probe.heard["/diagnostics"].clear()

        def said() -> bool:
            status = self.status(name)
            return status is not None and status.level == level and text in status.message

        self.until(said, f"{name}: {level!r} '{text}'", 20.0, each)
        return time.monotonic() - began_s

    def log(self, name: str) -> str:
        path = self.nodes.nodes[name].log
        return path.read_text() if path.exists() else ""
