# SPDX-License-Identifier: Apache-2.0
"""What all nodes share: declared parameters, diagnostics, a safe end, and a lifecycle of setup and teardown."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from rclpy.timer import Timer

from spc_ros.processes import PARENT_VARIABLE

POLL_S = 0.1  # how soon a signal is noticed
STOP_S = 3.0  # longest time to finish what is under way
PR_SET_PDEATHSIG = 1
READY = "ready"  # the line that spc_ros.processes waits for


@dataclasses.dataclass(frozen=True)
class Param:
    """One parameter: name, default (which sets the type), meaning, range or choices, whether it may change."""

    name: str
    default: Any
    meaning: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    read_only: bool = False

    def descriptor(self) -> ParameterDescriptor:
        text = ParameterDescriptor(name=self.name, description=self.meaning, read_only=self.read_only)
        if self.choices:
            text.additional_constraints = f"one of: {', '.join(self.choices)}"
        if self.low is not None and self.high is not None:
            if isinstance(self.default, int):
                text.integer_range = [IntegerRange(from_value=int(self.low), to_value=int(self.high), step=0)]
            else:
                text.floating_point_range = [
                    FloatingPointRange(from_value=self.low, to_value=self.high, step=0.0)
                ]
        return text


class Parameters:
    """Declares a node's parameters; their current values are its attributes."""

    def __init__(
        self, node: Node, params: Sequence[Param], on_change: Callable[[], None] | None = None
    ) -> None:
        self._params = {param.name: param for param in params}
        self._on_change = on_change
        self._values: dict[str, Any] = {}
        node.add_on_set_parameters_callback(self._check)
        for param in params:
            self._values[param.name] = node.declare_parameter(
                param.name, param.default, param.descriptor()
            ).value
        node.add_post_set_parameters_callback(self._changed)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_values"][name]
        except KeyError:
            raise AttributeError(f"no parameter '{name}' is declared") from None

    def _check(self, parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            known = self._params.get(parameter.name)
            if known and known.choices and parameter.value not in known.choices:
                reason = f"{parameter.name} is '{parameter.value}'; use one of: {', '.join(known.choices)}"
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    def _changed(self, parameters: list[Parameter]) -> None:
        mine = {p.name: p.value for p in parameters if p.name in self._params}
        self._values.update(mine)
        if mine and self._on_change is not None and len(self._values) == len(self._params):
            self._on_change()


EXECUTOR = Param("executor", "events", "how callbacks run", choices=("events", "single"), read_only=True)
AUTOSTART = Param("autostart", True, "configure and activate by itself at start", read_only=True)


def steady_timer(node: Node, period_s: float, callback: Callable[[], None]) -> Timer:
    """A timer on a clock that neither a frozen `/clock` nor a corrected wall clock can stop."""
    return node.create_timer(period_s, callback, clock=Clock(clock_type=ClockType.STEADY_TIME))


class Diagnostics:
    """Counters and values of a node on `/diagnostics`, once a second of real time."""

    def __init__(self, node: Node, extra: Callable[[], dict[str, Any]]) -> None:
        self.counts: Counter[str] = Counter()
        self.problem = ""  # what keeps the node from its work; empty when all is well
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
        status.level = DiagnosticStatus.ERROR if self.problem else DiagnosticStatus.OK
        status.message = self.problem or "ok"
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


class ManagedNode(LifecycleNode):
    """A lifecycle node. Subclasses write `setup` and `teardown`, and `make_safe` if they drive something."""

    def __init__(self, name: str, params: Sequence[Param]) -> None:
        super().__init__(name)
        self.params = Parameters(self, [AUTOSTART, EXECUTOR, *params], self.on_parameters)
        self.diagnostics = Diagnostics(self, self.diagnose)
        self.active = False
        self.exit_code: int | None = None

    def setup(self) -> None:
        """Load and connect; an exception refuses to configure, with its message."""
        raise NotImplementedError

    def start(self) -> None:
        """The gate opens: begin anew."""

    def make_safe(self) -> None:
        """Bring what is driven to rest; called first whenever the gate closes."""

    def teardown(self) -> None:
        """Undo setup; must also work half-way through it."""

    def on_parameters(self) -> None:
        """A parameter changed while running."""

    def diagnose(self) -> dict[str, Any]:
        """Values for `/diagnostics` beside the counters."""
        return {}

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._guarded("configure", self.setup)
        if result != TransitionCallbackReturn.SUCCESS:
            self._guarded("clean up", self.teardown, keep_problem=True)
        return result

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._guarded("activate", self.start)
        self.active = result == TransitionCallbackReturn.SUCCESS
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("deactivate", self._shut_gate, keep_problem=True)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("clean up", self.teardown)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("shut down", self._shut_all, keep_problem=True)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("recover", self._shut_all, keep_problem=True)

    def begin(self) -> None:
        """Autostart; a refusal ends the program, since nobody asked who could act on the answer."""
        if self.params.autostart:
            for transition in (self.trigger_configure, self.trigger_activate):
                if self.exit_code is None and transition() != TransitionCallbackReturn.SUCCESS:
                    self.exit_code = 1

    def busy(self) -> bool:
        """See PlainNode."""
        return False

    def close(self) -> None:
        """The program ends: safe action first, then the final state."""
        self.trigger_shutdown()

    def failed(self, error: Exception) -> None:
        """A callback raised: safe action, then inactive, so that an operator can look and activate again."""
        self.diagnostics.problem = f"{type(error).__name__}: {error}"
        if self.active:
            self.trigger_deactivate()

    def _shut_gate(self) -> None:
        was_active, self.active = self.active, False
        if was_active:
            self.make_safe()

    def _shut_all(self) -> None:
        self._shut_gate()
        self.teardown()

    def _guarded(
        self, verb: str, work: Callable[[], None], keep_problem: bool = False
    ) -> TransitionCallbackReturn:
        """Do a transition's work. What it raises is logged here: rclpy turns it into ERROR without a word."""
        try:
            work()
        except (ValueError, OSError) as error:  # refusals that explain themselves
            self.diagnostics.problem = f"cannot {verb}: {error}"
            self.get_logger().error(self.diagnostics.problem)
            return TransitionCallbackReturn.FAILURE if verb in ("configure", "activate") else _ERROR
        except Exception as error:
            self.diagnostics.problem = f"cannot {verb}: {type(error).__name__}: {error}"
            self.get_logger().error(f"{self.diagnostics.problem}\n{traceback.format_exc()}")
            return _ERROR
        if not keep_problem:
            self.diagnostics.problem = ""
        return TransitionCallbackReturn.SUCCESS


_ERROR = TransitionCallbackReturn.ERROR


def run(node_class: Callable[[], PlainNode | ManagedNode]) -> int:
    """Run one node until a signal or its own end; returns the program's exit code."""
    caught: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _frame: caught.append(received))
    _die_with_parent()
    rclpy.init(
        signal_handler_options=SignalHandlerOptions.NO
    )  # rclpy's own would close ROS before the safe action
    try:
        node = node_class()
    except (ValueError, OSError, InvalidParameterTypeException, InvalidParameterValueException) as error:
        print(f"{os.path.basename(sys.argv[0])}: cannot start: {error}", file=sys.stderr, flush=True)
        rclpy.shutdown()
        return 1
    executor = _executor(node)
    executor.add_node(node)
    once = steady_timer(node, 0.0, lambda: (once.cancel(), _begin(node)))
    try:
        while not caught and node.exit_code is None:
            _spin_once(executor, node, POLL_S)
        deadline_s = time.monotonic() + STOP_S
        while node.busy() and time.monotonic() < deadline_s:
            _spin_once(executor, node, POLL_S)
        node.close()
    except ExternalShutdownException:
        pass
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    return node.exit_code or 0


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


def _begin(node: PlainNode | ManagedNode) -> None:
    node.begin()
    if node.exit_code is None:
        node.get_logger().info(READY)


def _spin_once(executor: Executor, node: PlainNode | ManagedNode, timeout_s: float) -> None:
    try:
        executor.spin_once(timeout_sec=timeout_s)
    except ExternalShutdownException:
        raise
    except Exception as error:
        node.get_logger().fatal(f"a callback failed: {error}\n{traceback.format_exc()}")
        node.failed(error)


def _die_with_parent() -> None:
    """Get SIGTERM when the program that started this node is gone, however it ended."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it ended before the line above
        raise SystemExit(1)
