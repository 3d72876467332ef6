# SPDX-License-Identifier: Apache-2.0
"""Bags to a dataset: what comes out, what is cut, what is refused; and the dataset on disk and packed."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import minari
import numpy as np
import pytest

from spc_core.alignment.faults import Fault, FaultKind
from spc_core.contract.contract import parse_contract
from spc_core.data import dataset as dataset_module
from spc_core.data import packed as packed_module
from spc_core.data.dataset import DatasetError, DatasetWriter, Episode
from spc_core.data.packed import load_dataset
from spc_core.data.reader import read_episodes
from spc_ros.bags.files import BagError
from spc_ros.conversion.conversion_report import BagReport, ConversionReport
from spc_ros.conversion.convert import ConversionError, convert
from spc_ros.conversion.convert_options import ConvertOptions
from support.contracts import ARM_REACH, make_contract
from support.paths import ROOT
from support.recorded_bags import (
    JOINT_STATE,
    PERIOD_NS,
    RECEIVE_NS,
    START_NS,
    Sample,
    arm_samples,
    custom_data,
    episode_info,
    header,
    joint_state,
    record_arm,
    string,
    write_bag,
)


def quiet(bags, out, contract=None, workers=1, **options):
    return convert(ConvertOptions(tuple(bags), out, workers=workers, **options), contract, progress=False)


def only_episode(root):
    ((_, episode),) = read_episodes(root)
    return episode


def refusal(bag, out, **options):
    """The one line that says why a bag is bad; nothing is written."""
    with pytest.raises(ConversionError) as error:
        quiet([bag], out, **options)
    assert not out.exists()
    head, line = str(error.value).split("\n  ", 1)
    assert head == "1 of 1 bags cannot be converted; nothing is left:"
    assert line.startswith(f"{bag}: ")
    return line.removeprefix(f"{bag}: ")


def times(step):
    return START_NS + step * PERIOD_NS


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_an_episode_comes_out_transition_by_transition(tmp_path, storage):
    bag = record_arm(tmp_path / "bag", steps=20, storage=storage)
    report = quiet([bag], tmp_path / "out")
    samples = arm_samples(20)
    states = [s.message for s in samples if s.topic == "/joint_states"]
    rows = [[m.position[1], m.position[0], m.velocity[1], m.velocity[0]] for m in states]  # elbow comes first
    episode = only_episode(tmp_path / "out")
    assert np.array_equal(episode.observations, rows)
    assert np.array_equal(episode.actions, [[k, -1] for k in range(20)])
    assert np.array_equal(episode.rewards, [-(k + 1) for k in range(20)])
    assert np.array_equal(episode.times_ns, [times(k) for k in range(21)])
    assert (episode.terminated, episode.truncated, episode.cut) == (False, True, None)
    assert (episode.source, len(episode.source_sha256)) == ("bag", 64)
    assert (report.transitions, report.episodes, report.tasks) == (20, 1, ("arm_reach/train/00",))


@pytest.mark.parametrize(
    ("said", "terminated", "truncated", "cut"),
    [
        ({"terminated": True, "truncated": False}, True, False, None),
        ({"terminated": False, "truncated": True}, False, True, None),
        ({"terminated": True, "truncated": True}, True, False, None),
        ({"truncated": False, "reason": "operator left"}, False, False, "episode given up, operator left"),
        ({"state": "running"}, False, False, "the recording ended while the episode ran"),
    ],
)
def test_the_three_ends_are_kept_apart(tmp_path, said, terminated, truncated, cut):
    bag = record_arm(tmp_path / "bag", **said)
    quiet([bag], tmp_path / "out")
    episode = only_episode(tmp_path / "out")
    assert (episode.terminated, episode.truncated, episode.cut) == (terminated, truncated, cut)
    packed = load_dataset(tmp_path / "out")
    assert packed.terminated.tolist() == [False] * 19 + [terminated]


def test_a_bag_without_the_episode_topic_ends_cut(tmp_path):
    bag = record_arm(tmp_path / "bag", change=lambda s: None if s.topic == "/episode" else s)
    quiet([bag], tmp_path / "out")
    assert only_episode(tmp_path / "out").cut == "the recording ended"


def lost(topic, first, last):
    """Drops the messages of a topic that are stamped within the steps."""

    def change(sample):
        if sample.topic != topic:
            return sample
        stamp = sample.message.header.stamp
        inside = times(first) <= stamp.sec * 10**9 + stamp.nanosec <= times(last) + 1
        return None if inside else sample

    return change


def test_a_gap_cuts_and_both_pieces_are_kept(tmp_path):
    bag = record_arm(tmp_path / "bag", change=lost("/joint_states", 5, 9))
    report = quiet([bag], tmp_path / "out")
    first, second = (episode for _, episode in read_episodes(tmp_path / "out"))
    assert first.cut == "joint_states: stale, 60 ms old, allowed 50 ms"
    assert [len(first), len(second)] == [6, 10]  # up to 6 * 20 ms the last state is fresh enough
    assert (second.terminated, second.truncated, second.cut) == (False, True, None)
    assert [(at_s, str(fault)) for at_s, fault in report.bags[0].cuts] == [(0.14, first.cut)]
    assert report.topics["joint_states"].gaps == 1
    assert "cut 1 time: joint_states: stale" in report.summary()


def test_an_episode_whose_end_was_not_recorded_is_cut_and_not_truncated(tmp_path):
    bag = record_arm(tmp_path / "bag", change=lost("/joint_states", 10, 20))
    quiet([bag], tmp_path / "out")
    episode = only_episode(tmp_path / "out")
    assert not episode.truncated and not episode.terminated
    assert "joint_states: stale" in episode.cut or "no data at the end" in episode.cut


def test_what_is_recorded_after_the_end_does_not_change_it(tmp_path):
    info = episode_info(10)
    samples = arm_samples(20, info=info)
    bag = write_bag(tmp_path / "bag", samples, custom_data(ARM_REACH, info))
    quiet([bag], tmp_path / "out")
    episode = only_episode(tmp_path / "out")
    assert (len(episode), episode.truncated, episode.cut) == (10, True, None)


def test_nan_cuts_and_is_counted(tmp_path):
    def change(sample):
        if sample.topic == "/joint_states" and sample.message.header.stamp.nanosec == 5 * PERIOD_NS:
            bad = joint_state(times(5), ["elbow", "shoulder"], position=[np.nan, 0], velocity=[0, 0])
            return dataclasses.replace(sample, message=bad)
        return sample

    report = quiet([record_arm(tmp_path / "bag", change=change)], tmp_path / "out")
    assert [len(e) for _, e in read_episodes(tmp_path / "out")] == [4, 14]
    assert report.topics["joint_states"].nan_count == 1
    assert "1 message with NaN or infinity" in report.summary()


def test_joints_in_another_order_in_each_bag_are_no_matter(tmp_path):
    def swap(sample):
        if sample.topic != "/joint_states":
            return sample
        m = sample.message
        swapped = dataclasses.replace(
            m, name=m.name[::-1], position=m.position[::-1].copy(), velocity=m.velocity[::-1].copy()
        )
        return dataclasses.replace(sample, message=swapped)

    record_arm(tmp_path / "bags" / "a")
    record_arm(tmp_path / "bags" / "b", change=swap)
    quiet([tmp_path / "bags"], tmp_path / "out")
    (_, first), (_, second) = read_episodes(tmp_path / "out")
    assert np.array_equal(first.observations, second.observations)


def test_unset_stamps_fall_back_to_the_receive_time_and_are_reported(tmp_path):
    def change(sample):
        if sample.topic == "/episode":
            return None
        stamp = sample.message.header.stamp
        wall_ns = stamp.sec * 10**9 + stamp.nanosec - START_NS + RECEIVE_NS
        t_ns = 0 if sample.topic == "/joint_commands" else wall_ns
        return dataclasses.replace(sample, message=dataclasses.replace(sample.message, header=header(t_ns)))

    report = quiet([record_arm(tmp_path / "bag", change=change)], tmp_path / "out")
    assert report.transitions == 20
    assert report.topics["joint_commands"].unset_stamps == 20
    assert "20 messages without a stamp: aligned by receive time" in report.summary()


def test_the_contract_may_align_by_receive_time(tmp_path):
    contract = make_contract(base=ARM_REACH, clock="receive")
    quiet([record_arm(tmp_path / "bag", contract=contract)], tmp_path / "out")
    episode = only_episode(tmp_path / "out")
    assert len(episode) >= 18  # a reward is received after the tick that it belongs to
    assert np.all(np.diff(episode.times_ns) == PERIOD_NS)


def test_messages_lost_on_the_way_to_the_bag_are_reported(tmp_path):
    published = {"joint_states": 25, "/joint_commands": 20}
    report = quiet([record_arm(tmp_path / "bag", published=published)], tmp_path / "out")
    assert {name: topic.lost for name, topic in report.topics.items()} == {
        "joint_states": 4,
        "joint_commands": 0,
        "reward": 0,
    }


def test_a_reindexed_bag_takes_its_task_from_the_episode_topic(tmp_path):
    bag = write_bag(tmp_path / "bag", arm_samples(), {})
    quiet([bag], tmp_path / "out", contract=ARM_REACH)
    ((task, _),) = read_episodes(tmp_path / "out")
    assert (task.task_id, task.params, task.split) == ("arm_reach/train/00", {"angle": 0.5}, "train")


def test_the_task_may_be_given_for_bags_that_name_none(tmp_path):
    samples = [s for s in arm_samples() if s.topic != "/episode"]
    bag = write_bag(tmp_path / "bag", samples, {})
    assert refusal(bag, tmp_path / "out", contract=ARM_REACH) == (
        "names no task, neither as 'spc.task_id' in custom_data nor on the topic 'episode'; "
        "give one for all such bags with --task, by folder with --task-from folder, or with --manifest"
    )
    quiet([bag], tmp_path / "out", contract=ARM_REACH, task="my robot, heavy payload!")
    packed = load_dataset(tmp_path / "out")
    assert (packed.tasks[0].task_id, packed.tasks[0].split) == ("my robot, heavy payload!", "")


def retyped(sample):
    if sample.topic != "/joint_commands":
        return sample
    return dataclasses.replace(sample, type="std_msgs/msg/String", message=string("left"))


def without(topic):
    return lambda sample: None if sample.topic == topic else sample


def renamed(sample):
    return dataclasses.replace(sample, topic="/joint_state") if sample.topic == "/joint_states" else sample


def rejointed(sample):
    if sample.topic != "/joint_states":
        return sample
    return dataclasses.replace(sample, message=dataclasses.replace(sample.message, name=["elbow", "hip"]))


def without_velocity(sample):
    if sample.topic != "/joint_states":
        return sample
    return dataclasses.replace(sample, message=dataclasses.replace(sample.message, velocity=np.array([])))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("/reward"), "has no topic 'reward'; it has: /episode, /joint_states, /joint_commands"),
        (
            renamed,
            "has no topic 'joint_states' (did you mean 'joint_state'?); it has: /episode, /joint_state,",
        ),
        (
            retyped,
            f"topic '/joint_commands' is std_msgs/msg/String, the contract says {JOINT_STATE}; correct",
        ),
        (
            rejointed,
            "topic 'joint_states': no message has the joint shoulder; they have elbow, hip; correct the contract",
        ),
        (
            without_velocity,
            "topic 'joint_states': cannot read velocity.shoulder: the array 'velocity' is empty",
        ),
        (lost("/reward", 0, 20), "has no topic 'reward'"),
    ],
)
def test_a_bag_that_does_not_fit_the_contract_is_refused(tmp_path, change, reason):
    bag = record_arm(tmp_path / "bag", change=change)
    assert refusal(bag, tmp_path / "out").startswith(reason)


def test_a_single_transition_is_an_episode(tmp_path):
    quiet([record_arm(tmp_path / "bag", change=lost("/joint_commands", 1, 20))], tmp_path / "out")
    assert len(only_episode(tmp_path / "out")) == 1


def test_a_bag_without_a_transition_is_refused_with_the_commonest_reason(tmp_path):
    late = joint_state(times(50), ["shoulder", "elbow"], effort=[0, 0])
    samples = [s for s in arm_samples() if s.topic != "/joint_commands"]
    samples.append(Sample("/joint_commands", JOINT_STATE, RECEIVE_NS + 50 * PERIOD_NS, late))
    bag = write_bag(tmp_path / "late", samples, custom_data(ARM_REACH, episode_info(20)))
    assert refusal(bag, tmp_path / "out2") == "holds no transition; joint_commands: no command in the period"


def test_an_unclosed_mcap_gives_what_is_whole_and_says_what_is_lost(arm_bag, tmp_path):
    file = arm_bag / "bag.mcap"
    file.write_bytes(file.read_bytes()[:-50])
    report = quiet([arm_bag], tmp_path / "out", contract=ARM_REACH)
    assert report.transitions == 20
    assert report.bags[0].notes == ("the end of the file is missing, behind the 63 messages, which are all read",)
    assert "1 bag: the end of the file is missing" in report.summary()


def test_a_truncated_mcap_without_a_whole_message_is_refused(arm_bag, tmp_path):
    file = arm_bag / "bag.mcap"
    file.write_bytes(file.read_bytes()[:2000])
    reason = refusal(arm_bag, tmp_path / "out", contract=ARM_REACH)
    assert reason.startswith("truncated, the recording was never closed")


def test_all_bad_bags_are_listed_and_nothing_is_written_unless_they_are_skipped(tmp_path):
    bags = tmp_path / "bags"
    record_arm(bags / "a")
    record_arm(bags / "b", change=without("/reward"))
    record_arm(bags / "c", change=rejointed)
    with pytest.raises(ConversionError) as error:
        quiet([bags], tmp_path / "out")
    head, *lines = (
        str(error.value).removesuffix(f"\nthe others are done and wait in {tmp_path}/.out.parts").split("\n  ")
    )
    assert head == "2 of 3 bags cannot be converted; correct them or leave them out (--skip-bad):"
    assert [line.split(":")[0] for line in lines] == [str(bags / "b"), str(bags / "c")]
    assert sorted(os.listdir(tmp_path)) == [".out.parts", "bags"]
    assert len(os.listdir(tmp_path / ".out.parts")) == 1  # of the good one, so that it is not done twice
    report = quiet([bags], tmp_path / "out", skip_bad=True)
    assert [bag.path for bag in report.failed] == [str(bags / "b"), str(bags / "c")]
    assert report.summary().count("left out ") == 2
    assert load_dataset(tmp_path / "out").step_count == 20


def test_bags_of_different_contracts_are_refused_with_the_differing_fields(tmp_path):
    slow = make_contract(base=ARM_REACH, rate_hz=25)
    bags = [record_arm(tmp_path / "a"), record_arm(tmp_path / "b", contract=slow)]
    with pytest.raises(ConversionError) as error:
        quiet(bags, tmp_path / "out")
    assert f"{bags[1]}: recorded under another contract than the first bag" in str(error.value)
    assert "(rate_hz: 50 here, 25 there)" in str(error.value)
    report = quiet(bags, tmp_path / "out", contract=ARM_REACH)  # the user's word counts
    assert report.bags[1].notes == ("recorded under another contract (rate_hz: 50 here, 25 there)",)
    same = parse_contract(ARM_REACH.text + "# a comment\n", "same")
    assert quiet([bags[0], record_arm(tmp_path / "c", contract=same)], tmp_path / "out2").failed == ()


def test_a_contract_must_come_from_somewhere(tmp_path):
    bag = write_bag(tmp_path / "bag", arm_samples(), {})
    with pytest.raises(ConversionError, match="bag carries no contract; give one with --contract"):
        quiet([bag], tmp_path / "out")


def test_bad_task_parameters_are_refused(tmp_path):
    custom = {**custom_data(ARM_REACH, episode_info(20)), "spc.task_params": "[1]"}
    bag = write_bag(tmp_path / "bag", arm_samples(), custom)
    assert refusal(bag, tmp_path / "out").startswith("custom_data spc.task_params is not a mapping of numbers (")


def tree(root):
    """Every file below root with its bytes, without the cache."""
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in sorted(root.rglob("*"))
        if file.is_file() and ".packed" not in file.parts
    }


def test_several_processes_give_the_same_dataset_byte_for_byte(tmp_path):
    for i in range(12):
        record_arm(tmp_path / "bags" / f"{i:02d}", steps=5, seed=i, task=f"arm_reach/train/{i % 3:02d}")
    quiet([tmp_path / "bags"], tmp_path / "one")
    quiet([tmp_path / "bags"], tmp_path / "two", workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_conversion_needs_neither_ros_nor_torch():
    code = "import sys, spc_ros.conversion.convert; print({'rclpy', 'torch', 'mujoco'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_report_is_kept_as_json(tmp_path):
    record_arm(tmp_path / "bags" / "a")
    record_arm(tmp_path / "bags" / "b", change=lost("/reward", 5, 5))
    quiet([tmp_path / "bags"], tmp_path / "out")
    report = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert report["totals"] == {
        "bags": 2,
        "failed": 0,
        "tasks": 1,
        "episodes": 3,
        "transitions": 39,
        "messages": 2 * 61 - 1,
    }
    assert report["contract"]["sha256"] == ARM_REACH.sha256
    assert report["cuts"] == {"reward: no reward in the period": 1}
    topic = report["topics"]["joint_states"]
    assert topic["rate_hz"] == pytest.approx(50)
    assert (topic["jitter_ms"], topic["gaps"], topic["age_p99_ms"]) == (pytest.approx(0, abs=1e-6), 0, 0)
    assert report["topics"]["reward"]["age_p99_ms"] is None


def test_minari_reads_the_dataset(tmp_path, monkeypatch):
    record_arm(tmp_path / "bags" / "a")
    record_arm(tmp_path / "bags" / "b", change=lost("/joint_states", 5, 9), task="arm_reach/ood/03")
    quiet([tmp_path / "bags"], tmp_path / "out")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "out"))
    assert list(minari.list_local_datasets()) == ["arm_reach/ood-03-v0", "arm_reach/train-00-v0"]
    whole = minari.load_dataset("arm_reach/train-00-v0")
    assert (whole.total_episodes, whole.total_steps) == (1, 20)
    assert whole[0].observations.shape == (21, 4)
    assert whole[0].truncations.tolist() == [False] * 19 + [True]
    assert whole.storage.metadata["spc_contract"] == ARM_REACH.text
    assert whole.storage.metadata["spc_task_params"] == {"angle": 0.5}
    cut = minari.load_dataset("arm_reach/ood-03-v0")
    assert not cut[0].truncations.any() and not cut[0].terminations.any()
    assert [about["cut"] for about in cut.storage.get_episode_metadata([0, 1])] == [
        "joint_states: stale, 60 ms old, allowed 50 ms",
        None,
    ]


def make_episode(steps, seed=0, **changes):
    random = np.random.default_rng(seed)
    arrays = (random.random((steps + 1, 4)), random.random((steps, 2)), random.random(steps))
    episode = Episode(*arrays, np.arange(steps + 1) * PERIOD_NS, False, True, None, "bag")
    return dataclasses.replace(episode, **changes)


def write_dataset(root, lengths=(3, 1, 4), **options):
    """Tasks b, a, b, ... in turn; every third episode is terminated."""
    episodes = [make_episode(n, i, terminated=i % 3 == 0, truncated=i % 3 != 0) for i, n in enumerate(lengths)]
    with DatasetWriter(root, ARM_REACH, **options) as writer:
        for i, episode in enumerate(episodes):
            writer.add_episode("ba"[i % 2], {"x": float(i % 2)}, episode)
    return episodes


def test_the_packed_layout(tmp_path):
    b0, a0, b1 = write_dataset(tmp_path / "ds")
    packed = load_dataset(tmp_path / "ds")
    assert [task.task_id for task in packed.tasks] == ["a", "b"]
    assert packed.episode_task.tolist() == [0, 1, 1]
    assert packed.episode_starts.tolist() == [0, 1, 4, 8]
    assert (packed.step_count, packed.episode_count) == (8, 3)
    assert packed.terminated.tolist() == [False, False, False, True, False, False, False, False]
    for e, episode in enumerate((a0, b0, b1)):
        for s in range(packed.episode_starts[e], packed.episode_starts[e + 1]):
            k = s - packed.episode_starts[e]
            assert np.allclose(packed.observations[s + e], episode.observations[k])
            assert np.allclose(packed.observations[s + e + 1], episode.observations[k + 1])
            assert np.allclose(packed.actions[s], episode.actions[k])
            assert packed.rewards[s] == np.float32(episode.rewards[k])
    assert packed.observations.dtype == packed.actions.dtype == packed.rewards.dtype == np.float32
    assert isinstance(packed.observations, np.memmap) and not packed.observations.flags.writeable
    assert packed.contract.sha256 == ARM_REACH.sha256


def test_a_dataset_is_packed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    write_dataset(tmp_path / "ds")
    first = load_dataset(tmp_path / "ds")
    with monkeypatch.context() as patch:
        patch.delattr(packed_module, "_pack")  # would fail if it were called
        assert load_dataset(tmp_path / "ds").sha256 == first.sha256
    shutil.copytree(tmp_path / "ds", tmp_path / "copy", ignore=shutil.ignore_patterns(".packed"))
    assert load_dataset(tmp_path / "copy").sha256 == first.sha256
    shutil.rmtree(tmp_path / "copy" / "arm_reach" / "a-v0")
    changed = load_dataset(tmp_path / "copy")
    assert changed.sha256 != first.sha256
    assert [task.task_id for task in changed.tasks] == ["b"]
    write_dataset(tmp_path / "ds", lengths=(5, 5), overwrite=True)
    assert load_dataset(tmp_path / "ds").step_count == 10


def test_episodes_too_long_for_minari_are_split_without_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_module, "MAX_STEPS", 4)
    (episode,) = write_dataset(tmp_path / "ds", lengths=(10,))
    pieces = [e for _, e in read_episodes(tmp_path / "ds")]
    assert [len(piece) for piece in pieces] == [4, 4, 2]
    assert [piece.cut for piece in pieces] == ["continued: longer than 4 steps"] * 2 + [None]
    assert [piece.terminated for piece in pieces] == [False, False, True]
    assert np.array_equal(np.concatenate([piece.actions for piece in pieces]), episode.actions)
    assert np.array_equal(pieces[1].observations, episode.observations[4:9])


def test_task_ids_that_look_alike_on_disk_stay_apart(tmp_path):
    ids = ["a/b", "a b", "a-b", "arm_reach/a/b", "ä"]
    with DatasetWriter(tmp_path / "ds", ARM_REACH) as writer:
        for task_id in [*ids, *ids]:
            writer.add_episode(task_id, {}, make_episode(2))
    packed = load_dataset(tmp_path / "ds")
    assert sorted(task.task_id for task in packed.tasks) == sorted(ids)
    assert np.bincount(packed.episode_task).tolist() == [2] * 5


def test_long_task_ids_are_shortened_on_disk_and_stay_apart(tmp_path):
    ids = ["put the red cube into the bowl, " * 9 + end for end in ("twice", "once")]
    with DatasetWriter(tmp_path / "ds", ARM_REACH) as writer:
        for task_id in ids:
            writer.add_episode(task_id, {}, make_episode(2))
    packed = load_dataset(tmp_path / "ds")
    assert sorted(task.task_id for task in packed.tasks) == sorted(ids)
    names = [folder.name for folder in (tmp_path / "ds" / ARM_REACH.name).iterdir()]
    assert len(set(names)) == 2 and all(len(name) < 100 for name in names)


def test_nothing_is_left_of_a_dataset_that_was_not_finished(tmp_path):
    with pytest.raises(KeyError), DatasetWriter(tmp_path / "ds", ARM_REACH) as writer:
        writer.add_episode("a", {}, make_episode(2))
        raise KeyError
    assert os.listdir(tmp_path) == []
    with pytest.raises(DatasetError, match="not written, since there is no episode"):
        DatasetWriter(tmp_path / "ds", ARM_REACH).close()
    assert os.listdir(tmp_path) == []


def test_only_datasets_are_overwritten_and_only_on_request(tmp_path):
    bag = record_arm(tmp_path / "bag")
    quiet([bag], tmp_path / "out")
    with pytest.raises(DatasetError, match=r"out: exists already; .* overwrite it with --overwrite"):
        quiet([bag], tmp_path / "out")
    quiet([bag], tmp_path / "out", overwrite=True)
    with pytest.raises(DatasetError, match="bag: is not a dataset, so it is not overwritten"):
        quiet([bag], tmp_path / "bag", overwrite=True)
    (tmp_path / "empty").mkdir()
    quiet([bag], tmp_path / "empty")
    assert sorted(os.listdir(tmp_path)) == ["bag", "empty", "out"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": np.zeros(3)}, r"bag: observations have the shape \(3, 4\), expected \(4, 4\)"),
        (
            {"rewards": np.array([0, np.nan])},
            "bag: reward is nan at step 1, which cannot be used for training; cut the episode there",
        ),
        ({"terminated": True}, "at least one step and one end, got 2 steps, terminated True, truncated True"),
        ({"truncated": False}, "one end, got 2 steps, terminated False, truncated False, cut None"),
    ],
)
def test_an_episode_that_cannot_be_is_refused(tmp_path, changes, message):
    with (
        pytest.raises(DatasetError, match=message),
        DatasetWriter(tmp_path / "ds", ARM_REACH) as writer,
    ):
        writer.add_episode("a", {}, make_episode(2, **changes))
    assert os.listdir(tmp_path) == []


def test_a_task_with_two_sets_of_parameters_is_refused(tmp_path):
    with (
        pytest.raises(
            DatasetError, match=r"task 'a': bag gives it the parameters {'x': 2.0}, other episodes {'x': 1.0}"
        ),
        DatasetWriter(tmp_path / "ds", ARM_REACH) as writer,
    ):
        writer.add_episode("a", {"x": 1.0}, make_episode(2))
        writer.add_episode("a", {"x": 2.0}, make_episode(2))


def test_folders_that_are_no_dataset_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="nowhere: no such folder; give the folder that `spc convert` wrote"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"not a dataset, it holds no <name>/<task>-v0/data"):
        load_dataset(tmp_path)


def test_tasks_of_different_contracts_are_refused(tmp_path):
    write_dataset(tmp_path / "ds")
    metadata = tmp_path / "ds" / "arm_reach" / "b-v0" / "data" / "metadata.json"
    about = json.loads(metadata.read_text())
    about["spc_contract"] = about["spc_contract"].replace("rate_hz: 50", "rate_hz: 25")
    metadata.write_text(json.dumps(about))
    with pytest.raises(DatasetError) as error:
        load_dataset(tmp_path / "ds")
    assert "tasks 'a' and 'b' have other contracts" in str(error.value)
    assert "rate_hz: 50 here, 25 there" in str(error.value)


def test_a_damaged_dataset_is_refused_with_its_task(tmp_path):
    write_dataset(tmp_path / "ds")
    data = tmp_path / "ds" / "arm_reach" / "b-v0" / "data"
    for file in (data / "0").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DatasetError, match=rf"{data}: not readable as a dataset of this program"):
        load_dataset(tmp_path / "ds")
    assert os.listdir(tmp_path / "ds" / ".packed") == []
    (data / "metadata.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"no 'spc_contract'\); convert again"):
        load_dataset(tmp_path / "ds")


def test_no_bags_is_an_error(tmp_path):
    with pytest.raises(BagError, match="no such file or folder"):
        quiet([tmp_path / "nowhere"], tmp_path / "out")


def test_every_kind_of_note_is_printed_once_with_its_count_and_where():
    kinds = ("messages of imu are {} bytes longer", "chunk {} is damaged", "joint_1 is late by {} ms",
             "joint_2 is late by {} ms", "a file was renamed", "run_{i}_0.mcap was not closed")  # fmt: skip
    bags = [
        BagReport(f"/data/run_{i}", notes=tuple(kind.format(10 * i + 1.5, i=i) for kind in kinds), transitions=1)
        for i in range(5)
    ]
    bags.append(BagReport("/data/odd", notes=("only here",), transitions=1))
    summary = ConversionReport(Path("out"), ARM_REACH, tuple(bags), {}, 1.0).summary()
    for kind in kinds[:-1]:
        told = f"5 bags: {kind.format(1.5)} [run_0, run_1, run_2 and 2 more, see conversion.json]"
        assert summary.count(told) == 1
    assert "1 bag: only here [odd]" in summary
    assert summary.count("was not closed") == 1
    assert len([line for line in summary.splitlines() if " bag" in line]) == 1 + 1 + len(kinds)


def test_every_reason_of_a_cut_is_printed():
    reasons = [Fault(FaultKind.STALE, f"topic_{k}", k, amount_ns=60_000_000) for k in range(12)]
    bags = (BagReport("/data/a", cuts=tuple((float(k), reason) for k, reason in enumerate(reasons)), transitions=1),)
    summary = ConversionReport(Path("out"), ARM_REACH, bags, {}, 1.0).summary()
    assert all(f"cut 1 time: {reason.summary}" in summary for reason in reasons)
