# SPDX-License-Identifier: Apache-2.0
"""Shared by all nodes: parameters, and a main program that ends safely."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import rclpy
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

from spc_core.deploy.health import Health
from spc_core.system.signals import end_with_parent
from spc_ros.node_parts.diagnostics import Diagnostics, steady_timer
from spc_ros.processes import PARENT_VARIABLE

if TYPE_CHECKING:
    from spc_ros.node_parts.lifecycle import ManagedNode

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
POLL_S = 0.1  # longest delay until a signal is handled
LINGER_S = 0.1  # from a node's last message to its end
STOP_S = 3.0  # longest time to finish work in progress
FAMILY = "task family: its name, or the path of a family.yaml"
READY = "ready"  # the line that spc_ros.processes waits for


@dataclasses.dataclass(frozen=True)
class Param:
    """One parameter: name, default (sets the type), meaning, range or choices, and whether it may change.

    `Parameters` refuses to change a read-only one and gives the reason, which rclpy's own refusal lacks.
    """

    name: str
    default: Any
    meaning: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    read_only: bool = False
    why: str = "it takes effect only when the node starts"  # reason for read_only
    at_configure: bool = False  # read on configure; cannot change until clean-up

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


def params_of(options: type, exclude: Sequence[Param] = (), **choices: tuple[str, ...]) -> list[Param]:
    """Read-only parameters from a dataclass whose field metadata hold a help text and a range.

    `exclude`: parameters that the node already has. `choices`: by field name.
    """
    params = []
    for field in dataclasses.fields(options):
        if field.name not in {param.name for param in exclude}:
            default = field.default
            if isinstance(default, tuple):
                default = list(default) or [""]  # ROS has no empty list
            text, low, high = (field.metadata[key] for key in ("help", "low", "high"))
            params.append(Param(field.name, default, text, low, high, choices.get(field.name, ()), read_only=True))
    return params


class Parameters:
    """Declares a node's parameters; their current values are its attributes."""

    def __init__(self, node: Node, params: Sequence[Param], on_change: Callable[[], None] | None = None) -> None:
        self._params = {param.name: param for param in params}
        self._on_change = on_change
        self.configured = False  # whether parameters with `at_configure` are fixed
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
        changed = {p.name: p.value for p in parameters if p.name in self._params}
        self._values.update(changed)
        if changed and self._on_change is not None and len(self._values) == len(self._params):
            self._on_change()


_EXECUTORS = "events | single; events is about twice as fast, if this rclpy has it"
EXECUTOR = Param("executor", "events", _EXECUTORS, choices=("events", "single"), read_only=True)


class PlainNode(Node):
    """A node without a lifecycle, active from construction to shutdown."""

    def __init__(self, name: str, params: Sequence[Param]) -> None:
        super().__init__(name)
        self.params = Parameters(self, [EXECUTOR, *params], self.on_parameters)
        self.diagnostics = Diagnostics(self, self.each_second, self.diagnose, self.health)
        self.exit_code: int | None = None  # set it to end the program

    def on_parameters(self) -> None:
        """Called when a parameter has changed."""

    def diagnose(self) -> dict[str, Any]:
        """Values for `/diagnostics`, in addition to the counters."""
        return {}

    def each_second(self, now_s: float) -> None:
        """Called once a second, before `health`; `now_s` is steady."""

    def health(self, now_s: float) -> Health:
        """The level on `/diagnostics` while nothing worse is known; `now_s` is steady."""
        return Health()

    def begin(self) -> None:
        """Called once the executor spins."""

    def busy(self) -> bool:
        """Polled at shutdown: true delays it, by STOP_S at most."""
        return False

    def close(self) -> None:
        """Called at shutdown, by signal, error or exit code, while ROS still works."""

    def failed(self, error: Exception) -> None:
        """A callback raised: end the program, since there is no state to return to."""
        self.exit_code = 1


def run(*node_classes: Callable[[], PlainNode | ManagedNode]) -> int:
    """Run nodes on one executor until a signal or the end of one of them; returns the program's exit code.

    They begin in the given order and close in reverse order.
    """
    caught: list[int] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda received, _frame: caught.append(received))
    _die_with_parent()
    rclpy.init(
        signal_handler_options=SignalHandlerOptions.NO
    )  # rclpy's handler would shut ROS down before the safe action
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
        for number in STOP_SIGNALS:  # a launched node gets Ctrl-C twice; the second must not change the exit code
            signal.signal(number, signal.SIG_IGN)
    return _exit_code(nodes) or 0


def _work(executor: Executor, nodes: Sequence[PlainNode | ManagedNode], caught: Sequence[int]) -> None:
    """Spin until a signal or a node ends the program, then close all nodes, the last one first."""
    while not caught and _exit_code(nodes) is None:
        _spin_once(executor, nodes, POLL_S)
    deadline_s = time.monotonic() + STOP_S
    while any(node.busy() for node in nodes) and time.monotonic() < deadline_s:
        _spin_once(executor, nodes, POLL_S)
    for node in reversed(nodes):
        node.close()
    _linger(executor, nodes)


def _exit_code(nodes: Sequence[PlainNode | ManagedNode]) -> int | None:
    """The exit code of the first node that has one."""
    return next((node.exit_code for node in nodes if node.exit_code is not None), None)


def _executor(node: PlainNode | ManagedNode) -> Executor:
    """A single-threaded executor; the events executor keeps the order of arrival and is twice as fast."""
    if node.params.executor == "events":
        try:
            from rclpy.experimental import EventsExecutor  # not in the first releases of Jazzy
        except ImportError:
            node.get_logger().info("this rclpy has no events executor; using the single-threaded one")
        else:
            return EventsExecutor()
    return SingleThreadedExecutor()


def _linger(executor: Executor, nodes: Sequence[PlainNode | ManagedNode]) -> None:
    """Keep spinning: a best-effort message, such as a last safe action, is lost if its process ends at once."""
    deadline_s = time.monotonic() + LINGER_S
    while (remaining_s := deadline_s - time.monotonic()) > 0:
        _spin_once(executor, nodes, remaining_s)


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
    except Exception as error:  # which node raised it is unknown
        nodes[-1].get_logger().fatal(f"a callback failed: {error}\n{traceback.format_exc()}")
        for node in reversed(nodes):
            node.failed(error)


def _die_with_parent() -> None:
    """End together with the parent process, however that ends."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None:
        end_with_parent(int(parent))
