# SPDX-License-Identifier: Apache-2.0
"""How fast bags become a dataset here, against rosbags reading the same bag in the same run."""

from __future__ import annotations

import dataclasses
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from rosbags.rosbag2 import Reader

from spc_core.contract.contract import Contract, parse_contract
from spc_ros.bags.reader import BagReader
from spc_ros.bags.writer import BagWriter
from spc_ros.conversion.bag_conversion import Job, convert_bag
from spc_ros.conversion.convert import convert
from spc_ros.conversion.convert_options import ConvertOptions
from spc_ros.messages.columns import sources
from spc_ros.messages.fields import JOINT_STATE
from spc_ros.messages.message_types import jazzy

JOINTS = tuple(f"left_arm_joint_{i}" for i in range(6))  # a message is 340 bytes
TOPICS = ("/joint_states", "/commands")
WALL_NS = 1_700_000_000 * 10**9  # receive times, while stamps count from 1 s
RATE_HZ = 500  # of states and of commands


@dataclasses.dataclass(frozen=True)
class Timing:
    """One way to go through the bag: seconds of the fastest round."""

    name: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class BenchConvert:
    """Timings of one bag. Ratios are of messages per second."""

    storage: str
    rate_hz: float  # of the ticks
    messages: int
    size_bytes: int
    raw: Timing  # rosbags, raw messages
    deserialised: Timing  # rosbags, messages as objects
    ours: tuple[Timing, ...]  # the last is the whole conversion, dataset on disk
    peak_mib: float

    def ratios(self, timing: Timing) -> tuple[float, float]:
        """(against rosbags read and deserialise, against rosbags raw read)."""
        return self.deserialised.seconds / timing.seconds, self.raw.seconds / timing.seconds

    def text(self) -> str:
        lines = [
            f"{self.storage}: {self.messages:,} messages, {self.size_bytes / 1e6:.0f} MB, "
            f"ticks at {self.rate_hz:g} Hz, peak memory {self.peak_mib:.0f} MiB",
            f"{'':34} {'ms':>8} {'messages/s':>12} {'MB/s':>7} {'x deserialise':>14} {'x raw':>7}",
        ]
        for timing in (self.raw, self.deserialised, *self.ours):
            per_object, per_raw = self.ratios(timing)
            lines.append(
                f"{timing.name:34} {timing.seconds * 1e3:8.0f} {self.messages / timing.seconds:12,.0f} "
                f"{self.size_bytes / timing.seconds / 1e6:7.0f} {per_object:14.1f} {per_raw:7.2f}"
            )
        return "\n".join(lines)


def bench_convert(
    messages: int = 100_000,
    storages: Iterable[str] = ("mcap", "sqlite3"),
    rates_hz: Iterable[float] = (RATE_HZ, 50),
    rounds: int = 3,
    folder: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[BenchConvert]:
    """Write a bag of each storage and go through it in all ways; `rates_hz` are those of the contract."""
    found = []
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for storage in storages:
            progress(f"writing {storage}")
            bag = write_bag(Path(name) / storage, messages, storage)
            for rate_hz in rates_hz:
                found.append(_bench(bag, storage, contract(rate_hz), messages, rounds, progress))
    return found


def contract(rate_hz: float) -> Contract:
    """Six joints, position and velocity observed, effort commanded; the reward is a joint's."""
    fields = [f"{array}.{joint}" for array in ("position", "velocity") for joint in JOINTS]
    efforts, n = [f"effort.{joint}" for joint in JOINTS], len(JOINTS)
    return parse_contract(
        f"name: bench\nrate_hz: {rate_hz}\nclock: header\n"
        f"observation: [{{topic: joint_states, type: {JOINT_STATE}, fields: [{', '.join(fields)}], max_age_s: 0.1}}]\n"
        f"action: {{topic: commands, type: {JOINT_STATE}, fields: [{', '.join(efforts)}], low: {[-9] * n}, "
        f"high: {[9] * n}, safe: {[0] * n}, max_rate: {[900] * n}}}\n"
        f"reward: {{topic: joint_states, type: {JOINT_STATE}, field: effort.{JOINTS[0]}}}\n"
        "task: {key: spc.task_id}\nepisode: {segment: bag}\n",
        "bench contract",
    )


def write_bag(path: Path, messages: int, storage: str) -> Path:
    """States and commands in turn, each at RATE_HZ, a command 0.4 ms after its state; numbers are random."""
    store = jazzy()
    stamp, header = store.types["builtin_interfaces/msg/Time"], store.types["std_msgs/msg/Header"]
    rows = [np.zeros(len(JOINTS))] * 3
    message = store.types[JOINT_STATE](header(stamp(0, 0), "base_link"), list(JOINTS), *rows)
    data = bytearray(store.serialize_cdr(message, JOINT_STATE))
    size = 8 * len(JOINTS)
    begins = [len(data) - size - k * (size + 8) for k in range(3)]  # an array's numbers follow 8 bytes of length
    random = np.random.default_rng(0)
    with BagWriter(path, {"spc.task_id": "bench/train/0", "spc.contract": contract(RATE_HZ).text}, storage) as writer:
        for topic in TOPICS:
            writer.add_topic(topic, JOINT_STATE)
        for i in range(messages):
            t_ns = 10**9 + (i // 2) * (10**9 // RATE_HZ) + (i % 2) * 400_000
            struct.pack_into("<iI", data, 4, *divmod(t_ns, 10**9))
            for begin in begins:
                data[begin : begin + size] = random.random(len(JOINTS)).tobytes()
            writer.write_raw(TOPICS[i % 2], WALL_NS + t_ns, bytes(data))
    return path


def _bench(
    bag: Path, storage: str, contract: Contract, messages: int, rounds: int, progress: Callable[[str], None]
) -> BenchConvert:
    store = jazzy()

    def raw() -> None:
        with Reader(bag) as reader:
            count = sum(1 for _ in reader.messages())
        if count != messages:
            raise RuntimeError(f"{bag}: rosbags reads {count} messages of {messages}")

    def deserialised() -> None:
        with Reader(bag) as reader:
            for connection, _, data in reader.messages():
                store.deserialize_cdr(data, connection.msgtype)

    def blocks() -> None:
        with BagReader(bag) as reader:
            for _ in reader.blocks():
                pass

    def columns() -> None:
        with BagReader(bag) as reader:
            readers = [
                source.columns(reader.typestore_of(reader.find_topic(source.topic, source.type)))
                for source in sources(contract)
            ]
            names = [reader.find_topic(s.topic, s.type) for s in sources(contract)]
            for block in reader.blocks():
                for name, column in zip(names, readers, strict=True):
                    column.read(block[name])

    def episodes() -> None:
        convert_bag(bag, Job(contract, own_contract=True))

    def whole() -> None:
        with tempfile.TemporaryDirectory(dir=bag.parent) as out:
            convert(ConvertOptions((bag,), Path(out) / "dataset", workers=1), contract, progress=False)

    ways = {
        "rosbags: raw read": raw,
        "rosbags: read and deserialise": deserialised,
        "blocks of raw messages": blocks,
        "and columns": columns,
        "and aligned, checked, hashed": episodes,
        "spc convert: dataset on disk": whole,
    }
    timings = []
    for name, way in ways.items():
        progress(f"{storage}, {contract.rate_hz:g} Hz: {name}")
        timings.append(Timing(name, min(_seconds(way) for _ in range(rounds))))
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024)
    size = sum(file.stat().st_size for file in bag.iterdir() if file.suffix in (".mcap", ".db3"))
    return BenchConvert(storage, contract.rate_hz, messages, size, timings[0], timings[1], tuple(timings[2:]), peak_mib)


def _seconds(way: Callable[[], None]) -> float:
    begin_s = time.perf_counter()
    way()
    return time.perf_counter() - begin_s
