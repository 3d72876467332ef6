# SPDX-License-Identifier: Apache-2.0
"""Bytes that rclpy serialises, read from bags and live: the numbers that rclpy's own deserialiser gives."""

from __future__ import annotations

import importlib
import importlib.util
from array import array
from typing import Any

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.serde import SerdeError

from spc_ros.bags.reader import BagReader
from spc_ros.messages.cdr_walk import LayoutError, RepresentationError, Walk, read_message
from spc_ros.messages.columns import ColumnReader
from spc_ros.messages.contract_reader import ContractReader
from spc_ros.messages.fields import PACKAGES, FieldReader
from spc_ros.messages.live import LiveReader
from spc_ros.messages.message_types import distro_types
from spc_ros.messages.numeric_fields import PLACEHOLDER
from spc_ros.messages.raw_column import BytesError
from support.contracts import make_contract, stream_section
from support.random_messages import column_of
from support.recorded_bags import JOINT_STATE, STORE, joint_state

serialization = pytest.importorskip("rclpy.serialization", reason="rclpy is not installed")
TYPES = sorted(
    f"{package}/msg/{name}"
    for package in PACKAGES
    if importlib.util.find_spec(package)  # tf2_msgs comes with ROS only
    for name in dir(importlib.import_module(f"{package}.msg"))
    if name[0].isupper() and f"{package}/msg/{name}" in STORE.fielddefs
)
FILLINGS = ("empty", "full", "mixed")
RECEIVE_NS = 1_790_000_000_000_000_000


def ros_class(type_name: str) -> Any:
    package, _, name = type_name.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), name)


class Filler:
    """Fills rclpy's messages by their declared types."""

    def __init__(self, filling: str, seed: int) -> None:
        self.filling, self.random = filling, np.random.default_rng(seed)

    def message(self, type_name: str) -> Any:
        message = ros_class(type_name)()
        for name, kind in message.get_fields_and_field_types().items():
            setattr(message, name, self.value(kind))
        return message

    def value(self, kind: str) -> Any:
        if kind.startswith("sequence<"):
            element, _, bound = kind[len("sequence<") : -1].partition(",")
            count = {"empty": 0, "full": 3, "mixed": int(self.random.integers(0, 3))}[self.filling]
            return [self.value(element) for _ in range(min(count, int(bound or 9)))]
        if kind.endswith("]"):
            element, _, count = kind[:-1].partition("[")
            return [self.value(element) for _ in range(int(count))]
        if kind.startswith("string"):
            return "x" * int(self.random.integers(0, 10))
        return self.message(kind.replace("/", "/msg/")) if "/" in kind else self.number(kind)

    def number(self, kind: str) -> Any:
        if kind == "octet":
            return bytes([int(self.random.choice([0, 53, 127, 128, 200, 255]))])
        if kind == "boolean":
            return bool(self.random.random() < 0.5)
        if kind in ("double", "float"):
            return float(np.float32(self.random.normal()))
        dtype = np.iinfo(kind)
        return int(self.random.integers(dtype.min, dtype.max, endpoint=True, dtype=kind))


def plain(value: Any) -> Any:
    """Any message as lists of numbers and texts, whoever made it."""
    if hasattr(value, "get_fields_and_field_types"):
        return [plain(getattr(value, name)) for name in value.get_fields_and_field_types()]
    if hasattr(value, "__msgtype__"):
        names = [name for name, _ in distro_types().get_msgdef(value.__msgtype__).fields]
        return [plain(getattr(value, name)) for name in names if name != PLACEHOLDER]
    if isinstance(value, bytes):
        return value[0]
    if isinstance(value, (list, array, np.ndarray)):
        return [plain(item) for item in (value.tolist() if not isinstance(value, list) else value)]
    return value.item() if isinstance(value, np.generic) else value


def serialised(type_name: str, filling: str) -> list[bytes]:
    """Messages whose strings, such as a frame id, are of 0 to 9 letters."""
    return [serialization.serialize_message(Filler(filling, seed).message(type_name)) for seed in range(24)]


def paths_of(message: Any, path: str = "") -> list[str]:
    """Paths of all numbers of one of rclpy's messages."""
    found = []
    for name, kind in message.get_fields_and_field_types().items():
        value, here = getattr(message, name), f"{path}.{name}" if path else name
        if hasattr(value, "get_fields_and_field_types"):
            found += paths_of(value, here)
        elif isinstance(value, (list, array, np.ndarray)):
            for i, item in enumerate(value):
                if hasattr(item, "get_fields_and_field_types"):
                    found += paths_of(item, f"{here}.{i}")
                elif not isinstance(item, str):
                    found.append(f"{here}.{i}")
        elif not isinstance(value, str) and name != PLACEHOLDER and kind != "wstring":
            found.append(here)
    return found


@pytest.mark.parametrize("type_name", TYPES)
def test_a_message_is_read_as_rclpy_reads_it(type_name):
    for filling in FILLINGS:
        for data in serialised(type_name, filling):
            expected = serialization.deserialize_message(data, ros_class(type_name))
            found, surplus = read_message(distro_types(), type_name, data)
            assert plain(found) == plain(expected) and surplus == 0
            assert Walk(distro_types(), type_name, data, frozenset()).surplus == 0


@pytest.mark.parametrize("type_name", [t for t in TYPES if not t.endswith(("JointState", "/JointTrajectory"))])
def test_columns_and_live_readers_give_rclpys_numbers(type_name):
    """Of all fields, to the bit, whether a layout was learnt or not."""
    for filling in FILLINGS:
        made = serialised(type_name, filling)
        messages = [serialization.deserialize_message(data, ros_class(type_name)) for data in made]
        paths = set(paths_of(messages[0])).intersection(*map(paths_of, messages[1:]))
        fields = sorted(path for path in paths if path.startswith("data.") or not type_name.endswith("MultiArray"))
        if not fields:
            continue
        slow = FieldReader(type_name, fields, "t")
        expected = np.array([slow.read(message) for message in messages])
        column = column_of([*made, *made], type_name, np.random.default_rng(0))
        _, values = ColumnReader(distro_types(), type_name, fields, "t").read(column)
        assert values.tobytes() == np.concatenate([expected, expected]).tobytes()
        live = LiveReader(type_name, lambda message, reader=slow: reader.read(message).tolist())
        for data, message in zip(made, messages, strict=True):
            live.learn(data, message)
        for data, row in zip(made[-3:], expected[-3:], strict=True):
            found = live.read(data)
            assert found is not None and np.array(found, float).tobytes() == row.tobytes()


@pytest.mark.parametrize("plugin", StoragePlugin)
def test_a_bag_of_positions_only_is_sound(tmp_path, plugin):
    """84 bytes where 76 say all; the rest is whatever lay there."""
    made = [Filler("empty", seed).message(JOINT_STATE) for seed in range(40)]
    for k, message in enumerate(made):
        message.name, message.position, message.header.frame_id = ["a", "b"], [k, k / 4], "x" * (k % 10)
    raw = [serialization.serialize_message(message) for message in made]
    assert any(len(data) > len(joint_bytes(message)) + 3 for data, message in zip(raw, made, strict=True))
    with Writer(tmp_path / "bag", version=9, storage_plugin=plugin) as writer:
        topic = writer.add_connection("/joint_states", JOINT_STATE, typestore=STORE)
        for k, data in enumerate(raw):
            writer.write(topic, RECEIVE_NS + k, data)
    with BagReader(tmp_path / "bag") as bag:
        reader = ColumnReader(bag.typestore_of("/joint_states"), JOINT_STATE, ["position.b", "position.a"], "j")
        values = np.concatenate([reader.read(block["/joint_states"])[1] for block in bag.blocks()])
        assert [message.header.frame_id for _, _, message in bag.messages()] == ["x" * (k % 10) for k in range(40)]
    assert values.tolist() == [[k / 4, k] for k in range(40)] and reader.surplus == 0


def joint_bytes(message: Any) -> bytes:
    made = joint_state(0, list(message.name), position=list(message.position))
    made.header.frame_id = message.header.frame_id
    return bytes(STORE.serialize_cdr(made, JOINT_STATE))


@pytest.mark.parametrize(
    ("text", "expected"),
    [(b"", ""), (b"abc", "abc"), (b"abc\0", "abc"), (b"\0", ""), (b"gr\xfcn\0", "gr\ufffdn")],
)
def test_strings_are_read_as_ros_reads_them(text, expected):
    type_name = "std_msgs/msg/String"
    data = b"\0\1\0\0" + len(text).to_bytes(4, "little") + text
    assert serialization.deserialize_message(data, ros_class(type_name)).data == expected
    assert read_message(distro_types(), type_name, data)[0].data == expected


def test_bytes_after_the_end_are_counted_and_not_read():
    data = joint_bytes(ros_class(JOINT_STATE)(name=["a"], position=[7.0])) + b"\xff" * 40
    column = column_of([data] * 50, JOINT_STATE, np.random.default_rng(0))
    reader = ColumnReader(distro_types(), JOINT_STATE, ["position.a"], "t")
    assert reader.read(column)[1].tolist() == [[7.0]] * 50
    assert reader.surplus == 40 - 8 - 3, "eight bytes may be kept for two empty arrays, three are padding"


@pytest.mark.parametrize(
    ("begin", "name"), [(b"\0\6", "XCDR2"), (b"\0\7", "XCDR2"), (b"\0\x0b", "XCDR2"), (b"\0\3", "XCDR1")]
)
def test_another_representation_is_named(begin, name):
    data = begin + b"\0\0" + bytes(20)
    with pytest.raises(RepresentationError, match=name):
        read_message(distro_types(), "std_msgs/msg/Float64", data)
    with pytest.raises(LayoutError):
        Walk(distro_types(), "std_msgs/msg/Float64", data, frozenset())
    reader = ColumnReader(distro_types(), "std_msgs/msg/Float64", ["data"], "speed")
    with pytest.raises(BytesError, match=f"topic 'speed': message 0 .* {name}, .* use the data representation XCDR1"):
        reader.read(column_of([data], "std_msgs/msg/Float64", np.random.default_rng(0)))


def test_bytes_that_end_early_are_refused():
    data = joint_bytes(ros_class(JOINT_STATE)(name=["a"], position=[7.0]))
    for end in range(len(data) - 4):
        with pytest.raises(SerdeError):
            read_message(distro_types(), JOINT_STATE, data[:end])


def test_a_node_reads_bytes_from_0_to_255():
    """rclpy's bytes objects, before and after the layout is learnt."""
    type_name = "std_msgs/msg/ByteMultiArray"
    reader = ContractReader(make_contract(observation=[stream_section("flags", ["data.0", "data.1"], type_name)]))
    for first in (b"\xc8", b"5", b"\x00"):
        data = serialization.serialize_message(ros_class(type_name)(data=[first, b"\xff"]))
        ((_, _, values),) = reader.live_samples(
            "flags", data, lambda: 7, lambda raw: serialization.deserialize_message(raw, ros_class(type_name))
        )
        assert values.tolist() == [first[0], 255.0]
