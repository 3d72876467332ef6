# SPDX-License-Identifier: Apache-2.0
"""Elements of arrays without names: only their places say what they are, so that a command has to hold all of them."""

from __future__ import annotations

from collections.abc import Sequence

JOINT_STATE = "sensor_msgs/msg/JointState"
JOINT_TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"
BY_NAME = (JOINT_STATE, JOINT_TRAJECTORY)  # their arrays go by joint name


def elements(fields: Sequence[str]) -> dict[str, dict[int, int]]:
    """By array, as 'data': the place of each element that is named by its number, and the index of its field."""
    found: dict[str, dict[int, int]] = {}
    for index, field in enumerate(fields):
        array, _, place = field.rpartition(".")
        if array and place.isdigit():
            found.setdefault(array, {})[int(place)] = index
    return found


def hole(type_name: str, fields: Sequence[str]) -> str:
    """What a command with these fields lacks, and the fix; '' where it is whole."""
    for array, places in elements(fields).items() if type_name not in BY_NAME else ():
        missing = [f"{array}.{place}" for place in range(max(places)) if place not in places]
        if missing:
            shown = ", ".join(missing[:8]) + (" ..." if len(missing) > 8 else "")
            return (
                f"leaves out {shown}: elements of an array without names go by their places, so that the robot would "
                f"take the numbers for those of their neighbours; list all of {array}.0 to {array}.{max(places)}, "
                f"also those that never change"
            )
    return ""
