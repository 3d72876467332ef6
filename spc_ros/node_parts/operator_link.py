# SPDX-License-Identifier: Apache-2.0
"""A person's link to a trial and a deployed policy: their states, requests to them, and the emergency stop."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.context import Context
from rclpy.duration import Duration
from rclpy.exceptions import InvalidNamespaceException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

from spc_ros.node_parts.topics import OPERATOR_STOP_TOPIC, latched_qos

FRESH_S = 3.0  # /diagnostics come once a second
LEVELS = ("OK", "WARN", "ERROR", "STALE")
UNKNOWN = "_NODE_NAME_UNKNOWN_"  # rclpy's, of a node that is known in part
SHOWN = ("trial", "policy", "context_encoder", "recorder", "sim")


def _to(transition: int) -> ChangeState.Request:
    return ChangeState.Request(transition=Transition(id=transition))


REQUESTS: Mapping[str, tuple[str, Any, Any]] = {  # action: service, type, request
    "continue": ("trial/continue", Trigger, Trigger.Request()),
    "success": ("trial/success", SetBool, SetBool.Request(data=True)),
    "failure": ("trial/success", SetBool, SetBool.Request(data=False)),
    "end": ("trial/stop", Trigger, Trigger.Request()),
    "pause": ("trial/pause", Trigger, Trigger.Request()),
    "resume": ("trial/resume", Trigger, Trigger.Request()),
    "abort": ("trial/abort", Trigger, Trigger.Request()),
    "swap": ("policy/swap", Trigger, Trigger.Request()),
    "reset": ("context_encoder/reset", Trigger, Trigger.Request()),
    "activate": ("policy/change_state", ChangeState, _to(Transition.TRANSITION_ACTIVATE)),
    "deactivate": ("policy/change_state", ChangeState, _to(Transition.TRANSITION_DEACTIVATE)),
}


@dataclasses.dataclass(frozen=True)
class NodeState:
    """What a node last said of itself on /diagnostics."""

    level: str
    reason: str
    values: Mapping[str, str]


class Pending:
    """A request on its way; `result` is None until it is known, then (accepted, text)."""

    def __init__(self, action: str, timeout_s: float) -> None:
        self.action, self.deadline_s = action, time.monotonic() + timeout_s
        self.future: Any = None
        self.result: tuple[bool, str] | None = None


class OperatorLink:
    """Everything happens in `spin`. Use it as a context manager."""

    def __init__(self, namespace: str = "") -> None:
        self._context = Context()
        rclpy.init(args=[], context=self._context)
        try:
            self._node = Node("operator", namespace=namespace.rstrip("/"), context=self._context)
        except InvalidNamespaceException as error:
            rclpy.shutdown(context=self._context)
            raise ValueError(f"--namespace {namespace!r}: {str(error).splitlines()[0]}; write it as /robot1") from None
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._states: dict[str, tuple[float, NodeState]] = {}
        self._pending: Pending | None = None
        self._clients_by_action: dict[str, Any] = {}
        self.pressed = False
        self._stop = self._node.create_publisher(Bool, OPERATOR_STOP_TOPIC, latched_qos())
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def __enter__(self) -> OperatorLink:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    @property
    def namespace(self) -> str:
        return self._node.get_namespace()

    def spin(self, seconds: float) -> None:
        """Receive for this long, and finish the pending request."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=min(left_s, 0.05))
            self._work()

    def state(self, name: str) -> NodeState | None:
        """A node's newest state; None if it has said nothing for FRESH_S."""
        at_s, state = self._states.get(name, (0.0, None))
        return state if time.monotonic() - at_s < FRESH_S else None

    def request(self, action: str, timeout_s: float) -> Pending:
        """Send a request, which replaces a pending one."""
        self._pending = Pending(action, timeout_s)
        return self._pending

    def press(self, pressed: bool) -> None:
        """Publish the emergency stop or its release, latched."""
        self.pressed = pressed
        self._stop.publish(Bool(data=pressed))

    def listeners(self) -> list[str]:
        """Nodes that hear the stop, once all that DDS knows of are connected; empty before."""
        found = self._node.get_subscriptions_info_by_topic(self._stop.topic_name)
        names = sorted({info.node_name for info in found})
        connected = self._stop.get_subscription_count() >= len(found)
        return names if connected and UNKNOWN not in names else []

    def delivered(self) -> bool:
        """Whether every connected listener has the last word."""
        return self._stop.wait_for_all_acked(Duration(seconds=1.0))

    def present(self) -> list[str]:
        """The nodes of SHOWN that DDS knows of, whether they answer or not."""
        names = {name for name, space in self._node.get_node_names_and_namespaces() if space == self.namespace}
        return [name for name in SHOWN if name in names]

    def _work(self) -> None:
        pending = self._pending
        if pending is None:
            return
        name, kind, message = REQUESTS[pending.action]
        if pending.future is None:
            if pending.action not in self._clients_by_action:
                self._clients_by_action[pending.action] = self._node.create_client(kind, name)
            client = self._clients_by_action[pending.action]
            if client.service_is_ready():
                pending.future = client.call_async(message)
        elif pending.future.done():
            answer = pending.future.result()
            state = self.state(name.partition("/")[0])
            now = f" ({state.level}: {state.reason})" if state is not None else ""
            refused = f"refused; it is in another state than that needs{now}"
            text = getattr(answer, "message", "") or ("done" if answer.success else refused)
            pending.result, self._pending = (answer.success, f"{pending.action}: {text}"), None
            return
        if time.monotonic() > pending.deadline_s:
            node = name.partition("/")[0]
            why = f"no {node} found" if pending.future is None else f"the {node} does not answer"
            where = self.namespace
            pending.result = (
                False,
                f"{pending.action}: {why} in namespace {where}; is it running, and in this domain?",
            )
            self._pending = None

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        root = self.namespace.rstrip("/")
        for status in msg.status:
            name = status.name.removeprefix(f"{root}/")
            if name in SHOWN:
                values = {pair.key: pair.value for pair in status.values}
                state = NodeState(LEVELS[min(status.level[0], 3)], status.message, values)
                self._states[name] = (time.monotonic(), state)
