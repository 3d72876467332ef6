# SPDX-License-Identifier: Apache-2.0
"""Definitions are read topic by topic: from the bag, from the user, or from the distribution of ROS 2 that fits."""

from __future__ import annotations

import contextlib
import sqlite3
import struct
from pathlib import Path

import numpy as np
import pytest
from rosbags.interfaces import MessageDefinitionFormat
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from spc_ros.bags.files import BagError, list_files
from spc_ros.bags.reader import BagReader
from spc_ros.doctor.contract_init import propose
from spc_ros.doctor.doctor import diagnose
from spc_ros.messages.fields import MessageError
from spc_ros.messages.message_types import full_name, parse, read_definitions
from support.mcap_bytes import McapFile, channel, record, schema, text

IDL = "=" * 80 + "\nIDL: demo_msgs/msg/State\n"
ENUM = f"""{IDL}/* struct Comment {{ }} */
module demo_msgs {{ module msg {{
  enum Mode {{ IDLE, MOVING }};
  struct State {{ octet flags; demo_msgs::msg::Mode mode; sequence<Mode> past; double speed; }};
}}; }};
"""
STATE = "demo_msgs/msg/State"


def cdr(layout: str, *values: float) -> bytes:
    return b"\0\1\0\0" + struct.pack(layout, *values)


def mcap(path: Path, *topics: tuple[str, str, str | bytes, str, bytes], metadata: bytes = b"") -> Path:
    """Topics: (name, type, definition, encoding, one message)."""
    head = b"".join(
        schema(i, kind, definition, encoding) + channel(i, i, name)  # type: ignore[arg-type]
        for i, (name, kind, definition, encoding, _) in enumerate(topics, 1)
    )
    file = McapFile(head)
    file.add(head)
    if metadata:
        entry = record(0x0C, metadata)
        file.head += record(0x0D, struct.pack("<QQ", len(file.data), len(entry)) + text("rosbag2"))
        file.add(entry)
    file.chunk([(i, i, data) for i, (*_, data) in enumerate(topics, 1)])
    path.write_bytes(file.closed())
    return path


def values(path: Path, **options) -> dict[str, object]:
    with BagReader(path, **options) as bag:
        return {topic: message for topic, _, message in bag.messages()}


def test_an_enum_in_idl_is_a_number(tmp_path):
    data = cdr("<B3xIIII4xd", 200, 1, 2, 1, 0, 2.5)
    (message,) = values(mcap(tmp_path / "a.mcap", ("/s", STATE, ENUM, "ros2idl", data))).values()
    assert (message.flags, message.mode, message.past.tolist(), message.speed) == (200, 1, [1, 0], 2.5)


@pytest.mark.parametrize(
    ("name", "kind", "definition", "why"),
    [
        ("demo_msgs/srv/Add_Event", "ros2msg", "=" * 80 + "\nSRV: demo_msgs/srv/Add\nint64 a\n---\n", "of a service"),
        ("demo_msgs/action/Move_FeedbackMessage", "ros2msg", "float64 a\n---\n", "of an action"),
        (STATE, "ros2msg", "<xml>", "cannot be read"),
        (STATE, "ros2idl", ENUM.replace("enum", "@bit_bound(8) enum"), "@bit_bound"),
        (STATE, "ros2msg", "wstring a\nfloat64 b\n", "fields of type wstring"),
    ],
)
def test_a_definition_that_cannot_be_read_spoils_its_topic_only(tmp_path, name, kind, definition, why):
    other = ("/x", "demo_msgs/msg/X", "float64 x\n", "ros2msg", cdr("<d", 4.0))
    path = mcap(tmp_path / "a.mcap", ("/odd", name, definition, kind, bytes(16)), other)
    with BagReader(path) as bag:
        with pytest.raises(MessageError, match=f"topic '/odd': not decoded, .*{why}"):
            bag.typestore_of("/odd")
        assert [message.x for _, _, message in bag.messages(["/x"])] == [4.0]
    report = diagnose([path], progress=False, workers=1)
    assert [f.topic for f in report.findings if f.check == "topic"] == ["/odd"] and report.verdict == "warn"
    assert "record again" not in report.text()


def test_each_topic_has_its_own_definition_of_a_type(tmp_path):
    one = ("/one", STATE, "float64 a\n", "ros2msg", cdr("<d", 4.0))
    two = ("/two", STATE, "uint8 a\nbyte b\n", "ros2msg", cdr("<BB", 3, 200))
    found = values(mcap(tmp_path / "a.mcap", one, two))
    assert (found["/one"].a, found["/two"].a, found["/two"].b) == (4.0, 3, 200)


def test_a_topic_with_two_definitions_is_refused_unless_they_say_the_same(tmp_path):
    one = ("/one", STATE, "float64 a\n", "ros2msg", cdr("<d", 4.0))
    same = ("/one", STATE, "# more words\nfloat64 a  # metres\n", "ros2msg", cdr("<d", 5.0))
    assert values(mcap(tmp_path / "a.mcap", one, same))["/one"].a == 5.0
    other = ("/one", STATE, "float64 a\nfloat64 b\n", "ros2msg", cdr("<dd", 5.0, 6.0))
    with pytest.raises(BagError, match=r"'/one': .* has two definitions in this bag \(.*: a and a, b\); convert the"):
        values(mcap(tmp_path / "a.mcap", one, other))


def range_bag(path: Path, named: str, store: Stores, plugin: StoragePlugin = StoragePlugin.SQLITE3) -> Path:
    """Three ranges without a definition, as the distribution has them."""
    types = get_typestore(store)
    made = types.types
    time = made["builtin_interfaces/msg/Time"](sec=1, nanosec=0)
    more = {"variance": 9.0} if "variance" in made["sensor_msgs/msg/Range"].__dataclass_fields__ else {}
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        topic = writer.add_connection("/range", "sensor_msgs/msg/Range", typestore=types)
        for k in range(3):
            head = made["std_msgs/msg/Header"](stamp=time, frame_id="x" * k)
            ranged = made["sensor_msgs/msg/Range"](head, 0, 0.5, 0.0, 9.0, 1.0 + k, **more)
            writer.write(topic, 10 + k, types.serialize_cdr(ranged, "sensor_msgs/msg/Range"))
    with contextlib.closing(sqlite3.connect(path / f"{path.name}.db3")) as connection:
        connection.execute("DELETE FROM message_definitions")
        connection.execute("UPDATE schema SET ros_distro = ?", (named,))
        connection.commit()
    return path


@pytest.mark.parametrize(
    ("named", "written", "used"),
    [
        ("humble", Stores.ROS2_HUMBLE, "Humble is used, which the bag names"),
        ("", Stores.ROS2_FOXY, "Humble is used, which fits every message"),
        ("rolling", Stores.ROS2_KILTED, "Jazzy is used, which fits every message"),
        ("lyrical", Stores.ROS2_LYRICAL, "Lyrical is used, which the bag names"),
        ("jazzy", Stores.ROS2_IRON, "Jazzy is used, which the bag names"),
        ("jazzy", Stores.ROS2_HUMBLE, "which fits every message; that of Jazzy, which the bag names, does not"),
    ],
)
def test_the_distribution_whose_definition_fits_is_used(tmp_path, named, written, used):
    path = range_bag(tmp_path / "bag", named, written)
    with BagReader(path) as bag:
        assert [message.range for _, _, message in bag.messages()] == [1.0, 2.0, 3.0]
        assert bag.losses == () and len(bag.notes) == 1 and bag.notes[0].endswith(used)
    report = diagnose([path], progress=False, workers=1)
    assert [finding.severity for finding in report.findings if used in finding.text] == ["ok"]


def test_the_name_in_the_metadata_counts_where_the_file_has_none(tmp_path):
    path = range_bag(tmp_path / "bag", "", Stores.ROS2_HUMBLE)
    metadata = path / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("ros_distro: rosbags", "ros_distro: humble"))
    assert list_files(path).distro == "humble"
    with BagReader(path) as bag:
        bag.typestore_of("/range")
        assert bag.notes[0].endswith("Humble is used, which the bag names")


@pytest.mark.parametrize("said", [text("ROS_DISTRO") + text("iron"), text("m") + text("a: 1\nros_distro: iron\n")])
def test_an_mcap_names_its_distribution_in_its_metadata(tmp_path, said):
    """Iron wrote it as an entry of its own, later ones within a copy of metadata.yaml."""
    made = range_bag(tmp_path / "bag", "", Stores.ROS2_IRON)
    with BagReader(made) as bag:
        data = next(iter(bag.raw_messages()))[-1]
    topic = ("/range", "sensor_msgs/msg/Range", "", "", data)
    path = mcap(tmp_path / "a.mcap", topic, metadata=text("rosbag2") + text(said))
    with BagReader(path) as bag:
        assert [message.range for _, _, message in bag.messages()] == [1.0]
        assert bag.losses == () and bag.notes[0].endswith("Iron is used, which the bag names")


def test_types_of_the_user_serve_doctor_and_contract_init(tmp_path):
    folder = tmp_path / "demo_msgs" / "msg"
    folder.mkdir(parents=True)
    (folder / "State.msg").write_text("std_msgs/Header header\nfloat64 position\nfloat64 velocity\n")
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        topic = writer.add_connection("/state", STATE, msgdef="x", rihs01="RIHS01_" + "0" * 64)
        for k in range(100):
            data = b"\0\1\0\0" + struct.pack("<iII4x2d", 1, k * 10_000_000, 0, np.sin(k), np.cos(k))
            writer.write(topic, 10**9 + k * 10_000_000, data)
    with contextlib.closing(sqlite3.connect(tmp_path / "bag" / "bag.db3")) as connection:
        connection.execute("DELETE FROM message_definitions")
        connection.commit()
    bag, types = tmp_path / "bag", [tmp_path / "demo_msgs"]
    assert "no definition of the type" in diagnose([bag], progress=False, workers=1).text()
    (topic_stats,) = diagnose([bag], progress=False, workers=1, types=types).topics
    assert (topic_stats.topic, topic_stats.count) == ("/state", 100)
    assert "fields: [position, velocity]" in propose(bag, definitions=read_definitions(types))


def test_short_names_are_understood():
    assert full_name("sensor_msgs/Imu") == full_name("sensor_msgs/msg/Imu") == "sensor_msgs/msg/Imu"
    assert full_name("foxglove.SceneUpdate") == "foxglove.SceneUpdate" and full_name("") == ""


def test_parsed_definitions_count_bytes_as_ros_does():
    types = parse(STATE, MessageDefinitionFormat.MSG, "byte a\nbyte[] b\nbyte[3] c\nchar d\r\n")
    assert [kind for _, kind in types[STATE][1]] == [
        (1, ("uint8", 0)),
        (4, ((1, ("uint8", 0)), 0)),
        (3, ((1, ("uint8", 0)), 3)),
        (1, ("char", 0)),
    ]


@pytest.mark.parametrize(
    ("definition", "why"),
    [
        ("demo_msgs/Lost lost\nfloat64 x", "no definition of demo_msgs/msg/Lost, neither in the bag nor in ROS 2"),
        (f"builtin_interfaces/Time t\n{'=' * 80}\nMSG: builtin_interfaces/Time\nint8 sec", "a definition is damaged"),
    ],
)
def test_definitions_that_do_not_go_together_are_refused(tmp_path, definition, why):
    path = mcap(tmp_path / "a.mcap", ("/own", "demo_msgs/msg/Own", definition, "ros2msg", b"\0\1\0\0" + bytes(16)))
    with BagReader(path) as bag, pytest.raises(MessageError, match=why):
        bag.typestore_of("/own")


def test_a_string_that_is_defined_without_its_text_is_no_episode(tmp_path):
    string = ("/episode", "std_msgs/msg/String", "string dAta", "ros2msg", b"\0\1\0\0\2\0\0\0a\0")
    with BagReader(mcap(tmp_path / "a.mcap", string)) as bag, pytest.raises(MessageError, match="has no text 'data'"):
        bag.last_episode()
