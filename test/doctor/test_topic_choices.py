# SPDX-License-Identifier: Apache-2.0
"""Which topics and fields a proposal observes, and what it says of the others."""

import contextlib
import sqlite3

import numpy as np
import pytest
import yaml
from rosbags.rosbag2 import StoragePlugin
from rosbags.typesys import get_types_from_msg

from spc_ros.bags.files import BagError
from spc_ros.conversion.convert import convert
from spc_ros.conversion.convert_options import ConvertOptions
from spc_ros.doctor.contract_init import propose
from support.proposals import contract_of, proposal
from support.robot_kinds import DRIVE, GOAL
from support.robot_streams import (
    STORE,
    RobotKind,
    Stream,
    T,
    floats,
    imu,
    joints,
    number,
    odometry,
    record_kind,
    scan,
    twist,
)

ARM = ["pan", "lift"]
STATES = joints(ARM, 50, arrays="pv")
JOINT_STATE = "sensor_msgs/msg/JointState"


def made(topic, make, hz=50.0, kind=JOINT_STATE):
    return Stream(topic, kind, make, hz)


def state_of(**values):
    """A stream of one joint whose position is a function of the time, and of one that stands still."""
    ((name, position),) = values.items()

    def make(m):
        held = np.array([position(m.s), 0.5]), np.array([m.wave(1), 0.0]), np.empty(0)
        return T[JOINT_STATE](m.header, [name, "still"], *held)

    return made("/joint_states", make)


def test_of_a_small_scan_all_beams_are_observed(tmp_path):
    said, known = proposal(tmp_path, scan("/scan", 50, 5), twist("/cmd_vel", 50, [0], [2]))
    beams = [{"field": f"ranges.{i}", "clip": [0, 12]} for i in range(5)]
    assert known["observation"][0]["fields"] == beams and "5 beams, evenly spaced" in said
    contract_of(said)


def test_infinite_numbers_are_not_observed(tmp_path):
    kind = "geometry_msgs/msg/WrenchStamped"

    def make(m):
        pull = T["geometry_msgs/msg/Vector3"](
            float("inf") if m.s < 1 else 1.0, float("nan") if m.s < 1 else 1.0, m.wave(2)
        )
        return T[kind](header=m.header, wrench=T["geometry_msgs/msg/Wrench"](pull, m.vector(4)))

    said, known = proposal(tmp_path, STATES, made("/wrench", make, 50, kind))
    assert known["observation"][1]["fields"] == ["wrench.force.z", *(f"wrench.torque.{axis}" for axis in "xyz")]
    assert "left out: wrench.force.x (infinite at times), wrench.force.y (NaN at times)" in said


def test_a_slow_stream_does_not_set_the_ticks(tmp_path):
    """Eleven fixes, however much their type looks like a state."""
    said, known = proposal(tmp_path, odometry("/gps/odometry", 1.5), imu("/imu", 15), twist("/cmd_vel", 15, [0], [2]))
    assert [stream["topic"] for stream in known["observation"]] == ["imu", "gps/odometry"]
    assert known["rate_hz"] == 15 and known["observation"][1]["max_age_s"] == 1.7


def test_irregular_and_unknown_topics_are_offered_with_the_reason(tmp_path):
    times = tuple(np.cumsum(np.random.default_rng(0).exponential(0.4, 18)).tolist())
    kind = "geometry_msgs/msg/PoseStamped"
    seen = Stream("/tag/pose", kind, GOAL[1], at_s=times)
    said, known = proposal(tmp_path, STATES, seen, number("/depth", 10, lambda m: m.wave(3)))
    assert [stream["topic"] for stream in known["observation"]] == ["joint_states"]
    assert "# comes irregularly," in said and "#   type: geometry_msgs/msg/PoseStamped" in said
    assert "# not known to be a state of the robot:\n  # - topic: depth" in said


def test_a_topic_of_some_bags_only_is_not_observed(tmp_path):
    bags = [
        record_kind(tmp_path, RobotKind("robot", (STATES, imu("/imu", 50), joints(ARM, 50, "/cmd", "v"))), 0),
        record_kind(tmp_path, RobotKind("robot", (STATES, joints(ARM, 50, "/cmd", "v"))), 1),
    ]
    said = propose(bags)
    assert [stream["topic"] for stream in yaml.safe_load(said)["observation"]] == ["joint_states"]
    assert "# only in 1 of 2 bags:\n  # - topic: imu" in said and said.startswith("# Proposed by `spc contract init` from 2 of 2 bags.")  # fmt: skip  # noqa: E501


def test_a_bag_that_cannot_be_read_is_named_and_the_others_are_read(tmp_path):
    record_kind(tmp_path, RobotKind("robot", (STATES, joints(ARM, 50, "/cmd", "v"))), 0)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "torn.mcap").write_bytes(b"\x89MCAP0\r\n torn")
    said = propose(tmp_path)
    assert "# Not read: torn: truncated, " in said and "joint_states" in said
    with pytest.raises(BagError, match="torn.mcap: truncated"):
        propose(tmp_path / "torn" / "torn.mcap")


def test_a_topic_that_cannot_be_decoded_is_named_with_the_reason(tmp_path):
    streams = (STATES, Stream("/drive", *DRIVE, 50))
    bag = record_kind(tmp_path, RobotKind("robot", streams), storage=StoragePlugin.SQLITE3)
    with contextlib.closing(sqlite3.connect(next(bag.glob("*.db3")))) as file, file:
        file.execute("DELETE FROM message_definitions WHERE topic_type LIKE 'ackermann%'")
    said = propose(bag)
    assert "# drive (AckermannDriveStamped): cannot be read: no definition of the type 'ackermann_msgs/msg/" in said
    assert "action: # TODO: /drive no definition of the type 'ackermann_msgs/msg/AckermannDriveStamped'" in said


def test_another_robot_in_the_bag_is_left_to_itself(tmp_path):
    """With full names, since `odom` could be that of either."""
    kind = RobotKind("two", (odometry("/r1/odom", 50), odometry("/r2/odom", 50), twist("/r1/cmd_vel", 50, [0], [2])))
    bag = record_kind(tmp_path, kind)
    said = propose(bag)
    assert [stream["topic"] for stream in yaml.safe_load(said)["observation"]] == ["r1/odom"]
    assert "# r2/odom (Odometry): of another robot or arm than the command's, which has /r1/odom" in said
    options = ConvertOptions((bag,), tmp_path / "out", task="t")
    assert convert(options, contract_of(said), progress=False).transitions > 350


def test_states_and_commands_of_own_types_are_found_by_their_names(tmp_path):
    """As a flight controller's: fixed arrays, no header, NaN for what is not commanded."""
    state, goal = "own_msgs/msg/BodyOdometry", "own_msgs/msg/Setpoint"
    STORE.register(get_types_from_msg("float32[3] position\nfloat32[3] velocity\n", state))
    STORE.register(get_types_from_msg("float32[3] position\nfloat32[3] velocity\nfloat32 yaw\n", goal))
    nan = np.full(3, np.nan, np.float32)

    def three(m, first):
        return np.array([m.wave(first + i) for i in range(3)], np.float32)

    said, known = proposal(
        tmp_path,
        made("/fmu/out/odometry", lambda m: T[state](three(m, 0), three(m, 3)), 100, state),
        made("/fmu/in/setpoint", lambda m: T[goal](three(m, 6), nan, m.wave(9)), 50, goal),
        number("/fmu/out/altitude_error", 100, lambda m: m.wave(20)),
    )
    parts = [f"{part}.{i}" for part in ("position", "velocity") for i in range(3)]
    assert [(s["topic"], s["fields"]) for s in known["observation"]] == [("out/odometry", parts)]
    assert known["action"]["fields"] == [*parts[:3], "yaw"] and known["action"]["safe"] == "fill_in_the_safe_command"
    assert "always NaN in the bags, but 0 in the policy's messages: velocity.0, velocity.1, velocity.2" in said


def test_without_known_types_the_fuller_topic_is_the_state(tmp_path):
    said, known = proposal(tmp_path, floats("/obs", 6, 50), floats("/act", 2, 50))
    assert [stream["topic"] for stream in known["observation"]] == ["obs"] and known["action"]["topic"] == "act"


def test_a_goal_is_offered_as_one(tmp_path):
    kind = "geometry_msgs/msg/PoseStamped"
    said, known = proposal(tmp_path, STATES, Stream("/goal_pose", kind, GOAL[1], 10))
    assert [stream["topic"] for stream in known["observation"]] == ["joint_states"]
    assert "# a goal:\n  # - topic: goal_pose" in said


def test_joints_without_names_are_named_as_the_reason(tmp_path):
    bare = made("/joint_commands", lambda m: T[JOINT_STATE](m.header, [], np.array([m.wave(1)]), np.empty(0), np.empty(0)))  # fmt: skip  # noqa: E501
    said, known = proposal(tmp_path, STATES, bare)
    assert "/joint_commands holds no numbers of a command" in said and "fill_in_the_action" in known["action"]
    assert "joint_commands (JointState): its messages name no joints, or fill no array of theirs" in said


def test_angles_that_wrap_are_sine_and_cosine_but_a_reset_is_no_wrap(tmp_path):
    _, known = proposal(tmp_path / "wrap", state_of(wrist=lambda s: (3 * s + np.pi) % (2 * np.pi) - np.pi))
    assert known["observation"][0]["fields"] == [{"field": "position.wrist", "as": "sin_cos"}, "velocity.wrist"]
    _, known = proposal(tmp_path / "reset", state_of(wrist=lambda s: 2.5 * (s % 4)))
    assert known["observation"][0]["fields"] == ["position.wrist", "velocity.wrist"]


def test_what_turns_without_end_is_left_out(tmp_path):
    said, known = proposal(tmp_path, state_of(wheel=lambda s: -9 * s))
    assert known["observation"][0]["fields"] == ["velocity.wheel"]
    assert "position.wheel (turns without end; {as: sin_cos} where its angle matters)" in said


def test_a_stream_in_which_nothing_changes_is_not_observed(tmp_path):
    still = made("/other/joint_states", lambda m: T[JOINT_STATE](m.header, ["a"], np.ones(1), np.empty(0), np.empty(0)))
    said, known = proposal(tmp_path, STATES, still)
    assert [stream["topic"] for stream in known["observation"]] == ["joint_states"]
    assert "nothing in it is worth observing: position.a (never changes)" in said
