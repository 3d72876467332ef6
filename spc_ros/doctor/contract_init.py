# SPDX-License-Identifier: Apache-2.0
"""`spc contract init`: proposes a contract from the bags of a robot: all but the reward, each line with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from spc_ros.doctor.contract_design import design
from spc_ros.doctor.contract_text import contract_text
from spc_ros.doctor.recorded_robot import read_robot
from spc_ros.doctor.urdf_limits import DescriptionError, JointLimits, read_urdf


def propose(
    paths: Sequence[str | Path] | str | Path,
    urdf: Path | None = None,
    definitions: Mapping[str, str] | None = None,
    reward: str = "ask",
) -> str:
    """The YAML text of a contract for the robot in the bags, what a recording cannot tell left to the user.

    The limits come from `urdf`, else from a description in the bags. `definitions`: text of .msg files by type name,
    for types that the bags do not define. `reward`: ask for it, or propose terms, or the recorded topic.
    Raises BagError and DescriptionError.
    """
    paths = [paths] if isinstance(paths, str | Path) else paths
    robot = read_robot(paths, definitions)
    source, joints = "", dict[str, JointLimits]()
    if urdf is not None:
        try:
            text = urdf.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise DescriptionError(f"{urdf}: cannot be read ({error.strerror}); give the robot's URDF") from None
        source, joints = urdf.name, read_urdf(text, str(urdf))
    elif robot.description:
        try:
            source, joints = "robot_description", read_urdf(robot.description, "robot_description")
        except DescriptionError as error:
            source = f"none; {error}"
    return contract_text(design(robot, joints), source, reward)
