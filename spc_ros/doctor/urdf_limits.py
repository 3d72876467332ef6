# SPDX-License-Identifier: Apache-2.0
"""The limits of a robot's joints from its URDF, as a file or as recorded on /robot_description."""

from __future__ import annotations

import dataclasses
import math
import xml.etree.ElementTree as ElementTree

MAX_CHARACTERS = 20_000_000  # of a description; real ones have thousands


class DescriptionError(ValueError):
    """A robot description that cannot be read; the message says why."""


@dataclasses.dataclass(frozen=True)
class JointLimits:
    """What a URDF says of a joint; NaN where it does not."""

    kind: str  # revolute | prismatic | continuous | ...
    lower: float = math.nan
    upper: float = math.nan
    velocity: float = math.nan
    effort: float = math.nan

    @property
    def slides(self) -> bool:
        return self.kind == "prismatic"

    def of(self, kind: str) -> tuple[float, float] | None:
        """(lowest, highest) position, velocity or effort; None where the URDF does not say."""
        if kind == "position":
            bounded = self.kind in ("revolute", "prismatic") and self.lower < self.upper
            return (self.lower, self.upper) if bounded else None
        most = {"velocity": self.velocity, "effort": self.effort}.get(kind, math.nan)
        return (-most, most) if most > 0 else None


def read_urdf(text: str, where: str) -> dict[str, JointLimits]:
    """The joints of a URDF by name. Raises DescriptionError; `where` names the text in it."""
    if len(text) > MAX_CHARACTERS or "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DescriptionError(f"{where}: not a URDF (too long, or with a document type); give the file of the robot")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise DescriptionError(
            f"{where}: not XML ({error}); give a URDF, of a xacro file the output of xacro"
        ) from None
    joints = {}
    for joint in root.findall("joint"):
        limit = joint.find("limit")
        numbers = {} if limit is None else {key: _number(limit.get(key)) for key in ("velocity", "effort")}
        if limit is not None:
            numbers |= {key: _number(limit.get(key, "0")) for key in ("lower", "upper")}  # 0 where left out
        joints[joint.get("name", "")] = JointLimits(joint.get("type", ""), **numbers)
    if root.tag != "robot" or not joints:
        raise DescriptionError(f"{where}: not a URDF but <{root.tag}> with {len(joints)} joints; give the robot's URDF")
    return joints


def _number(text: str | None) -> float:
    try:
        value = float(text or "nan")
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
