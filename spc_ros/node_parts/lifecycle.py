# SPDX-License-Identifier: Apache-2.0
"""A lifecycle node reduced to two methods, setup and teardown."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from spc_ros.node_parts.plain_node import EXECUTOR, Diagnostics, Param, Parameters

_ERROR = TransitionCallbackReturn.ERROR
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
