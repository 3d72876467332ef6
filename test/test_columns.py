# SPDX-License-Identifier: Apache-2.0
"""Bulk reading of columns gives what rosbags and FieldReader give message by message, errors included."""


import numpy as np
import pytest
from random_messages import MessageMaker, column_of
from recorded_bags import JOINT_STATE
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from spc_ros.columns import ColumnReader, deserialize
from spc_ros.messages import JOINT_TRAJECTORY, FieldReader, MessageError, stamp_ns
from spc_ros.numeric_fields import numeric_fields

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
OWN = get_typestore(Stores.ROS2_JAZZY)
OWN.register(get_types_from_msg(INNER, "test_msgs/msg/Inner") | get_types_from_msg(MIXED, "test_msgs/msg/Mixed"))
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
        reader = FieldReader(column.type, fields, where)
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
        return ColumnReader(store, column.type, fields, where).read(column)
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
