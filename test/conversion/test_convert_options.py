# SPDX-License-Identifier: Apache-2.0
"""What a user may choose: episodes, tasks, labels."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from spc_core.contract.contract import Contract
from spc_core.data.reader import read_episodes
from spc_ros.conversion.bag_conversion import Job, convert_bag
from spc_ros.conversion.convert import ConversionError, convert
from spc_ros.conversion.convert_options import ConvertOptions
from support.contracts import ARM_REACH, make_contract
from support.recorded_bags import (
    PERIOD_NS,
    RECEIVE_NS,
    START_NS,
    STORE,
    STRING,
    Sample,
    arm_samples,
    custom_data,
    episode_info,
    later,
    record_arm,
    said_nothing,
    string,
    write_bag,
)

BOOL = "std_msgs/msg/Bool"


def converted(bag: Path, contract: Contract, **job):
    return convert_bag(bag, Job(contract, own_contract=True, **job))


def quiet(bag, out, contract=None, **options):
    return convert(ConvertOptions((bag,), out, workers=1, **options), contract or ARM_REACH, progress=False)


def test_a_marker_topic_parts_a_bag_into_episodes(tmp_path):
    samples = said_nothing(arm_samples(40))
    for step, active in ((0, True), (10, False), (20, True), (35, False)):
        at_ns = RECEIVE_NS + step * PERIOD_NS + 50
        samples.append(Sample("/active", BOOL, at_ns, STORE.types[BOOL](data=active)))
    bag = write_bag(tmp_path / "bag", sorted(samples, key=lambda s: s.receive_ns), {})
    contract = make_contract(base=ARM_REACH, episode={"segment": "topic", "topic": "active", "type": BOOL})
    report, entries = converted(bag, contract, task="t")
    # the state before a mark may belong to either side: states 1 to 9 and 21 to 34
    assert [len(entry.episode) for entry in entries] == [8, 13]
    assert all(entry.episode.truncated for entry in entries)
    assert report.episodes == 2


def test_the_episode_topic_may_tell_of_several_episodes_with_tasks_of_their_own(tmp_path):
    samples = said_nothing(arm_samples(40))
    for number, (first, last, task) in enumerate([(0, 10, "a"), (12, 30, "b")], start=1):
        info = episode_info(10, task=task, episode=number, start_ns=START_NS + first * PERIOD_NS,
                            end_ns=START_NS + last * PERIOD_NS, terminated=True, truncated=False)  # fmt: skip
        for state, step in (("running", first), ("ended", last)):
            said = dataclasses.replace(info, state=state)
            samples.append(Sample("/episode", STRING, RECEIVE_NS + step * PERIOD_NS + 50, string(said.to_json())))
    bag = write_bag(tmp_path / "bag", sorted(samples, key=lambda s: s.receive_ns), {})
    report, entries = converted(bag, make_contract(base=ARM_REACH, episode={"segment": "topic"}))
    assert [(entry.task_id, len(entry.episode), entry.episode.terminated) for entry in entries] == [
        ("a", 10, True),
        ("b", 18, True),
    ]
    assert report.tasks == ("a", "b")


def test_a_pause_parts_episodes_where_the_contract_says_so(tmp_path):
    samples = said_nothing(arm_samples(20))
    bag = write_bag(tmp_path / "bag", [*samples, *later(samples, 3_000_000_000)], {})
    _, entries = converted(
        bag, make_contract(base=ARM_REACH, episode={"segment": "gap", "gap_s": 1.0, "limit_s": 0.3}), task="t"
    )
    ends = [(len(entry.episode), entry.episode.truncated, entry.episode.cut) for entry in entries]
    assert ends == [(15, True, None), (5, True, None), (15, True, None), (5, False, "the recording ended")]


def test_the_folder_may_name_the_task(tmp_path):
    for task in ("light", "heavy"):
        write_bag(tmp_path / "bags" / task / "run", said_nothing(arm_samples()), {})
    report = quiet(tmp_path / "bags", tmp_path / "out", task_from="folder")
    assert report.tasks == ("heavy", "light")


def test_a_latched_topic_may_name_the_task(tmp_path):
    samples = [Sample("/task", STRING, RECEIVE_NS - 5, string("heavy")), *said_nothing(arm_samples())]
    bag = write_bag(tmp_path / "bag", samples, {})
    contract = make_contract(base=ARM_REACH, task={"key": "spc.task_id", "topic": "task"})
    assert converted(bag, contract)[0].tasks == ("heavy",)
    two = [*samples, Sample("/task", STRING, RECEIVE_NS + 10**9, string("light"))]
    bag = write_bag(tmp_path / "two", two, {})
    with pytest.raises(
        ConversionError, match="topic 'task' names several tasks, heavy, light; record one task per bag"
    ):
        quiet(bag, tmp_path / "out", contract=contract)


def test_labels_are_carried_from_the_bag_and_the_manifest_into_the_dataset(tmp_path):
    custom = {
        **custom_data(ARM_REACH, episode_info(20)),
        "spc.labels": json.dumps({"success": True, "operator": "kim"}),
    }
    write_bag(tmp_path / "bags" / "run", arm_samples(), custom)
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text("bags: {bags/run: {task: other, params: {mass: 2}, labels: {success: false, notes: slipped}}}")
    quiet(tmp_path / "bags", tmp_path / "out", manifest=manifest)
    ((task, episode),) = read_episodes(tmp_path / "out")
    assert (task.task_id, task.params) == ("other", {"mass": 2.0})
    assert episode.labels == {"success": False, "operator": "kim", "notes": "slipped"}


def test_late_and_duplicate_messages_are_counted(tmp_path):
    doubled = [s for s in arm_samples(20) for _ in range(2 if s.topic == "/joint_states" else 1)]
    bag = write_bag(tmp_path / "bag", doubled, custom_data(ARM_REACH, episode_info(20)))
    report, entries = converted(bag, ARM_REACH)
    assert report.dropped_samples == {"joint_states duplicate": 21}
    assert len(entries[0].episode) == 20


def test_a_marker_that_is_never_on_leaves_nothing(tmp_path):
    samples = [
        *said_nothing(arm_samples(5)),
        Sample("/active", BOOL, RECEIVE_NS + 10**9, STORE.types[BOOL](data=False)),
    ]
    bag = write_bag(tmp_path / "bag", samples, {})
    contract = make_contract(base=ARM_REACH, episode={"segment": "topic", "topic": "active", "type": BOOL})
    with pytest.raises(ConversionError, match="holds no transition; there is no tick in the episode"):
        quiet(bag, tmp_path / "out", contract=contract, task="t")


def test_a_bag_recorded_in_a_namespace_is_found(tmp_path):
    bag = record_arm(tmp_path / "bag", change=lambda s: dataclasses.replace(s, topic=f"/robot_7{s.topic}"))
    assert converted(bag, ARM_REACH)[0].transitions == 20
