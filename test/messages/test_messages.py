# SPDX-License-Identifier: Apache-2.0
"""Messages to vectors and back, for messages of rosbags and of ROS's own Python classes."""

import math

import numpy as np
import pytest
from rclpy.serialization import serialize_message

from spc_core.alignment.streaming import StreamingAligner
from spc_core.contract.contract import parse_contract
from spc_core.contract.sections import ACTION, REWARD, observed
from spc_ros.messages.contract_reader import ContractReader
from spc_ros.messages.field_writer import FieldWriter
from spc_ros.messages.fields import (
    JOINT_TRAJECTORY,
    FieldReader,
    MessageError,
    message_class,
    sample_time,
    set_stamp,
    stamp_ns,
)
from spc_ros.messages.live import LiveWriter, trim_padding
from support.contracts import ARM_REACH, make_contract
from support.recorded_bags import JOINT_STATE, STORE, VECTOR, header, joint_state, vector

ODOMETRY = "nav_msgs/msg/Odometry"
ARRAY = "std_msgs/msg/Float64MultiArray"


def refused(reader, message):
    with pytest.raises(MessageError) as error:
        reader.read(message)
    return str(error.value)


def multi_array(data, *dims, kind=ARRAY):
    make = STORE.types
    dim = [make["std_msgs/msg/MultiArrayDimension"](label=label, size=n, stride=n) for label, n in dims]
    layout = make["std_msgs/msg/MultiArrayLayout"](dim=dim, data_offset=0)
    return make[kind](layout=layout, data=np.asarray(data, np.float64))


def test_joints_are_read_by_name_in_any_order_even_when_it_changes():
    reader = FieldReader(JOINT_STATE, ["velocity.b", "position.a", "position.b"], "joint_states")
    first = joint_state(1, ["a", "b", "c"], position=[1, 2, 3], velocity=[4, 5, 6])
    second = joint_state(2, ["c", "b", "a"], position=[3, 2, 1], velocity=[6, 5, 4])
    for message in (first, second, first):
        vector = reader.read(message)
        assert vector.dtype == np.float64
        assert vector.tolist() == [5, 1, 2]


def test_a_joint_name_may_hold_dots():
    message = joint_state(1, ["left.elbow"], position=[7])
    assert FieldReader(JOINT_STATE, ["position.left.elbow"], "j").read(message).tolist() == [7]


def test_a_missing_joint_is_named_with_those_that_are_there():
    reader = FieldReader(JOINT_STATE, ["position.wrist", "position.a"], "joint_states")
    assert refused(reader, joint_state(1, ["a", "b"], position=[1, 2])) == (
        "topic 'joint_states': no joint 'wrist'; the message has a, b; correct the contract or the driver"
    )
    assert "the message has no joints at all" in refused(reader, joint_state(1, []))


def test_an_empty_or_short_velocity_array_is_refused():
    reader = FieldReader(JOINT_STATE, ["position.a", "velocity.a"], "joint_states")
    assert refused(reader, joint_state(1, ["a", "b"], position=[1, 2])) == (
        "topic 'joint_states': cannot read velocity.a: the array 'velocity' is empty, the message names 2 "
        "joints; make the driver fill it or take the field out of the contract"
    )
    short = joint_state(1, ["a", "b"], position=[1, 2], velocity=[1])
    assert "'velocity' has 1 entries, the message names 2 joints" in refused(reader, short)


def test_a_wrong_joint_field_is_refused_when_the_reader_is_made():
    with pytest.raises(MessageError, match=r"field 'speed.a' is not one of position.<joint>, velocity.<joint>"):
        FieldReader(JOINT_STATE, ["speed.a"], "joint_states")


def test_nan_is_passed_on():
    vector = FieldReader(JOINT_STATE, ["position.a"], "j").read(joint_state(1, ["a"], position=[math.nan]))
    assert np.isnan(vector).all()


def test_numbers_are_read_by_path():
    odometry = message_class(ODOMETRY)()
    odometry.pose.pose.position.x = 1.5
    odometry.pose.covariance[35] = 3.5
    reader = FieldReader(ODOMETRY, ["pose.covariance.35", "pose.pose.position.x"], "odom")
    assert reader.read(odometry).tolist() == [3.5, 1.5]
    assert FieldReader(VECTOR, ["vector.x"], "reward").read(vector(1, 2.5)).tolist() == [2.5]
    true = message_class("std_msgs/msg/Bool")(data=True)
    assert FieldReader("std_msgs/msg/Bool", ["data"], "stop").read(true).tolist() == [1]


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        ("vector.w", "there is no 'w'; there is x, y, z"),
        ("vectr.x", "there is no 'vectr'; there is header, vector"),
        ("vector", "it is not a number but holds x, y, z"),
        ("header.frame_id", "it is not a number but holds the str ''"),
        ("vector.x.0", "there is no '0'; there is the float 1.0"),
    ],
)
def test_a_bad_path_is_told_with_what_is_there(field, problem):
    expected = f"topic 'reward': cannot read field '{field}': {problem}; correct the contract"
    assert refused(FieldReader(VECTOR, [field], "reward"), vector(1, 1.0)) == expected
    live = message_class(VECTOR)()
    live.vector.x = 1.0
    assert refused(FieldReader(VECTOR, [field], "reward"), live) == expected


def test_array_elements_go_by_number_or_by_label():
    labelled = multi_array([1, 2, 3], ("a,b,c", 3))
    one_each = multi_array([1, 2, 3], ("a", 1), ("b", 1), ("c", 1))
    plain = multi_array([1, 2, 3])
    assert FieldReader(ARRAY, ["data.2", "data.0"], "x").read(plain).tolist() == [3, 1]
    for message in (labelled, one_each):
        assert FieldReader(ARRAY, ["c", "a"], "x").read(message).tolist() == [3, 1]
    assert FieldReader(ARRAY, ["a", "b", "c"], "x").read(plain).tolist() == [1, 2, 3]  # the contract's order
    reader = FieldReader(ARRAY, ["c", "a", "b"], "x")
    assert [reader.read(m).tolist() for m in (plain, labelled, plain)] == [[1, 2, 3], [3, 1, 2], [1, 2, 3]]


def test_array_elements_that_are_not_there_are_told():
    assert refused(FieldReader(ARRAY, ["data.3"], "x"), multi_array([1, 2])) == (
        "topic 'x': the message has 2 elements, the contract wants data.3; correct the contract's fields"
    )
    assert "no element 'd'; the layout names a, b" in refused(
        FieldReader(ARRAY, ["d"], "x"), multi_array([1, 2], ("a,b", 2))
    )
    assert "3 elements without a labelled layout, the contract names 2: a, b" in refused(
        FieldReader(ARRAY, ["a", "b"], "x"), multi_array([1, 2, 3])
    )


def test_the_first_point_of_a_trajectory_is_read_by_joint_name():
    message = message_class(JOINT_TRAJECTORY)()
    reader = FieldReader(JOINT_TRAJECTORY, ["positions.b", "positions.a"], "goal")
    FieldWriter(JOINT_TRAJECTORY, ["positions.a", "positions.b"], "goal").fill(message, np.array([1.0, 2.0]))
    assert reader.read(message).tolist() == [2, 1]
    message.points = []
    assert refused(reader, message) == "topic 'goal': the trajectory has no points; publish at least one"


def test_a_stamp_of_zero_counts_as_unset():
    assert stamp_ns(vector(2_000_000_003, 1.0)) == 2_000_000_003
    assert stamp_ns(vector(0, 1.0)) is None
    assert stamp_ns(multi_array([1])) is None
    assert sample_time(vector(5, 1.0), 9, "header") == (5, False)
    assert sample_time(vector(0, 1.0), 9, "header") == (9, True)
    assert sample_time(multi_array([1]), 9, "header") == (9, True)
    assert sample_time(vector(5, 1.0), 9, "receive") == (9, False)


WRITTEN = [
    (JOINT_STATE, ["effort.a", "effort.b"]),
    (JOINT_STATE, ["position.a", "velocity.a"]),
    (JOINT_TRAJECTORY, ["positions.a", "positions.b"]),
    (ARRAY, ["a", "b"]),
    (ARRAY, ["data.0", "data.1"]),
    (ARRAY, ["data.1", "data.0"]),
    ("sensor_msgs/msg/Joy", ["axes.1", "axes.0"]),
    ("std_msgs/msg/Float32MultiArray", ["a", "b"]),
    (VECTOR, ["vector.z", "vector.x"]),
    ("geometry_msgs/msg/Twist", ["linear.x", "angular.z"]),
    ("geometry_msgs/msg/TwistStamped", ["twist.linear.x", "twist.angular.z"]),
]


@pytest.mark.parametrize(("type_name", "fields"), WRITTEN, ids=lambda value: str(value))
def test_what_is_written_is_read_back(type_name, fields):
    message = message_class(type_name)()
    writer = FieldWriter(type_name, fields, "command", period_ns=20_000_000)
    for values in ([1.5, -2.5], [0.25, 8.0]):  # a message may be filled again
        writer.fill(message, np.array(values))
        assert FieldReader(type_name, fields, "command").read(message).tolist() == values


@pytest.mark.parametrize(("type_name", "fields"), WRITTEN, ids=lambda value: str(value))
def test_both_ways_of_writing_give_the_same_bytes(type_name, fields):
    """The bytes of a policy in a hurry are those of the message object, elements at their places included."""
    message, reader = message_class(type_name)(), FieldReader(type_name, fields, "command")
    writer = FieldWriter(type_name, fields, "command", period_ns=20_000_000)
    writer.fill(message, np.zeros(2))
    quick = LiveWriter(type_name, serialize_message(message), lambda m: reader.read(m).tolist())
    for values in ([1.5, -2.5], [0.25, 8.0]):
        writer.fill(message, np.array(values))
        assert quick.write(values) == trim_padding(type_name, serialize_message(message))


def test_elements_of_an_array_are_written_at_their_places():
    message = message_class(ARRAY)()
    FieldWriter(ARRAY, ["data.2", "data.0", "data.1"], "c").fill(message, np.array([2.0, 0.0, 1.0]))
    assert list(message.data) == [0, 1, 2] and message.layout.dim[0].label == "0,1,2"
    joy = message_class("sensor_msgs/msg/Joy")()
    FieldWriter("sensor_msgs/msg/Joy", ["axes.1", "axes.0"], "c").fill(joy, np.array([2.0, 3.0]))
    assert list(joy.axes) == [3, 2]


def test_a_command_that_is_longer_than_the_contract_is_refused_and_a_longer_observation_is_not():
    message, fields = multi_array([1, 2, 3]), ["data.0", "data.1"]
    assert FieldReader(ARRAY, fields, "x").read(message).tolist() == [1, 2]
    reader = FieldReader(ARRAY, fields, "x", whole=True)
    problem = (
        "topic 'x': 'data' has 3 elements, the contract's action names 2; a robot takes each by its place, so list all "
        "of data.0 to data.2"
    )
    assert refused(reader, message) == problem and reader.find(message) == ([None, None], problem)
    assert FieldReader(ARRAY, ["data.2", "data.0", "data.1"], "x", whole=True).read(message).tolist() == [3, 1, 2]
    joy = STORE.types["sensor_msgs/msg/Joy"](header(1), np.ones(2, np.float32), np.zeros(0, np.int32))
    assert "'axes' has 2 elements" in refused(FieldReader("sensor_msgs/msg/Joy", ["axes.0"], "joy", whole=True), joy)
    names = {"topic": "joint_commands", "type": ARRAY, "fields": fields, "low": [-1, -1], "high": [1, 1]}
    action = {**names, "safe": [0, 0], "max_rate": [1, 1]}
    with pytest.raises(MessageError, match="'data' has 3 elements"):
        ContractReader(make_contract(base=ARM_REACH, action=action)).samples("joint_commands", message, 0)


@pytest.mark.parametrize(("type_name", "array"), [(ARRAY, "data"), ("sensor_msgs/msg/Joy", "axes")])
def test_an_array_with_holes_is_not_written(type_name, array):
    with pytest.raises(MessageError, match=rf"the contract leaves out {array}.0: elements .* list all of {array}.0 to"):
        FieldWriter(type_name, [f"{array}.1", f"{array}.2"], "c")


def test_a_joint_state_command_holds_only_the_arrays_named():
    message = message_class(JOINT_STATE)()
    FieldWriter(JOINT_STATE, ["effort.a", "effort.b"], "command").fill(message, np.array([1.0, 2.0]))
    assert list(message.name) == ["a", "b"]
    assert list(message.effort) == [1, 2]
    assert not message.position and not message.velocity


def test_a_trajectory_starts_at_once_and_takes_one_period():
    message = message_class(JOINT_TRAJECTORY)()
    FieldWriter(JOINT_TRAJECTORY, ["positions.a"], "goal", 20_000_000).fill(message, np.ones(1))
    assert stamp_ns(message) is None
    assert message.points[0].time_from_start.nanosec == 20_000_000


def test_set_stamp_writes_the_header_where_there_is_one():
    message = message_class(VECTOR)()
    set_stamp(message, 3_000_000_007)
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (3, 7)
    set_stamp(message_class(ARRAY)(), 5)


def test_what_cannot_be_written_is_refused():
    with pytest.raises(MessageError, match=r"field 'position.b' is missing; an array of this message covers all"):
        FieldWriter(JOINT_STATE, ["position.a", "velocity.a", "velocity.b"], "c")
    with pytest.raises(MessageError, match="cannot write std_msgs/msg/Int8MultiArray; use Float64MultiArray"):
        FieldWriter("std_msgs/msg/Int8MultiArray", ["data.0"], "c")
    with pytest.raises(MessageError, match=r"some fields are numbers \(data.0\) and some are names; write all as"):
        FieldWriter(ARRAY, ["data.0", "gripper"], "c")
    with pytest.raises(MessageError, match="cannot write 1 numbers as 'buttons' of sensor_msgs/msg/Joy: "):
        FieldWriter("sensor_msgs/msg/Joy", ["buttons.0"], "c").fill(message_class("sensor_msgs/msg/Joy")(), np.zeros(1))
    with pytest.raises(MessageError, match="2 values for 1 fields"):
        FieldWriter(VECTOR, ["vector.x"], "c").fill(message_class(VECTOR)(), np.zeros(2))
    with pytest.raises(MessageError, match=r"cannot write field 'vector\.w' .* it has x, y, z; correct the contract"):
        FieldWriter(VECTOR, ["vector.w"], "c").fill(message_class(VECTOR)(), np.zeros(1))
    with pytest.raises(MessageError, match=r"'robot_msgs/msg/Leg' is not of a known package; known: sensor_msgs, "):
        message_class("robot_msgs/msg/Leg")
    with pytest.raises(MessageError, match=r"std_msgs has no message 'Flaot64' \(did you mean 'Float64'\?\)"):
        message_class("std_msgs/msg/Flaot64")


def test_a_contract_reader_routes_each_topic():
    reader = ContractReader(ARM_REACH)
    assert reader.route("joint_states") == [observed(0)]
    assert reader.route("joint_commands") == [ACTION]
    assert reader.route("reward") == [REWARD]
    assert reader.route("elsewhere") == []
    assert reader.samples("elsewhere", object(), 0) == []


def test_one_topic_may_serve_several_roles_and_unset_stamps_are_counted():
    text = ARM_REACH.text.replace("topic: reward", "topic: joint_states").replace(VECTOR, JOINT_STATE)
    reader = ContractReader(parse_contract(text.replace("vector.x", "effort.elbow"), "shared"))
    assert reader.route("joint_states") == [observed(0), REWARD]
    message = joint_state(0, ["shoulder", "elbow"], position=[1, 2], velocity=[3, 4], effort=[5, 6])
    (_, t_ns, state), (role, _, reward) = reader.samples("joint_states", message, 77)
    assert (t_ns, state.tolist(), role, reward.tolist()) == (77, [1, 2, 3, 4], REWARD, [6])
    assert reader.unset_stamps == {"joint_states": 1}


def test_a_topic_with_two_types_in_one_contract_is_refused():
    text = ARM_REACH.text.replace("topic: reward", "topic: joint_states")
    with pytest.raises(MessageError, match=f"gives it the types {JOINT_STATE}, {VECTOR}; keep one"):
        ContractReader(parse_contract(text, "shared"))


def test_feed_gives_transitions():
    reader, assembler = ContractReader(ARM_REACH), StreamingAligner(ARM_REACH, 0)
    names, period = ["elbow", "shoulder"], ARM_REACH.period_ns
    assert not reader.feed(assembler, "joint_states", joint_state(period, names, position=[2, 1], velocity=[4, 3]), 0)[
        0
    ].transition
    reader.feed(assembler, "joint_commands", joint_state(period + 1, names, effort=[8, 7]), 0)
    reader.feed(assembler, "joint_states", joint_state(2 * period, names, position=[6, 5], velocity=[0, 0]), 0)
    (step,) = reader.feed(assembler, "reward", vector(2 * period, -0.5), 0)
    t = step.transition
    assert t.observation.tolist() == [1, 2, 3, 4]
    assert t.action.tolist() == [7, 8]
    assert (t.reward, t.next_observation.tolist()) == (-0.5, [5, 6, 0, 0])


def test_both_kinds_of_message_give_the_same_vector():
    live = message_class(JOINT_STATE)()
    live.name, live.position, live.velocity = ["a", "b"], [0.1, 0.2], [0.3, 0.4]
    live.header.stamp.sec, live.header.stamp.nanosec = 3, 4
    recorded = STORE.types[JOINT_STATE](
        header=header(3_000_000_004),
        name=["a", "b"],
        position=np.array([0.1, 0.2]),
        velocity=np.array([0.3, 0.4]),
        effort=np.array([]),
    )
    reader = FieldReader(JOINT_STATE, ["velocity.b", "position.a"], "j")
    assert np.array_equal(reader.read(live), reader.read(recorded))
    assert stamp_ns(live) == stamp_ns(recorded)
