# SPDX-License-Identifier: Apache-2.0
"""Faults of commands in arrays without names, in which only the place of a number says which joint it is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from faults import bag_injections as inject
from faults.bag_table import Fault, refusal
from support.contracts import action_section
from support.recorded_bags import STORE, Sample

ARRAY = "std_msgs/msg/Float64MultiArray"


def in_arrays(place: Callable[[float, float], list[float]]) -> inject.Adapt:
    """Commands as arrays without names; `place` puts shoulder and elbow into them."""

    def adapt(samples: list[Sample]) -> list[Sample]:
        layout = STORE.types["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0)
        return [
            Sample(s.topic, ARRAY, s.receive_ns, STORE.types[ARRAY](layout, np.array(place(*s.message.effort))))
            if s.topic == "/joint_commands"
            else s
            for s in samples
        ]

    return adapt


def contract(*fields: str) -> dict[str, Any]:
    """The section `action` for these elements."""
    section = action_section(list(fields), [2000] * len(fields), [1e6] * len(fields), type=ARRAY)
    return {"action": {**section, "clock": "receive"}}


WALL = inject.on_wall_time

COMMANDS = (
    Fault("elements in another order", "Commands are arrays of elbow and shoulder; the contract names data.1, "
          "data.0.", "Nothing changes: each number goes by its place, when it is read and when it is sent.", WALL,
          in_arrays(lambda shoulder, elbow: [elbow, shoulder]), contract=contract("data.1", "data.0"),
          by_definition=False),
    refusal("a hole in a command", "Commands are arrays whose first element never changes; the contract names the "
            "other two.", "Refused: the policy would send two numbers, and each joint would take its neighbour's.",
            "action.fields leaves out data.0: elements of an array without names go by their places", change=WALL,
            adapt=in_arrays(lambda shoulder, elbow: [0.0, shoulder, elbow]), contract=contract("data.1", "data.2")),
    refusal("a command that is longer than the contract", "Commands are arrays whose last element never changes; the "
            "contract names the other two.", "Refused: the policy would send arrays that are too short.",
            "'data' has 3 elements, the contract's action names 2; a robot takes each by its place, so list all of "
            "data.0 to data.2", change=WALL,
            adapt=in_arrays(lambda shoulder, elbow: [shoulder, elbow, 0.0]), contract=contract("data.0", "data.1")),
)  # fmt: skip
