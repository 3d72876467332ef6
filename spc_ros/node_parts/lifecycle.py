# SPDX-License-Identifier: Apache-2.0
"""A lifecycle node reduced to two methods, setup and teardown."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from rclpy._rclpy_pybind11 import RCLError
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from spc_core.deploy.health import Health, Level
from spc_ros.node_parts.diagnostics import Diagnostics
from spc_ros.node_parts.plain_node import EXECUTOR, Param, Parameters

_ERROR = TransitionCallbackReturn.ERROR
AUTOSTART = Param("autostart", True, "configure and activate at start", read_only=True)


class ManagedNode(LifecycleNode):
    """A lifecycle node. Subclasses implement `setup` and `teardown`, and `stop_safely` if they move a robot."""

    def __init__(self, name: str, params: Sequence[Param]) -> None:
        super().__init__(name)
        self.params = Parameters(self, [AUTOSTART, EXECUTOR, *params], self.on_parameters)
        self.diagnostics = Diagnostics(self, self.each_second, self.diagnose, self.health)
        self.active = False
        self.exit_code: int | None = None
        self._reason = ""  # of the next transition; empty: requested from outside
        self._permanent: dict[Any, Any] = {}  # what clean-up keeps
        self._change_state = self._service_change_state.callback
        self._service_change_state.callback = self._on_change_state

    def setup(self) -> None:
        """Load and connect; an exception refuses the transition with its message.

        Publishers, subscriptions, services and timers made here are destroyed at clean-up.
        """
        raise NotImplementedError

    def start(self) -> None:
        """Called on activation."""

    def stop_safely(self) -> None:
        """Bring the robot to rest; called first on every deactivation."""

    def teardown(self) -> None:
        """Release what setup loaded."""

    def on_parameters(self) -> None:
        """Called when a parameter has changed."""

    def diagnose(self) -> dict[str, Any]:
        """Values for `/diagnostics`, in addition to the counters."""
        return {}

    def activates(self) -> bool:
        """Whether autostart activates the node, or only configures it."""
        return True

    def each_second(self, now_s: float) -> None:
        """Called once a second, before `health`; `now_s` is steady."""

    def health(self, now_s: float) -> Health:
        """The level on `/diagnostics` while nothing worse is known; `now_s` is steady."""
        return Health() if self.active else Health(Level.WARN, "inactive")

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._permanent = self._entities()
        result = self._guarded("configure", self.setup)
        if result != TransitionCallbackReturn.SUCCESS:
            self._guarded("clean up", self._clean, keep_problem=True)
        self.params.configured = result == TransitionCallbackReturn.SUCCESS
        return result

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._guarded("activate", self.start)
        gc.collect()
        gc.freeze()  # loaded objects stay; collecting over all of torch would take longer than a period
        self.active = result == TransitionCallbackReturn.SUCCESS
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("deactivate", self._deactivate, keep_problem=True)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("clean up", self._clean)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("shut down", self._shut_down, keep_problem=True)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("recover", self._shut_down, keep_problem=True)

    def begin(self) -> None:
        """Autostart; a refusal ends the program, since no operator waits for the answer."""
        if self.params.autostart:
            self._reason = "autostart"
            transitions = [self.trigger_configure, *([self.trigger_activate] if self.activates() else [])]
            for transition in transitions:
                if self.exit_code is None and transition() != TransitionCallbackReturn.SUCCESS:
                    self.exit_code = 1

    def busy(self) -> bool:
        """See PlainNode."""
        return False

    def close(self) -> None:
        """Send the safe action, then enter the final state."""
        if self._state_machine.current_state[1] != "finalized":
            self._reason = "the program ends"
            self.trigger_shutdown()

    def failed(self, error: Exception) -> None:
        """After an error in a callback: safe action, then inactive, so that an operator can inspect and reactivate."""
        self.deactivate(f"{type(error).__name__}: {error}")

    def deactivate(self, reason: str) -> None:
        """Deactivate; `/diagnostics` shows the reason until the next activation."""
        self.diagnostics.problem = reason
        if self.active:
            self._reason = reason
            self.trigger_deactivate()

    def _on_change_state(self, request: Any, response: Any) -> Any:
        """Refuse a transition that the state does not have, such as activating twice.

        rclpy 7.1.6 raises instead, so that the caller gets no answer, and this node would deactivate itself.
        """
        try:
            return self._change_state(request, response)
        except RCLError as error:
            state, asked = self._state_machine.current_state[1], request.transition
            text = f"transition {asked.label or asked.id} refused in state {state}: {str(error).partition(', at ')[0]}"
            self.get_logger().warning(text)
            response.success = False
            return response

    def _deactivate(self) -> None:
        was_active, self.active = self.active, False
        if was_active:
            self.stop_safely()

    def _shut_down(self) -> None:
        self._deactivate()
        self._clean()

    def _clean(self) -> None:
        self.params.configured = False
        self.teardown()
        for entity, destroy in self._entities().items():
            if entity not in self._permanent:
                destroy(entity)

    def _entities(self) -> dict[Any, Callable[[Any], bool]]:
        """Everything the node has registered with ROS, with its destructor."""
        return {
            **dict.fromkeys(self.subscriptions, self.destroy_subscription),
            **dict.fromkeys(self.services, self.destroy_service),
            **dict.fromkeys(self.timers, self.destroy_timer),
            **dict.fromkeys(self.publishers, self.destroy_publisher),
        }

    def _guarded(self, verb: str, work: Callable[[], None], keep_problem: bool = False) -> TransitionCallbackReturn:
        """Run a transition's work and log its exceptions, which rclpy turns into ERROR silently."""
        try:
            work()
        except (ValueError, OSError) as error:  # their messages are complete
            self.diagnostics.problem = f"cannot {verb}: {error}"
            self.get_logger().error(self.diagnostics.problem)
            return TransitionCallbackReturn.FAILURE if verb in ("configure", "activate") else _ERROR
        except Exception as error:
            self.diagnostics.problem = f"cannot {verb}: {type(error).__name__}: {error}"
            self.get_logger().error(f"{self.diagnostics.problem}\n{traceback.format_exc()}")
            return _ERROR
        if not keep_problem:
            self.diagnostics.problem = ""
        reason, self._reason = self._reason or "as requested", ""
        self.get_logger().info(f"{verb}: done, {reason}")
        return TransitionCallbackReturn.SUCCESS
