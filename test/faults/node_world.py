# SPDX-License-Identifier: Apache-2.0
"""A robot of two streams in real time, a policy in a process of its own, and a watch on its commands and on the CPU."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from geometry_msgs.msg import Vector3Stamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float32MultiArray, String
from std_srvs.srv import Trigger

from spc_core.contract.contract import parse_contract
from spc_ros.messages.fields import FieldReader, set_stamp
from spc_ros.node_parts.context_message import encode_context
from spc_ros.node_parts.topics import latched_qos, stream_qos
from spc_ros.processes import NodeGroup
from support.contracts import ARM_REACH
from support.node_probe import Probe, own_domain
from support.random_checkpoint import write_random_checkpoint

RATE_HZ = int(os.environ.get("SPC_FAULT_RATE_HZ", "25"))
FORCE = f"""  - topic: force
    type: geometry_msgs/msg/Vector3Stamped
    fields: [vector.x]
    max_age_s: {1.25 / RATE_HZ:g}
"""
TEXT = ARM_REACH.text.replace("action: #", FORCE + "action: #")
TEXT = TEXT.replace("rate_hz: 50", f"rate_hz: {RATE_HZ}").replace("_s: 0.05\n  - ", f"_s: {2.5 / RATE_HZ:g}\n  - ", 1)
CONTRACT = parse_contract(TEXT, "faults")
PERIOD_S = 1 / CONTRACT.rate_hz
TIMEOUT_S = 30.0
SAFE = list(CONTRACT.action.safe)
STATE = (0.1, 0.2, 0.3, 0.4)
DEFAULTS: dict[str, Any] = {
    "hold_ms": [0.0], "deactivate_after_s": [0.0], "context_timeout_s": 0.0, "estop_loss": "ignore",
    "estop_timeout_s": 2.5 * PERIOD_S, "workspace_fields": [""], "workspace_low": [0.0], "workspace_high": [0.0],
    "probation_ticks": 50, "use_sim_time": False, "clock_timeout_s": 5 * PERIOD_S,
}  # fmt: skip


def write_checkpoint(folder: Path) -> Path:
    return write_random_checkpoint(folder, "arm_reach", CONTRACT)


class World:
    """Everything happens in `run` and in the services that it calls; times are of the monotonic clock."""

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.checkpoint = write_checkpoint(folder / "checkpoint")
        self.nodes = NodeGroup(folder / "log", environment=environment or own_domain())
        self.probe = Probe(dict(self.nodes.environment or {}))
        node, sensor = self.probe.node, stream_qos(reliable=False)
        self._states = node.create_publisher(JointState, "joint_states", sensor)
        self._force = node.create_publisher(Vector3Stamped, "force", sensor)
        self._clock = node.create_publisher(Clock, "/clock", sensor)
        self._stop = node.create_publisher(Bool, "emergency_stop", 10)
        self._context = node.create_publisher(Float32MultiArray, "context", latched_qos())
        self.episode = node.create_publisher(String, "episode", latched_qos())
        self.commands: list[tuple[float, list[float]]] = []
        action = CONTRACT.action.parts[0]
        self._reader = FieldReader(action.type, action.fields, action.topic)
        self.listen()
        self._clients: dict[str, Any] = {}
        self.told: list[dict] = []
        self.swaps: list[dict] = []
        for topic, heard in (("interventions", self.told), ("model_swap", self.swaps)):
            node.create_subscription(
                String, topic, lambda m, heard=heard: heard.append(json.loads(m.data)), latched_qos(depth=100)
            )
        self.t_ns = self.offset_ns = 10**18  # the newest stamp; the robot's clock against the monotonic one
        self.last_good_s = 0.0
        self.stop_beats = True  # the stop topic says false with each observation
        self.params = dict(DEFAULTS)
        self.late_s = 0.0  # the longest that the robot was behind its own schedule

    def close(self) -> None:
        last_in_line(os.getpid())
        self.nodes.stop()
        self.probe.__exit__()

    def start(self) -> None:
        """A policy, ready."""
        self.start_policy()
        self.wait_for_policy()

    def start_policy(self) -> None:
        self.nodes.start("policy", {"checkpoint": str(self.checkpoint), "contract": "", **self.params})

    def wait_for_policy(self) -> None:
        self.nodes.wait_ready(60.0)
        self.policy = self.nodes.nodes["policy"].process
        first_in_line(os.getpid(), os.SCHED_RESET_ON_FORK)
        # A thread that loads a model shares the CPUs with others at usual rates, and there Python's lock as well. At
        # high ones it must get them, or the lock is held by who does not run.
        first_in_line(self.policy.pid, os.SCHED_RESET_ON_FORK if RATE_HZ < 100 else 0)

    def listen(self) -> None:
        """Subscribe to the commands, as a robot's controller does."""
        self._ear = self.probe.node.create_subscription(
            JointState,
            CONTRACT.action.parts[0].topic,
            lambda m: self.commands.append((time.monotonic(), self._reader.read(m).tolist())),
            stream_qos(reliable=False),
        )

    def stop_listening(self) -> None:
        self.probe.node.destroy_subscription(self._ear)

    def begin_watch(self) -> None:
        """Of what the machine itself does to robot and policy."""
        self.late_s, self._waited_s = 0.0, waited_s(self.policy.pid)

    def machine_late_s(self) -> float:
        """How long the robot was late by its own schedule, or the policy ready to run and not let."""
        return max(self.late_s, waited_s(self.policy.pid) - self._waited_s)

    def state(self, t_ns: int, values: Any = STATE, names: tuple[str, ...] = ("shoulder", "elbow")) -> None:
        position = dict(zip(("shoulder", "elbow"), values[:2], strict=True))
        velocity = dict(zip(("shoulder", "elbow"), values[2:], strict=True))
        msg = JointState(name=names)
        msg.position = [float(position[name]) for name in names]
        msg.velocity = [float(velocity[name]) for name in names] if values[2] is not None else []
        set_stamp(msg, t_ns)
        self._states.publish(msg)

    def force(self, t_ns: int, value: float = 0.5) -> None:
        msg = Vector3Stamped()
        msg.vector.x = value
        set_stamp(msg, t_ns)
        self._force.publish(msg)

    def clock(self, t_ns: int) -> None:
        msg = Clock()
        msg.clock.sec, msg.clock.nanosec = divmod(t_ns, 10**9)
        self._clock.publish(msg)

    def advance(self) -> None:
        """The next stamp: one period after the last, and anew after a pause."""
        robot_ns = self.offset_ns + time.monotonic_ns()
        due_ns = self.t_ns + CONTRACT.period_ns
        self.t_ns = due_ns if abs(robot_ns - due_ns) < CONTRACT.period_ns // 2 else robot_ns

    def tick(self) -> None:
        """A good observation."""
        self.advance()
        self.clock(self.t_ns)
        self.force(self.t_ns)
        if self.stop_beats:
            self.stop_topic(False)
        self.state(self.t_ns)
        self.last_good_s = time.monotonic()

    def stop_topic(self, pressed: bool) -> None:
        self._stop.publish(Bool(data=pressed))

    def context(self, values: Any = None, model: int | None = None) -> None:
        z = np.zeros(5, np.float32) if values is None else np.asarray(values, np.float32)
        self._context.publish(encode_context(z, np.ones(len(z), np.float32), 1, 0, model))

    def run(self, periods: float, each: Any = None) -> None:
        """Pass time, in which `each` is called once a period; None: nothing is said."""
        begin_s = due_s = time.monotonic()
        while (now_s := time.monotonic()) < begin_s + periods * PERIOD_S - 1e-4:
            if now_s >= due_s:
                self.late_s = max(self.late_s, now_s - due_s)
                due_s += PERIOD_S
                if each is not None:
                    each()
                    continue
            self.probe.executor.spin_once(timeout_sec=max(0.0, min(due_s, begin_s + periods * PERIOD_S) - now_s))

    def until(self, done: Any, each: Any = None) -> None:
        """Pass time until something is so; fails after a while."""
        for _ in range(round(TIMEOUT_S / PERIOD_S)):
            if done():
                return
            self.run(1, each)
        raise AssertionError(f"not within {TIMEOUT_S:g} s; swaps {self.swaps[-3:]}, told {self.told[-3:]}")

    def prepare(self, params: dict[str, Any]) -> None:
        """An active policy with these parameters, which answers."""
        wanted = {**DEFAULTS, **params, "checkpoint": str(self.checkpoint)}
        if wanted != self.params:
            if self.lifecycle() == "active":
                self.change(Transition.TRANSITION_DEACTIVATE)
            if self.lifecycle() == "inactive":
                self.change(Transition.TRANSITION_CLEANUP)
            self.set(**wanted)
            self.params = wanted
        if self.lifecycle() == "unconfigured":
            self.change(Transition.TRANSITION_CONFIGURE)
        if self.lifecycle() == "inactive":
            self.change(Transition.TRANSITION_ACTIVATE)
        self.stop_beats = True
        self.context()
        self.until(self.answers, self.tick)

    def answers(self) -> bool:
        """The last few commands are the policy's, one for each observation, and none is the safe action."""
        since_s = time.monotonic() - 4 * PERIOD_S
        newest = [values for at_s, values in self.commands if at_s > since_s]
        return len(newest) >= 3 and all(values != SAFE for values in newest)

    def safe_after(self, since_s: float) -> float | None:
        """Seconds from a moment to the first safe action after it."""
        return next((at_s - since_s for at_s, values in self.commands if at_s >= since_s and values == SAFE), None)

    def call(self, name: str, kind: Any, request: Any = None) -> Any:
        """The answer of a service; the robot goes on meanwhile."""
        if name not in self._clients:
            self._clients[name] = self.probe.node.create_client(kind, name)
        client = self._clients[name]
        self.until(client.service_is_ready, self.tick)
        future = client.call_async(request or kind.Request())
        self.until(future.done, self.tick)
        return future.result()

    def counts(self) -> Counter[str]:
        return Counter(json.loads(self.call("policy/report", Trigger).message))

    def lifecycle(self) -> str:
        return self.call("policy/get_state", GetState).current_state.label

    def change(self, transition: int) -> None:
        request = ChangeState.Request(transition=Transition(id=transition))
        assert self.call("policy/change_state", ChangeState, request).success, self.nodes.nodes["policy"].tail()

    def set(self, **params: Any) -> str:
        """Set parameters of the policy; returns why not, or ''."""
        request = SetParametersAtomically.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg() for name, value in params.items()]
        )
        result = self.call("policy/set_parameters_atomically", SetParametersAtomically, request).result
        return "" if result.successful else result.reason

    def swap(self, folder: Path, state: str) -> dict:
        """Ask for a swap, and go on until it says this; returns all that it says."""
        seen = len(self.swaps)
        assert self.set(checkpoint=str(folder)) == ""
        answer = self.call("policy/swap", Trigger)
        assert answer.success, answer.message
        self.until(lambda: any(told["state"] == state for told in self.swaps[seen:]), self.tick)
        return self.swaps[-1]


def first_in_line(pid: int, flags: int = 0) -> None:
    """Real-time priority, as on a robot, so that what else runs here is not measured; without the right to, none."""
    _schedule(pid, os.SCHED_FIFO | flags, 1)


def last_in_line(pid: int) -> None:
    """The usual priority."""
    _schedule(pid, os.SCHED_OTHER, 0)


def _schedule(pid: int, policy: int, priority: int) -> None:
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.sched_setscheduler(int(thread), policy, os.sched_param(priority))


def waited_s(pid: int) -> float:
    """How long the threads of a process were ready to run and had no CPU."""
    total_ns = 0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has ended
            total_ns += int(file.read_text().split()[1])
    return total_ns / 1e9
