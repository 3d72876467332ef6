# SPDX-License-Identifier: Apache-2.0
"""Bags written and read: both storages, and every way in which a bag can be bad."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
from rosbags.interfaces import QosDurability, QosReliability
from rosbags.rosbag2 import Reader, StoragePlugin, Writer

from spc_ros.bags.files import BagError, bag_sha256, find_bags
from spc_ros.bags.reader import BagReader
from spc_ros.bags.writer import BagWriter
from support.contracts import ARM_REACH
from support.paths import ROOT, TEST_FOLDER
from support.recorded_bags import (
    JOINT_STATE,
    RECEIVE_NS,
    STORE,
    STRING,
    VECTOR,
    episode_info,
    record_arm,
    string,
    vector,
    write_bag,
)
from support.recorded_bags import Sample as Message

STORAGES = pytest.mark.parametrize("storage", ["mcap", "sqlite3"])


def refused(path):
    with pytest.raises(BagError) as error, BagReader(path) as bag:
        list(bag.messages())
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value).removeprefix(f"{path}: ")


def storage_file(bag):
    (file,) = [*bag.glob("*.mcap"), *bag.glob("*.db3")]
    return file


@STORAGES
def test_a_bag_comes_back_as_it_was_written(tmp_path, storage):
    bag = record_arm(tmp_path / "bag", steps=5, storage=storage)
    with BagReader(bag) as reader:
        info = reader.info
        assert info.storage == storage
        assert {name: (topic.type, topic.count) for name, topic in info.topics.items()} == {
            "/episode": (STRING, 2),
            "/joint_states": (JOINT_STATE, 6),
            "/joint_commands": (JOINT_STATE, 5),
            "/reward": (VECTOR, 5),
        }
        assert info.message_count == 18
        assert info.custom_data["spc.task_id"] == "arm_reach/train/00"
        assert info.custom_data["spc.contract"] == ARM_REACH.text
        assert info.start_ns == RECEIVE_NS
        assert info.duration_s == pytest.approx(0.1, abs=1e-3)
        times = [receive_ns for _, receive_ns, _ in reader.messages()]
        assert times == sorted(times) and len(times) == 18
        assert [m.vector.x for _, _, m in reader.messages(["/reward"])] == [-1, -2, -3, -4, -5]
        assert reader.last_episode().truncated


@STORAGES
def test_receive_times_may_repeat_and_run_backwards(tmp_path, storage):
    samples = [Message("/reward", VECTOR, t, vector(1, float(i))) for i, t in enumerate([30, 10, 10, 20, 20])]
    with BagReader(write_bag(tmp_path / "bag", samples, {}, storage)) as reader:
        assert [(t, m.vector.x) for _, t, m in reader.messages()] == [
            (10, 1),
            (10, 2),
            (20, 3),
            (20, 4),
            (30, 0),
        ]


@STORAGES
def test_qos_is_kept(tmp_path, storage):
    with BagWriter(tmp_path / "bag", {}, storage) as writer:
        writer.add_topic("/episode", STRING, latched=True)
        writer.add_topic("/joint_states", JOINT_STATE, reliable=False, depth=5)
        writer.write_raw("/episode", 1, bytes(STORE.serialize_cdr(string("x"), STRING)))
    with Reader(tmp_path / "bag") as reader:
        qos = {c.topic: c.ext.offered_qos_profiles[0] for c in reader.connections}
    assert qos["/episode"].durability == QosDurability.TRANSIENT_LOCAL
    assert qos["/joint_states"].durability == QosDurability.VOLATILE
    assert qos["/joint_states"].reliability == QosReliability.BEST_EFFORT
    assert qos["/joint_states"].depth == 5


@STORAGES
def test_a_bag_without_metadata_or_as_a_bare_file_is_read(tmp_path, storage):
    bag = record_arm(tmp_path / "bag", steps=5, storage=storage)
    (bag / "metadata.yaml").unlink()
    for path in (bag, storage_file(bag)):
        with BagReader(path) as reader:
            assert reader.info.message_count == 18
            assert reader.info.custom_data == {}
            assert reader.last_episode().task_id == "arm_reach/train/00"
            assert len(list(reader.messages())) == 18


def test_types_come_from_jazzy_where_the_bag_has_no_definitions(tmp_path):
    bag = record_arm(tmp_path / "bag", steps=5, storage="sqlite3")
    (bag / "metadata.yaml").unlink()
    import sqlite3

    connection = sqlite3.connect(storage_file(bag))
    connection.execute("DELETE FROM message_definitions")
    connection.commit()
    connection.close()
    with BagReader(bag) as reader:
        assert len(list(reader.messages(["/joint_states"]))) == 6


def test_a_compressed_bag_is_read(tmp_path):
    from rosbags.rosbag2 import CompressionFormat, CompressionMode

    writer = Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.SQLITE3)
    writer.set_compression(CompressionMode.FILE, CompressionFormat.ZSTD)
    with writer:
        writer.set_custom_data("spc.task_id", "x")
        connection = writer.add_connection("/reward", VECTOR, typestore=STORE)
        writer.write(connection, 5, STORE.serialize_cdr(vector(1, 2.0), VECTOR))
    with BagReader(tmp_path / "bag") as reader:
        assert [m.vector.x for _, _, m in reader.messages()] == [2]
        assert reader.info.custom_data == {"spc.task_id": "x"}


def test_the_parts_of_a_split_recording_are_one_bag_and_other_files_are_many(tmp_path):
    one, two = (record_arm(tmp_path / name, steps=5, seed=i) for i, name in enumerate(("one", "two")))
    split, loose = tmp_path / "split", tmp_path / "loose"
    for folder, names in ((split, ("rec_2.mcap", "rec_10.mcap")), (loose, ("a.mcap", "b.mcap"))):
        folder.mkdir()
        shutil.copy(storage_file(one), folder / names[0])
        shutil.copy(storage_file(two), folder / names[1])
    assert find_bags([split, loose]) == [split, loose / "a.mcap", loose / "b.mcap"]
    with BagReader(split) as reader:
        assert reader.info.message_count == 36
        assert len(list(reader.messages(["/reward"]))) == 10


def test_find_bags_goes_down_and_leaves_out_unfinished_recordings(tmp_path):
    bags = [record_arm(tmp_path / "a" / "b" / "one", 5), record_arm(tmp_path / "a" / "two", 5)]
    shutil.copytree(bags[0], tmp_path / "a" / ".three.recording-x" / "three")
    assert find_bags([tmp_path]) == bags
    assert find_bags([bags[0], tmp_path]) == bags  # each once
    with pytest.raises(BagError, match="nowhere: no such file or folder"):
        find_bags([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BagError, match=r"empty: no bag here \(no metadata.yaml, .mcap or .db3 at any depth\)"):
        find_bags([tmp_path / "empty"])


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3])
def test_a_truncated_mcap_without_a_whole_message_is_refused(tmp_path, keep):
    file = storage_file(record_arm(tmp_path / "bag", steps=50))
    file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])
    for path in (file.parent, file):
        assert refused(path).startswith("truncated, the recording was never closed (")
    assert "mcap recover" in refused(file)


@STORAGES
def test_damaged_bytes_are_refused_and_never_a_crash(tmp_path, storage):
    file = storage_file(record_arm(tmp_path / "bag", steps=50, storage=storage))
    data = bytearray(file.read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    file.write_bytes(data)
    assert "record again" in refused(file.parent)


def test_what_is_no_bag_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    assert refused(tmp_path / "folder").startswith("not a bag; expected a folder with metadata.yaml, a .mcap")
    (tmp_path / "x.txt").write_text("hello")
    assert refused(tmp_path / "x.txt").startswith("not a bag")
    (tmp_path / "x.mcap").write_text("hello " * 20)
    assert refused(tmp_path / "x.mcap").startswith("cannot be read (File magic is invalid.)")
    assert refused(tmp_path / "nowhere") == "no such bag"


def test_a_bag_with_a_bad_metadata_file_is_refused(tmp_path):
    bag = record_arm(tmp_path / "bag", steps=5)
    storage_file(bag).rename(tmp_path / "elsewhere.mcap")
    assert refused(bag) == "metadata.yaml names bag.mcap, not found; copy the whole folder"
    (bag / "metadata.yaml").write_text("a: [")
    assert refused(bag).startswith("metadata.yaml cannot be read (while parsing")
    (bag / "metadata.yaml").write_text("a: 1")
    no_key = "metadata.yaml cannot be read (no key rosbag2_bagfile_information) and no storage file is there"
    assert refused(bag) == no_key


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_an_empty_bag_is_refused(tmp_path, plugin):
    with Writer(tmp_path / "bag", version=9, storage_plugin=plugin) as writer:
        writer.add_connection("/joint_states", JOINT_STATE, typestore=STORE)
    assert refused(tmp_path / "bag") == "holds no messages; check that the robot was publishing, or delete it"


def test_a_topic_is_found_in_a_namespace_and_missed_with_a_suggestion(tmp_path):
    samples = [Message(f"/{name}", VECTOR, 1, vector(1, 2.0)) for name in ("robot1/reward", "robot1/state", "top")]
    bag = write_bag(tmp_path / "bag", samples, {})
    with BagReader(bag) as reader:
        assert reader.find_topic("reward", VECTOR) == "/robot1/reward"
        assert reader.find_topic("top", VECTOR) == "/top"
        with pytest.raises(BagError) as error:
            reader.find_topic("tops", VECTOR)
        assert str(error.value) == (
            f"{bag}: has no topic 'tops' (did you mean 'top'?); it has: /robot1/reward, /robot1/state, /top"
        )
        with pytest.raises(BagError) as error:
            reader.find_topic("reward", JOINT_STATE)
        assert str(error.value) == (
            f"{bag}: topic '/robot1/reward' is {VECTOR}, the contract says {JOINT_STATE}; "
            "correct the contract's type and fields"
        )


def test_the_topics_of_two_robots_are_not_mixed(tmp_path):
    samples = [Message(f"/robot{i}/reward", VECTOR, 1, vector(1, 2.0)) for i in (1, 2)]
    with (
        BagReader(write_bag(tmp_path / "bag", samples, {})) as reader,
        pytest.raises(BagError, match="could be any of /robot1/reward, /robot2/reward; record one robot per bag"),
    ):
        reader.find_topic("reward", VECTOR)


def test_foreign_text_on_a_topic_called_episode_tells_of_no_episode(tmp_path):
    bag = write_bag(tmp_path / "bag", [Message("/episode", STRING, 1, string("hello"))], {})
    with BagReader(bag) as reader:
        assert reader.last_episode() is None
        assert reader.foreign_episode_topics() == {"/episode": "hello"}


def test_wrong_information_on_the_topic_episode_is_refused(tmp_path):
    bag = write_bag(tmp_path / "bag", [Message("/episode", STRING, 1, string('{"state": 1, "episode": 2}'))], {})
    with (
        BagReader(bag) as reader,
        pytest.raises(BagError, match="'episode' has invalid episode information"),
    ):
        reader.last_episode()


def test_of_two_topics_called_episode_the_one_counts_that_tells_of_episodes(tmp_path):
    samples = [Message("/recorder/episode", STRING, 1, string("start")),
               Message("/robot/episode", STRING, 2, string(episode_info(3).to_json()))]  # fmt: skip
    with BagReader(write_bag(tmp_path / "bag", samples, {})) as reader:
        assert reader.last_episode() == episode_info(3)
        assert reader.foreign_episode_topics() == {"/recorder/episode": "start"}


def test_the_hash_is_of_the_messages_and_not_of_the_name(tmp_path):
    bag = record_arm(tmp_path / "bag", steps=5)
    shutil.copytree(bag, tmp_path / "copy")
    assert bag_sha256(bag) == bag_sha256(tmp_path / "copy") == bag_sha256(storage_file(bag))
    assert bag_sha256(bag) != bag_sha256(record_arm(tmp_path / "other", steps=6))


def test_the_writer_counts_and_takes_custom_data_until_the_end(tmp_path):
    writer = BagWriter(tmp_path / "bag", {"a": "1"})
    writer.add_topic("/reward", VECTOR)
    writer.add_topic("/episode", STRING)
    writer.write_raw("/reward", 5, bytes(STORE.serialize_cdr(vector(1, 2.0), VECTOR)))
    assert writer.counts == {"/reward": 1, "/episode": 0}
    writer.custom_data["b"] = "2"
    assert not (tmp_path / "bag").exists()
    assert writer.close() == tmp_path / "bag"
    assert os.listdir(tmp_path) == ["bag"]
    with BagReader(tmp_path / "bag") as reader:
        assert reader.info.custom_data == {"a": "1", "b": "2"}


@STORAGES
def test_an_aborted_recording_leaves_nothing(tmp_path, storage):
    writer = BagWriter(tmp_path / "bag", {}, storage)
    writer.add_topic("/reward", VECTOR)
    writer.write_raw("/reward", 5, bytes(STORE.serialize_cdr(vector(1, 2.0), VECTOR)))
    writer.abort()
    writer.abort()
    assert os.listdir(tmp_path) == []
    with pytest.raises(RuntimeError), BagWriter(tmp_path / "bag", {}, storage):
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with pytest.raises(BagError, match="the recording is closed; start a new one"):
        writer.write_raw("/reward", 6, b"")


def test_a_recording_of_nothing_leaves_nothing_and_says_so(tmp_path):
    writer = BagWriter(tmp_path / "bag", {})
    writer.add_topic("/reward", VECTOR)
    with pytest.raises(BagError, match=r"nothing was received on the recorded topics \(/reward\); no bag was written"):
        writer.close()
    assert os.listdir(tmp_path) == []


def test_the_writer_refuses_what_it_cannot_do(tmp_path):
    bag = record_arm(tmp_path / "bag", steps=5)
    with pytest.raises(BagError, match="exists already and is never overwritten"):
        BagWriter(bag, {})
    with pytest.raises(BagError, match="unknown storage 'rosbag'; use one of: mcap, sqlite3"):
        BagWriter(tmp_path / "other", {}, "rosbag")
    writer = BagWriter(tmp_path / "other", {})
    with pytest.raises(BagError, match="'robot_msgs/msg/Leg' is not part of ROS 2 Jazzy"):
        writer.add_topic("/leg", "robot_msgs/msg/Leg")
    with pytest.raises(BagError, match=r"topic '/leg' was never added; call add_topic first \(known: none\)"):
        writer.write_raw("/leg", 1, b"")
    writer.add_topic("/reward", VECTOR)
    with pytest.raises(BagError, match="topic '/reward' was added before"):
        writer.add_topic("/reward", VECTOR)
    writer.abort()


KILLED = """
import sys
sys.path[:0] = {paths!r}
from support.recorded_bags import STORE, VECTOR, vector
from spc_ros.bags.writer import BagWriter
writer = BagWriter({bag!r}, {{}})
writer.add_topic("/reward", VECTOR)
for i in range(30_000):
    writer.write_raw("/reward", i, bytes(STORE.serialize_cdr(vector(1, 2.0), VECTOR)))
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_killed_recorder_leaves_no_bag_at_the_final_name(tmp_path):
    code = KILLED.format(paths=[str(TEST_FOLDER), str(ROOT)], bag=str(tmp_path / "bag"))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "bag").exists()
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith(".bag.recording-")
    with BagReader(folder / "bag") as reader:  # what was on the disk by then
        assert [m.vector.x for _, _, m in reader.messages()] == [2.0] * reader.info.message_count
        assert 10_000 < reader.info.message_count < 30_000
        assert reader.losses[0].startswith("recording was not closed: ")
    with pytest.raises(BagError, match="no bag here"):
        find_bags([tmp_path])


def test_a_recording_carries_checksums_that_find_a_flipped_bit(tmp_path):
    bag = record_arm(tmp_path / "bag", steps=200)
    file = bag / "bag.mcap"
    data = bytearray(file.read_bytes())
    chunk = data.index(b"zstd") - 4 - 4 - 24 - 9  # its head ends with CRC and length of the compression's name
    assert data[chunk] == 6 and any(data[chunk + 33 : chunk + 37]), "the first chunk has no CRC"
    with Reader(bag) as reader:  # rosbags checks it, too
        assert len(list(reader.messages())) == 603
    data[chunk + 33] ^= 1
    file.write_bytes(data)
    with BagReader(bag) as reader, pytest.raises(BagError, match="checksum"):
        list(reader.messages())
