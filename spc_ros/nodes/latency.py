# SPDX-License-Identifier: Apache-2.0
"""Node `latency`: publishes states at a steady rate and times the command that answers each.

Several controllers, each in its own namespace, are driven in turn for slices of a few seconds, so that other load on
the machine affects all of them equally. The node writes the result as JSON and ends.
"""

from __future__ import annotations

import gc
import json
import time
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node

from spc_core.contract.contract import load_contract
from spc_core.system.atomic_files import write_atomic
from spc_ros.messages.field_writer import FieldWriter
from spc_ros.messages.fields import message_class, set_stamp, stamp_ns
from spc_ros.node_parts.diagnostics import steady_timer
from spc_ros.node_parts.plain_node import Param, PlainNode, run
from spc_ros.node_parts.topics import stream_qos

PARAMS = [
    Param("contract", "", "the robot's contract, which sets the rate of the states"),
    Param("targets", [""], "namespaces to drive in turn"),
    Param("seconds", 10.0, "time for each target", 0.1, 36_000.0),
    Param("slice_s", 2.0, "time slice of a target", 0.1, 36_000.0),
    Param("out", "", "JSON file for the result"),
    Param("connect_s", 30.0, "longest wait for the controllers", 0.1, 600.0),
]
SETTLE_TICKS = 25  # at the start of a slice, not counted: a new sequence, and cold caches
LATE_SHARE = 0.25  # of a period: a state published later than this does not measure the controller


class Target:
    """One controller: its topics and its measurements."""

    def __init__(self, node: Node, contract: Any, namespace: str) -> None:
        stream, reward = contract.observation[0], contract.reward
        action = contract.action.parts[-1]  # published last, so that the action is whole when it comes
        self._class, self._reward_class = message_class(stream.type), message_class(reward.type)
        self._writer = FieldWriter(stream.type, stream.fields, stream.topic)
        self._reward_writer = FieldWriter(reward.type, (reward.field,), reward.topic)
        self._states = node.create_publisher(self._class, f"{namespace}/{stream.topic}", stream_qos(False))
        self._rewards = node.create_publisher(self._reward_class, f"{namespace}/{reward.topic}", stream_qos(False))
        node.create_subscription(
            message_class(action.type), f"{namespace}/{action.topic}", self._on_command, stream_qos(True)
        )
        self._node, self._commands = node, f"{namespace}/{action.topic}"
        self._size = len(stream.fields)
        self._sent_s, self._sent_ns, self._waiting, self._counting = 0.0, 0, False, False
        self.latency_us: list[float] = []
        self.missed = self.missed_in_time = self.unasked = self.driver_late = self.ticks = self.published = 0
        self._late = False
        self.context_age_ms: list[float] = []  # reported by the policy once per second

    @property
    def connected(self) -> bool:
        return self._states.get_subscription_count() > 0 and self._node.count_publishers(self._commands) > 0

    def publish(self, tick: int, t_ns: int, late: bool) -> None:
        """Publish the state of a tick, stamped t_ns; a state still unanswered has missed its tick."""
        self._miss()
        self._late = late
        self.published += 1
        self._counting = tick >= SETTLE_TICKS
        self.ticks += self._counting
        self.driver_late += late and self._counting
        state = self._class()
        self._writer.fill(state, 0.5 * np.sin(0.01 * tick + np.arange(self._size)))
        set_stamp(state, t_ns)
        self._sent_ns, self._waiting = time.time_ns(), True
        self._sent_s = time.perf_counter()
        self._states.publish(state)
        reward = self._reward_class()
        self._reward_writer.fill(reward, np.array([-0.5]))
        set_stamp(reward, t_ns)
        self._rewards.publish(reward)

    def finish(self) -> None:
        """End the slice, once the last state has had its period."""
        self._miss()
        self._waiting = self._counting = False

    def _miss(self) -> None:
        """Count the last state as missed if it is unanswered."""
        missed = self._waiting and self._counting
        self.missed += missed
        self.missed_in_time += missed and not self._late

    def _on_command(self, msg: Any) -> None:
        now_s = time.perf_counter()
        if not self._waiting or (stamp_ns(msg) or 0) < self._sent_ns:  # answers an earlier state or none
            self.unasked += self._counting
            return
        self._waiting = False
        if self._counting:
            self.latency_us.append(1e6 * (now_s - self._sent_s))

    def result(self) -> dict[str, Any]:
        return {
            "latency_us": self.latency_us,
            "ticks": self.ticks,
            "published": self.published,
            "missed": self.missed,
            "missed_in_time": self.missed_in_time,
            "context_age_ms": self.context_age_ms,
            "unasked": self.unasked,
            "driver_late": self.driver_late,
        }


class LatencyNode(PlainNode):
    """Publishes at a steady rate with evenly spaced stamps, like a robot's controller."""

    def __init__(self) -> None:
        super().__init__("latency", PARAMS)
        contract = load_contract(self.params.contract)
        self._period_ns = contract.period_ns
        self._targets = {name: Target(self, contract, name) for name in self.params.targets}
        self._ticks = max(1, round(min(self.params.slice_s, self.params.seconds) * contract.rate_hz))
        self._slices = [
            target for _ in range(max(1, round(self.params.seconds / self.params.slice_s)))
            for target in self._targets.values()
        ]  # fmt: skip
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._tick, self._begin_s, self._wall_ns = 0, 0.0, 0
        self._deadline_s = time.monotonic() + self.params.connect_s
        self._waits = steady_timer(self, 0.05, self._connect)

    def _connect(self) -> None:
        missing = [name for name, target in self._targets.items() if not target.connected]
        if not missing:
            self._waits.cancel()
            gc.collect()
            gc.disable()  # its pauses would count as the controllers'
            self._timer = steady_timer(self, self._period_ns / 1e9, self._on_tick)
        elif time.monotonic() > self._deadline_s:
            self.get_logger().error(f"no controller in {', '.join(missing)} within {self.params.connect_s:g} s")
            self.exit_code = 1

    def _on_tick(self) -> None:
        target = self._slices[0]
        if self._tick >= self._ticks + SETTLE_TICKS:
            target.finish()
            self._slices.pop(0)
            if not self._slices:
                self._timer.cancel()
                self._write()
                return
            target, self._tick = self._slices[0], 0
        if self._tick == 0:
            self._wall_ns, self._begin_s = time.time_ns(), time.perf_counter()
        behind_ns = 1e9 * (time.perf_counter() - self._begin_s) - self._tick * self._period_ns
        skipped = max(0, int(behind_ns // self._period_ns))  # ticks, and their states, that the timer skipped
        target.driver_late += skipped
        self._tick, behind_ns = self._tick + skipped, behind_ns - skipped * self._period_ns
        due_ns = self._tick * self._period_ns
        target.publish(self._tick, self._wall_ns + due_ns, behind_ns > LATE_SHARE * self._period_ns)
        self._tick += 1

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            target = self._targets.get(status.name.split("/")[1])
            if target is not None:
                target.context_age_ms += [float(v.value) for v in status.values if v.key == "context age ms"]

    def _write(self) -> None:
        results = {name: target.result() for name, target in self._targets.items()}
        write_atomic(self.params.out, json.dumps(results))
        self.exit_code = 0


def main() -> int:
    return run(LatencyNode)


if __name__ == "__main__":
    raise SystemExit(main())
