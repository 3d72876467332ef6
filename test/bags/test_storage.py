# SPDX-License-Identifier: Apache-2.0
"""Blocks against rosbags' messages: storages, compressions, overlaps, and every kind of damage."""

import random
import shutil
import sqlite3
import struct
from pathlib import Path

import numpy as np
import pytest
import yaml
from backports import zstd
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer

from spc_ros.bags import blocks as stored_blocks
from spc_ros.bags import compression
from spc_ros.bags.files import BagError, bag_sha256, find_bags
from spc_ros.bags.reader import BagReader
from spc_ros.messages.fields import MessageError
from spc_ros.messages.message_types import read_definitions
from support.mcap_bytes import MAGIC, McapFile, channel, message, record, schema
from support.recorded_bags import STORE, STRING, VECTOR, record_arm, string, vector

MODES = {"none": CompressionMode.NONE, "chunk": CompressionMode.STORAGE, "message": CompressionMode.MESSAGE}
MODES["file"] = CompressionMode.FILE
PLUGINS = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
KINDS = [(s, m) for s in PLUGINS for m in MODES if (s, m) != ("sqlite3", "chunk")]
TYPES = {"/a": STRING, "/b": VECTOR, "/c": STRING}
HEAD = schema(1, STRING) + channel(1, 1, "/a") + channel(2, 1, "/b")


@pytest.fixture
def small_blocks(monkeypatch):
    """Many blocks of a small bag."""
    monkeypatch.setattr(stored_blocks.merge, "__defaults__", (3000,))


def samples(seed: int, count: int, begin_ns: int = 1000):
    """(topic, receive_ns, CDR): random topics and sizes, times that repeat and run backwards."""
    rng = random.Random(seed)
    found = []
    for i in range(count):
        topic = rng.choice(list(TYPES))
        t_ns = begin_ns + i // 3 * 10 - rng.choice([0, 0, 0, 25])
        value = vector(t_ns, float(i)) if topic == "/b" else string(f"{i} " * rng.randrange(1, 40))
        found.append((topic, t_ns, bytes(STORE.serialize_cdr(value, TYPES[topic]))))
    return found


def write(path: Path, messages, storage="mcap", mode="none", version=9) -> Path:
    writer = Writer(path, version=version, storage_plugin=PLUGINS[storage])
    writer.set_compression(MODES[mode], CompressionFormat.ZSTD)
    with writer:
        topics = {t: writer.add_connection(t, name, typestore=STORE) for t, name in TYPES.items()}
        for topic, t_ns, data in messages:
            writer.write(topics[topic], t_ns, data)
    return path


def file_of(bag: Path) -> Path:
    (file,) = [f for f in bag.iterdir() if f.suffix in (".mcap", ".db3", ".zstd")]
    return file


def oracle(path: Path, topics=()):
    with Reader(path) as reader:
        chosen = [c for c in reader.connections if c.topic in topics or not topics]
        return [(c.topic, c.msgtype, t_ns, bytes(data)) for c, t_ns, data in reader.messages(chosen)]


def from_blocks(reader: BagReader, topics=()):
    """The messages that the blocks hold, put together by `order`; each block must continue the one before."""
    found, last_ns = [], -(2**63)
    for block in reader.blocks(topics):
        assert block
        rows = []
        for topic, column in block.items():
            assert column.topic == topic and len(column)
            assert (np.diff(column.receive_ns) >= 0).all() and (np.diff(column.log_index) > 0).all()
            for order, t_ns, data in zip(column.log_index, column.receive_ns, column.messages(), strict=True):
                rows.append((int(order), (topic, column.type, int(t_ns), data)))
        rows.sort()
        assert [order for order, _ in rows] == list(range(len(found), len(found) + len(rows)))
        assert rows[0][1][2] >= last_ns
        last_ns = rows[-1][1][2]
        found += [row for _, row in rows]
    return found


def read(path: Path, topics=(), losses: int = 0):
    with BagReader(path) as reader:
        found = from_blocks(reader, topics)
        assert list(reader.raw_messages(topics)) == found
        assert len(reader.losses) == losses, reader.losses
        assert reader.bytes_read == reader.size_bytes > 0
        return found


def refused(path: Path) -> str:
    with pytest.raises(BagError) as error, BagReader(path) as reader:
        list(reader.blocks())
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value).removeprefix(f"{path}: ")


def losses_of(path: Path) -> tuple[str, ...]:
    with BagReader(path) as reader:
        list(reader.blocks())
        return reader.losses


def mcap(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("storage", "mode"), KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_blocks_hold_what_rosbags_reads(tmp_path, small_blocks, storage, mode, seed):
    bag = write(tmp_path / "bag", samples(seed, 300), storage, mode)
    for topics in ((), ("/b",), ("/a", "/c")):
        assert read(bag, topics) == oracle(bag, topics)
    with BagReader(bag) as reader:
        assert list(reader.blocks(["/nowhere"])) == []
        assert reader.info.message_count == 300
        assert reader.info.storage == storage


@pytest.mark.parametrize("mode", ["none", "chunk"])
def test_many_chunks_that_overlap_are_put_in_log_order(tmp_path, mode):
    """Of a megabyte each, as rosbags cuts them, with times that run back by more than a chunk."""
    messages = [("/a", (i * 37) % 500, bytes(8) + bytes([i % 256]) * 20_000) for i in range(400)]
    bag = write(tmp_path / "bag", messages, "mcap", mode)
    found = read(bag)
    assert found == oracle(bag)
    assert [t_ns for _, _, t_ns, _ in found] == sorted(t_ns for _, t_ns, _ in messages)


@pytest.mark.parametrize("compression", ["", "zstd", "lz4"])
@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_chunks_in_any_order_come_out_in_log_order(tmp_path, small_blocks, compression, index, seed):
    rng = random.Random(seed)
    file, everything = McapFile(HEAD), []
    file.add(HEAD)
    for n in range(rng.randrange(2, 12)):
        begin = rng.randrange(0, 200)
        times = [begin + rng.randrange(0, rng.choice([1, 10, 100])) for _ in range(rng.randrange(1, 30))]
        rows = [(rng.choice([1, 2]), t, b"\0\1\0\0" + bytes([n]) * rng.randrange(0, 300)) for t in times]
        everything += rows
        file.chunk(rows, compression, crc=rng.random() < 0.5, index=index)
    path = mcap(tmp_path / "x.mcap", file.closed())
    expected = sorted(everything, key=lambda row: row[1])
    assert [(t, data) for _, _, t, data in read(path)] == [(t, data) for _, t, data in expected]
    if index:
        assert read(path) == oracle(path)
        assert read(path, ["/b"]) == oracle(path, ["/b"])


@pytest.mark.parametrize("how", [{"statistics": False}, {"summary": False}, {"crc": False}])
def test_a_summary_may_lack_parts(tmp_path, how):
    file = McapFile(HEAD)
    file.add(HEAD)
    for n in range(5):
        file.chunk([(1, n, b"\0\1\0\0abcd"), (2, n, b"\0\1\0\0")])
    path = mcap(tmp_path / "x.mcap", file.closed(**how))
    assert len(read(path)) == 10
    with BagReader(path) as reader:
        assert {name: topic.count for name, topic in reader.info.topics.items()} == {"/a": 5, "/b": 5}


def test_messages_outside_chunks_are_read_among_those_inside(tmp_path, small_blocks):
    file = McapFile(HEAD)
    file.add(HEAD)
    for n in range(0, 40, 4):
        file.add(message(1, n + 3, b"\0\1\0\0" + bytes([n])))
        file.chunk([(2, n, b"\0\1\0\0"), (2, n + 2, b"\0\1\0\0")])
        file.add(record(9, bytes(300)) + record(0x80, b"anybody's"))
        file.add(message(2, n + 1, b"\0\1\0\0" + bytes(500)))
        file.counts[1] = file.counts.get(1, 0) + 1
        file.counts[2] += 1
    for data in (file.closed(), file.closed(statistics=False, summary=False)):
        path = mcap(tmp_path / "x.mcap", data)
        assert [t_ns for _, _, t_ns, _ in read(path)] == list(range(40))
        assert [t_ns for _, _, t_ns, _ in read(path, ["/a"])] == list(range(3, 40, 4))


def test_a_chunk_without_a_wanted_topic_is_not_opened(tmp_path, monkeypatch):
    file = McapFile(HEAD)
    file.chunk([(1, 1, b"\0\1\0\0a")], "zstd")
    file.chunk([(2, 2, b"\0\1\0\0b")], "zstd")
    data = bytearray(file.closed())
    data[file.chunks[0][1] - 4] ^= 0xFF  # damage that shows when the chunk is opened
    path = mcap(tmp_path / "x.mcap", bytes(data))
    assert len(read(path, ["/b"])) == 1
    assert len(read(path, losses=1)) == 1


@pytest.mark.parametrize("compression", ["", "zstd", "lz4"])
@pytest.mark.parametrize("closed", [True, False])
def test_a_damaged_chunk_is_left_out_and_told(tmp_path, compression, closed):
    file = McapFile(HEAD)
    file.add(HEAD)
    rows = [[(1 + i % 2, 100 * n + i, b"\0\1\0\0" + bytes([n, i])) for i in range(20)] for n in range(4)]
    for chunk in rows:
        file.chunk(chunk, compression)
    data = bytearray(file.closed() if closed else file.data)
    begin, end = file.chunks[1]
    data[(begin + end) // 2] ^= 0x55
    path = mcap(tmp_path / "x.mcap", bytes(data))
    kept = [(t, data) for chunk in (rows[0], rows[2], rows[3]) for _, t, data in chunk]
    assert [(t, data) for _, _, t, data in read(path, losses=2 - closed)] == kept
    assert any(loss.startswith(f"the chunk at byte {begin:,} with 20 messages is damaged") for loss in losses_of(path))


@pytest.mark.parametrize("damage", ["index entry", "index channel", "chunk offset"])
def test_an_index_that_does_not_fit_costs_nothing(tmp_path, damage):
    """The chunk is read record by record, or the file from its beginning."""
    file = McapFile(HEAD)
    file.add(HEAD)
    for n in range(3):
        file.chunk([(1 + i % 2, 10 * n + i, b"\0\1\0\0" + bytes([i])) for i in range(10)])
    data = bytearray(file.closed(crc=False))
    if damage == "chunk offset":
        place = data.rindex(struct.pack("<QQ", file.chunks[1][0], file.chunks[1][1] - file.chunks[1][0]))
    else:
        place = file.chunks[1][1] + (9 + 6 + 16 + 8 if damage == "index entry" else 9)
    data[place] ^= 3
    path = mcap(tmp_path / "x.mcap", bytes(data))
    with BagReader(path) as reader:
        assert [t_ns for _, _, t_ns, _ in reader.raw_messages()] == list(range(30))
    assert len(losses_of(path)) == (damage == "chunk offset")


@pytest.mark.parametrize("compression", ["", "zstd", "lz4"])
@pytest.mark.parametrize("index", [True, False])
def test_an_unclosed_file_gives_all_whole_messages_wherever_it_ends(tmp_path, compression, index):
    file = McapFile(HEAD)
    file.add(HEAD)
    rng = random.Random(5)
    rows = [[(1, 50 * n + i, b"\0\1\0\0" + rng.randbytes(40)) for i in range(50)] for n in range(3)]
    for chunk in rows:
        file.chunk(chunk, compression, index=index)
    everything = [(t, data) for chunk in rows for _, t, data in chunk]
    data = file.closed()
    ends = [*range(0, len(data), 211), *(end + k for _, end in file.chunks for k in (-1, 0, 1, 9, 40)), *range(-45, 0)]
    for end in ends:
        kept = data[:end]
        whole = sum(50 for _, chunk_end in file.chunks if chunk_end <= len(kept))
        path = mcap(tmp_path / "x.mcap", kept)
        try:
            with BagReader(path) as reader:
                found = [(t, d) for _, _, t, d in reader.raw_messages()]
                assert reader.info.message_count == len(found) >= whole
                assert len(reader.losses) == 1
        except BagError as error:
            found = []
            assert "truncated, the recording was never closed (" in str(error)
        assert found == everything[: len(found)]
        assert len(found) >= whole
        if not compression and len(kept) > file.chunks[0][0]:
            inside = [len(kept) - begin - 49 for begin, stop in file.chunks if begin < len(kept) < stop]
            assert len(found) == whole + sum(max(0, size // (31 + 44)) for size in inside)


def test_messages_of_an_unknown_channel_are_told(tmp_path):
    file = McapFile(HEAD)
    file.add(schema(1, STRING) + channel(1, 1, "/a"))
    file.chunk([(1, 1, b"\0\1\0\0"), (2, 2, b"\0\1\0\0")])
    path = mcap(tmp_path / "x.mcap", file.data)
    assert len(read(path, losses=2)) == 1
    assert losses_of(path)[0] == "1 messages are of channels that the file does not describe, and left out"


def test_the_loss_of_an_unclosed_file_is_told_in_numbers(tmp_path):
    file = McapFile(HEAD)
    file.add(HEAD)
    file.chunk([(1, 1, b"\0\1\0\0"), (1, 2, b"\0\1\0\0")])
    path = mcap(tmp_path / "x.mcap", file.data + record(6, bytes(1000))[:100])
    size = len(file.data) + 100
    assert losses_of(path) == (
        f"recording was not closed: 1 chunks and 2 messages read, the last 100 bytes ({100 / size:.1%}) "
        "cannot be read".replace("%", " %"),
    )
    (loss,) = losses_of(mcap(path, file.data))
    assert loss == "recording was not closed: 1 chunks and 2 messages read, nothing that was written is lost"


def test_reading_goes_on_behind_bytes_that_make_no_sense(tmp_path):
    file = McapFile(HEAD)
    file.add(HEAD)
    file.chunk([(1, 1, b"\0\1\0\0")])
    begin = len(file.data)
    file.add(b"\x06" * 5000)
    file.chunk([(1, 2, b"\0\1\0\0")], "zstd")
    path = mcap(tmp_path / "x.mcap", file.data)
    assert [t_ns for _, _, t_ns, _ in read(path, losses=2)] == [1, 2]
    assert losses_of(path)[0] == f"5,000 bytes at byte {begin:,} make no sense and are left out"


def test_random_damage_ends_in_fewer_messages_or_an_error_and_never_in_wrong_ones(tmp_path):
    file = McapFile(HEAD)
    file.add(HEAD)
    rng = random.Random(7)
    for n in range(4):
        file.chunk(
            [(1 + i % 2, 10 * n + i, b"\0\1\0\0" + rng.randbytes(30)) for i in range(10)], "zstd" if n % 2 else ""
        )
    whole = file.closed()
    path = mcap(tmp_path / "x.mcap", whole)
    expected = set(oracle(path))
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 3, 30])):
            data[rng.randrange(len(data))] = rng.choice([0, 255, rng.randrange(256)])
        mcap(path, bytes(data))
        try:
            with BagReader(path) as reader:
                found = list(reader.raw_messages())
        except BagError:
            continue
        names = {("/a", STRING), ("/b", STRING)}
        assert {row for row in found if row[:2] in names} <= expected


def test_claims_of_size_are_checked_before_memory_is_taken(tmp_path):
    bomb = zstd.compress(bytes(1 << 24))
    for size in (1 << 62, 1 << 24, 100):
        head = struct.pack("<QQQI", 0, 0, size, 0) + struct.pack("<I", 4) + b"zstd"
        data = MAGIC + record(1, bytes(8)) + HEAD + record(6, head + struct.pack("<Q", len(bomb)) + bomb)
        assert "no messages" in refused(mcap(tmp_path / "x.mcap", data)) or "no whole message" in refused(
            tmp_path / "x.mcap"
        )
    for claim in (2**63, 2**64 - 1, 2**40):
        data = MAGIC + struct.pack("<BQ", 6, claim) + bytes(100)
        assert refused(mcap(tmp_path / "x.mcap", data)).startswith("truncated")
        data += struct.pack("<BQQQI", 2, 20, claim, 0, 0) + MAGIC
        refused(mcap(tmp_path / "x.mcap", data))


@pytest.mark.parametrize("storage", PLUGINS)
@pytest.mark.parametrize("version", [1, 3, 4, 5, 8, 9])
def test_metadata_of_every_version_is_understood(tmp_path, storage, version):
    bag = write(tmp_path / "bag", samples(3, 60), storage)
    about = yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    about["version"] = version
    if version < 4:
        about["relative_file_paths"] = [f"bag/{name}" for name in about["relative_file_paths"]]
    for key, since in (("compression_mode", 3), ("compression_format", 3), ("files", 5), ("custom_data", 6)):
        if version < since:
            del about[key]
    (bag / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": about}))
    assert read(bag) == oracle(file_of(bag))


@pytest.mark.parametrize(
    "text", ["a: [", "a: 1", "", "[]", "rosbag2_bagfile_information: {relative_file_paths: 7}", "\0"]
)
def test_a_metadata_file_that_is_damaged_costs_nothing_but_itself(tmp_path, text):
    bag = write(tmp_path / "bag", samples(3, 60))
    expected = oracle(bag)
    (bag / "metadata.yaml").write_text(text)
    assert read(bag, losses=1) == expected
    assert losses_of(bag)[0].startswith("metadata.yaml cannot be read (")


@pytest.mark.parametrize(("storage", "mode"), KINDS)
def test_parts_are_one_log_also_where_they_overlap(tmp_path, small_blocks, storage, mode):
    parts = [samples(n, 100, begin) for n, begin in enumerate([1000, 1300, 1200])]
    folder, names = tmp_path / "split", []
    folder.mkdir()
    expected = []
    for n, part in enumerate(parts):
        bag = write(tmp_path / f"part{n}", part, storage, mode)
        expected += oracle(bag)
        names.append(file_of(bag).name.replace(f"part{n}", f"split_{n}"))
        shutil.copy(file_of(bag), folder / names[-1])
    expected.sort(key=lambda row: row[2])
    assert read(folder) == expected
    assert read(folder, ["/b"]) == [row for row in expected if row[0] == "/b"]
    assert find_bags([tmp_path / "split"]) == [folder]
    about = {"version": 5, "relative_file_paths": names, "compression_mode": "FILE" if mode == "file" else ""}
    (folder / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": about}))
    assert read(folder) == expected
    (folder / names[1]).unlink()
    assert refused(folder) == f"metadata.yaml names {names[1]}, not found; copy the whole folder"


def test_a_part_that_cannot_be_read_is_told_and_the_others_are_read(tmp_path):
    bag = write(tmp_path / "bag", samples(0, 60))
    (bag / "metadata.yaml").unlink()
    (bag / "bag_1.mcap").write_bytes(b"")
    assert len(read(bag, losses=1)) == 60
    assert losses_of(bag) == ("bag_1.mcap: was not closed and cannot be read (the file seems to be empty)",)


def test_each_file_has_channels_of_its_own(tmp_path):
    """The same ids mean other topics in the second part; /b changes its type there."""
    one = McapFile(schema(1, STRING) + channel(1, 1, "/a") + channel(2, 1, "/b"))
    two = McapFile(schema(1, STRING) + schema(2, VECTOR, "float64 x") + channel(1, 2, "/b") + channel(2, 1, "/a"))
    for file in (one, two):
        file.add(file.head)
        file.chunk([(1, 5, b"\0\1\0\0first"), (2, 6, b"\0\1\0\0second")])
    (tmp_path / "bag").mkdir()
    mcap(tmp_path / "bag" / "x_0.mcap", one.closed())
    mcap(tmp_path / "bag" / "x_1.mcap", two.closed())
    with BagReader(tmp_path / "bag") as reader:
        assert reader.info.topics["/b"].type == "" and reader.info.topics["/b"].count == 2
        assert [(t, k, ns, d[4:]) for t, k, ns, d in from_blocks(reader)] == [
            ("/a", STRING, 5, b"first"),
            ("/b", VECTOR, 5, b"first"),
            ("/b", STRING, 6, b"second"),
            ("/a", STRING, 6, b"second"),
        ]


def test_a_packed_file_is_found_hashed_and_unpacked_into_a_folder_that_goes(tmp_path, monkeypatch):
    bag = write(tmp_path / "bag", samples(0, 3000), "mcap", "file")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    file = file_of(bag)
    assert file.name == "bag.mcap.zstd"
    with BagReader(file) as reader:
        assert from_blocks(reader) == oracle(bag)
        assert list((tmp_path / "temporary").iterdir()) != []
    assert list((tmp_path / "temporary").iterdir()) == []
    assert bag_sha256(bag) == bag_sha256(file) != bag_sha256(tmp_path / "temporary")
    expected = oracle(bag)
    file.write_bytes(file.read_bytes()[:-100])
    (bag / "metadata.yaml").unlink()
    with BagReader(file) as reader:
        found = list(reader.raw_messages())
        assert found == [row for row in expected if row in set(found)] and 1000 < len(found) < 3000
        assert reader.losses[0].startswith("bag.mcap.zstd: damaged (")


def test_a_compressed_message_that_is_damaged_is_left_out(tmp_path):
    bag = write(tmp_path / "bag", samples(0, 30), "sqlite3", "message")
    expected = oracle(bag)
    connection = sqlite3.connect(file_of(bag))
    connection.execute("UPDATE messages SET data = substr(data, 1, length(data) - 5) WHERE id = 7")
    connection.commit()
    connection.close()
    found = read(bag, losses=1)
    assert len(found) == 29 and [row for row in expected if row in found] == found
    assert losses_of(bag) == ("1 compressed messages are damaged and left out",)


def test_a_database_that_was_never_closed_is_read_with_its_log_and_left_as_it_is(tmp_path):
    bag = write(tmp_path / "bag", samples(0, 30), "sqlite3")
    connection = sqlite3.connect(file_of(bag))
    connection.execute("PRAGMA journal_mode = WAL")
    data = bytes(STORE.serialize_cdr(string("late"), STRING))
    connection.executemany("INSERT INTO messages VALUES (?, 1, ?, ?)", [(100 + i, 9000 + i, data) for i in range(10)])
    connection.commit()
    killed = tmp_path / "killed"
    killed.mkdir()
    for file in bag.iterdir():
        if not file.name.endswith("-shm"):
            shutil.copy(file, killed)
    connection.close()
    before = {file.name: file.read_bytes() for file in killed.iterdir()}
    assert "bag.db3-wal" in before
    assert len(read(killed, losses=1)) == 40
    assert losses_of(killed) == ("recording was not closed: what bag.db3-wal still held is read too",)
    assert {file.name: file.read_bytes() for file in killed.iterdir()} == before


def test_what_a_killed_recorder_had_not_committed_is_rolled_back_on_a_copy(tmp_path):
    bag = write(tmp_path / "bag", samples(0, 30), "sqlite3")
    expected = oracle(bag)
    connection = sqlite3.connect(file_of(bag), isolation_level=None)
    connection.execute("PRAGMA cache_size = 5")  # pages go to the file before the transaction ends
    connection.execute("BEGIN")
    connection.execute("UPDATE messages SET data = zeroblob(3000)")
    killed = tmp_path / "killed"
    shutil.copytree(bag, killed)
    connection.rollback()
    connection.close()
    assert (killed / "bag.db3-journal").stat().st_size
    assert (killed / "bag.db3").read_bytes() != file_of(bag).read_bytes()
    assert read(killed, losses=1) == expected


def big_database(path: Path) -> tuple[Path, list]:
    """Two thousand messages in some hundred pages of the table."""
    data = bytes(STORE.serialize_cdr(string("x" * 200), STRING))
    bag = write(path, [("/a", 10 * i, data + struct.pack("<I", i)) for i in range(2000)], "sqlite3")
    return file_of(bag), oracle(bag)


def test_a_damaged_database_gives_the_rows_before_and_behind_the_damage(tmp_path):
    file, expected = big_database(tmp_path / "bag")
    data = bytearray(file.read_bytes())
    for page in (40, 41, 90):
        data[page * 4096 : (page + 1) * 4096] = bytes(4096)
    file.write_bytes(data)
    found = read(file, losses=1)
    assert found == [row for row in expected if row in set(found)]
    assert 1900 < len(found) < 2000 and found[0] == expected[0] and found[-1] == expected[-1]
    (loss,) = losses_of(file)
    assert (
        loss == f"the database is damaged: {len(found):,} messages read, about {2000 - len(found):,} lost between them"
    )


@pytest.mark.parametrize("keep", [0.02, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_database_gives_the_rows_that_are_there(tmp_path, keep):
    file, expected = big_database(tmp_path / "bag")
    file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])
    try:
        with BagReader(file) as reader:
            found = list(reader.raw_messages())
            assert reader.losses
    except BagError:
        assert keep < 0.5
        return
    assert found == [row for row in expected if row in set(found)]
    assert len(found) > (keep - 0.2) * 2000


def test_random_damage_of_a_database_never_crashes(tmp_path):
    file, expected = big_database(tmp_path / "bag")
    whole, rng = file.read_bytes(), random.Random(3)
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 5, 50])):
            begin = rng.randrange(len(data))
            data[begin : begin + 16] = rng.randbytes(len(data[begin : begin + 16]))
        file.write_bytes(data)
        try:
            with BagReader(file) as reader:
                from_blocks(reader)
        except BagError:
            continue
        assert file.read_bytes() == data


def test_a_database_without_an_order_in_its_index_is_read_in_log_order(tmp_path):
    file = file_of(write(tmp_path / "bag", samples(4, 200), "sqlite3"))
    expected = oracle(file)
    connection = sqlite3.connect(file)
    connection.execute("DROP INDEX timestamp_idx")
    connection.commit()
    connection.close()
    assert read(file) == expected


def test_what_is_not_cdr_is_named(tmp_path):
    file = McapFile(schema(1, STRING) + channel(1, 1, "/a", "json") + channel(2, 1, "/b"))
    file.chunk([(1, 1, b"{}")])
    assert refused(mcap(tmp_path / "x.mcap", file.closed())).startswith("serialised as 'json', not as 'cdr'; ")
    file.chunk([(2, 2, b"\0\1\0\0")])
    path = mcap(tmp_path / "x.mcap", file.closed())
    assert [topic for topic, *_ in read(path, losses=1)] == ["/b"]
    assert losses_of(path) == ("topic /a is serialised as 'json', not as 'cdr', and left out",)


def robot_package(folder: Path, name: str = "") -> Path:
    (folder / "msg").mkdir(parents=True)
    (folder / "msg" / "Leg.msg").write_text("std_msgs/Header header\nfloat64[] angles\nFoot foot\n")
    (folder / "msg" / "Foot.msg").write_text("bool down\n")
    if name:
        (folder / "package.xml").write_text(f"<package><name>{name}</name></package>")
    return folder


def test_types_that_a_bag_does_not_define_come_from_the_users_package(tmp_path):
    definitions = read_definitions([robot_package(tmp_path / "source", "leg_msgs")])
    assert set(definitions) == {"leg_msgs/msg/Leg", "leg_msgs/msg/Foot"}
    file = McapFile(schema(1, "leg_msgs/msg/Foot", "", "") + channel(1, 1, "/foot"))
    file.chunk([(1, 1, b"\0\1\0\0\1")])
    path = mcap(tmp_path / "x.mcap", file.closed())
    with BagReader(path, definitions) as reader:
        assert [m.down for _, _, m in reader.messages()] == [True]
    with (
        BagReader(path) as reader,
        pytest.raises(BagError, match="'/foot': no definition of the type 'leg_msgs/msg/Foot'"),
    ):
        list(reader.messages())


def test_definitions_that_cannot_be_used_are_named(tmp_path):
    assert set(read_definitions([robot_package(tmp_path / "leg_msgs") / "msg"])) == {
        "leg_msgs/msg/Leg",
        "leg_msgs/msg/Foot",
    }
    assert set(read_definitions([tmp_path / "leg_msgs" / "msg" / "Foot.msg"])) == {"leg_msgs/msg/Foot"}
    with pytest.raises(MessageError, match="nowhere: no such package folder or .msg file"):
        read_definitions([tmp_path / "nowhere"])
    with pytest.raises(MessageError, match="no .msg file here; give the package folder"):
        read_definitions([tmp_path])
    with pytest.raises(MessageError, match="is given twice with different text"):
        other = robot_package(tmp_path / "other", "leg_msgs")
        (other / "msg" / "Foot.msg").write_text("bool up\n")
        read_definitions([tmp_path / "leg_msgs", other])
    with pytest.raises(MessageError, match="'2 legs' is not a valid ROS package name"):
        read_definitions([robot_package(tmp_path / "x", "2 legs")])
    (tmp_path / "leg_msgs" / "msg" / "Foot.msg").write_text("bool[ down\n")
    with pytest.raises(MessageError, match=r"Foot.msg: not a message definition \("):
        read_definitions([tmp_path / "leg_msgs"])


def test_definitions_in_idl_are_read(tmp_path):
    idl = "module std_msgs { module msg { struct String { string data; }; }; };"
    file = McapFile(schema(1, STRING, "=" * 80 + f"\nIDL: {STRING}\n" + idl, "ros2idl") + channel(1, 1, "/a"))
    file.chunk([(1, 1, bytes(STORE.serialize_cdr(string("hello"), STRING)))])
    with BagReader(mcap(tmp_path / "x.mcap", file.closed())) as reader:
        assert [m.data for _, _, m in reader.messages()] == ["hello"]


def test_our_recordings_are_whole(tmp_path):
    for storage in PLUGINS:
        assert losses_of(record_arm(tmp_path / storage, steps=20, storage=storage)) == ()


def test_large_compressed_messages_are_unpacked_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "BLOCK_BYTES", 50_000)
    messages = [("/a", i, bytes(4) + bytes([i]) * 20_000) for i in range(20)]
    bag = write(tmp_path / "bag", messages, "mcap", "message")
    with BagReader(bag) as reader:
        assert [len(block["/a"]) for block in reader.blocks()] == [3, 3, 3, 3, 3, 3, 2]
    assert read(bag) == oracle(bag)
