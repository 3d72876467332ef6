# SPDX-License-Identifier: Apache-2.0
"""What the numbers of a topic are, by type, field and topic name: their units, and what 0 means as a command."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from spc_ros.messages.fields import JOINT_ARRAYS

Kind = str  # position | velocity | effort | steering | unknown
STILL = {  # the kinds whose 0 is known, and what it means
    "velocity": "0 is standing still",
    "effort": "0 is no force: standing still only where nothing else pulls (gravity, a current, a slope)",
    "steering": "0 is straight ahead",
}
MOST_M_S = 100.0  # faster "velocities" are something else, such as thrust in a Twist

_PARTS = {  # the part of a message that holds a number: (kind, unit)
    "position": ("position", "m"),
    "point": ("position", "m"),
    "translation": ("position", "m"),
    "orientation": ("position", ""),
    "rotation": ("position", ""),
    "quaternion": ("position", ""),
    "velocity": ("velocity", "m/s"),
    "linear": ("velocity", "m/s"),
    "angular": ("velocity", "rad/s"),
    "angular_velocity": ("velocity", "rad/s"),
    "linear_acceleration": ("unknown", "m/s^2"),
    "force": ("effort", "N"),
    "torque": ("effort", "N m"),
    "magnetic_field": ("unknown", "T"),
}
_NUMBERS = {  # the last name of a field
    "yaw": ("position", "rad"),
    "heading": ("position", "rad"),
    "yawspeed": ("velocity", "rad/s"),
    "speed": ("velocity", "m/s"),
    "acceleration": ("velocity", "m/s^2"),
    "jerk": ("velocity", "m/s^3"),
    "steering_angle": ("steering", "rad"),
    "steering_angle_velocity": ("steering", "rad/s"),
    "latitude": ("position", "degrees"),
    "longitude": ("position", "degrees"),
    "altitude": ("position", "m"),
    "fluid_pressure": ("unknown", "Pa"),
    "temperature": ("unknown", "C"),
    "range": ("unknown", "m"),
    "voltage": ("unknown", "V"),
    "current": ("unknown", "A"),
}
_JOINTS = {
    "position": ("position", "rad, or m where a joint slides"),
    "velocity": ("velocity", "rad/s, or m/s where a joint slides"),
    "acceleration": ("unknown", "rad/s^2"),
    "effort": ("effort", "N m, or N where a joint slides"),
}
_ARRAYS = {"positions": "position", "velocities": "velocity", "accelerations": "acceleration"}
_WORDS = {  # of the topic, for numbers whose type does not say what they are
    "position": r"position|positions|pos|pose|poses|joint_trajectory|angle|angles|posture|height|altitude|heading",
    "velocity": r"velocity|velocities|vel|speed|speeds|cmd_vel",
    "effort": r"effort|efforts|torque|torques|force|forces|wrench|thruster|thrusters",
}


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One number of a message."""

    kind: Kind
    unit: str  # '' where it has none or it is not known


def quantity(topic: str, type_name: str, field: str) -> Quantity:
    """What a field of a topic is."""
    if type_name in JOINT_ARRAYS:
        array = field.partition(".")[0]
        return Quantity(*_JOINTS[_ARRAYS.get(array, array)])
    *parts, last = field.split(".")
    if "Accel" in type_name and parts[-1:] in (["linear"], ["angular"]):
        return Quantity("unknown", "m/s^2" if parts[-1] == "linear" else "rad/s^2")
    if last in _NUMBERS:
        return Quantity(*_NUMBERS[last])
    for part in (*reversed(parts), last):
        if part in _PARTS:
            kind, unit = _PARTS[part]
            return Quantity("unknown" if _says(topic, "attitude") else kind, unit)
    if parts == ["ranges"]:
        return Quantity("unknown", "m")
    if re.search(r"/(Point|Pose|Pose2D|Transform)(32)?(Stamped)?$", type_name):
        return Quantity("position", "m")
    found = [kind for kind, words in _WORDS.items() if _says(topic, words)]
    return Quantity(found[0] if len(found) == 1 else "unknown", "")


def _says(topic: str, words: str) -> bool:
    return re.search(rf"(^|[/_])({words})($|[/_])", topic) is not None


def units(topic: str, type_name: str, fields: Sequence[str]) -> str:
    """'position m; linear m/s': the units of some fields, by the part of the message that holds them."""
    found: dict[str, str] = {}
    for field in fields:
        unit = quantity(topic, type_name, field).unit
        if unit:
            holder = field.rpartition(".")[0]
            is_part = holder.rpartition(".")[2] in (*_PARTS, "ranges")
            part = field.partition(".")[0] if type_name in JOINT_ARRAYS else holder if is_part else field
            found.setdefault(part, unit)
    return "; ".join(f"{part} {unit}" for part, unit in found.items())
