# SPDX-License-Identifier: Apache-2.0
"""Small bags in every way of storing them, and random damage to their files."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from faults.bag_world import Record
from faults.bytes_injections import FLATBUFFER, JSON, PROTOBUF, Beside, definition, idl_encoding, idl_of, mcap
from support.mcap_bytes import McapFile, channel, message, schema
from support.paths import BAGS
from support.recorded_bags import JOINT_STATE, STORE, VECTOR, Sample, arm_samples, joint_state, record_arm

STEPS = 20


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way of storing."""

    name: str
    write: Callable[[Path], Path]
    checked: bool = False  # a checksum covers every message, so that no altered one may come out
    plain: bool = False  # messages lie as they are, so that a bit is in one of them only
    definitions: Mapping[str, str] = dataclasses.field(default_factory=dict)  # given by --types
    mangled: bool = False  # its messages are damaged and written anew, so that all checksums fit
    spread: bool = False  # joints come in messages of their own
    regular: bool = True  # in its receive times too, so that the definition is as simple with clock: receive


def mcap_of(
    groups: list[list[Sample]],
    compression: str = "",
    crc: bool = True,
    chunked: bool = True,
    raws: list[bytes] | None = None,
) -> McapFile:
    """An mcap file with a chunk for each group of samples, or without chunks; `raws`: their bytes, if they differ."""
    types = {s.topic: s.type for samples in groups for s in samples}
    ids = {topic: i for i, topic in enumerate(types, start=1)}
    names = {kind: i for i, kind in enumerate(sorted(set(types.values())), start=1)}
    head = b"".join(schema(i, kind, STORE.generate_msgdef(kind, ros_version=2)[0]) for kind, i in names.items())
    head += b"".join(channel(i, names[types[topic]], topic) for topic, i in ids.items())
    file = McapFile(head)
    file.add(head)
    data = iter(raws if raws is not None else (cdr(s) for samples in groups for s in samples))
    for samples in groups:
        rows = [(ids[s.topic], s.receive_ns, next(data)) for s in samples]
        if chunked:
            file.chunk(rows, compression, crc)
            continue
        for row in rows:
            file.add(message(*row))
            file.counts[row[0]] = file.counts.get(row[0], 0) + 1
    return file


def hand_made(path: Path, compression: str, crc: bool, chunked: bool = True) -> Path:
    """An mcap file with chunks of 20 messages, or with none."""
    samples = sorted(arm_samples(STEPS), key=lambda sample: sample.receive_ns)
    groups = [samples[begin : begin + 20] for begin in range(0, len(samples), 20)]
    path.mkdir()
    (path / "bag.mcap").write_bytes(mcap_of(groups, compression, crc, chunked).closed())
    return path


def by_rosbags(path: Path, plugin: StoragePlugin, mode: CompressionMode) -> Path:
    samples = arm_samples(STEPS)
    writer = Writer(path, version=9, storage_plugin=plugin)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        topics = {s.topic: s.type for s in samples}
        connections = {t: writer.add_connection(t, kind, typestore=STORE) for t, kind in topics.items()}
        for sample in samples:
            writer.write(connections[sample.topic], sample.receive_ns, cdr(sample))
    return path


def split(path: Path) -> Path:
    """Two parts of one recording."""
    whole, cut = arm_samples(STEPS), len(arm_samples(STEPS)) // 2
    path.mkdir()
    for part, samples in enumerate((whole[:cut], whole[cut:])):
        with Writer(path / "part", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            topics = {s.topic: s.type for s in samples}
            connections = {t: writer.add_connection(t, kind, typestore=STORE) for t, kind in topics.items()}
            for sample in samples:
                writer.write(connections[sample.topic], sample.receive_ns, cdr(sample))
        shutil.move(path / "part" / "part.mcap", path / f"rec_{part}.mcap")
        shutil.rmtree(path / "part")
    return path


def unusual(record: Record) -> Callable[[Path], Path]:
    """What bytes_injections.py writes."""
    return lambda path: record(path, sorted(arm_samples(STEPS), key=lambda sample: sample.receive_ns))


def spread(samples: list[Sample]) -> list[Sample]:
    """The elbow's state in a message of its own, just before the shoulder's."""
    parted = []
    for sample in samples:
        if sample.topic != "/joint_states":
            parted.append(sample)
            continue
        message, stamp = sample.message, sample.message.header.stamp
        for name, early_ns in (("elbow", 1000), ("shoulder", 0)):
            i = message.name.index(name)
            arrays = {array: getattr(message, array)[i : i + 1] for array in ("position", "velocity")}
            part = joint_state(stamp.sec * 10**9 + stamp.nanosec, [name], **arrays)
            parted.append(Sample(sample.topic, JOINT_STATE, sample.receive_ns - early_ns, part))
    return parted


def spread_joints(path: Path) -> Path:
    path.mkdir()
    samples = sorted(spread(arm_samples(STEPS)), key=lambda sample: sample.receive_ns)
    groups = [samples[begin : begin + 20] for begin in range(0, len(samples), 20)]
    (path / "bag.mcap").write_bytes(mcap_of(groups, "", True).closed())
    return path


def cdr(sample: Sample) -> bytes:
    return bytes(STORE.serialize_cdr(sample.message, sample.type))


def copied(name: str) -> Callable[[Path], Path]:
    return lambda path: Path(shutil.copytree(BAGS / name, path))


OWN = Beside("/own", "own_msgs/msg/Own", "own_msgs/Lost lost")  # whose definition lacks a type
NONE, MESSAGE, FILE = CompressionMode.NONE, CompressionMode.MESSAGE, CompressionMode.FILE
MCAP, SQLITE3 = StoragePlugin.MCAP, StoragePlugin.SQLITE3
KINDS = (
    Kind("mcap, as shipped (zstd chunk)", copied("mcap/0001_arm-reach-train-00"), checked=True, regular=False),
    Kind("sqlite3, as shipped", copied("sqlite3/0081_arm-reach-train-00"), plain=True, regular=False),
    Kind("mcap, chunks with checksums", lambda path: hand_made(path, "", True), checked=True),
    Kind("mcap, zstd chunks with checksums", lambda path: hand_made(path, "zstd", True), checked=True),
    Kind("mcap, lz4 chunks with checksums", lambda path: hand_made(path, "lz4", True), checked=True),
    Kind("mcap, chunks without checksums", lambda path: hand_made(path, "", False), plain=True),
    Kind("mcap, zstd chunks without checksums", lambda path: hand_made(path, "zstd", False)),
    Kind("mcap, no chunks", lambda path: hand_made(path, "", False, chunked=False), plain=True),
    Kind("mcap of the recorder", lambda path: record_arm(path, STEPS), checked=True),
    Kind("sqlite3 of the recorder", lambda path: record_arm(path, STEPS, storage="sqlite3"), plain=True),
    Kind("mcap, split in two parts", split, plain=True),
    Kind("mcap, messages in zstd", lambda path: by_rosbags(path, MCAP, MESSAGE)),
    Kind("sqlite3, messages in zstd", lambda path: by_rosbags(path, SQLITE3, MESSAGE)),
    Kind("mcap with protobuf and IDL", unusual(mcap(PROTOBUF, text=idl_of, encoding=idl_encoding)), checked=True),
    Kind("mcap without definitions", unusual(mcap(text=lambda _: "")), checked=True),
    Kind("mcap, definitions given", unusual(mcap(text=lambda _: "")), checked=True,
         definitions={kind: definition(kind) for kind in (JOINT_STATE, VECTOR)}),
    Kind("mcap with other channels", unusual(mcap(FLATBUFFER, JSON, OWN)), checked=True),
    Kind("mcap, spread joints", spread_joints, checked=True, spread=True),
    Kind("mcap, messages damaged before", lambda path: hand_made(path, "", True), mangled=True),
    Kind("sqlite3, file in zstd", lambda path: by_rosbags(path, SQLITE3, FILE)),
)  # fmt: skip


def truncate(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randrange(len(data))]


def truncate_little(data: bytearray, rng: random.Random) -> bytearray:
    return data[: -rng.randrange(1, min(400, len(data)))]


def flip(data: bytearray, rng: random.Random, bits: int = 1) -> bytearray:
    for _ in range(bits):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def flip_some(data: bytearray, rng: random.Random) -> bytearray:
    return flip(data, rng, rng.randrange(2, 40))


def overwrite(data: bytearray, rng: random.Random) -> bytearray:
    begin, size = rng.randrange(len(data)), rng.choice([1, 2, 4, 8, 16, 64])
    data[begin : begin + size] = rng.choice([b"\xff" * size, rng.randbytes(size), b"\x7f" * size])[: len(data) - begin]
    return data


def zero(data: bytearray, rng: random.Random) -> bytearray:
    size = rng.choice([8, 64, 512, 4096])
    begin = rng.randrange(0, len(data)) // size * size
    data[begin : begin + size] = bytes(len(data[begin : begin + size]))
    return data


def swap(data: bytearray, rng: random.Random) -> bytearray:
    size = rng.choice([16, 128, 512, 4096])
    one, two = (rng.randrange(0, max(1, len(data) // size)) * size for _ in range(2))
    first, second = bytes(data[one : one + size]), bytes(data[two : two + size])
    if len(first) == len(second):
        data[one : one + size], data[two : two + size] = second, first
    return data


def cut_out(data: bytearray, rng: random.Random) -> bytearray:
    begin = rng.randrange(len(data))
    del data[begin : begin + rng.choice([1, 7, 100, 2000])]
    return data


DAMAGES = (truncate, flip, flip, flip_some, overwrite, overwrite, zero, swap, truncate_little, cut_out)


def lengthen(data: bytearray, rng: random.Random) -> bytearray:
    return data + rng.choice([bytes, rng.randbytes])(rng.randrange(1, 20))


def represent(data: bytearray, rng: random.Random) -> bytearray:
    """Another representation than plain CDR, or another byte order."""
    data[1] = rng.randrange(12)
    return data


def mangle(bag: Path, rng: random.Random) -> str:
    """Damage some messages before they are written."""
    samples = sorted(arm_samples(STEPS), key=lambda sample: sample.receive_ns)
    chosen = {
        rng.randrange(len(samples)): rng.choice((*DAMAGES, lengthen, represent)) for _ in range(rng.randrange(1, 4))
    }

    def data(i: int, sample: Sample) -> bytes:
        raw = cdr(sample)
        return bytes(chosen[i](bytearray(raw), rng)) if i in chosen else raw

    raws = [data(i, sample) for i, sample in enumerate(samples)]
    (bag / "bag.mcap").write_bytes(mcap_of([samples], raws=raws).closed())
    return f"{', '.join(how.__name__ for how in chosen.values())} in messages"


def damage(bag: Path, case: int, kind: Kind) -> str:
    """Damage one file of the bag; returns how and which. A tenth of the cases damage metadata.yaml instead."""
    rng = random.Random(case)
    if kind.mangled:
        return mangle(bag, rng)
    files = sorted(bag.iterdir(), key=lambda file: (file.suffix == ".yaml", file.name))
    storage = [file for file in files if file.suffix != ".yaml"]
    file = files[-1] if rng.random() < 0.1 else rng.choice(storage)
    how = rng.choice(DAMAGES)
    file.write_bytes(how(bytearray(file.read_bytes()), rng))
    return f"{how.__name__} {file.name}"
