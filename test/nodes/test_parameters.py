# SPDX-License-Identifier: Apache-2.0
"""Every parameter of every node: described, in a range, and a change that is refused says why."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import rclpy
from rclpy.context import Context
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter

from spc_ros.node_parts.lifecycle import AUTOSTART, ManagedNode
from spc_ros.node_parts.plain_node import EXECUTOR, Param, Parameters
from support.node_probe import own_domain
from support.parameter_files import NODES, parameters


@pytest.fixture
def context() -> Iterator[Context]:
    context = Context()
    rclpy.init(context=context, domain_id=int(own_domain()["ROS_DOMAIN_ID"]))
    yield context
    rclpy.shutdown(context=context)


def node_params(name: str) -> list[Param]:
    return list(importlib.import_module(f"spc_ros.nodes.{name}").PARAMS)


class Toy(Node):
    """Holds the parameters of a node without its work."""

    def __init__(self, context: Context, name: str) -> None:
        super().__init__(name, context=context, start_parameter_services=False)
        self.params = Parameters(self, [EXECUTOR, *node_params(name)])

    def refusal(self, name: str, value: Any) -> str:
        """Why a change is refused; empty when it is not."""
        result = self.set_parameters([Parameter(name, value=value)])[0]
        assert result.successful != bool(result.reason), (name, value)
        return result.reason


def another(param: Param) -> Any:
    """A value of the right type, in the range, that is not the default."""
    if param.choices:
        return next(choice for choice in param.choices if choice != param.default)
    if isinstance(param.default, bool):
        return not param.default
    if isinstance(param.default, (int, float)):
        return type(param.default)(param.high if param.high is not None else param.default + 1)
    return [*param.default, *param.default] if isinstance(param.default, list) else "other"


@pytest.mark.parametrize("name", NODES)
def test_every_parameter_tells_what_it_is_and_refuses_what_cannot_be(name: str, context: Context) -> None:
    node = Toy(context, name)
    for param in [EXECUTOR, *node_params(name)]:
        told = node.describe_parameter(param.name)
        assert told.description == param.meaning and len(param.meaning) > 5
        number = isinstance(param.default, (int, float)) and not isinstance(param.default, bool)
        assert number == bool(told.integer_range or told.floating_point_range), f"{param.name}: numbers have a range"
        assert "cannot change" in (reason := node.refusal(param.name, [b"x"])) or "Wrong parameter type" in reason
        if number:
            for beyond in (param.low - 1, param.high * 2 + 1):  # type: ignore[operator]
                reason = node.refusal(param.name, type(param.default)(beyond))
                assert param.read_only or f"{param.name} out of range" in reason, reason
        if param.choices:
            reason = node.refusal(param.name, "nonsense")
            assert param.read_only or reason.endswith(f"use one of: {', '.join(param.choices)}")
        reason = node.refusal(param.name, another(param))
        if param.read_only:
            assert reason == f"{param.name} cannot change: {param.why}; start the node with another value"
            assert "fixed while the node runs" in told.additional_constraints
        else:
            assert not reason and getattr(node.params, param.name) == another(param)
    node.destroy_node()


@pytest.mark.parametrize("name", ["context_encoder", "policy"])
def test_what_configure_has_read_is_fixed_until_clean_up(name: str, context: Context) -> None:
    node = Toy(context, name)
    fixed = [param for param in node_params(name) if param.at_configure]
    assert {"contract", "lockstep"} <= {param.name for param in fixed}
    node.params.configured = True
    for param in fixed:
        reason = node.refusal(param.name, another(param))
        assert reason == f"{param.name} cannot change while the node is configured; deactivate and clean up first"
        assert getattr(node.params, param.name) == param.default
        assert "while the node is configured" in node.describe_parameter(param.name).additional_constraints
    assert not node.refusal("checkpoint", "other"), "the next swap reads it"
    node.params.configured = False
    assert not any(node.refusal(param.name, another(param)) for param in fixed)
    node.destroy_node()


class Lifecycle(ManagedNode):
    """Reads one parameter at configure."""

    def __init__(self) -> None:
        super().__init__("lifecycle", [Param("gain", 1.0, "a gain", 0.0, 9.0, at_configure=True)])
        self.fail = False

    def setup(self) -> None:
        if self.fail:
            raise ValueError("as told")


def test_a_lifecycle_node_knows_when_it_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", own_domain()["ROS_DOMAIN_ID"])
    rclpy.init()
    try:
        node = Lifecycle()

        def change(value: float) -> bool:
            return node.set_parameters([Parameter("gain", value=value)])[0].successful

        node.fail = True
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE and change(2.0)
        node.fail = False
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS and not change(3.0)
        node.trigger_activate()
        assert not change(3.0)
        node.trigger_deactivate()
        assert not change(3.0) and node.params.gain == 2.0
        node.trigger_cleanup()
        assert change(3.0) and node.params.gain == 3.0
        assert node.describe_parameter(AUTOSTART.name).description == AUTOSTART.meaning
        node.destroy_node()
    finally:
        rclpy.shutdown()


def test_defaults_of_the_file_are_taken_by_every_node(context: Context) -> None:
    for name in NODES:
        node = Toy(context, name)
        params = {param.name: param for param in node_params(name)}
        for key, value in parameters("nodes.yaml")[name].items():
            if key in params and not params[key].read_only:
                assert not node.refusal(key, value), (name, key)
        node.destroy_node()
