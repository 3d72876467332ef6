# SPDX-License-Identifier: Apache-2.0
"""Ways to spoil the log of bag_world.py: its messages before they are recorded, and the files afterwards."""

from __future__ import annotations

import dataclasses
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rosbags.rosbag2 import CompressionMode

from faults.bag_world import MS, PERIOD, TYPES, Event, Record, recorder
from faults.fuzz_bags import mcap_of
from spc_core.alignment.episode import EpisodeInfo
from support.recorded_bags import RECEIVE_NS, STORE, STRING, Sample, string

Change = Callable[[list[Event]], list[Event]]
TOPICS = frozenset(TYPES)


# ---- messages -------------------------------------------------------------------------------------------------------


def each(change: Callable[[Event], Event], *topics: str, first: int = 0, last: int = 10**6) -> Change:
    """Change every message of the topics, or of all, whose number is from `first` to `last`."""

    def changed(log: list[Event]) -> list[Event]:
        return [change(e) if e.topic in (topics or TOPICS) and first <= e.number <= last else e for e in log]

    return changed


def put(*topics: str, first: int = 0, last: int = 10**6, **values: Any) -> Change:
    return each(lambda event: dataclasses.replace(event, **values), *topics, first=first, last=last)


def delayed(ns: int, *topics: str, first: int = 0, last: int = 10**6) -> Change:
    """Received later."""
    return each(lambda e: dataclasses.replace(e, receive_ns=e.receive_ns + ns), *topics, first=first, last=last)


def stamped(ns: int, *topics: str, first: int = 0, last: int = 10**6) -> Change:
    """Stamped later."""
    return each(lambda e: dataclasses.replace(e, t_ns=e.t_ns + ns), *topics, first=first, last=last)


def dropped(topic: str, first: int, last: int) -> Change:
    return lambda log: [e for e in log if e.topic != topic or not first <= e.number <= last]


def every(count: int, topic: str) -> Change:
    """Only every so manieth message of the topic is left."""
    return lambda log: [e for e in log if e.topic != topic or e.number % count == 0]


def doubled(later_ns: int, *topics: str, number: int = 0, receive_ns: int = 0) -> Change:
    """Every message once more: stamped later, with its number increased."""

    def more(log: list[Event]) -> list[Event]:
        copies = [
            dataclasses.replace(
                e, t_ns=e.t_ns + later_ns, receive_ns=e.receive_ns + later_ns + receive_ns, number=e.number + number
            )
            for e in log
            if e.topic in (topics or TOPICS)
        ]
        return [*log, *copies]

    return more


def shaken(ns: int, seed: int = 0) -> Change:
    """Received up to so much later, each topic still in its order."""

    def shake(log: list[Event]) -> list[Event]:
        rng, newest, found = random.Random(seed), dict.fromkeys(TYPES, 0), []
        for e in log:
            newest[e.topic] = max(newest[e.topic] + 1, e.receive_ns + rng.randrange(ns))
            found.append(dataclasses.replace(e, receive_ns=newest[e.topic]))
        return found

    return shake


def trembling(ns: int, seed: int = 0) -> Change:
    """A robot whose periods are not even: all stamps of a tick are off by the same up to `ns`."""
    offsets = [0, *(random.Random(seed + k).randrange(-ns, ns) for k in range(1, 1000))]
    return each(lambda e: dataclasses.replace(e, t_ns=e.t_ns + offsets[e.number]))


def in_bursts(ns: int) -> Change:
    """Received all at once every so often."""
    return each(lambda e: dataclasses.replace(e, receive_ns=-(-e.receive_ns // ns) * ns))


def slower(percent: int) -> Change:
    """All stamps run so much slower than the recorder's clock."""
    return each(lambda e: dataclasses.replace(e, t_ns=e.t_ns + e.t_ns * percent // 100))


def on_wall_time(log: list[Event]) -> list[Event]:
    return [dataclasses.replace(e, epoch_ns=RECEIVE_NS) for e in log]


def chain(*changes: Change) -> Change:
    def changed(log: list[Event]) -> list[Event]:
        for change in changes:
            log = change(log)
        return log

    return changed


# ---- other messages in the bag --------------------------------------------------------------------------------------

Adapt = Callable[[list[Sample]], list[Sample]]


def said(**info: Any) -> Adapt:
    """The topic `episode` tells of an episode from tick 0 to tick 20."""

    def add(samples: list[Sample]) -> list[Sample]:
        begin_ns = samples[0].message.header.stamp.sec * 10**9
        values = {"state": "ended", "task_id": "t", "params": {}, "episode": 1, "seed": 0, "start_ns": begin_ns}
        text = EpisodeInfo(**{**values, "end_ns": begin_ns + 20 * PERIOD, **info}).to_json()
        return [*samples, Sample("/episode", STRING, RECEIVE_NS + 20 * PERIOD + 5 * MS, string(text))]

    return add


def marked(*marks: tuple[int, bool], topic: str = "/active") -> Adapt:
    """A Bool that changes just after the states of these ticks."""
    kind = "std_msgs/msg/Bool"
    more = [Sample(topic, kind, RECEIVE_NS + k * PERIOD + 2 * MS, STORE.types[kind](data=on)) for k, on in marks]
    return lambda samples: sorted([*samples, *more], key=lambda s: s.receive_ns)


def named(*tasks: str) -> Adapt:
    more = [Sample("/task", STRING, RECEIVE_NS + k * 5 * PERIOD, string(task)) for k, task in enumerate(tasks)]
    return lambda samples: sorted([*samples, *more], key=lambda s: s.receive_ns)


def in_namespace(samples: list[Sample]) -> list[Sample]:
    return [dataclasses.replace(s, topic=f"/robot_7{s.topic}") for s in samples]


def renamed(old: str, new: str) -> Adapt:
    return lambda samples: [dataclasses.replace(s, topic=new) if s.topic == old else s for s in samples]


def retyped(samples: list[Sample]) -> list[Sample]:
    """Rewards of another type."""
    return [dataclasses.replace(s, type=STRING, message=string("1")) if s.topic == "/reward" else s for s in samples]


# ---- files ----------------------------------------------------------------------------------------------------------

BY_TICKS = (0, 5, 10, 15, 21)  # where chunks and parts end


def in_groups(samples: list[Sample], ticks: tuple[int, ...] = BY_TICKS) -> list[list[Sample]]:
    """Samples received from the state of each tick on."""
    ends = [RECEIVE_NS + tick * PERIOD for tick in ticks]
    return [[s for s in samples if a <= s.receive_ns < b] for a, b in zip(ends, ends[1:], strict=False)]


def mcap_file(
    compression: str = "", closed: bool = True, keep: Callable[[bytes], bytes] = bytes, flip: tuple[int, float] = (0, 0)
) -> Record:
    """One chunk for five ticks, with checksums. `flip`: chunk, and where in it a bit is wrong, as a share of it."""

    def record(path: Path, samples: list[Sample]) -> Path:
        file = mcap_of(in_groups(samples), compression)
        data = bytearray(file.closed() if closed else file.data)
        if flip[1]:
            begin, end = file.chunks[flip[0]]
            data[int(begin + flip[1] * (end - begin))] ^= 1
        path.mkdir()
        (path / "bag.mcap").write_bytes(keep(bytes(data)))
        return path

    return record


def within(needle: Callable[[list[Sample]], Sample], more: int) -> Callable[[Path, list[Sample]], Path]:
    """An mcap file that ends so many bytes behind a message in an uncompressed chunk."""

    def record(path: Path, samples: list[Sample]) -> Path:
        data = mcap_of(in_groups(samples)).data
        sample = needle(samples)
        last = bytes(STORE.serialize_cdr(sample.message, sample.type))
        path.mkdir()
        (path / "bag.mcap").write_bytes(data[: data.index(last) + len(last) + more])
        return path

    return record


def in_parts(*names: str, ticks: tuple[int, ...] = (0, 7, 14, 21), without: str = "", storage: str = "mcap") -> Record:
    """A recording split in files of these names."""

    def record(path: Path, samples: list[Sample]) -> Path:
        path.mkdir()
        for name, group in zip(names, in_groups(samples, ticks), strict=True):
            (file,) = recorder(storage)(path / "part", group).glob("part.*")
            if name != without:
                shutil.move(file, path / name)
            shutil.rmtree(path / "part")
        return path

    return record


def then(record: Record, spoil: Callable[[Path], None]) -> Record:
    """Record, and do something to the folder."""

    def both(path: Path, samples: list[Sample]) -> Path:
        spoil(record(path, samples))
        return path

    return both


def without_file(pattern: str) -> Callable[[Path], None]:
    def spoil(bag: Path) -> None:
        (file,) = bag.glob(pattern)
        file.unlink()

    return spoil


def overwritten(name: str, text: str) -> Callable[[Path], None]:
    def spoil(bag: Path) -> None:
        (bag / name).write_text(text)

    return spoil


def pages_left(count: int) -> Callable[[Path], None]:
    def spoil(bag: Path) -> None:
        (file,) = bag.glob("*.db3")
        file.write_bytes(file.read_bytes()[: count * 4096])

    return spoil


def with_open_log(bag: Path) -> None:
    """As a power cut leaves a database: the messages from tick 10 on only in its write-ahead log."""
    (file,) = bag.glob("*.db3")
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    late = "WHERE timestamp >= ?", (RECEIVE_NS + 10 * PERIOD,)
    rows = connection.execute(f"SELECT topic_id, timestamp, data FROM messages {late[0]} ORDER BY rowid", late[1])
    kept = rows.fetchall()
    connection.execute(f"DELETE FROM messages {late[0]}", late[1])
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.executemany("INSERT INTO messages (topic_id, timestamp, data) VALUES (?, ?, ?)", kept)
    connection.commit()
    files = {f.name: f.read_bytes() for f in bag.iterdir() if f.name.startswith(file.name) and "-shm" not in f.name}
    connection.close()  # merges the log, which a power cut does not
    for name, data in files.items():
        (bag / name).write_bytes(data)


def empty(path: Path, samples: list[Sample]) -> Path:
    """Topics, and not one message."""
    bag = recorder("sqlite3")(path, samples)
    (file,) = bag.glob("*.db3")
    with sqlite3.connect(file) as connection:
        connection.execute("DELETE FROM messages")
    connection.close()
    return bag


BIG_ENDIAN = recorder(big_endian=True)
MESSAGES_PACKED = recorder(mode=CompressionMode.MESSAGE)
FILES_PACKED = recorder("sqlite3", mode=CompressionMode.FILE)
