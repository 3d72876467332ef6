# SPDX-License-Identifier: Apache-2.0
"""What all nodes share: declared parameters, diagnostics, steady timers, and the main program with a safe end."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from rclpy.timer import Timer

from spc_core.system.signals import end_with_parent
from spc_ros.processes import PARENT_VARIABLE

if TYPE_CHECKING:
    from spc_ros.node_parts.lifecycle import ManagedNode

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
POLL_S = 0.1  # how soon a signal is noticed
LINGER_S = 0.1  # from the last message of a node to its end
STOP_S = 3.0  # longest time to finish work in progress
READY = "ready"  # the line that spc_ros.processes waits for


@dataclasses.dataclass(frozen=True)
class Param:
    """One parameter: name, default (sets the type), meaning, range or choices, whether it may change.

    A read-only one is refused by `Parameters`, which says why; rclpy's own refusal of such would not.
    """

    name: str
    default: Any
    meaning: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    read_only: bool = False
    why: str = "it takes effect only when the node starts"  # it cannot change
    at_configure: bool = False  # a lifecycle node reads it there, and refuses a change until it is cleaned up

    def descriptor(self) -> ParameterDescriptor:
        text = ParameterDescriptor(name=self.name, description=self.meaning)
        constraints = [f"one of: {', '.join(self.choices)}"] if self.choices else []
        constraints += [f"fixed while the node runs: {self.why}"] if self.read_only else []
        constraints += ["fixed while the node is configured"] if self.at_configure else []
        text.additional_constraints = "; ".join(constraints)
        if self.low is not None and self.high is not None:
            if isinstance(self.default, int):
                text.integer_range = [IntegerRange(from_value=int(self.low), to_value=int(self.high), step=0)]
            else:
                text.floating_point_range = [FloatingPointRange(from_value=self.low, to_value=self.high, step=0.0)]
        return text


def params_of(options: type, but: Sequence[Param] = (), **choices: tuple[str, ...]) -> list[Param]:
    """Read-only parameters from a dataclass whose fields have a help text and a range as metadata.

    `but`: parameters that the node has already. `choices`: by the name of the field.
    """
    params = []
    for field in dataclasses.fields(options):
        if field.name not in {param.name for param in but}:
            default = field.default
            if isinstance(default, tuple):
                default = list(default) or [""]  # ROS knows no empty list
            text, low, high = (field.metadata[key] for key in ("help", "low", "high"))
            params.append(Param(field.name, default, text, low, high, choices.get(field.name, ()), read_only=True))
    return params


class Parameters:
    """Declares a node's parameters; their current values are its attributes."""

    def __init__(self, node: Node, params: Sequence[Param], on_change: Callable[[], None] | None = None) -> None:
        self._params = {param.name: param for param in params}
        self._on_change = on_change
        self.configured = False  # a lifecycle node has read those with `at_configure`
        self._values: dict[str, Any] = {}
        node.add_on_set_parameters_callback(self._check)
        for param in params:
            self._values[param.name] = node.declare_parameter(param.name, param.default, param.descriptor()).value
        node.add_post_set_parameters_callback(self._changed)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_values"][name]
        except KeyError:
            raise AttributeError(f"no parameter '{name}' is declared") from None

    def _check(self, parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            known = self._params.get(parameter.name)
            if known and known.read_only and parameter.name in self._values:
                reason = f"{parameter.name} cannot change: {known.why}; start the node with another value"
                return SetParametersResult(successful=False, reason=reason)
            if known and known.at_configure and self.configured:
                reason = f"{parameter.name} cannot change while the node is configured; deactivate and clean up first"
                return SetParametersResult(successful=False, reason=reason)
            if known and known.choices and parameter.value not in known.choices:
                reason = f"{parameter.name} is '{parameter.value}'; use one of: {', '.join(known.choices)}"
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    def _changed(self, parameters: list[Parameter]) -> None:
        mine = {p.name: p.value for p in parameters if p.name in self._params}
        self._values.update(mine)
        if mine and self._on_change is not None and len(self._values) == len(self._params):
            self._on_change()


_EXECUTORS = "events | single; the first is about twice as fast, where this rclpy has it"
EXECUTOR = Param("executor", "events", _EXECUTORS, choices=("events", "single"), read_only=True)


def steady_timer(node: Node, period_s: float, callback: Callable[[], None]) -> Timer:
    """A timer on a clock that neither a frozen `/clock` nor a corrected wall clock can stop."""
    return node.create_timer(period_s, callback, clock=Clock(clock_type=ClockType.STEADY_TIME))


class Diagnostics:
    """Counters and values of a node on `/diagnostics`, once a second of real time."""

    def __init__(self, node: Node, extra: Callable[[], dict[str, Any]]) -> None:
        self.counts: Counter[str] = Counter()
        self.problem = ""  # what keeps the node from its work; empty when all is well
        self.warning = ""  # what somebody should look at although the node works
        self._node, self._extra = node, extra
        self._said: set[str] = set()
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        steady_timer(node, 1.0, self.publish)

    def complain(self, kind: str, text: str) -> None:
        """Count an event, and log each distinct text once."""
        self.counts[kind] += 1
        if text not in self._said and len(self._said) < 100:
            self._said.add(text)
            self._node.get_logger().warning(text)

    def publish(self) -> None:
        node = self._node
        status = DiagnosticStatus(name=node.get_fully_qualified_name(), hardware_id=node.get_name())
        quiet = DiagnosticStatus.WARN if self.warning else DiagnosticStatus.OK
        status.level = DiagnosticStatus.ERROR if self.problem else quiet
        status.message = self.problem or self.warning or "ok"
        values = {**self._extra(), **self.counts}
        status.values = [KeyValue(key=str(key), value=str(value)) for key, value in values.items()]
        msg = DiagnosticArray(status=[status])
        msg.header.stamp = node.get_clock().now().to_msg()
        self._publisher.publish(msg)


class PlainNode(Node):
    """A node without lifecycle: it works from its construction to its end."""

    def __init__(self, name: str, params: Sequence[Param]) -> None:
        super().__init__(name)
        self.params = Parameters(self, [EXECUTOR, *params], self.on_parameters)
        self.diagnostics = Diagnostics(self, self.diagnose)
        self.exit_code: int | None = None  # set it to end the program

    def on_parameters(self) -> None:
        """A parameter changed while running."""

    def diagnose(self) -> dict[str, Any]:
        """Values for `/diagnostics` beside the counters."""
        return {}

    def begin(self) -> None:
        """The executor runs."""

    def busy(self) -> bool:
        """Asked again and again once the program is to end: true puts the end off, for STOP_S at most."""
        return False

    def close(self) -> None:
        """The program ends, by signal, error or exit code; ROS still works."""

    def failed(self, error: Exception) -> None:
        """A callback raised: there is no state to go back to."""
        self.exit_code = 1


def run(*node_classes: Callable[[], PlainNode | ManagedNode]) -> int:
    """Run nodes on one executor until a signal or the end of one of them; returns the program's exit code.

    They begin in the order given and close in the reverse one.
    """
    caught: list[int] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda received, _frame: caught.append(received))
    _die_with_parent()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)  # rclpy's own would close ROS before the safe action
    nodes: list[PlainNode | ManagedNode] = []
    try:
        for node_class in node_classes:
            nodes.append(node_class())
    except (ValueError, OSError, InvalidParameterTypeException, InvalidParameterValueException) as error:
        print(f"{os.path.basename(sys.argv[0])}: cannot start: {error}", file=sys.stderr, flush=True)
        rclpy.shutdown()
        return 1
    executor = _executor(nodes[0])
    for node in nodes:
        executor.add_node(node)

    def begin() -> None:
        once.cancel()
        _begin(nodes)

    once = steady_timer(nodes[0], 0.0, begin)
    try:
        _work(executor, nodes, caught)
    except ExternalShutdownException:
        pass
    finally:
        executor.shutdown()
        for node in reversed(nodes):
            node.destroy_node()
        rclpy.try_shutdown()
        for number in STOP_SIGNALS:  # Ctrl-C reaches a launched node twice; the second must not spoil the exit
            signal.signal(number, signal.SIG_IGN)
    return _exit_code(nodes) or 0


def _work(executor: Executor, nodes: Sequence[PlainNode | ManagedNode], caught: Sequence[int]) -> None:
    """Spin until a signal was caught or a node wants to end, then close all, the last one first."""
    while not caught and _exit_code(nodes) is None:
        _spin_once(executor, nodes, POLL_S)
    deadline_s = time.monotonic() + STOP_S
    while any(node.busy() for node in nodes) and time.monotonic() < deadline_s:
        _spin_once(executor, nodes, POLL_S)
    for node in reversed(nodes):
        node.close()
    _linger(executor, nodes)


def _exit_code(nodes: Sequence[PlainNode | ManagedNode]) -> int | None:
    """Of the first node that wants the program to end."""
    return next((node.exit_code for node in nodes if node.exit_code is not None), None)


def _executor(node: PlainNode | ManagedNode) -> Executor:
    """Single-threaded. The events executor hands over messages in the order of arrival, and twice as fast."""
    if node.params.executor == "events":
        try:
            from rclpy.experimental import EventsExecutor  # not in the first releases of Jazzy
        except ImportError:
            node.get_logger().info("this rclpy has no events executor; using the single-threaded one")
        else:
            return EventsExecutor()
    return SingleThreadedExecutor()


def _linger(executor: Executor, nodes: Sequence[PlainNode | ManagedNode]) -> None:
    """A best-effort message, such as a last safe action, is lost when its process ends at once."""
    deadline_s = time.monotonic() + LINGER_S
    while (left_s := deadline_s - time.monotonic()) > 0:
        _spin_once(executor, nodes, left_s)


def _begin(nodes: Sequence[PlainNode | ManagedNode]) -> None:
    for node in nodes:
        node.begin()
    if _exit_code(nodes) is None:
        nodes[-1].get_logger().info(READY)


def _spin_once(executor: Executor, nodes: Sequence[PlainNode | ManagedNode], timeout_s: float) -> None:
    try:
        executor.spin_once(timeout_sec=timeout_s)
    except ExternalShutdownException:
        raise
    except Exception as error:  # of one of them, and nothing says which
        nodes[-1].get_logger().fatal(f"a callback failed: {error}\n{traceback.format_exc()}")
        for node in reversed(nodes):
            node.failed(error)


def _die_with_parent() -> None:
    """End when the program that started this node is gone, however it ended."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None:
        end_with_parent(int(parent))
