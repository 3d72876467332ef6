# SPDX-License-Identifier: Apache-2.0
"""Recordings whose bytes or definitions are unusual: what other recorders, distributions and middlewares write."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from faults.bag_world import WRENCH, Record, recorder
from support.mcap_bytes import McapFile, channel, schema
from support.recorded_bags import STORE, VECTOR, Sample

RANGE = "sensor_msgs/msg/Range"
HUMBLE = get_typestore(Stores.ROS2_HUMBLE)
LINE = "=" * 80 + "\n"
SERVICE = f"{LINE}SRV: demo_msgs/srv/Add\nint64 a\n---\nint64 sum\n"
ACTION = f"{LINE}ACTION: demo_msgs/action/Move\nfloat64 goal\n---\nfloat64 result\n---\nfloat64 feedback\n"
VECTOR_IDL = f"""{LINE}IDL: geometry_msgs/msg/Vector3Stamped
#include "geometry_msgs/msg/Vector3.idl"
#include "std_msgs/msg/Header.idl"
// a comment
module geometry_msgs {{ module msg {{
  enum Frame {{ WORLD, BASE }};
  struct Vector3Stamped {{ std_msgs::msg::Header header; geometry_msgs::msg::Vector3 vector; }};
}}; }};
{LINE}IDL: geometry_msgs/msg/Vector3
module geometry_msgs {{ module msg {{ struct Vector3 {{ double x; double y; double z; }}; }}; }};
{LINE}IDL: std_msgs/msg/Header
#include "builtin_interfaces/msg/Time.idl"
module std_msgs {{ module msg {{
  struct Header {{ builtin_interfaces::msg::Time stamp; string frame_id; }};
}}; }};
{LINE}IDL: builtin_interfaces/msg/Time
module builtin_interfaces {{ module msg {{ struct Time {{ long sec; unsigned long nanosec; }}; }}; }};
"""

Bytes = Callable[[str, bytes], bytes]
"""(topic, CDR) to what is recorded."""


@dataclasses.dataclass(frozen=True)
class Beside:
    """One more topic, which the contract does not read; its one message comes with the first of the others."""

    topic: str
    type: str
    definition: str | bytes
    encoding: str = "ros2msg"
    form: str = "cdr"
    data: bytes = b"\0\1\0\0" + bytes(8)


PROTOBUF = Beside("/scene", "foxglove.SceneUpdate", b"\n\xd4\x01\xff\xfe\x80", "protobuf", "protobuf", b"\x08\x96\x01")
FLATBUFFER = Beside("/scan", "foxglove.LaserScan", b"\x18\0\0\0BFBS\xff\xfe", "flatbuffer", "flatbuffer", b"\x0c\0\xff")
JSON = Beside("/log", "", "", "", "json", b'{"a": 1}')


def definition(type_name: str) -> str:
    return STORE.generate_msgdef(type_name, ros_version=2)[0]


def lacking(type_name: str) -> str:
    """The rewards' definition with a field of a type that nothing defines."""
    text = definition(type_name)
    return f"vendor_msgs/Lost lost\n{text}" if type_name == VECTOR else text


def cdr(sample: Sample) -> bytes:
    return bytes(STORE.serialize_cdr(sample.message, sample.type))


def mcap(
    *beside: Beside,
    data: Bytes = lambda _, raw: raw,
    text: Callable[[str], str | bytes] = definition,
    encoding: Callable[[str], str] = lambda _: "ros2msg",
    name: Callable[[str], str] = lambda name: name,
    closed: bool = True,
    again: str | bytes = b"",
) -> Record:
    """One chunk of all messages. `again`: another definition of the rewards' type, for the second half of them."""

    def record(path: Path, samples: list[Sample]) -> Path:
        types = {s.topic: s.type for s in samples}
        head, key = b"", {topic: i for i, topic in enumerate(types, 1)}
        for topic, type_name in types.items():
            head += schema_of(key[topic], name(type_name), text(type_name), encoding(type_name))
            head += channel(key[topic], key[topic], topic)
        rows = [(key[s.topic], s.receive_ns, data(s.topic, cdr(s))) for s in samples]
        if again:
            head += schema_of(90, types["/reward"], again, "ros2msg") + channel(90, 90, "/reward")
            late = samples[len(samples) // 2].receive_ns
            rows = [(90 if k == key["/reward"] and t > late else k, t, raw) for k, t, raw in rows]
        for i, other in enumerate(beside, 100):
            head += schema_of(i, other.type, other.definition, other.encoding) if other.type else b""
            head += channel(i, i if other.type else 0, other.topic, other.form)
            rows.append((i, samples[0].receive_ns, other.data))
        file = McapFile(head)
        file.add(head)
        file.chunk(rows)
        path.mkdir()
        (path / "bag.mcap").write_bytes(file.closed() if closed else file.data)
        return path

    return record


def schema_of(key: int, name: str, text: str | bytes, encoding: str) -> bytes:
    return schema(key, name, text, encoding)  # type: ignore[arg-type]  # schemas need not be text


def beside_sqlite3(*beside: Beside) -> Record:
    """As rosbag2 records, with more topics."""

    def record(path: Path, samples: list[Sample]) -> Path:
        with Writer(path, version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
            for other in beside:
                text, kind = str(other.definition), other.type
                topic = writer.add_connection(other.topic, kind, msgdef=text, rihs01=f"RIHS01_{len(text):064x}")
                writer.write(topic, samples[0].receive_ns, other.data)
            types = {s.topic: s.type for s in samples}
            known = {topic: writer.add_connection(topic, kind, typestore=STORE) for topic, kind in types.items()}
            for sample in samples:
                writer.write(known[sample.topic], sample.receive_ns, cdr(sample))
        return path

    return record


def without_definitions(distro: str, store: Any = STORE) -> Record:
    """A database as before Iron; `store` serialises the messages."""

    def record(path: Path, samples: list[Sample]) -> Path:
        recorder("sqlite3")(path, samples)
        with contextlib.closing(sqlite3.connect(path / f"{path.name}.db3")) as connection:
            connection.execute("DROP TABLE message_definitions")
            connection.execute("UPDATE schema SET ros_distro = ?", (distro,))
            for sample in samples if store is not STORE else ():
                raw = bytes(store.serialize_cdr(of_store(store, sample.message), sample.type))
                where = "timestamp = ? AND topic_id = (SELECT id FROM topics WHERE name = ?)"
                connection.execute(
                    f"UPDATE messages SET data = ? WHERE {where}", (raw, sample.receive_ns, sample.topic)
                )
            connection.commit()
        return path

    return record


def of_store(store: Any, message: Any) -> Any:
    """A message as another distribution has it, with the fields that it has there."""
    if not hasattr(message, "__msgtype__"):
        return message
    names = [name for name, _ in store.fielddefs[message.__msgtype__][1]]
    return store.types[message.__msgtype__](**{name: of_store(store, getattr(message, name)) for name in names})


def with_range(samples: list[Sample]) -> list[Sample]:
    """The force measured as a distance: sensor_msgs/Range, which has a field more since Jazzy."""

    def changed(sample: Sample) -> Sample:
        if sample.type != WRENCH:
            return sample
        made = STORE.types[RANGE](
            header=sample.message.header,
            radiation_type=0,
            field_of_view=0.5,
            min_range=0.0,
            max_range=100.0,
            range=sample.message.wrench.force.x,
            variance=0.0,
        )
        return dataclasses.replace(sample, type=RANGE, message=made)

    return [changed(sample) for sample in samples]


def reserved(topic: str, raw: bytes) -> bytes:
    """What rclpy leaves behind a joint state with an empty array of float64."""
    return raw + b"\x35\x7f\xd3\xa6" if topic.startswith("/joint") else raw


def longer(topic: str, raw: bytes) -> bytes:
    return raw + b"\xff" * 40 if topic == "/reward" else raw


def without_nul(topic: str, raw: bytes) -> bytes:
    """An empty frame id of length 0, where CDR asks for length 1 and a NUL; the next number is aligned all the same."""
    return raw[:12] + bytes(4) + raw[16:] if topic in ("/reward", "/force") else raw


def as_xcdr2(topic: str, raw: bytes) -> bytes:
    return b"\0\7" + raw[2:] if topic == "/reward" else raw


def odd_text(type_name: str) -> bytes:
    """CRLF line ends, and a comment in Latin-1."""
    return b"# gr\xfc\xdfe\r\n" + definition(type_name).replace("\n", "\r\n").encode()


def idl_of(type_name: str) -> str:
    return VECTOR_IDL if type_name == VECTOR else definition(type_name)


def idl_encoding(type_name: str) -> str:
    return "ros2idl" if type_name == VECTOR else "ros2msg"


def short_name(type_name: str) -> str:
    return type_name.replace("/msg/", "/")


def renamed(bag: Path) -> None:
    (bag / f"{bag.name}.mcap").rename(bag / "monday.mcap")
