# SPDX-License-Identifier: Apache-2.0
"""Recordings laid out as rosbag2 of ROS 2 Lyrical (0.33.1 and later) lays them out; no recorder of Lyrical was run.

New there, of what a reader sees: files named `<number>_<name>_<local time>`, latched messages repeated at the start
of each file (with a later receive time, if asked for), definitions of actions, and events of lost messages.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from spc_ros.bags.files import find_bags, storage_files
from spc_ros.bags.reader import BagReader
from spc_ros.conversion.bag_conversion import Job, convert_bag
from spc_ros.doctor.doctor import diagnose
from support.contracts import ARM_REACH, make_contract, stream_section
from support.recorded_bags import PERIOD_NS, RECEIVE_NS, START_NS, VECTOR, Sample, arm_samples, said_nothing, vector

LYRICAL = get_typestore(Stores.ROS2_LYRICAL)
LOST = "rosbag2_interfaces/msg/MessagesLostEvent"
NAMES = ("0_arm_2026_05_22-10_00_00", "1_arm_2026_05_22-10_00_01")
GOAL = Sample("/goal", VECTOR, RECEIVE_NS - 5, vector(START_NS - 900_000_000_000, 0.25))
SPLIT_NS = RECEIVE_NS + 30 * PERIOD_NS + 5
CONTRACT = make_contract(
    base=ARM_REACH,
    observation=[
        stream_section("joint_states", ["position.shoulder", "position.elbow"]),
        stream_section("goal", ["vector.x"], type=VECTOR, max_age_s=float("inf")),
    ],
)


def write_part(path: Path, samples: list[Sample], plugin: StoragePlugin, more: dict) -> dict:
    """One storage file at `path` and its section of the metadata."""
    made = path.with_name("made") / "part"
    made.parent.mkdir(parents=True)
    with Writer(made, version=9, storage_plugin=plugin) as writer:
        kinds = {s.topic: s.type for s in samples}
        topics = {name: writer.add_connection(name, kind, typestore=LYRICAL) for name, kind in kinds.items()}
        for sample in samples:
            data = LYRICAL.serialize_cdr(sample.message, sample.type)
            writer.write(topics[sample.topic], sample.receive_ns, data)
    (file,) = (file for file in made.iterdir() if file.suffix != ".yaml")
    shutil.move(file, path.with_suffix(file.suffix))
    about = yaml.safe_load((made / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    shutil.rmtree(made.parent)
    return {**about, "ros_distro": "lyrical", **more}


def lyrical_bag(folder: Path, plugin: StoragePlugin = StoragePlugin.MCAP, **more) -> Path:
    """An arm with a latched goal, in two files, of which the second repeats the goal; `more` goes to the metadata."""
    samples = sorted(said_nothing(arm_samples(60)), key=lambda s: s.receive_ns)
    lost = LYRICAL.types[LOST](node_name="/recorder", messages_lost_statistics=[])
    repeated = Sample(GOAL.topic, GOAL.type, SPLIT_NS, GOAL.message)
    parts = [s for s in samples if s.receive_ns < SPLIT_NS], [s for s in samples if s.receive_ns >= SPLIT_NS]
    event = Sample("/events/messages_lost", LOST, SPLIT_NS, lost)
    folder.mkdir()
    abouts = [
        write_part(folder / name, part, plugin, more)
        for name, part in zip(NAMES, ([GOAL, *parts[0]], [repeated, event, *parts[1]]), strict=True)
    ]
    files = sorted(file.name for file in folder.iterdir())
    whole = {**abouts[0], "relative_file_paths": files, "message_count": sum(a["message_count"] for a in abouts)}
    whole["files"] = [{**about["files"][0], "path": name} for about, name in zip(abouts, files, strict=True)]
    (folder / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": whole}))
    return folder


def numbers(bag: Path) -> tuple[list, list[str]]:
    report, episodes = convert_bag(bag, Job(CONTRACT, own_contract=True, task="t"))
    return [(e.episode.observations.tolist(), e.episode.actions.tolist()) for e in episodes], list(report.notes)


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize(
    "more", [{}, {"version": 10, "of_a_later_version": {"a": 1}}], ids=["version 9", "a later one"]
)
def test_a_bag_in_files_named_as_by_lyrical_is_one_recording(tmp_path, plugin, more):
    bag = lyrical_bag(tmp_path / "arm", plugin, **more)
    with BagReader(bag) as reader:
        goals = [(t, message.vector.x) for _, t, message in reader.messages(["/goal"])]
    assert goals == [(GOAL.receive_ns, 0.25), (SPLIT_NS, 0.25)]
    ((observations, actions),), notes = numbers(bag)
    assert len(actions) == 60 and [effort for effort, _ in actions] == [float(k) for k in range(60)]
    assert {row[-1] for row in observations} == {0.25}
    assert not [note for note in notes if "definition" in note]  # they are in the bag
    report = diagnose([bag], contract=CONTRACT, task="t", progress=False)
    assert report.transitions == 60
    assert {t.topic: t.look for t in report.topics}["goal"] == "decoded 2 of 2"
    assert {f.check for f in report.findings if f.topic == "goal" and f.severity == "fail"} == set()
    assert {t.topic: t.why for t in report.unchecked} == {"/events/messages_lost": "not read: not in the contract"}


def test_without_metadata_the_numbers_before_the_name_tell_the_parts(tmp_path):
    bag = lyrical_bag(tmp_path / "arm")
    (bag / "metadata.yaml").unlink()
    assert find_bags([tmp_path]) == [bag]
    assert len(numbers(bag)[0][0][1]) == 60
    again = bag / "0_arm_2026_05_23-09_00_00.mcap"  # of another recording of the same name
    shutil.copy(bag / f"{NAMES[0]}.mcap", again)
    assert find_bags([tmp_path]) == sorted([*(bag / f"{name}.mcap" for name in NAMES), again])


def test_parts_are_in_the_order_of_their_numbers(tmp_path):
    folder = tmp_path / "arm"
    folder.mkdir()
    names = [f"{number}_arm_2026_05_22-10_00_{number:02d}.mcap" for number in (3, 9, 10, 11)]  # 0 to 2 were overwritten
    for name in names:
        (folder / name).write_bytes(b"")
    assert find_bags([folder]) == [folder]
    assert [file.name for file in storage_files(folder)] == names


def test_what_changed_in_the_definitions_of_lyrical():
    """By rosbags. `geometry_msgs/Pose2D` is gone, and is taken from an older distribution where a bag lacks it."""
    jazzy = get_typestore(Stores.ROS2_JAZZY)
    gone = {"geometry_msgs/msg/Pose2D", *(f"actionlib_msgs/msg/Goal{x}" for x in ("ID", "Status", "StatusArray"))}
    assert set(jazzy.fielddefs) - set(LYRICAL.fielddefs) == gone
    both = set(jazzy.fielddefs) & set(LYRICAL.fielddefs)
    changed = {name for name in both if jazzy.fielddefs[name][1] != LYRICAL.fielddefs[name][1]}
    assert changed == {"lifecycle_msgs/msg/TransitionEvent"}
