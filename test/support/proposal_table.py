# SPDX-License-Identifier: Apache-2.0
"""What `spc contract init` is to propose for each robot of robot_kinds.py, and docs/proposals.md of it."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

from support.robot_kinds import BODY, KINDS, LEGS, PANDA, UR
from support.robot_streams import RobotKind

ZERO = "zeros"
ASKED = "left to fill in"


@dataclasses.dataclass(frozen=True)
class Observed:
    """A stream of the proposal, with its fields in words for the page."""

    topic: str
    words: str
    fields: tuple[Any, ...]  # as in the YAML


@dataclasses.dataclass(frozen=True)
class Proposal:
    """What is expected for a robot."""

    kind: str
    observed: tuple[Observed, ...]
    action: Observed | tuple[Observed, ...]
    rate_hz: float
    safe: str
    says: tuple[str, ...] = ()  # parts of the comments
    page: str = ""  # what the page adds

    @property
    def actions(self) -> tuple[Observed, ...]:
        """The topics of the action."""
        return self.action if isinstance(self.action, tuple) else (self.action,)

    @property
    def robot(self) -> RobotKind:
        return next(kind for kind in KINDS if kind.name == self.kind)


def of_joints(names: Sequence[str], *arrays: str) -> tuple[str, ...]:
    return tuple(f"{array}.{name}" for array in arrays for name in names)


def turned(path: str) -> dict[str, str]:
    return {"field": path, "as": "rotation_6d"}


def xyz(path: str, axes: str = "xyz") -> tuple[str, ...]:
    return tuple(f"{path}.{axis}" for axis in axes)


def imu(topic: str) -> Observed:
    fields = (turned("orientation"), *xyz("angular_velocity"), *xyz("linear_acceleration"))
    return Observed(topic, "orientation, angular velocity, acceleration", fields)


def odometry(topic: str) -> Observed:
    place = (*xyz("pose.pose.position", "xy"), turned("pose.pose.orientation"))
    return Observed(topic, "place, heading, speeds", (*place, "twist.twist.linear.x", "twist.twist.angular.z"))


def scan(topic: str, count: int) -> Observed:
    """24 of `count` beams: the middle of each of 24 equal parts."""
    beams = [{"field": f"ranges.{count // 24 * i + count // 48}", "clip": [0, 12]} for i in range(24)]
    return Observed(topic, "24 beams", tuple(beams))


def wrench(topic: str) -> Observed:
    return Observed(topic, "force, torque", (*xyz("wrench.force"), *xyz("wrench.torque")))


def joints(names: Sequence[str], *arrays: str) -> Observed:
    return Observed("joint_states", f"{' and '.join(arrays)} of {len(names)} joints", of_joints(names, *arrays))


def twist(*fields: str, topic: str = "cmd_vel") -> Observed:
    return Observed(topic, ", ".join(fields), fields)


FIX = ({"field": "latitude", "scale": 111320}, {"field": "longitude", "scale": 74343}, "altitude")
FIXES = "metres from the middle of the recordings"
PLACE = (*xyz("pose.position"), turned("pose.orientation"))
WHEELS = ["wheel_left_joint", "wheel_right_joint"]

PROPOSALS = (
    Proposal(
        "arm", (joints(UR, "position", "velocity"), wrench("force_torque_sensor_broadcaster/wrench")),
        Observed("forward_position_controller/commands", "6 elements", tuple(f"data.{i}" for i in range(6))),
        125, ASKED,
        ("data.0, data.1, data.2 and 3 more: positions: 0 is a place to go to",
         "all elements, also constant ones: the array has no names",
         "never changed, so that their limits hold them there: data.0",
         "the limits of the URDF are not used, since nothing tells which element is which joint",
         "speed_scaling (Float64): nothing in it is worth observing: data (never changes)",
         "tf (TFMessage): 1 transform, as parent->child: odom->base; to observe one"),
        "The first joint never moved. It is commanded all the same, within limits that hold it: an array without names "
        "is whole.",
    ),
    Proposal(
        "arm and gripper", (joints([*PANDA, "panda_finger_joint1", "panda_finger_joint2"], "position", "velocity"),),
        (Observed("panda_arm_controller/joint_trajectory", "positions of 7 joints", of_joints(PANDA, "positions")),
         Observed("panda_hand_controller/commands", "2 elements", ("data.0", "data.1"))),
        10, ASKED,
        ("low: [-2.9, -2.9, -2.9, -2.9, -2.9, -2.9, -2.9] # from the URDF", "Limits of joints: robot_description",
         "action: # 2 topics, each with its part; a tick needs a command on each of them",
         "the slowest command at 10.0 Hz"),
        "Limits of the arm are the URDF's. The gripper has a topic of its own, so that the action is a list of two. It "
        "is commanded at 10 Hz, and each tick needs both commands: repeat its command at 50 Hz to have the arm's rate.",
    ),
    Proposal(
        "mobile base",
        (imu("imu"), Observed("joint_states", "velocity of 2 wheels", of_joints(WHEELS, "velocity")), odometry("odom"),
         scan("scan", 360)),
        twist("linear.x", "angular.z"), 20, ZERO,
        ("position.wheel_left_joint, position.wheel_right_joint (turns without end",
         "odometer (Float64): nothing in it is worth observing: data (a clock or a counter)",
         "voltage (only ever grows or shrinks, as a counter or an odometer does)",
         "goal_pose (PoseStamped): came once: an event", "0 is standing still"),
        "Left out: wheels that turn without end, the odometer, the battery's voltage, a goal that came once.",
    ),
    Proposal(
        "quadruped", (joints(LEGS, "position", "velocity"), odometry("odom"), imu("imu/data")),
        Observed("joint_group_effort_controller/joint_trajectory", "positions of 12 joints",
                 of_joints(LEGS, "positions")), 200, ASKED,
        ("not sent by this action: cmd_vel (geometry_msgs/msg/Twist), 80 messages", "# - topic: foot_forces"),
        "`cmd_vel`, which drives the controller above the joints, is named as the other choice; the foot forces are "
        "commented out, since nothing tells what the array is.",
    ),
    Proposal(
        "drone",
        (imu("imu/data"), Observed("local_position/pose", "place, orientation", PLACE),
         Observed("local_position/velocity_local", "speeds", (*xyz("twist.linear"), "twist.angular.z"))),
        Observed("setpoint_position/local", "place", xyz("pose.position")), 16.67, ASKED,
        ("a tick is every 3 states, so that each period has a command",
        "pose.position.x, pose.position.y, pose.position.z: positions: 0 is a place to go to",
         "never changed, so that their limits hold them there: pose.position.z", "low: [-3.4, -3.4, 1.998]",
         "global_position/global (NavSatFix): 8 messages, too few to judge"),
        "The height never changed, but 0 would be the ground: it is commanded, and held at 2 m. The IMU comes at 50 Hz "
        "and the goal at 20 Hz: every third message makes a tick, since at 20 Hz some periods would have no command.",
    ),
    Proposal(
        "underwater vehicle",
        (imu("imu/data"), Observed("dvl/velocity", "speeds", xyz("twist.twist.linear")),
         Observed("pressure", "pressure", ("fluid_pressure",))),
        twist("linear.x", "linear.y", "linear.z", "angular.z"), 16.67, ZERO,
        ("Topics are relative to the namespace /bluerov2", "max_age_s: 0.32", "units: fluid_pressure Pa"),
        "The slow Doppler log does not set the ticks, and may be 0.32 s old.",
    ),
    Proposal(
        "boat", (imu("imu/data"), odometry("gps/odometry"), Observed("gps/fix", FIXES, FIX)),
        twist("linear.x", "angular.z"), 10, ZERO,
        ("# - topic: wind_speed", "metres north and east of the middle of the recordings"),
        "Twelve fixes in eight seconds are observed, but the IMU sets the ticks.",
    ),
    Proposal(
        "boat with two thrusters",
        (Observed("sensors/gps/gps/fix", FIXES, FIX), imu("sensors/imu/imu/data")), 
        (Observed("thrusters/left/thrust", "data", ("data",)), Observed("thrusters/right/thrust", "data", ("data",))),
        20, ZERO, (),
        "Each thruster has a topic, so that the action is a list of two. The fixes set the ticks, in step with the "
        "commands at 20 Hz; the IMU comes at 50 Hz.",
    ),
    Proposal(
        "scan only", (scan("scan", 720),), twist("linear.x", "angular.z"), 10, ZERO,
        ("24 beams, evenly spaced over the scan; where nothing is hit, they read the longest range",),
        "A beam without a return is infinite; it is read as the sensor's range.",
    ),
    Proposal(
        "Ackermann car", (scan("scan", 1080), odometry("odom")),
        twist("drive.steering_angle", "drive.speed", topic="drive"), 40, ZERO,
        ("0 is straight ahead; 0 is standing still", "the policy cannot publish ackermann_msgs",
         "units: drive.steering_angle rad; drive.speed m/s"),
        "The text says that the policy node cannot publish ackermann_msgs, so that a relay is needed.",
    ),
    Proposal(
        "humanoid",
        (joints(BODY, "position", "velocity"), imu("imu/data"), wrench("left_foot/wrench"),
         wrench("right_foot/wrench")),
        Observed("joint_commands", "position of 16 joints", of_joints(BODY, "position")), 100, ASKED,
        ("# from the URDF", "the URDF's velocity of positions"),
        "Limits and rates are the URDF's.",
    ),
    Proposal(
        "base told only of changes", (odometry("odom"),), twist("linear.x", "angular.z"), 50, ZERO,
        ("hold: true # 12 commands for 400 states, irregular, none equal to the one before",),
        "Commands come only when they change, so the contract says that the last one holds.",
    ),
)  # fmt: skip

HEAD = """# Contracts that are proposed

`spc contract init` proposes a contract from recordings ([doctor.md](doctor.md#a-contract-from-a-bag)). Each row is a
test: a robot of this kind is recorded with the topics, types and rates that its drivers publish
(`test/support/robot_kinds.py`), and the proposal is compared with what an engineer would accept
(`test/doctor/test_robot_kinds.py`). "Left to fill in" means that the file is refused until you write `safe`, because
nothing in the recording tells which command is safe. `tools/write_proposals_page.py` writes this page.

| Robot | Recorded | Observed; the first one sets the ticks | Action | Rate | `safe` |
|---|---|---|---|---|---|
"""


def document() -> str:
    rows, notes = [], []
    for proposal in PROPOSALS:
        recorded = ", ".join(f"`{stream.topic}`" for stream in proposal.robot.streams)
        observed = "<br>".join(f"`{stream.topic}`: {stream.words}" for stream in proposal.observed)
        action = "<br>".join(f"`{part.topic}`: {part.words}" for part in proposal.actions)
        rows.append(
            f"| {proposal.kind} | {recorded} | {observed} | {action} | {proposal.rate_hz:g} Hz | {proposal.safe} |"
        )
        notes.append(textwrap.fill(f"- **{proposal.kind}**: {proposal.page}", 120, subsequent_indent="  "))
    return HEAD + "\n".join(rows) + "\n\nWhat is worth knowing of each:\n\n" + "\n".join(notes) + "\n"
