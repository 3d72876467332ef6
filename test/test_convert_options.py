# SPDX-License-Identifier: Apache-2.0
"""What a user may choose: episodes, tasks, labels, transforms, clocks; and a bag equal to a node, to the bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from recorded_bags import (
    JOINT_STATE,
    PERIOD_NS,
    RECEIVE_NS,
    START_NS,
    STORE,
    STRING,
    Sample,
    arm_reach,
    arm_samples,
    custom_data,
    episode_info,
    header,
    record_arm,
    string,
    write_bag,
)
from rosbags.rosbag2 import Reader

from spc_core.alignment.frames import TransitionAssembler
from spc_core.contract.contract import Contract, parse_contract
from spc_core.data.reader import read_episodes
from spc_ros.conversion.aligned_bag import PATIENCE_NS
from spc_ros.conversion.bag_conversion import Job, convert_bag
from spc_ros.conversion.convert import ConversionError, convert
from spc_ros.messages.contract_reader import ContractReader

BOOL, IMU = "std_msgs/msg/Bool", "sensor_msgs/msg/Imu"


def changed(**sections) -> Contract:
    """The contract of arm_reach with other sections."""
    return parse_contract(yaml.safe_dump({**yaml.safe_load(arm_reach().text), **sections}, sort_keys=False), "changed")


def converted(bag: Path, contract: Contract, **job):
    return convert_bag(bag, Job(contract, own_contract=True, **job))


def quiet(bag, out, **options):
    return convert([bag], out=out, **{"contract": arm_reach(), "workers": 1, "progress": False, **options})


def seen_live(bag: Path, contract: Contract):
    """(observation, action, reward, next observation) of each transition that a node would have seen."""
    reader, assembler = ContractReader(contract), TransitionAssembler(contract, PATIENCE_NS)
    steps = []
    with Reader(bag) as log:
        for connection, receive_ns, data in log.messages():
            message = STORE.deserialize_cdr(data, connection.msgtype)
            steps += reader.feed(assembler, connection.topic.lstrip("/"), message, receive_ns)
    steps += assembler.flush()
    return [step.transition for step in steps if step.transition is not None]


def assert_equal_to_live(bag: Path, contract: Contract, at_least: int) -> None:
    _, entries = converted(bag, contract, task="t")
    episodes = [entry.episode for entry in entries]
    live = seen_live(bag, contract)
    assert len(live) >= at_least
    assert sum(map(len, episodes)) == len(live)
    np.testing.assert_array_equal(
        np.concatenate([e.observations[:-1] for e in episodes]), [t.observation for t in live]
    )
    np.testing.assert_array_equal(
        np.concatenate([e.observations[1:] for e in episodes]), [t.next_observation for t in live]
    )
    np.testing.assert_array_equal(np.concatenate([e.actions for e in episodes]), [t.action for t in live])
    np.testing.assert_array_equal(np.concatenate([e.rewards for e in episodes]), [t.reward for t in live])


def said_nothing(samples: list[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.topic != "/episode"]


def later(samples: list[Sample], shift_ns: int, receive_ns: int | None = None) -> list[Sample]:
    """The same samples with stamps shifted, and receive times shifted as much or as told."""
    moved = []
    for sample in samples:
        stamp = sample.message.header.stamp
        message = dataclasses.replace(sample.message, header=header(stamp.sec * 10**9 + stamp.nanosec + shift_ns))
        received = sample.receive_ns + (shift_ns if receive_ns is None else receive_ns)
        moved.append(dataclasses.replace(sample, message=message, receive_ns=received))
    return moved


def test_a_marker_topic_parts_a_bag_into_episodes(tmp_path):
    samples = said_nothing(arm_samples(40))
    for step, active in ((0, True), (10, False), (20, True), (35, False)):
        at_ns = RECEIVE_NS + step * PERIOD_NS + 50
        samples.append(Sample("/active", BOOL, at_ns, STORE.types[BOOL](data=active)))
    bag = write_bag(tmp_path / "bag", sorted(samples, key=lambda s: s.receive_ns), {})
    contract = changed(episode={"segment": "topic", "topic": "active", "type": BOOL})
    report, entries = converted(bag, contract, task="t")
    # a mark takes effect at the state before it: states 0 to 10 and 20 to 35
    assert [len(entry.episode) for entry in entries] == [10, 15]
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
    report, entries = converted(bag, changed(episode={"segment": "topic"}))
    assert [(entry.task_id, len(entry.episode), entry.episode.terminated) for entry in entries] == [
        ("a", 10, True),
        ("b", 18, True),
    ]
    assert report.tasks == ("a", "b")


def test_a_pause_parts_episodes_where_the_contract_says_so(tmp_path):
    samples = said_nothing(arm_samples(20))
    bag = write_bag(tmp_path / "bag", [*samples, *later(samples, 3_000_000_000)], {})
    _, entries = converted(bag, changed(episode={"segment": "gap", "gap_s": 1.0, "limit_s": 0.3}), task="t")
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
    contract = changed(task={"key": "spc.task_id", "topic": "task"})
    assert converted(bag, contract)[0].tasks == ("heavy",)
    two = [*samples, Sample("/task", STRING, RECEIVE_NS + 10**9, string("light"))]
    bag = write_bag(tmp_path / "two", two, {})
    with pytest.raises(
        ConversionError, match="topic 'task' names several tasks, heavy, light; record one task per bag"
    ):
        quiet(bag, tmp_path / "out", contract=contract)


def test_labels_are_carried_from_the_bag_and_the_manifest_into_the_dataset(tmp_path):
    custom = {
        **custom_data(arm_reach(), episode_info(20)),
        "spc.labels": json.dumps({"success": True, "operator": "kim"}),
    }
    write_bag(tmp_path / "bags" / "run", arm_samples(), custom)
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text("bags: {bags/run: {task: other, params: {mass: 2}, labels: {success: false, notes: slipped}}}")
    quiet(tmp_path / "bags", tmp_path / "out", manifest=manifest)
    ((task, episode),) = read_episodes(tmp_path / "out")
    assert (task.task_id, task.params) == ("other", {"mass": 2.0})
    assert episode.labels == {"success": False, "operator": "kim", "notes": "slipped"}


def test_transformed_fields_are_the_same_from_a_bag_and_in_a_node(tmp_path):
    def imu(t_ns, random):
        def vector():
            return STORE.types["geometry_msgs/msg/Vector3"](*random.normal(size=3).tolist())

        turned = STORE.types["geometry_msgs/msg/Quaternion"](*random.normal(size=4).tolist())
        return STORE.types[IMU](header(t_ns), turned, np.zeros(9), vector(), np.zeros(9), vector(), np.zeros(9))

    random = np.random.default_rng(5)
    samples = said_nothing(arm_samples(60))
    for k in range(600):  # ten times as fast as the states, jittered
        offset_ns = k * PERIOD_NS // 10 + int(random.integers(0, 900_000))
        samples.append(Sample("/imu", IMU, RECEIVE_NS + offset_ns + 5, imu(START_NS + offset_ns, random)))
    bag = write_bag(tmp_path / "bag", sorted(samples, key=lambda s: s.receive_ns), {})
    observation = [
        {
            "topic": "joint_states",
            "type": JOINT_STATE,
            "max_age_s": 0.05,
            "fields": [
                {"field": "position.elbow", "as": "sin_cos", "scale": 2.0},
                {"field": "position.shoulder", "as": "derivative", "clip": [-20, 20]},
                {"field": "velocity.elbow", "offset": 1.0, "as": "wrap"},
            ],
        },
        {
            "topic": "imu",
            "type": IMU,
            "max_age_s": 0.05,
            "clock": "header",
            "fields": [{"field": "orientation", "as": "rotation_6d"}, {"field": "orientation", "as": "yaw"},
                       {"field": "angular_velocity.z", "as": "derivative"}],
        },
    ]  # fmt: skip
    contract = changed(observation=observation)
    assert contract.observation_dim == 4 + 8
    assert_equal_to_live(bag, contract, at_least=50)


@pytest.mark.parametrize("seed", range(8))
def test_a_faulty_bag_is_the_same_as_in_a_node(tmp_path, seed):
    random = np.random.default_rng(seed)
    samples = said_nothing(arm_samples(80, seed=seed))
    samples = [s for s in samples if random.random() > 0.03]
    samples = [
        s for s in samples if not (s.topic == "/joint_states" and 30 < (s.receive_ns - RECEIVE_NS) / PERIOD_NS < 36)
    ]
    doubled = [samples[i] for i in random.integers(0, len(samples), 5)]
    late = [
        dataclasses.replace(sample, receive_ns=sample.receive_ns + int(random.integers(0, 60_000_000)))
        for sample in samples
    ]
    if seed % 4 == 1:  # a restart of the robot: its clock begins again
        late += later(said_nothing(arm_samples(20, seed=seed)), -2_000_000_000, 4_000_000_000)
    if seed % 4 == 2:  # a topic that comes in bursts more than the patience behind the others
        late = [
            dataclasses.replace(s, receive_ns=s.receive_ns + 1_300_000_000) if s.topic == "/reward" else s for s in late
        ]
    bag = write_bag(tmp_path / "bag", sorted([*late, *doubled], key=lambda s: s.receive_ns), {})
    assert_equal_to_live(bag, arm_reach(), at_least=5)


def test_a_stream_may_be_aligned_by_receive_time_beside_others_by_header(tmp_path):
    wall = later(said_nothing(arm_samples(30)), RECEIVE_NS - START_NS, 3_000_000)  # stamps of wall time
    fields = yaml.safe_load(arm_reach().text)["observation"][0]
    bag = write_bag(tmp_path / "bag", wall, {})
    contract = changed(observation=[{**fields, "clock": "receive"}], rate_hz=50)
    _, entries = converted(bag, contract, task="t")
    first = entries[0].episode
    assert first.times_ns[0] == RECEIVE_NS + 3_000_000
    # states count 3 ms later, so a_k is the command of the state after the one that it was caused by
    assert first.actions[0, 0] == 1.0
    assert_equal_to_live(bag, contract, at_least=25)


def test_late_and_duplicate_messages_are_counted(tmp_path):
    doubled = [s for s in arm_samples(20) for _ in range(2 if s.topic == "/joint_states" else 1)]
    bag = write_bag(tmp_path / "bag", doubled, custom_data(arm_reach(), episode_info(20)))
    report, entries = converted(bag, arm_reach())
    assert report.dropped_samples == {"joint_states duplicate": 21}
    assert len(entries[0].episode) == 20


def test_a_marker_that_is_never_on_leaves_nothing(tmp_path):
    samples = [
        *said_nothing(arm_samples(5)),
        Sample("/active", BOOL, RECEIVE_NS + 10**9, STORE.types[BOOL](data=False)),
    ]
    bag = write_bag(tmp_path / "bag", samples, {})
    contract = changed(episode={"segment": "topic", "topic": "active", "type": BOOL})
    with pytest.raises(ConversionError, match="holds no transition; there is no tick in the episode"):
        quiet(bag, tmp_path / "out", contract=contract, task="t")


def test_a_bag_recorded_in_a_namespace_is_found(tmp_path):
    bag = record_arm(tmp_path / "bag", change=lambda s: dataclasses.replace(s, topic=f"/robot_7{s.topic}"))
    assert converted(bag, arm_reach())[0].transitions == 20
