# SPDX-License-Identifier: Apache-2.0
"""Looks for other nodes that publish on the command topics, and so drive the robot too."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node

from spc_ros.node_parts.diagnostics import PROCESS

ALIVE_S = 3.0  # /diagnostics come once a second
UNKNOWN = "_NODE_NAME_UNKNOWN_"  # of rmw, while the node of a publisher has not been discovered
NAMELESS = "a node whose name is not known yet"
GRACE_S = 30.0  # how long a killed predecessor of this node may stay in the graph


class OtherPublishers:
    """Publishers of topics that are not this node's own."""

    def __init__(self, node: Node, topics: Sequence[str]) -> None:
        self._node, self._begin_s = node, time.monotonic()
        self._known: dict[str, tuple[int, str]] = dict.fromkeys(
            topics, (0, "")
        )  # publishers of each, and what is said of them
        self._twin, self._twin_s = "", -math.inf  # the process of a living node of this name, and when it last spoke
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def found(self) -> str:
        """A sentence that names them; empty if there are none.

        A publisher of this node's own name counts at once if it speaks on `/diagnostics`, and else after GRACE_S:
        before, it may be the killed process that this one replaces.
        """
        if time.monotonic() - self._twin_s < ALIVE_S:
            name = self._node.get_fully_qualified_name()
            return f"another {name} runs, as process {self._twin}: stop it, or set other_publishers to warn"
        for topic, (known, text) in self._known.items():
            count = self._node.count_publishers(topic)
            if count <= 1:
                self._known[topic] = count, ""
            elif count != known or not text:
                text = self._describe(topic)
                self._known[topic] = -1 if NAMELESS in text else count, text
        return "; ".join(text for _, text in self._known.values() if text)

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        name = self._node.get_fully_qualified_name()
        for status in msg.status:
            process = next((pair.value for pair in status.values if pair.key == "process"), PROCESS)
            if status.name == name and process != PROCESS:
                self._twin, self._twin_s = process, time.monotonic()

    def _describe(self, topic: str) -> str:
        own, names = self._node.get_fully_qualified_name(), []
        for info in self._node.get_publishers_info_by_topic(topic):
            known = info.node_name != UNKNOWN
            names.append(f"{info.node_namespace.rstrip('/')}/{info.node_name}" if known else NAMELESS)
        if own in names:
            names.remove(own)  # this publisher
        if time.monotonic() - self._begin_s < GRACE_S:
            names = [name for name in names if name != own]
        if not names:
            return ""
        return (
            f"'{topic}' is also published by {', '.join(sorted(set(names)))}: stop it, remap it, or set "
            "other_publishers to warn"
        )
