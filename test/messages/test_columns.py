# SPDX-License-Identifier: Apache-2.0
"""Bulk reading of columns gives what rosbags and FieldReader give message by message, errors included."""

import dataclasses

import numpy as np
import pytest
from rosbags.interfaces import MessageDefinitionFormat
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from spc_ros.messages.cdr_layout import make_layout
from spc_ros.messages.columns import MAX_LAYOUTS, WORTHWHILE, ColumnReader
from spc_ros.messages.fields import JOINT_TRAJECTORY, FieldReader, MessageError, stamp_ns
from spc_ros.messages.message_types import distro_types, make_store, parse
from spc_ros.messages.numeric_fields import numeric_fields
from spc_ros.messages.raw_column import deserialize
from support.random_messages import MessageMaker, column_of
from support.recorded_bags import JOINT_STATE, STORE, joint_state

INNER = "bool a\nint8 b\nfloat64 c\nstring d\n"
MIXED = """uint8 a
float64 b
test_msgs/Inner[] inners
test_msgs/Inner[2] pair
std_msgs/Header header
int16[3] shorts
string[] names
string[2] two
bool[] flags
bool[3] fixed
byte x
byte[] xs
char y
char[2] ys
int64 big
uint64 huge
uint64[] huges
float32 f
float32[] fs
std_msgs/Empty nothing
std_msgs/Empty[] nothings
string<=5 bounded
float64[<=3] few
uint16 last
uint32 from
"""
TEXTS = {"test_msgs/msg/Inner": INNER, "test_msgs/msg/Mixed": MIXED}
PARSED = [parse(name, MessageDefinitionFormat.MSG, text) for name, text in TEXTS.items()]
OWN = make_store({**distro_types().fielddefs, **PARSED[0], **PARSED[1]})
FLOAT_ARRAY = "std_msgs/msg/Float64MultiArray"
TYPES = [
    JOINT_STATE,
    JOINT_TRAJECTORY,
    "test_msgs/msg/Mixed",
    "test_msgs/msg/Inner",
    "sensor_msgs/msg/Imu",
    "sensor_msgs/msg/LaserScan",
    "nav_msgs/msg/Odometry",
    "tf2_msgs/msg/TFMessage",
    "geometry_msgs/msg/Pose",
    "geometry_msgs/msg/PoseStamped",
    "geometry_msgs/msg/Twist",
    "geometry_msgs/msg/TwistStamped",
    "geometry_msgs/msg/Wrench",
    "diagnostic_msgs/msg/DiagnosticArray",
    "sensor_msgs/msg/PointCloud2",
    FLOAT_ARRAY,
    "std_msgs/msg/Int64MultiArray",
    *(f"std_msgs/msg/{name}" for name in ("Float64", "Float32", "Int32", "UInt8", "Bool", "String", "Empty")),
]


def singly(column, fields, where="topic", store=OWN):
    """What the column holds, message by message; the error's text where there is one."""
    stamps, vectors = [], []
    try:
        reader = FieldReader(column.type, fields, where, "first")
        for row in range(len(column)):
            message = deserialize(store, column, row, column.type, where)
            with np.errstate(invalid="ignore"):  # numpy warns of a signalling NaN in a float32 that it widens
                vectors.append(reader.read(message))
            stamps.append(stamp_ns(message) or 0)
    except MessageError as error:
        return str(error)
    return stamps, vectors


def in_bulk(column, fields, where="topic", store=OWN):
    try:
        return ColumnReader(store, column.type, fields, where, "first").read(column)
    except MessageError as error:
        return str(error)


def assert_equal(found, expected):
    if isinstance(expected, str) or isinstance(found, str):
        assert found == expected
        return
    stamps, values = found
    assert stamps.dtype == np.int64 and values.dtype == np.float64
    assert stamps.tolist() == expected[0]
    theirs = np.array(expected[1]).reshape(values.shape)
    assert np.array_equal(np.isnan(values), np.isnan(theirs))
    number = ~np.isnan(theirs)
    assert values[number].tobytes() == theirs[number].tobytes()  # the sign of zero counts


def serialised(type_name, shapes, count, seed, endians=(True,)):
    """`count` messages of a type, of as many shapes as there are seeds in `shapes`, in a random order."""
    random = np.random.default_rng(seed)
    chosen = random.permutation(np.resize(shapes, count))
    messages = [MessageMaker(OWN, type_name, int(s), 1000 * seed + i).make() for i, s in enumerate(chosen)]
    endian = random.choice(endians, count)
    raw = [bytes(OWN.serialize_cdr(m, type_name, little_endian=bool(e))) for m, e in zip(messages, endian, strict=True)]
    return messages, raw, random


def some_fields(type_name, messages, random, common):
    """Up to eight numeric fields of the first message, or of those that all messages have."""
    fields = numeric_fields(OWN, type_name, messages[0])
    if common:
        others = [set(numeric_fields(OWN, type_name, message)) for message in messages]
        fields = [field for field in fields if all(field in other for other in others)]
    return [str(field) for field in random.permutation(fields)[: random.integers(1, 9)]]


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("common", [True, False], ids=["common", "any"])
def test_random_columns_are_read_as_singly(type_name, common):
    for seed in range(12):
        shapes = range(seed * 10, seed * 10 + 1 + seed % 4)
        messages, raw, random = serialised(type_name, shapes, 12, seed, (True, False) if seed % 3 == 0 else (True,))
        column = column_of(raw, type_name, random)
        fields = some_fields(type_name, messages, random, common)
        assert_equal(in_bulk(column, fields), singly(column, fields))


@pytest.mark.parametrize("type_name", TYPES)
def test_damaged_bytes_are_never_read_differently(type_name):
    for seed in range(40):
        messages, raw, random = serialised(type_name, [seed], 6, seed)
        victim = bytearray(raw[int(random.integers(1, 6))])
        way = seed % 4
        if way == 0:
            del victim[int(random.integers(0, len(victim))) :]
        elif way == 1:
            victim += random.bytes(int(random.integers(1, 6)))
        else:
            for place in random.integers(0, len(victim), way):
                victim[place] ^= 1 << int(random.integers(8))
        raw[int(random.integers(1, 6))] = bytes(victim)
        column = column_of(raw, type_name, random)
        fields = some_fields(type_name, messages, random, common=seed % 2 == 0)
        assert_equal(in_bulk(column, fields), singly(column, fields))


@pytest.mark.parametrize("type_name", ["test_msgs/msg/Mixed", JOINT_STATE, "std_msgs/msg/String"])
def test_every_byte_may_be_damaged(type_name):
    messages, raw, random = serialised(type_name, [3], 2, 5)
    fields = some_fields(type_name, messages, random, common=True)
    for place in range(len(raw[1])):
        for bits in (0x01, 0x80, 0xFF):
            damaged = bytearray(raw[1])
            damaged[place] ^= bits
            column = column_of([raw[0], bytes(damaged)], type_name, random)
            assert_equal(in_bulk(column, fields), singly(column, fields))


@pytest.fixture
def singles(monkeypatch):
    """The messages that were deserialised singly."""
    seen = []
    plain = OWN.deserialize_cdr
    monkeypatch.setattr(OWN, "deserialize_cdr", lambda raw, name: seen.append(raw) or plain(raw, name))
    return seen


def raw_joints(names, t_ns=1, frame="", **arrays):
    message = joint_state(t_ns, names, **arrays)
    message.header.frame_id = frame
    return bytes(STORE.serialize_cdr(message, JOINT_STATE))


def column(raw, type_name=JOINT_STATE):
    return column_of(raw, type_name, np.random.default_rng(0))


def test_joints_are_found_by_name_in_every_order():
    first = raw_joints(["a", "b"], 2_000_000_003, position=[1, 2], velocity=[3, 4])
    turned = raw_joints(["b", "a"], 0, position=[20, 10], velocity=[40, 30])
    reader = ColumnReader(OWN, JOINT_STATE, ["velocity.b", "position.a"], "joint_states")
    stamps, values = reader.read(column([first, turned, first]))
    assert stamps.tolist() == [2_000_000_003, 0, 2_000_000_003]
    assert values.tolist() == [[4, 1], [40, 10], [4, 1]]


@pytest.mark.parametrize("type_name", TYPES)
def test_one_message_of_each_layout_is_deserialised(type_name, singles):
    joint = {JOINT_STATE: "position.hip", JOINT_TRAJECTORY: "positions.hip"}.get(type_name)
    made = {shape: MessageMaker(OWN, type_name, shape, 0).make() for shape in range(60)}
    shapes = [s for s, m in made.items() if joint is None or joint in numeric_fields(OWN, type_name, m)][:3]
    messages, raw, random = serialised(type_name, shapes, 40, 9)
    fields = some_fields(type_name, messages, random, common=True)
    reader = ColumnReader(OWN, type_name, fields, "topic", "first")
    reader.read(column_of(raw, type_name, random))
    assert len(singles) <= len(shapes)
    reader.read(column_of(raw[::-1], type_name, random))
    assert len(singles) <= len(shapes)


def test_what_changes_in_every_message_but_not_in_length_stays_in_bulk(singles):
    raw = [raw_joints(["a"], i, f"frame_{i % 10}", position=[i], effort=[-i]) for i in range(100)]
    _, values = ColumnReader(OWN, JOINT_STATE, ["effort.a"], "j").read(column(raw))
    assert values[:, 0].tolist() == [-i for i in range(100)]
    assert len(singles) == 1


def test_a_string_that_grows_all_the_time_is_read_singly_after_some_templates(singles):
    raw = [raw_joints(["a"], i, "x" * 4 * i, position=[i]) for i in range(60)]
    stable = [raw_joints(["a"], i, "base", position=[i]) for i in range(60)]
    reader = ColumnReader(OWN, JOINT_STATE, ["position.a"], "j")
    for _ in range(2):
        _, values = reader.read(column(raw))
        assert values[:, 0].tolist() == list(range(60))
    assert len(singles) == 120 - MAX_LAYOUTS
    singles.clear()
    assert reader.read(column(stable))[1][:, 0].tolist() == list(range(60))
    assert len(singles) <= 1, "a layout that came last is learned all the same"


def test_more_layouts_than_are_remembered_are_in_bulk_where_it_is_worth_it(singles):
    kinds = np.repeat(np.arange(MAX_LAYOUTS + 4), WORTHWHILE + 1 + 5 * (np.arange(MAX_LAYOUTS + 4) >= 4))
    raw = [raw_joints(["a"], i, "x" * 4 * kind, position=[i]) for i, kind in enumerate(kinds)]
    reader = ColumnReader(OWN, JOINT_STATE, ["position.a"], "j")
    assert reader.read(column(raw))[1][:, 0].tolist() == list(range(len(raw)))
    assert len(singles) == MAX_LAYOUTS + 4
    singles.clear()
    often = [message for message, kind in zip(raw, kinds, strict=True) if kind >= 4]
    assert len(reader.read(column(often))[1]) == len(often)
    assert not singles, "the layouts that served most are remembered"


def test_a_layout_that_would_read_something_else_is_not_used(monkeypatch):
    def turned(walk, places, stamp):
        return make_layout(walk, places[::-1], stamp)

    monkeypatch.setattr("spc_ros.messages.columns.make_layout", turned)
    raw = [raw_joints(["a", "b"], i, position=[i, -i]) for i in range(1, 40)]
    _, values = ColumnReader(OWN, JOINT_STATE, ["position.a", "position.b"], "j").read(column(raw))
    assert values.tolist() == [[i, -i] for i in range(1, 40)]


def test_many_messages_with_exceptions_in_between(singles):
    orders = [["a", "b"], ["b", "a"]]
    raw = [raw_joints(orders[k], 1 + k, position=[1 + 10 * k, 2 + 10 * k]) for k in range(2)]
    pair = column(raw)
    kind = np.zeros(20_000, np.int64)
    kind[[0, 1, 777, 4095, 4096, 12_345, 19_999]] = 1
    kind[15_000:16_000:2] = 1
    big = dataclasses.replace(
        pair,
        receive_ns=np.arange(len(kind)),
        log_index=np.arange(len(kind)),
        start=pair.start[kind],
        size=pair.size[kind],
    )
    stamps, values = ColumnReader(OWN, JOINT_STATE, ["position.b", "position.a"], "j").read(big)
    assert np.array_equal(stamps, 1 + kind)
    assert np.array_equal(values, np.where(kind[:, None], [11, 12], [2, 1]))
    assert len(singles) == 2


def test_the_error_is_that_of_the_first_message_that_has_one():
    good = raw_joints(["a", "b"], position=[1, 2], velocity=[1, 2])
    short = raw_joints(["a", "b"], position=[1, 2], velocity=[1])
    other = raw_joints(["c", "b"], position=[1, 2], velocity=[1, 2])
    reader = ColumnReader(OWN, JOINT_STATE, ["velocity.a"], "joint_states")
    texts = {}
    for first, second in ((short, other), (other, short), (good[:-3], short), (short, good[:-3])):
        with pytest.raises(MessageError) as error:
            reader.read(column([good, good, first, good, second]))
        texts[first, second] = str(error.value)
    assert "the array 'velocity' has 1 entries, the message names 2 joints" in texts[short, other]
    assert texts[short, other] == texts[short, good[:-3]]
    assert "no joint 'a'; the message has c, b" in texts[other, short]
    assert texts[good[:-3], short].startswith(
        "topic 'joint_states': message 6 of the log, received at 1000000000020000000 ns, is damaged: "
    )
    assert reader.read(column([good]))[1].tolist() == [[1]], "a reader continues after an error"


def test_large_integers_become_floats_as_in_python():
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg("uint64 huge\nint64[] big\n", "test_msgs/msg/Large"))
    numbers = [2**53 + 1, 2**64 - 1, 2**63 + 1025]
    make = store.types["test_msgs/msg/Large"]
    raw = [bytes(store.serialize_cdr(make(n, np.array([-n // 2], np.int64)), "test_msgs/msg/Large")) for n in numbers]
    reader = ColumnReader(store, "test_msgs/msg/Large", ["big.0", "huge"], "t")
    assert reader.read(column(raw, "test_msgs/msg/Large"))[1].tolist() == [[float(-n // 2), float(n)] for n in numbers]


def test_paths_that_are_no_place_in_the_message_are_read_singly():
    data = OWN.types["std_msgs/msg/Float64MultiArray"]
    layout = OWN.types["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0)
    point = OWN.types["geometry_msgs/msg/Polygon"](points=[])
    scan = MessageMaker(OWN, "sensor_msgs/msg/LaserScan", 3, 3).make()
    cases = [
        ("sensor_msgs/msg/LaserScan", scan, ["ranges.size", "angle_min.imag", "header.stamp.sec.denominator"]),
        ("geometry_msgs/msg/Polygon", point, ["points.0.x"]),
        (FLOAT_ARRAY, data(layout=layout, data=np.ones(2)), ["data.5"]),
    ]
    for type_name, message, fields in cases:
        raw = [bytes(OWN.serialize_cdr(message, type_name))] * 3
        assert_equal(in_bulk(column(raw, type_name), fields), singly(column(raw, type_name), fields))


def test_a_header_without_a_stamp_counts_as_none():
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg("string header\nfloat64 x\n", "test_msgs/msg/Odd"))
    raw = bytes(store.serialize_cdr(store.types["test_msgs/msg/Odd"]("from: me", 2.5), "test_msgs/msg/Odd"))
    stamps, values = ColumnReader(store, "test_msgs/msg/Odd", ["x"], "t").read(column([raw] * 2, "test_msgs/msg/Odd"))
    assert (stamps.tolist(), values.tolist()) == ([0, 0], [[2.5], [2.5]])


def test_an_empty_column_and_a_wrong_reader():
    stamps, values = ColumnReader(OWN, JOINT_STATE, ["position.a"], "j").read(column([]))
    assert stamps.shape == (0,) and values.shape == (0, 1)
    with pytest.raises(MessageError, match=r"topic 'j': no definition of the type 'my_msgs/msg/Leg'"):
        ColumnReader(OWN, "my_msgs/msg/Leg", ["x"], "j")
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg("test_msgs/Foot foot\n", "test_msgs/msg/Leg"))
    with pytest.raises(MessageError, match=r"topic 'j': no definition of the type 'test_msgs/msg/Foot'"):
        ColumnReader(store, "test_msgs/msg/Leg", ["foot.x"], "j")
    with pytest.raises(MessageError, match="field 'speed.a' is not one of"):
        ColumnReader(OWN, JOINT_STATE, ["speed.a"], "j")


@pytest.mark.parametrize("type_name", TYPES)
def test_numeric_fields_are_those_that_can_be_read(type_name):
    for shape in range(20):
        message = MessageMaker(OWN, type_name, shape, shape).make()
        fields = numeric_fields(OWN, type_name, message)
        assert len(set(fields)) == len(fields)
        with np.errstate(invalid="ignore"):
            assert not fields or FieldReader(type_name, fields, "t", "first").read(message).shape == (len(fields),)


def test_numeric_fields_are_in_the_notation_of_contracts():
    joints = joint_state(1, ["a", "b.c"], position=[1, 2], effort=[3, 4])
    assert numeric_fields(OWN, JOINT_STATE, joints) == ["position.a", "position.b.c", "effort.a", "effort.b.c"]
    odometry = numeric_fields(OWN, "nav_msgs/msg/Odometry", MessageMaker(OWN, "nav_msgs/msg/Odometry", 1, 1).make())
    pose = [f"pose.pose.position.{x}" for x in "xyz"] + [f"pose.pose.orientation.{x}" for x in "xyzw"]
    assert odometry == pose + [f"twist.twist.{way}.{x}" for way in ("linear", "angular") for x in "xyz"]
    image = MessageMaker(OWN, "sensor_msgs/msg/Image", 1, 1).make()
    image.data = np.zeros(1000, np.uint8)
    tail = [f"data.{i}" for i in range(64)]
    assert numeric_fields(OWN, "sensor_msgs/msg/Image", image) == ["height", "width", "is_bigendian", "step", *tail]
    numbered = ["data.0", "data.1"]
    for labels, expected in (("x,y", ["x", "y"]), ("", numbered), ("x,x", numbered), ("data.5,data.6", numbered)):
        dim = OWN.types["std_msgs/msg/MultiArrayDimension"](label=labels, size=2, stride=2)
        layout = OWN.types["std_msgs/msg/MultiArrayLayout"](dim=[dim], data_offset=0)
        message = OWN.types[FLOAT_ARRAY](layout=layout, data=np.ones(2))
        assert numeric_fields(OWN, FLOAT_ARRAY, message) == expected
    assert numeric_fields(OWN, "std_msgs/msg/String", OWN.types["std_msgs/msg/String"]("1")) == []
