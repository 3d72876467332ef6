# SPDX-License-Identifier: Apache-2.0
"""The services of simulation_interfaces on the node `sim`, where that package is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node

from spc_ros.sim.control import Player, SimControl


def offer_simulation_interfaces(node: Node, player: Player) -> list[Any]:
    """Offer ~/get_simulator_features, ~/get_simulation_state, ~/set_simulation_state, ~/reset_simulation and
    ~/step_simulation; none, and one line in the log, where the package cannot be imported."""
    try:
        from simulation_interfaces import srv  # pyright: ignore[reportMissingImports]
    except ImportError:
        node.get_logger().info("the package simulation_interfaces is not installed: none of its services")
        return []
    control = SimControl(player)
    return [
        node.create_service(srv.GetSimulatorFeatures, "~/get_simulator_features", control.features),
        node.create_service(srv.GetSimulationState, "~/get_simulation_state", control.state),
        node.create_service(srv.SetSimulationState, "~/set_simulation_state", control.set_state),
        node.create_service(srv.ResetSimulation, "~/reset_simulation", control.reset),
        LateService(node, srv.StepSimulation, "~/step_simulation", control.step),
    ]


class LateService:
    """A service that can answer after its callback has returned.

    rclpy's events executor runs no coroutines, so the answer itself is put off: the executor hands `send_response`
    what the callback returned, here the answer-to-be.
    """

    def __init__(self, node: Node, kind: Any, name: str, handler: Callable[[Any, Any, Callable], None]) -> None:
        self._handler = handler
        self._service = node.create_service(kind, name, self._on_request)
        self._send = self._service.send_response
        self._service.send_response = self._hold  # type: ignore[method-assign]

    def _on_request(self, request: Any, response: Any) -> _Answer:
        answer = _Answer(self._send)
        self._handler(request, response, answer.give)
        return answer

    @staticmethod
    def _hold(answer: _Answer, header: Any) -> None:
        answer.address(header)


class _Answer:
    """Is sent as soon as both the response and whom it is for are known."""

    def __init__(self, send: Callable[[Any, Any], None]) -> None:
        self._send, self._response, self._header = send, None, None

    def give(self, response: Any) -> None:
        self._response = response
        self._send_whole()

    def address(self, header: Any) -> None:
        self._header = header
        self._send_whole()

    def _send_whole(self) -> None:
        if self._response is not None and self._header is not None:
            self._send(self._response, self._header)
