# SPDX-License-Identifier: Apache-2.0
"""Which topic a proposal commands, with which fields, limits and safe command, and why there is none at times."""

import dataclasses

import numpy as np
import pytest
import yaml

from spc_ros.cli import main
from spc_ros.doctor.contract_init import propose
from spc_ros.doctor.urdf_limits import DescriptionError, read_urdf
from support.proposals import contract_of, proposal
from support.robot_kinds import DRIVE
from support.robot_streams import (
    RobotKind,
    Stream,
    T,
    floats,
    imu,
    joints,
    odometry,
    record_kind,
    text,
    trajectory,
    twist,
    urdf,
)

ARM = ["pan", "lift"]
STATES = joints(ARM, 50, arrays="pv")
JOINT_STATE = "sensor_msgs/msg/JointState"


def made(topic, make, hz=50.0, kind=JOINT_STATE):
    return Stream(topic, kind, make, hz)


def test_a_topic_of_one_message_is_not_the_action(tmp_path):
    once = twist("/cmd_vel", 0, [0], [2], at_s=(1.0,))
    said, known = proposal(tmp_path, STATES, once, joints(ARM, 50, "/arm_cmd", "v"))
    assert known["action"]["topic"] == "arm_cmd"
    assert "cmd_vel (Twist): a command, but came once in all, too few to learn from" in said


def test_without_a_command_the_file_says_why(tmp_path):
    still = floats("/arm/commands", 2, 50, still=[0, 1])
    said, known = proposal(tmp_path, STATES, still, twist("/cmd_vel", 0, [0], [2], at_s=(1.0, 2.0)))
    assert known["action"] == {"fill_in_the_action": True}
    assert "/arm/commands never changes in these bags; /cmd_vel came 2 times in all, too few to learn from." in said
    said, _ = proposal(tmp_path / "none", STATES)
    assert "action: # TODO: no topic looks like a command, by name and type." in said


@pytest.mark.parametrize("counts", [(10, 50), (50, 10)])
def test_of_equal_commands_the_number_of_messages_does_not_decide(tmp_path, counts):
    some, others = (twist(topic, hz, [0], [2]) for topic, hz in zip(("/cmd_vel", "/cmd_vel_nav"), counts, strict=True))
    said, known = proposal(tmp_path, odometry("/odom", 50), others, some)
    assert known["action"]["topic"] == "cmd_vel"
    assert f"not sent by this action: cmd_vel_nav (geometry_msgs/msg/Twist), {8 * counts[1]} messages" in said


def test_whole_numbers_are_no_command(tmp_path):
    kind = "std_msgs/msg/Int16"
    pulses = made("/motor/command", lambda m: T[kind](data=round(m.wave(1, 100, 1500))), 20, kind)
    said, known = proposal(tmp_path, STATES, pulses)
    assert "fill_in_the_action" in known["action"]
    assert "/motor/command holds whole numbers, which a policy does not send" in said


@pytest.mark.parametrize(
    ("spoilt", "why"),
    [
        (lambda s: [s, np.nan], "has elements that are NaN in every message: data.1"),
        (lambda s: [s, 1.0] if s < 4 else [s], "has an array whose length changes"),
        (lambda s: [s] * 70, "holds an array of 64 or more numbers"),
    ],
)
def test_an_array_that_cannot_be_whole_is_no_command(tmp_path, spoilt, why):
    kind = "std_msgs/msg/Float64MultiArray"
    layout = T["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0)
    arrays = made("/arm/commands", lambda m: T[kind](layout, np.array(spoilt(m.s), float)), 50, kind)
    said, known = proposal(tmp_path, STATES, arrays)
    assert "fill_in_the_action" in known["action"] and f"action: # TODO: /arm/commands {why}." in said


def test_nan_in_some_commands_is_told(tmp_path):
    kind = "std_msgs/msg/Float64MultiArray"
    layout = T["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0)
    arrays = made(
        "/arm/commands", lambda m: T[kind](layout, np.array([m.wave(1), np.nan if m.s < 1 else 1.0])), 50, kind
    )
    said, known = proposal(tmp_path, STATES, arrays)
    assert known["action"]["fields"] == ["data.0", "data.1"]
    assert "NaN at times, which drops these periods: data.1" in said


def test_measured_forces_and_unnamed_speeds_are_no_commands(tmp_path):
    speed = "geometry_msgs/msg/TwistStamped"
    measured = made("/velocity", lambda m: T[speed](header=m.header, twist=m.twist([0], [2])), 50, speed)
    _, known = proposal(tmp_path, STATES, measured)
    assert "fill_in_the_action" in known["action"]
    assert [stream["topic"] for stream in known["observation"]] == ["joint_states", "velocity"]


def test_commands_that_are_goals_are_said_to_be_rare(tmp_path):
    kind = RobotKind("robot", (joints(ARM, 50, arrays="pv"), trajectory("/arm_controller/joint_trajectory", ARM, 0.5)))
    said = propose(record_kind(tmp_path, kind, seconds=24.0))
    assert yaml.safe_load(said)["rate_hz"] == 0.5
    assert "rare: 12 commands for 1200 states of /joint_states" in said
    assert "The policy would decide every 2 s, as they came." in said


def test_other_limbs_are_commands_and_not_other_robots(tmp_path):
    limbs = [
        trajectory(f"/{limb}_controller/joint_trajectory", [f"{limb}_1", f"{limb}_2"], 50) for limb in ("arm", "head")
    ]
    said, known = proposal(tmp_path, STATES, *limbs)
    assert known["action"]["topic"] == "arm_controller/joint_trajectory"
    assert "# head_controller/joint_trajectory (JointTrajectory): another command" in said
    assert "not sent by this action: head_controller/joint_trajectory" in said


def test_a_commanded_rotation_is_whole(tmp_path):
    """Of a quaternion about z, x and y are always 0, as in a new message; they are kept all the same."""
    kind = "geometry_msgs/msg/PoseStamped"
    goal = Stream("/arm/cmd_pose", kind, lambda m: T[kind](header=m.header, pose=m.pose()), 50)
    said, known = proposal(tmp_path, STATES, goal)
    parts = [*(f"pose.position.{axis}" for axis in "xyz"), *(f"pose.orientation.{axis}" for axis in "xyzw")]
    assert known["action"]["fields"] == parts and "the policy's four numbers are not of length 1" in said
    contract_of(said)


@pytest.mark.parametrize(
    ("topic", "asked"),
    [
        ("/forward_velocity_controller/commands", False),
        ("/effort_controllers/commands", False),
        ("/thrusters/commands", False),
        ("/forward_position_controller/commands", True),
        ("/joint_position_velocity_controller/commands", True),
        ("/forward_command_controller/commands", True),
        ("/rotor/commands", True),
    ],
)
def test_the_topic_tells_whether_0_of_an_array_is_standing_still(tmp_path, topic, asked):
    said, known = proposal(tmp_path, STATES, floats(topic, 2, 50))
    assert known["action"]["safe"] == ("fill_in_the_safe_command" if asked else [0, 0])
    assert (": 0 is a place to go to" in said) == ("_position_controller" in topic)
    assert contract_of(said).action.low == pytest.approx((-1.2, -1.2), abs=0.11)


def test_thrust_in_a_twist_is_no_speed(tmp_path):
    """As a small drone's legacy commands have it: linear.z is a thrust of up to 65535."""
    kind = "geometry_msgs/msg/Twist"

    def make(m):
        command = m.twist([0, 1], [2])
        return dataclasses.replace(command, linear=dataclasses.replace(command.linear, z=m.wave(3, 5000.0, 30000.0)))

    said, known = proposal(tmp_path, imu("/imu", 50), made("/cmd_vel_legacy", make, 50, kind))
    assert known["action"]["safe"] == "fill_in_the_safe_command" and "linear.z: not known to stand still at 0" in said


def test_limits_come_from_a_file_first(tmp_path):
    file = tmp_path / "robot.urdf"
    file.write_text(urdf({"pan": (-1.5, 2.5, 2.0, 20.0), "lift": (-0.5, 0.5, 1.0, 10.0)}))
    described = text("/robot_description", urdf({"pan": (-9.0, 9.0, 9.0, 9.0)}))
    for letter, limits in (("p", [[-1.5, -0.5], [2.5, 0.5]]), ("v", [[-2, -1], [2, 1]]), ("e", [[-20, -10], [20, 10]])):
        said, known = proposal(tmp_path / letter, STATES, described, joints(ARM, 50, "/cmd", letter), urdf=file)
        assert [known["action"]["low"], known["action"]["high"]] == limits and "joints: robot.urdf." in said
        assert ("beyond the URDF's limits: position.lift" in said) == (letter == "p")
    assert known["action"]["safe"] == [0, 0]


def test_a_description_tells_joints_without_ends(tmp_path):
    described = urdf({"lift": (-1.0, 1.0, 1.0, 1.0)}).replace("<robot name=\"r\">", '<robot name="r"><joint name="pan" type="continuous"/>')  # fmt: skip  # noqa: E501
    _, known = proposal(tmp_path, STATES, text("/robot_description", described))
    assert known["observation"][0]["fields"][0] == {"field": "position.pan", "as": "sin_cos"}


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("<robot", "r.urdf: not XML"),
        ("<sdf/>", "r.urdf: not a URDF but <sdf> with 0 joints; give the robot's URDF"),
        ('<!DOCTYPE r [<!ENTITY a "b">]><robot>&a;</robot>', "r.urdf: not a URDF"),
    ],
)
def test_what_is_no_description_is_refused_from_a_file_and_noted_from_a_bag(tmp_path, said, problem):
    with pytest.raises(DescriptionError, match=problem):
        read_urdf(said, "r.urdf")
    found, _ = proposal(tmp_path, STATES, text("/robot_description", said))
    assert "# Limits of joints: none; robot_description: not " in found


def test_the_command_line_names_what_is_missing(tmp_path, capsys):
    bag = record_kind(tmp_path, RobotKind("robot", (STATES, joints(ARM, 50, "/cmd", "v"))))
    assert main(["contract", "init", str(bag), "--urdf", str(tmp_path / "no.urdf")]) == 1
    assert "no.urdf: cannot be read (No such file or directory); give the robot's URDF" in capsys.readouterr().err


def test_what_the_nodes_cannot_receive_is_said(tmp_path):
    said, known = proposal(tmp_path, STATES, Stream("/drive", *DRIVE, 50))
    assert "the policy cannot publish ackermann_msgs; it knows sensor_msgs, " in said
    assert known["action"]["safe"] == [0, 0]
