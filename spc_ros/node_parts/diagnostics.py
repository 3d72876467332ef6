# SPDX-License-Identifier: Apache-2.0
"""A node's state on `/diagnostics` and in its log, and timers that no clock can stop."""

from __future__ import annotations

import os
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.timer import Timer

from spc_core.deploy.health import Health, Level

NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")


PROCESS = f"{socket.gethostname()}:{os.getpid()}"  # tells two nodes of one name apart


def steady_timer(node: Node, period_s: float, callback: Callable[[], None]) -> Timer:
    """A timer that neither a frozen `/clock` nor a corrected wall clock can stop."""
    return node.create_timer(period_s, callback, clock=Clock(clock_type=ClockType.STEADY_TIME))


class Diagnostics:
    """Publishes a node's level, counters and values on `/diagnostics` once per second of real time.

    Each change of level or reason is logged.
    """

    def __init__(
        self,
        node: Node,
        each_second: Callable[[float], None],
        values: Callable[[], dict[str, Any]],
        health: Callable[[float], Health],
    ) -> None:
        """`each_second` is called first, then `health`, which judges the node; both get a steady time, in s."""
        self.counts: Counter[str] = Counter()
        self.problem = ""  # reason why the node cannot work; empty if it can
        self.warning = ""  # a problem that does not stop the node
        self._node, self._each_second, self._values, self._health = node, each_second, values, health
        self._logged: set[str] = set()
        self._last = (Level.OK, "")  # what was logged, without its numbers
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        steady_timer(node, 1.0, self.publish)

    def warn_once(self, kind: str, text: str) -> None:
        """Count an event, and log each distinct text once."""
        self.counts[kind] += 1
        if text not in self._logged and len(self._logged) < 100:
            self._logged.add(text)
            self._node.get_logger().warning(text)

    def publish(self) -> None:
        node, now_s = self._node, time.monotonic()
        self._each_second(now_s)
        health = self._judge(now_s)
        values = {"process": PROCESS, **self._values(), **self.counts}
        self._log(health)
        status = DiagnosticStatus(name=node.get_fully_qualified_name(), hardware_id=node.get_name())
        status.level, status.message = bytes([health.level]), health.reason or "ok"
        status.values = [KeyValue(key=str(key), value=str(value)) for key, value in values.items()]
        msg = DiagnosticArray(status=[status])
        msg.header.stamp = node.get_clock().now().to_msg()
        self._publisher.publish(msg)

    def _judge(self, now_s: float) -> Health:
        """The worst of what is known."""
        known = [Health(Level.ERROR, self.problem)] if self.problem else []
        known.append(self._health(now_s))
        known += [Health(Level.WARN, self.warning)] if self.warning else []
        return max(known, key=lambda health: health.level)

    def _log(self, health: Health) -> None:
        """One line at each change; rclpy ties one severity to each line that logs."""
        key = (health.level, NUMBER.sub("#", health.reason))
        before, self._last = self._last, key
        if key == before:
            return
        logger = self._node.get_logger()
        if health.level == Level.ERROR:
            logger.error(f"state: error: {health.reason}")
        elif health.level == Level.WARN:
            logger.warning(f"state: warning: {health.reason}")
        else:
            logger.info(f"state: ok{', ' if health.reason else ''}{health.reason}")
