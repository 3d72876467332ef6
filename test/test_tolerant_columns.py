# SPDX-License-Identifier: Apache-2.0
"""Tolerant columns: in bulk as message by message, whatever the messages lack."""

import dataclasses

import numpy as np
import pytest
from random_messages import MessageMaker, column_of
from recorded_bags import JOINT_STATE, STORE, joint_state
from robot_recording import JOINTS, record_robot

from spc_core.contract.contract import parse_contract
from spc_ros.bags.reader import BagReader
from spc_ros.doctor.topic_logs import read_topic_logs
from spc_ros.messages import tolerant_columns
from spc_ros.messages.fields import JOINT_ARRAYS, FieldReader, MessageError, stamp_ns
from spc_ros.messages.numeric_fields import state_fields
from spc_ros.messages.tolerant_columns import DAMAGED, TolerantReader

TYPES = [
    JOINT_STATE,
    "trajectory_msgs/msg/JointTrajectory",
    "std_msgs/msg/Float64MultiArray",
    "nav_msgs/msg/Odometry",
    "sensor_msgs/msg/Imu",
    "sensor_msgs/msg/BatteryState",
]


def same(first, second):
    """Every array and every text of two dataclasses."""
    for field in dataclasses.fields(first):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
            np.testing.assert_array_equal(a, b, strict=True)
        elif field.name == "lengths":
            assert {k: v.tolist() for k, v in a.items()} == {k: v.tolist() for k, v in b.items()}
        else:
            assert a == b, field.name


def faulty(sample):
    """Swapped, missing and new joints, empty arrays, frame ids of many lengths, each for a while."""
    if sample.topic != "/joint_states":
        return sample
    state = sample.message
    t_ns, number = stamp_ns(state), sample.receive_ns // 10_000_000 % 1000
    both = {"position": state.position.copy(), "velocity": state.velocity.copy()}
    if 100 <= number < 120:
        state = joint_state(t_ns, JOINTS[::-1], **{k: v[::-1].copy() for k, v in both.items()})
    elif 150 <= number < 170:
        state = joint_state(t_ns, JOINTS, position=both["position"])
    elif number % 50 == 3:
        state = joint_state(t_ns, [*JOINTS, "gripper"], position=np.append(both["position"], number))
    elif 200 <= number < 210:
        state = joint_state(t_ns, JOINTS[:1], **{k: v[:1] for k, v in both.items()})
    if 300 <= number < 340:
        state.header.frame_id = "f" * (number - 300)
    return dataclasses.replace(sample, message=state)


@pytest.mark.parametrize("named", [True, False], ids=["contract", "all topics"])
def test_a_faulty_bag_gives_the_same_logs_in_bulk_and_message_by_message(tmp_path, monkeypatch, named):
    bag = record_robot(tmp_path / "bag", change=faulty)

    def logs():
        with BagReader(bag) as reader:
            text = reader.info.custom_data["spc.contract"]
            return read_topic_logs(reader, parse_contract(text, "bag") if named else None)

    single = []
    monkeypatch.setattr(
        tolerant_columns, "deserialize", lambda *a, real=tolerant_columns.deserialize: single.append(a) or real(*a)
    )
    in_bulk, findings = logs()
    assert len(single) < 100  # of 1,200
    monkeypatch.setattr(tolerant_columns, "MAX_LAYOUTS", 0)
    single.clear()
    singly, same_findings = logs()
    assert len(single) == sum(map(len, singly)) > 1000
    assert findings == same_findings and len(in_bulk) == len(singly) == 3
    for first, second in zip(in_bulk, singly, strict=True):
        same(first, second)
    states = next(log for log in in_bulk if log.topic.endswith("joint_states"))
    assert len(states.layouts) > 10 and (states.lengths["velocity"] == 0).sum() == 30
    assert ("position.gripper" in states.fields) == (not named)


@pytest.mark.parametrize("type_name", TYPES)
def test_what_can_be_read_is_what_field_reader_reads(type_name):
    for seed in range(6):
        random = np.random.default_rng(seed)
        messages = [MessageMaker(STORE, type_name, 10 * seed + i % 3, i).make() for i in range(9)]
        raw = [bytes(STORE.serialize_cdr(message, type_name)) for message in messages]
        fields = state_fields(STORE, type_name, messages[0])
        if not fields:
            continue  # a trajectory without points
        reader = TolerantReader(STORE, type_name, fields, "t")
        column = column_of(raw, type_name, random)
        reader.add(column)
        found = reader.recorded()
        singly = FieldReader(type_name, fields, "t")
        for i, message in enumerate(messages):
            try:
                expected = singly.read(message)
            except MessageError:
                assert found.absent is not None and found.absent[i].any()
                continue
            assert found.absent is None or not found.absent[i].any()
            np.testing.assert_array_equal(found.values[i], expected)
            assert found.stamp_ns is None or found.stamp_ns[i] == (stamp_ns(message) or 0)
        assert found.receive_ns.tolist() == column.receive_ns.tolist()
        if type_name in JOINT_ARRAYS:
            names = [tuple(getattr(m, "name", None) or getattr(m, "joint_names", ())) for m in messages]
            changes = [i for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
            assert found.layouts == tuple((i, names[i]) for i in changes)


def test_a_damaged_message_is_told_and_the_others_are_read():
    raw = [bytes(STORE.serialize_cdr(joint_state(i + 1, ["a"], position=[i]), JOINT_STATE)) for i in range(5)]
    raw[2] = raw[2][:40]
    reader = TolerantReader(STORE, JOINT_STATE, ["position.a"], "t")
    reader.add(column_of(raw, JOINT_STATE, np.random.default_rng(0)))
    found = reader.recorded()
    assert found.problems == {DAMAGED: 1}
    assert found.values[:, 0].tolist()[:2] == [0, 1] and np.isnan(found.values[2, 0]) and found.stamp_ns[2] == 0
    assert found.absent.ravel().tolist() == [False, False, True, False, False]


def test_nothing_added_is_nothing_recorded():
    found = TolerantReader(STORE, JOINT_STATE, ["position.a"], "t").recorded()
    assert (len(found.receive_ns), found.values.shape, found.layouts, found.problems) == (0, (0, 1), (), {})


def test_a_type_that_is_not_defined_is_refused():
    with pytest.raises(MessageError, match="no definition of the type 'my_msgs/msg/Leg'"):
        TolerantReader(STORE, "my_msgs/msg/Leg", None, "t")
