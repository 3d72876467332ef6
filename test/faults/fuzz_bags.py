# SPDX-License-Identifier: Apache-2.0
"""Small bags in every way of storing them, and random damage to their files."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from faults.bag_world import Record
from faults.bytes_injections import PROTOBUF, idl_encoding, idl_of, mcap
from support.mcap_bytes import McapFile, channel, message, schema
from support.paths import BAGS
from support.recorded_bags import STORE, Sample, arm_samples, record_arm

STEPS = 20


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way of storing."""

    name: str
    write: Callable[[Path], Path]
    checked: bool = False  # a checksum covers every message, so that no altered one may come out
    plain: bool = False  # messages lie as they are, so that a bit is in one of them only
    regular: bool = True  # in its receive times too, so that the definition is as simple with clock: receive


def mcap_of(groups: list[list[Sample]], compression: str = "", crc: bool = True, chunked: bool = True) -> McapFile:
    """An mcap file with a chunk for each group of samples, or without chunks."""
    types = {s.topic: s.type for samples in groups for s in samples}
    ids = {topic: i for i, topic in enumerate(types, start=1)}
    names = {kind: i for i, kind in enumerate(sorted(set(types.values())), start=1)}
    head = b"".join(schema(i, kind, STORE.generate_msgdef(kind, ros_version=2)[0]) for kind, i in names.items())
    head += b"".join(channel(i, names[types[topic]], topic) for topic, i in ids.items())
    file = McapFile(head)
    file.add(head)
    for samples in groups:
        rows = [(ids[s.topic], s.receive_ns, cdr(s)) for s in samples]
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


def cdr(sample: Sample) -> bytes:
    return bytes(STORE.serialize_cdr(sample.message, sample.type))


def copied(name: str) -> Callable[[Path], Path]:
    return lambda path: Path(shutil.copytree(BAGS / name, path))


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
    Kind("sqlite3, file in zstd", lambda path: by_rosbags(path, SQLITE3, FILE)),
)


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


def damage(bag: Path, case: int) -> str:
    """Damage one file of the bag; returns how and which. A tenth of the cases damage metadata.yaml instead."""
    rng = random.Random(case)
    files = sorted(bag.iterdir(), key=lambda file: (file.suffix == ".yaml", file.name))
    storage = [file for file in files if file.suffix != ".yaml"]
    file = files[-1] if rng.random() < 0.1 else rng.choice(storage)
    how = rng.choice(DAMAGES)
    file.write_bytes(how(bytearray(file.read_bytes()), rng))
    return f"{how.__name__} {file.name}"
