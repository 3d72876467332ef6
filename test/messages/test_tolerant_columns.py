# SPDX-License-Identifier: Apache-2.0
"""Columns of messages that lack fields: in bulk as message by message, whatever they lack."""

import dataclasses

import numpy as np
import pytest

from spc_core.contract.contract import parse_contract
from spc_ros.bags.reader import BagReader
from spc_ros.doctor.topic_logs import read_topic_logs
from spc_ros.messages import columns
from spc_ros.messages.columns import DAMAGED, ColumnReader
from spc_ros.messages.fields import JOINT_ARRAYS, FieldReader, MessageError, stamp_ns
from spc_ros.messages.numeric_fields import state_fields
from support.random_messages import MessageMaker, column_of
from support.recorded_bags import JOINT_STATE, STORE, joint_state
from support.robot_recording import JOINTS, record_robot

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
            found = read_topic_logs(reader, parse_contract(text, "bag") if named else None)
            whole = [log for _, log, _ in found.sources]
            return whole or found.logs, found.findings

    single = []
    monkeypatch.setattr(columns, "read_row", lambda *a, real=columns.read_row: single.append(a) or real(*a))
    in_bulk, findings = logs()
    assert len(single) < 100  # of 1,200
    monkeypatch.setattr(columns, "MAX_LAYOUTS", 0)
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
        reader = ColumnReader(STORE, type_name, fields, "t", "first")
        stamps, values, shape = reader.read_all(column_of(raw, type_name, random))
        shapes = [list(reader.shapes)[i] for i in shape.tolist()]
        first_error = None
        singly = FieldReader(type_name, fields, "t", "first")
        for i, message in enumerate(messages):
            try:
                expected = singly.read(message)
            except MessageError as error:
                first_error = first_error or str(error)
                absent = [place not in shapes[i].present for place in range(len(fields))]
                assert any(absent) and np.isnan(values[i][absent]).all()
                assert type_name in JOINT_ARRAYS or f"topic 't': {shapes[i].problem}" == str(error)
                continue
            assert shapes[i].present == tuple(range(len(fields))) and not shapes[i].problem
            np.testing.assert_array_equal(values[i], expected)
            assert stamps[i] == (stamp_ns(message) or 0)
        assert first_error == (None if reader.error is None else str(reader.error))
        if type_name in JOINT_ARRAYS:
            names = [tuple(getattr(m, "name", None) or getattr(m, "joint_names", ())) for m in messages]
            assert [each.joints for each in shapes] == names


def test_a_damaged_message_is_told_and_the_others_are_read():
    raw = [bytes(STORE.serialize_cdr(joint_state(i + 1, ["a"], position=[i]), JOINT_STATE)) for i in range(5)]
    raw[2] = raw[2][:40]
    reader = ColumnReader(STORE, JOINT_STATE, ["position.a"], "t")
    stamps, values, shape = reader.read_all(column_of(raw, JOINT_STATE, np.random.default_rng(0)))
    problems = [list(reader.shapes)[i].problem for i in shape.tolist()]
    assert problems == ["", "", DAMAGED, "", ""] and "is damaged" in str(reader.error)
    assert values[:, 0].tolist()[:2] == [0, 1] and np.isnan(values[2, 0]) and stamps[2] == 0
    assert not np.isnan(np.delete(values[:, 0], 2)).any()


def test_joints_that_come_later_are_added_where_no_fields_are_asked_for():
    raw = [bytes(STORE.serialize_cdr(joint_state(i + 1, ["a", "b"][: 1 + i // 2], position=[i, -i][: 1 + i // 2]),
                                     JOINT_STATE)) for i in range(4)]  # fmt: skip
    reader = ColumnReader(STORE, JOINT_STATE, None, "t")
    for _ in range(2):
        _, values, shape = reader.read_all(column_of(raw, JOINT_STATE, np.random.default_rng(0)))
        assert reader.fields == ("position.a", "position.b") and shape.tolist() == [0, 0, 1, 1]
        np.testing.assert_array_equal(values, [[0, np.nan], [1, np.nan], [2, -2], [3, -3]])


def test_a_missing_topic_leaves_the_others_and_refuses_conversion(tmp_path):
    bag = record_robot(tmp_path / "bag", change=lambda s: None if s.topic == "/reward" else s)
    with BagReader(bag) as reader:
        found = read_topic_logs(reader, parse_contract(reader.info.custom_data["spc.contract"], "bag"))
    assert "reward" not in [log.topic for log in found.logs] and "has no topic 'reward'" in str(found.refusal)


def test_a_type_that_is_not_defined_is_refused():
    with pytest.raises(MessageError, match="no definition of the type 'my_msgs/msg/Leg'"):
        ColumnReader(STORE, "my_msgs/msg/Leg", None, "t")
