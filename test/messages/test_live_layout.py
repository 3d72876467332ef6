# SPDX-License-Identifier: Apache-2.0
"""Numbers from and into serialised messages: the same as through Python objects, whatever comes next."""

from __future__ import annotations

import numpy as np
import pytest

from spc_core.contract.contract import parse_contract
from spc_ros.messages.cdr_walk import LayoutError
from spc_ros.messages.contract_reader import ContractReader
from spc_ros.messages.fields import FieldReader, MessageError
from spc_ros.messages.live import MAX_BYTES, LiveReader, LiveWriter, trim_padding
from support.contracts import ARM_REACH
from support.random_messages import MessageMaker
from support.recorded_bags import JOINT_STATE, STORE, VECTOR, joint_state, vector

ARRAY = "std_msgs/msg/Float64MultiArray"
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"
ODOMETRY = "nav_msgs/msg/Odometry"
IMU = "sensor_msgs/msg/Imu"


def cdr(message, type_name: str) -> bytes:
    return bytes(STORE.serialize_cdr(message, type_name))


@pytest.mark.parametrize(
    ("type_name", "fields"),
    [
        (JOINT_STATE, ["velocity.knee", "position.hip", "position.knee"]),
        (TRAJECTORY, ["positions.knee", "positions.hip"]),
        (ARRAY, ["a", "c"]),
        (ARRAY, ["data.2", "data.0"]),
        ("std_msgs/msg/Float32MultiArray", ["b"]),
        (ODOMETRY, ["twist.twist.linear.x", "pose.covariance.35", "header.stamp.sec"]),
        (IMU, ["linear_acceleration.z", "linear_acceleration.z"]),
        ("sensor_msgs/msg/BatteryState", ["present", "voltage", "power_supply_status"]),
    ],
)
def test_quick_reading_is_slow_reading(type_name: str, fields: list[str]) -> None:
    """Over random messages of a few shapes, in any order, learning from each that is not known."""
    slow = FieldReader(type_name, fields, "topic")
    quick = LiveReader(type_name, lambda message: slow.read(message).tolist())
    known = 0
    for number in range(300):
        message = MessageMaker(STORE, type_name, shape=number % 7, number=number).make()
        data = cdr(message, type_name)
        try:
            expected = slow.read(message)
        except MessageError:
            assert quick.read(data) is None, "what cannot be read was never learnt"
            continue
        found = quick.read(data)
        if found is None:
            quick.learn(data, message)
            continue
        known += 1
        np.testing.assert_array_equal(found, expected)
    assert known > 20


def test_a_message_with_other_joints_is_not_known() -> None:
    fields = ["position.hip", "position.knee"]
    slow = FieldReader(JOINT_STATE, fields, "topic")
    quick = LiveReader(JOINT_STATE, lambda message: slow.read(message).tolist())
    first = joint_state(1, ["hip", "knee"], position=[1.0, 2.0])
    quick.learn(cdr(first, JOINT_STATE), first)
    found = quick.read(cdr(joint_state(2, ["hip", "knee"], position=[np.nan, np.inf]), JOINT_STATE))
    assert found is not None and np.isnan(found[0]) and found[1] == np.inf
    for names, position in ((["knee", "hip"], [1.0, 2.0]), (["hip", "kne3"], [1.0, 2.0]), (["hip", "knee"], [])):
        assert quick.read(cdr(joint_state(2, names, position=position), JOINT_STATE)) is None
    assert quick.read(b"") is None


def test_large_messages_are_left_to_the_slow_way() -> None:
    message = STORE.types[ARRAY](
        layout=STORE.types["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0), data=np.zeros(MAX_BYTES // 8)
    )
    reader = LiveReader(ARRAY, lambda m: [m.data[0]])
    reader.learn(cdr(message, ARRAY), message)
    assert reader.read(cdr(message, ARRAY)) is None


def test_written_messages_are_those_that_rosbags_serialises() -> None:
    fields = ["effort.knee", "effort.hip"]
    reader = FieldReader(JOINT_STATE, fields, "topic")

    def numbers(message):
        return [message.header.stamp.sec, message.header.stamp.nanosec, *reader.read(message).tolist()]

    first = cdr(joint_state(0, ["hip", "knee"], effort=[0.0, 0.0]), JOINT_STATE)
    writer = LiveWriter(JOINT_STATE, first + b"\x5a\xa5" * 4, numbers)
    for t_ns, effort in ((7_000_000_005, [0.1, -1e300]), (8_000_000_000, [5e-324, np.inf])):
        seconds, nanoseconds = divmod(t_ns, 1_000_000_000)
        expected = cdr(joint_state(t_ns, ["hip", "knee"], effort=effort), JOINT_STATE)
        assert writer.write((seconds, nanoseconds, effort[1], effort[0])) == expected


def test_what_a_serialiser_left_behind_is_cut_off() -> None:
    data = cdr(joint_state(5, ["hip"], position=[1.0]), JOINT_STATE)
    assert trim_padding(JOINT_STATE, data + b"\xff" * 8) == data
    with pytest.raises(LayoutError, match="JointState"):
        trim_padding(JOINT_STATE, data[:20])


def test_a_writer_refuses_numbers_that_are_not_there() -> None:
    message = joint_state(5, ["hip"], position=[1.0])
    reader = FieldReader(JOINT_STATE, ["effort.hip"], "topic")
    with pytest.raises(LayoutError, match="effort"):
        LiveWriter(JOINT_STATE, cdr(message, JOINT_STATE), lambda m: reader.read(m).tolist())
    with pytest.raises(LayoutError, match="twice"):
        LiveWriter(JOINT_STATE, cdr(message, JOINT_STATE), lambda m: [m.position[0], m.position[0]])


def deserialize(type_name: str):
    return lambda data: STORE.deserialize_cdr(data, type_name)


@pytest.mark.parametrize("clock", ["header", "receive"])
def test_samples_of_bytes_are_samples_of_messages(clock: str) -> None:
    """One topic with two roles, stamps set and unset, joints in either order."""
    text = ARM_REACH.text.replace("clock: header", f"clock: {clock}")
    text = text.replace("joint_commands", "joint_states")
    contract = parse_contract(text, "test")
    live, slow = ContractReader(contract), ContractReader(contract)
    random, deserialised = np.random.default_rng(0), []

    def count(data: bytes):
        deserialised.append(data)
        return STORE.deserialize_cdr(data, JOINT_STATE)

    for k in range(60):
        values = {name: random.normal(size=2) for name in ("position", "velocity", "effort")}
        names = ["elbow", "shoulder"] if k % 3 else ["shoulder", "elbow"]
        message = joint_state(0 if k % 5 == 0 else 1_000 + k, names, **values)
        found = live.live_samples("joint_states", cdr(message, JOINT_STATE), lambda now=k: 9_000 + now, count)
        expected = slow.samples("joint_states", message, 9_000 + k)
        assert [(role, t_ns) for role, t_ns, _ in found] == [(role, t_ns) for role, t_ns, _ in expected]
        for (_, _, got), (_, _, wanted) in zip(found, expected, strict=True):
            assert got.dtype == np.float64
            np.testing.assert_array_equal(got, wanted)
    assert live.unset_stamps == slow.unset_stamps and (clock == "receive" or live.unset_stamps["joint_states"] == 12)
    assert len(deserialised) == 2, "once for each order of the joints"


def test_a_message_that_cannot_be_read_says_why_each_time() -> None:
    reader = ContractReader(ARM_REACH)
    data = cdr(vector(5, -1.0), VECTOR)
    assert reader.live_samples("reward", data, lambda: 0, deserialize(VECTOR))[0][2].tolist() == [-1.0]
    short = cdr(joint_state(5, ["shoulder", "elbow"], position=[1.0, 2.0], velocity=[0.0]), JOINT_STATE)
    for _ in range(2):
        with pytest.raises(MessageError, match="the array 'velocity' has 1 entries, the message names 2 joints"):
            reader.live_samples("joint_states", short, lambda: 0, deserialize(JOINT_STATE))
