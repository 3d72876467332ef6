# SPDX-License-Identifier: Apache-2.0
"""Proposed contracts for many kinds of robots: each loads once the reward is filled in, and converts its bag."""

import dataclasses

import numpy as np
import pytest
import yaml

from spc_ros.conversion.convert import convert
from spc_ros.conversion.convert_options import ConvertOptions
from spc_ros.doctor.contract_init import propose
from spc_ros.doctor.doctor import diagnose
from support.proposals import contract_of
from support.recorded_bags import RECEIVE_NS, STORE, Sample, episode_info, header, joint_state, string, write_bag
from support.robot_recording import record_robot

T = STORE.types
SIM_NS = 5 * 10**9 - RECEIVE_NS
FLOATS = "std_msgs/msg/Float64MultiArray"


def floats(*values):
    layout = T["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0)
    return T[FLOATS](layout=layout, data=np.array(values, float))


def vector3(x=0.0, y=0.0, z=0.0):
    return T["geometry_msgs/msg/Vector3"](x=x, y=y, z=z)


def turned(s):
    return T["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=float(np.sin(s / 2)), w=float(np.cos(s / 2)))


def pose(s):
    return T["geometry_msgs/msg/Pose"](position=T["geometry_msgs/msg/Point"](x=s, y=s**2, z=0.0), orientation=turned(s))


def twist(s):
    return T["geometry_msgs/msg/Twist"](linear=vector3(float(np.cos(s))), angular=vector3(z=float(np.sin(3 * s))))


def states_and_arrays(t_ns, s):
    """An arm: stamped joints, commands without stamps."""
    moved = {"position": np.sin([s, 2 * s]), "velocity": np.cos([s, 2 * s])}
    return [("/joint_states", joint_state(t_ns, ["a.1", "elbow: left"], **moved)), ("/arm/commands", floats(s, -s))]


def odometry_and_twist(t_ns, s):
    """A base."""
    odometry = T["nav_msgs/msg/Odometry"](
        header=header(t_ns), child_frame_id="base",
        pose=T["geometry_msgs/msg/PoseWithCovariance"](pose=pose(s), covariance=np.zeros(36)),
        twist=T["geometry_msgs/msg/TwistWithCovariance"](twist=twist(s), covariance=np.zeros(36)),
    )  # fmt: skip
    return [("/odom", odometry), ("/cmd_vel", twist(s))]


def imu_pose_and_trajectory(t_ns, s):
    """An arm with a camera; fast in its units, so that limits need exponents."""
    none = np.zeros(9)
    imu = T["sensor_msgs/msg/Imu"](
        header=header(t_ns), orientation=turned(s), orientation_covariance=none, angular_velocity=vector3(z=s),
        angular_velocity_covariance=none, linear_acceleration=vector3(x=s * 1e7), linear_acceleration_covariance=none,
    )  # fmt: skip
    duration = T["builtin_interfaces/msg/Duration"](sec=0, nanosec=10**7)
    point = T["trajectory_msgs/msg/JointTrajectoryPoint"](
        positions=np.sin([s, 3 * s]) * 9.05e5, velocities=np.empty(0), accelerations=np.empty(0), effort=np.empty(0),
        time_from_start=duration,
    )  # fmt: skip
    trajectory = T["trajectory_msgs/msg/JointTrajectory"](header=header(t_ns), joint_names=["a", "b"], points=[point])
    stamped = T["geometry_msgs/msg/PoseStamped"](header=header(t_ns), pose=pose(s))
    return [("/imu", imu), ("/tool/pose", stamped), ("/arm/joint_trajectory", trajectory)]


def headerless(t_ns, s):
    """Nothing but arrays."""
    return [("/state", floats(s, np.sin(s))), ("/action", floats(np.cos(s)))]


ROBOTS = [states_and_arrays, odometry_and_twist, imu_pose_and_trajectory, headerless]


def record(path, robot, shift_ns=0, at_s=None, more=()):
    """A robot at 50 Hz at the given times; `shift_ns`: from receive times to stamps, without 1 ms of travel."""
    samples = list(more)
    for s in np.arange(0, 4, 0.02) if at_s is None else at_s:
        receive_ns = RECEIVE_NS + round(s * 1e9)
        for i, (topic, message) in enumerate(robot(receive_ns + shift_ns - 10**6, float(s))):
            samples.append(Sample(topic, message.__msgtype__, receive_ns + i * 1000, message))
    return write_bag(path, sorted(samples, key=lambda sample: sample.receive_ns), {})


def converted(bag, tmp_path, **options):
    """The proposal for a bag, its contract once completed, and what conversion makes of the bag."""
    text = propose(bag)
    contract = contract_of(text)
    return text, contract, convert(ConvertOptions((bag,), tmp_path / "out", **options), contract, progress=False)


@pytest.mark.parametrize("shift_ns", [0, SIM_NS], ids=["wall", "sim"])
@pytest.mark.parametrize("robot", ROBOTS, ids=lambda robot: robot.__name__)
def test_a_proposal_loads_and_converts(tmp_path, robot, shift_ns):
    text, contract, report = converted(record(tmp_path / "bag", robot, shift_ns), tmp_path, task="t")
    assert contract.rate_hz == 50 and report.transitions > 180 and report.episodes == 1
    clocks = {contract.clock, contract.action.parts[0].clock, *(stream.clock for stream in contract.observation)}
    bare_command = robot in (states_and_arrays, odometry_and_twist)
    if robot is headerless or (bare_command and shift_ns):
        assert clocks == {"receive"}
    else:
        assert contract.clock == "header" and clocks == ({"header", "receive"} if bare_command else {"header"})
    quaternions = text.count("as: rotation_6d")
    assert quaternions == {odometry_and_twist: 1, imu_pose_and_trajectory: 2}.get(robot, 0)


def test_parts_of_a_rotation_that_stand_still_are_no_finding(tmp_path):
    """x and y of a base that turns about z; the contract cannot leave them out."""
    bag = record(tmp_path / "bag", odometry_and_twist)
    _, contract, _ = converted(bag, tmp_path, task="t")
    report = diagnose([bag], contract, task="t", progress=False, workers=1)
    assert not [finding.text for finding in report.findings if finding.check == "constant"]


def test_exponents_are_numbers_to_yaml(tmp_path):
    _, contract, _ = converted(record(tmp_path / "bag", imu_pose_and_trajectory), tmp_path, task="t")
    assert contract.action.high == (1e6, 1e6) and max(contract.action.max_rate) > 1e6


def test_a_quaternion_that_is_zero_at_times_is_not_turned_into_a_rotation(tmp_path):
    def unset(t_ns, s):
        (topic, odometry), command = odometry_and_twist(t_ns, s)
        if s < 0.1:
            odometry.pose.pose.orientation.w = odometry.pose.pose.orientation.z = 0.0
        return [(topic, odometry), command]

    assert "rotation_6d" not in propose(record(tmp_path / "bag", unset))


def test_stamps_that_are_received_late_do_not_go_with_receive_times(tmp_path):
    text = propose(record(tmp_path / "bag", states_and_arrays, shift_ns=-30_000_000))
    assert yaml.safe_load(text)["clock"] == "receive" and "31 ms after their stamps" in text


PARTS = np.concatenate([np.arange(0, 2, 0.02), np.arange(6, 8, 0.02), np.arange(13, 15, 0.02)])


def test_long_pauses_part_episodes(tmp_path):
    text, contract, report = converted(record(tmp_path / "bag", states_and_arrays, at_s=PARTS), tmp_path, task="t")
    assert (contract.segments.by, contract.segments.gap_s) == ("gap", 2.1)  # half of 4.02 s, rounded up
    assert report.episodes == 3 and "# episode: {segment: bag}" in text
    assert [str(fault) for bag in report.bags for _, fault in bag.cuts] == ["the recording ended"]


def test_a_dropout_of_one_topic_is_no_pause(tmp_path):
    def gap(t_ns, s):
        return [entry for entry in states_and_arrays(t_ns, s) if entry[0] == "/arm/commands" or not 1 < s < 3.5]

    assert "segment: gap" not in propose(record(tmp_path / "bag", gap))


def marks(kind, values):
    message = T[f"std_msgs/msg/{kind}"]
    return [
        Sample("/episode_running", f"std_msgs/msg/{kind}", RECEIVE_NS + round(s * 1e9), message(data=v))
        for s, v in values
    ]


@pytest.mark.parametrize(("kind", "off", "on"), [("Bool", False, True), ("Int32", 0, 1)])
def test_a_marker_topic_parts_episodes(tmp_path, kind, off, on):
    said = marks(kind, [(0.0, off), (0.5, on), (1.5, off), (2.0, on), (3.0, off)])
    text, contract, report = converted(record(tmp_path / "bag", states_and_arrays, more=said), tmp_path, task="t")
    segments = contract.segments
    assert (segments.by, segments.topic, segments.type) == ("topic", "episode_running", f"std_msgs/msg/{kind}")
    assert report.episodes == 2 and 90 <= report.transitions <= 100 and "it is on 2 times" in text


def test_several_episodes_on_the_topic_episode(tmp_path):
    more = []
    for number, begin_s in enumerate((0.0, 2.0), 1):
        info = episode_info(50, episode=number, start_ns=RECEIVE_NS + round(begin_s * 1e9))
        for state, at_s in (("running", begin_s), ("ended", begin_s + 1)):
            at_ns = RECEIVE_NS + round(at_s * 1e9)
            announced = dataclasses.replace(info, state=state, end_ns=at_ns if state == "ended" else 0)
            more.append(Sample("/episode", "std_msgs/msg/String", at_ns, string(announced.to_json())))
    text, contract, report = converted(record(tmp_path / "bag", states_and_arrays, more=more), tmp_path)
    assert (contract.segments.by, contract.segments.topic) == ("topic", "episode")
    assert report.episodes == 2 and report.tasks == ("arm_reach/train/00",) and "announces 2 episodes" in text


def test_a_topic_that_names_the_task(tmp_path):
    def named(*texts):
        return [Sample("/task_name", "std_msgs/msg/String", RECEIVE_NS + i, string(t)) for i, t in enumerate(texts)]

    bag = record(tmp_path / "one", states_and_arrays, more=named("pick \x07 up", "pick \x07 up"))
    text, contract, report = converted(bag, tmp_path)
    assert contract.task_topic == "task_name" and report.tasks == ("pick \x07 up",) and "says 'pick ? up'" in text
    text = propose(record(tmp_path / "two", states_and_arrays, more=named("pick", "place")))
    assert yaml.safe_load(text)["task"] == {"key": "spc.task_id"} and "# task_name names 2 tasks in this bag" in text


def test_one_episode_is_one_bag(tmp_path):
    text = propose(record_robot(tmp_path / "bag"))
    assert yaml.safe_load(text)["episode"] == {"segment": "bag"} and "# episode:" not in text
