# SPDX-License-Identifier: Apache-2.0
"""Proposed contracts: what they choose and why, that they are refused until the reward is filled in, and then work."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from spc_core.contract.contract import ContractError, load_contract, parse_contract
from spc_ros.bags.files import BagError
from spc_ros.cli import main
from spc_ros.conversion.convert import convert
from spc_ros.conversion.convert_options import ConvertOptions
from spc_ros.doctor.contract_choices import limits, round_rate
from spc_ros.doctor.contract_init import propose
from spc_ros.doctor.doctor import diagnose
from support.proposals import completed
from support.recorded_bags import JOINT_STATE, RECEIVE_NS, STORE, Sample, arm_samples, header, vector, write_bag
from support.robot_recording import record_robot

TOPIC_REWARD = "reward: {topic: reward, type: geometry_msgs/msg/Vector3Stamped, field: vector.x}\n"


def test_a_proposal_is_refused_until_the_reward_is_filled_in_and_then_converts(tmp_path):
    bag, file = record_robot(tmp_path / "pick_place_2", named=False), tmp_path / "robot.yaml"
    file.write_text(propose(bag))
    with pytest.raises(ContractError, match="reward.fill_in_the_reward is a placeholder; replace it with a reward"):
        load_contract(file)
    assert f"# {TOPIC_REWARD}" in file.read_text()  # found in the bag
    file.write_text(completed(file.read_text(), TOPIC_REWARD))
    contract = load_contract(file)
    assert (contract.name, contract.rate_hz, contract.clock) == ("pick_place", 50, "header")
    report = convert(ConvertOptions((bag,), tmp_path / "out", task="pick"), contract, progress=False)
    assert (report.episodes, report.transitions) == (1, 300)
    assert diagnose([bag], contract, task="pick", progress=False).verdict == "ok"


def test_what_it_chooses_and_why(tmp_path):
    text = propose(record_robot(tmp_path / "bag"))
    known = yaml.safe_load(text)
    fields = ["position.shoulder", "position.elbow", "velocity.shoulder", "velocity.elbow"]
    state = {"topic": "joint_states", "type": "sensor_msgs/msg/JointState", "fields": fields, "max_age_s": 0.05}
    assert known["observation"] == [state]
    action = known["action"]
    assert (action["topic"], action["fields"]) == ("joint_commands", ["effort.shoulder", "effort.elbow"])
    assert action["high"] == [3.0, 1.5] and action["low"] == [-3.0, -1.5] and action["safe"] == [0, 0]
    assert 200 < action["max_rate"][0] < 350  # steps of up to 5.4 in 20 ms
    assert "/joint_states comes at 100.0 Hz, the command at 50.0 Hz" in text
    assert "all topics carry stamps of one clock" in text


def test_terms_are_proposed_over_the_chosen_fields(tmp_path, arm_bag):
    """Of the goal where one is observed; else where to is for the user to say."""
    text = propose(arm_bag, reward="terms")
    with pytest.raises(
        ContractError, match=r"reward\.terms\.near\.to is a placeholder: where joint_states\.position\."
    ):
        parse_contract(text, "proposal")
    parse_contract(text.replace("fill_in_the_target", "0.5"), "proposal")
    assert "fill_in_the_target" in propose(arm_bag) and "\nreward: {fill_in_the_reward: true}\n" in propose(arm_bag)
    goal = [Sample("/target", s.type, s.receive_ns + 300, s.message) for s in arm_samples(60) if s.type == JOINT_STATE
            and s.topic == "/joint_states"]  # fmt: skip
    samples = sorted([*arm_samples(60), *goal], key=lambda s: s.receive_ns)
    text = propose(write_bag(tmp_path / "goal", samples, {}), reward="terms")
    with pytest.raises(ContractError, match=r"near\.to: 'target\.position\.elbow' is not observed"):
        parse_contract(text, "proposal")
    begin = text.index("  # - topic: target")
    offered = text[begin : text.index("action:", begin)]
    contract = parse_contract(
        text.replace(offered, offered.replace("\n  # ", "\n  ").replace("  # -", "  -", 1)), "proposal"
    )
    near = contract.reward.terms[0]
    assert near.of == ("joint_states.position.elbow", "joint_states.position.shoulder")
    assert near.to == ("target.position.elbow", "target.position.shoulder")
    assert [term.kind for term in contract.reward.terms] == ["distance", "effort", "smoothness"]


def test_a_recorded_reward_is_taken_where_there_is_one(tmp_path, arm_bag):
    assert parse_contract(propose(arm_bag, reward="topic"), "proposal").reward.topic == "reward"
    assert "the robot must publish it whenever a policy runs too" in propose(arm_bag)
    silent = record_robot(tmp_path / "silent", change=lambda s: None if s.topic == "/reward" else s)
    with pytest.raises(BagError, match="no topic is called a reward; choose --reward terms.*; recorded are /"):
        propose(silent, reward="topic")


def test_a_function_as_reward(arm_bag):
    reward = "reward: {function: reach}\n"
    text = propose(arm_bag)
    with pytest.raises(ContractError, match="observe the topic 'target'"):  # the registry speaks, the rest is right
        parse_contract(completed(text, reward), "proposal")


def mobile_base(tmp_path, **changes):
    """A base in the namespace /r1: odometry at 30 Hz, an imu at 100 Hz, cmd_vel without stamps at 10 Hz."""
    types = STORE.types
    point, quaternion = types["geometry_msgs/msg/Point"], types["geometry_msgs/msg/Quaternion"]
    vector3, twist = types["geometry_msgs/msg/Vector3"], types["geometry_msgs/msg/Twist"]
    none = np.zeros(36), np.zeros(9)
    samples = []
    for i in range(300):
        t_s = i / 100
        t_ns = RECEIVE_NS + i * 10_000_000
        turn = quaternion(x=0.0, y=0.0, z=float(np.sin(t_s / 2)), w=float(np.cos(t_s / 2)))
        spin = vector3(x=0.0, y=0.0, z=float(np.cos(t_s)))
        if i % 10 == 0:
            forward = vector3(x=0.2 + 0.1 * float(np.sin(t_s)), y=0.0, z=0.0)
            samples.append(Sample("/r1/cmd_vel", "geometry_msgs/msg/Twist", t_ns, twist(linear=forward, angular=spin)))
        if i % 3 == 0:
            pose = types["geometry_msgs/msg/Pose"](position=point(x=t_s, y=t_s**2, z=0.0), orientation=turn)
            moving = twist(linear=vector3(x=float(np.cos(t_s)), y=0.0, z=0.0), angular=spin)
            message = types["nav_msgs/msg/Odometry"](
                header=header(t_ns),
                child_frame_id="",
                pose=types["geometry_msgs/msg/PoseWithCovariance"](pose=pose, covariance=none[0]),
                twist=types["geometry_msgs/msg/TwistWithCovariance"](twist=moving, covariance=none[0]),
            )
            samples.append(Sample("/r1/odom", "nav_msgs/msg/Odometry", t_ns + 1000, message))
        imu = types["sensor_msgs/msg/Imu"](
            header=header(t_ns), orientation=turn, orientation_covariance=none[1], angular_velocity=spin,
            angular_velocity_covariance=none[1], linear_acceleration=vector3(x=t_s, y=float("nan"), z=9.81),
            linear_acceleration_covariance=none[1],
        )  # fmt: skip
        samples.append(Sample("/r1/imu/data", "sensor_msgs/msg/Imu", t_ns + 2000, imu))
        samples.append(Sample("/r1/wrench_norm", "geometry_msgs/msg/Vector3Stamped", t_ns + 3000, vector(t_ns, t_s)))
    return write_bag(tmp_path / "rosbag2_2024_05_01", samples, {})


def test_a_mobile_base_in_a_namespace(tmp_path):
    text = propose(mobile_base(tmp_path))
    known = yaml.safe_load(text)
    assert (known["name"], known["rate_hz"], known["clock"]) == ("robot", 10, "header")
    assert known["action"]["clock"] == "receive" and "clock: receive # Twist has no header; the others' stamps" in text
    assert "relative to the namespace /r1" in text
    imu, odometry = known["observation"]  # the tenth part of 100 Hz is the rate of the commands
    assert odometry["topic"] == "odom" and odometry["fields"] == [
        "pose.pose.position.x",
        "pose.pose.position.y",
        {"field": "pose.pose.orientation", "as": "rotation_6d"},
        "twist.twist.linear.x",
        "twist.twist.angular.z",
    ]
    assert "left out: pose.pose.position.z, twist.twist" in text and "{field: pose.pose.orientation, as: yaw}" in text
    assert imu["topic"] == "imu/data" and "linear_acceleration.y (NaN at times)" in text
    action = known["action"]
    assert (action["topic"], action["fields"]) == ("cmd_vel", ["linear.x", "angular.z"])
    assert action["low"][0] == action["safe"][0] == 0 and action["high"][0] == 0.33  # 0.2 to 0.3 m/s were seen
    assert all(
        low <= safe <= high for low, safe, high in zip(action["low"], action["safe"], action["high"], strict=True)
    )
    assert "# - topic: wrench_norm" in text  # an alternative, commented out
    contract = parse_contract(completed(text, TOPIC_REWARD.replace("topic: reward", "topic: wrench_norm")), "proposal")
    report = convert(
        ConvertOptions((mobile_base_path(tmp_path),), tmp_path / "out", task="drive"), contract, progress=False
    )
    assert report.transitions >= 28


def mobile_base_path(tmp_path):
    return tmp_path / "rosbag2_2024_05_01"


def test_a_bag_without_states_is_refused_with_what_it_has(tmp_path):
    samples = [Sample("/cmd_vel_x", "std_msgs/msg/String", RECEIVE_NS, STORE.types["std_msgs/msg/String"](data="go"))]
    with pytest.raises(BagError, match=r"like the robot's state; /cmd_vel_x \(std_msgs/msg/String\): no numbers that"):
        propose(write_bag(tmp_path / "goal", samples, {}))


@pytest.mark.parametrize(("measured", "meant"), [(49.7, 50), (99.2, 100), (33.3, 33), (29.9, 30), (0.4, 1)])
def test_rates_are_rounded_to_what_was_meant(measured, meant):
    assert round_rate(measured) == meant


@pytest.mark.parametrize(
    ("seen", "proposed"),
    [
        ([-1.0, 2.0], (-2.2, 2.2)),  # through zero: symmetric
        ([0.0, 0.5], (0.0, 0.55)),  # from zero on
        ([0.2, 1.0], (0.0, 1.1)),  # near zero
        ([10.0, 11.0], (9.8, 12.0)),  # far from it: 10 % of the range, outwards to two digits
        ([-11.0, -10.0], (-12.0, -9.8)),
        ([0.0, 0.0], (-1.0, 1.0)),
        ([np.nan, 1.0, -1.0], (-1.1, 1.1)),
        ([], (-1.0, 1.0)),
        ([1e307, 1.0, -1.0], (-1.1, 1.1)),  # memory that was never written
    ],
)
def test_limits_are_what_was_seen_widened(seen, proposed):
    assert limits(np.array(seen)) == pytest.approx(proposed)


def test_the_limits_of_what_must_be_able_to_stop_hold_zero():
    assert limits(np.array([10.0, 11.0]), stops=True) == pytest.approx((0.0, 13.0))
    assert limits(np.array([-11.0, -10.0]), stops=True) == pytest.approx((-13.0, 0.0))


def test_the_command_line_writes_a_file_once(arm_bag, tmp_path, capsys):
    out = tmp_path / "robot.yaml"
    assert main(["contract", "init", str(arm_bag)]) == 0
    printed = capsys.readouterr().out
    assert main(["contract", "init", str(arm_bag), "--out", str(out)]) == 0
    assert out.read_text() == printed and Path(out).stat().st_size > 500
    out.write_text("mine")
    assert main(["contract", "init", str(arm_bag), "--out", str(out)]) == 1
    assert out.read_text() == "mine" and "exists already" in capsys.readouterr().err
