# SPDX-License-Identifier: Apache-2.0
"""A lifecycle of two methods, setup and teardown, and the main program of every node, with a safe end."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions

from spc_core.system.signals import end_with_parent
from spc_ros.node_parts.plain_node import EXECUTOR, Diagnostics, Param, Parameters, PlainNode, steady_timer
from spc_ros.processes import PARENT_VARIABLE

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
POLL_S = 0.1  # how soon a signal is noticed
LINGER_S = 0.1  # from the last words of a node to its end
STOP_S = 3.0  # longest time to finish what is under way
READY = "ready"  # the line that spc_ros.processes waits for
AUTOSTART = Param("autostart", True, "configure and activate by itself at start", read_only=True)


class ManagedNode(LifecycleNode):
    """A lifecycle node. Subclasses write `setup` and `teardown`, and `make_safe` if they drive something."""

    def __init__(self, name: str, params: Sequence[Param]) -> None:
        super().__init__(name)
        self.params = Parameters(self, [AUTOSTART, EXECUTOR, *params], self.on_parameters)
        self.diagnostics = Diagnostics(self, self.diagnose)
        self.active = False
        self.exit_code: int | None = None
        self._reason = ""  # of the next transition; empty: somebody asked for it
        self._permanent = self._entities()

    def setup(self) -> None:
        """Load and connect; an exception refuses to configure, with its message.

        Publishers, subscriptions, services and timers made here are destroyed at clean-up.
        """
        raise NotImplementedError

    def start(self) -> None:
        """The gate opens: begin anew."""

    def make_safe(self) -> None:
        """Bring what is driven to rest; called first whenever the gate closes."""

    def teardown(self) -> None:
        """Drop what setup loaded."""

    def on_parameters(self) -> None:
        """A parameter changed while running."""

    def diagnose(self) -> dict[str, Any]:
        """Values for `/diagnostics` beside the counters."""
        return {}

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._guarded("configure", self.setup)
        if result != TransitionCallbackReturn.SUCCESS:
            self._guarded("clean up", self._clean, keep_problem=True)
        self.params.configured = result == TransitionCallbackReturn.SUCCESS
        return result

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._guarded("activate", self.start)
        gc.collect()
        gc.freeze()  # what was loaded stays; to look through all of torch for garbage takes longer than a period
        self.active = result == TransitionCallbackReturn.SUCCESS
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("deactivate", self._shut_gate, keep_problem=True)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("clean up", self._clean)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("shut down", self._shut_all, keep_problem=True)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("recover", self._shut_all, keep_problem=True)

    def begin(self) -> None:
        """Autostart; a refusal ends the program, since nobody asked who could act on the answer."""
        if self.params.autostart:
            self._reason = "autostart"
            for transition in (self.trigger_configure, self.trigger_activate):
                if self.exit_code is None and transition() != TransitionCallbackReturn.SUCCESS:
                    self.exit_code = 1

    def busy(self) -> bool:
        """See PlainNode."""
        return False

    def close(self) -> None:
        """The program ends: safe action first, then the final state."""
        if self._state_machine.current_state[1] != "finalized":
            self._reason = "the program ends"
            self.trigger_shutdown()

    def failed(self, error: Exception) -> None:
        """A callback raised: safe action, then inactive, so that an operator can look and activate again."""
        self.close_gate(f"{type(error).__name__}: {error}")

    def close_gate(self, reason: str) -> None:
        """Deactivate for a reason, which `/diagnostics` shows until the node is activated again."""
        self.diagnostics.problem = reason
        if self.active:
            self._reason = reason
            self.trigger_deactivate()

    def _shut_gate(self) -> None:
        was_active, self.active = self.active, False
        if was_active:
            self.make_safe()

    def _shut_all(self) -> None:
        self._shut_gate()
        self._clean()

    def _clean(self) -> None:
        self.params.configured = False
        self.teardown()
        for entity, destroy in self._entities().items():
            if entity not in self._permanent:
                destroy(entity)

    def _entities(self) -> dict[Any, Callable[[Any], bool]]:
        """All that the node has registered with ROS, and how to be rid of it."""
        return {
            **dict.fromkeys(self.subscriptions, self.destroy_subscription),
            **dict.fromkeys(self.services, self.destroy_service),
            **dict.fromkeys(self.timers, self.destroy_timer),
            **dict.fromkeys(self.publishers, self.destroy_publisher),
        }

    def _guarded(self, verb: str, work: Callable[[], None], keep_problem: bool = False) -> TransitionCallbackReturn:
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
        reason, self._reason = self._reason or "as asked", ""
        self.get_logger().info(f"{verb}: done, {reason}")
        return TransitionCallbackReturn.SUCCESS


_ERROR = TransitionCallbackReturn.ERROR


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
