# SPDX-License-Identifier: Apache-2.0
"""Packed datasets: what is refused at packing, and memory that does not grow with the data."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from spc_core.data import dataset as dataset_module
from spc_core.data import packed as packed_module
from spc_core.data import reader as dataset_reader
from spc_core.data.dataset import DatasetError, DatasetWriter
from spc_core.data.packed import Rows, load_dataset, packed_sha256, rows_of
from spc_core.method.normalize import Moments
from spc_core.training.train import data_stats
from support.paths import TEST_FOLDER
from support.synthetic import POINT, episode, write_dataset


def write_unchecked(root, monkeypatch, **damage):
    """A dataset made by hand, whose second task's second episode has numbers that our writer would refuse."""
    rng = np.random.default_rng(0)
    with monkeypatch.context() as patch, DatasetWriter(root, POINT) as writer:
        patch.setattr(dataset_module, "check_episode", lambda *_: None)
        for task in range(2):
            for number in range(3):
                made = episode(rng, np.zeros(2), 6)
                if (task, number) == (1, 1):
                    for name, (place, value) in damage.items():
                        getattr(made, name)[place] = value
                writer.add_episode(f"point/train/{task:02d}", {}, made)
    return root


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"observations": ((4, 1), np.nan)}, "observation joint_states.position.y is nan at step 4"),
        ({"observations": ((6, 0), 1e300)}, r"observation joint_states.position.x is 1e\+300 at step 6"),
        ({"actions": ((2, 0), -np.inf)}, "action velocity.x is -inf at step 2"),
        ({"rewards": (5, np.nan)}, "reward is nan at step 5"),
    ],
)
def test_numbers_that_cannot_be_learnt_from_are_named_with_task_and_episode(tmp_path, monkeypatch, damage, message):
    root = write_unchecked(tmp_path / "point", monkeypatch, **damage)
    with pytest.raises(DatasetError, match=rf"task 'point/train/01', episode 1 \(synthetic\): {message}, .*cut the ep"):
        load_dataset(root)
    assert os.listdir(root / ".packed") == []


def test_steps_that_are_missing_are_told(tmp_path):
    root = write_dataset(tmp_path / "point")
    file = root / "point" / "train-00-v0" / "data" / "metadata.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "total_steps": 30}))
    with pytest.raises(DatasetError, match="its episodes have 26 steps, its metadata says 30; convert again"):
        load_dataset(root)


def test_episodes_read_in_groups_are_the_same(tmp_path, monkeypatch):
    root = write_dataset(tmp_path / "point")
    whole = [e for _, e in dataset_reader.read_episodes(root)]
    monkeypatch.setattr(dataset_reader, "READ_STEPS", 14)  # groups of 5 and of 12 and 9 steps
    groups = [e for _, e in dataset_reader.read_episodes(root)]
    assert [len(e) for e in groups] == [5, 12, 9] * 4
    for one, other in zip(whole, groups, strict=True):
        np.testing.assert_array_equal(one.observations, other.observations)


def test_rows_are_the_same_from_memory_and_from_the_file(tmp_path):
    rng = np.random.default_rng(0)
    for shape, dtype in (((50, 3), np.float32), ((50,), np.bool_)):
        values = (rng.normal(size=shape) > 0).astype(dtype) if dtype is np.bool_ else rng.normal(size=shape)
        np.save(tmp_path / "values.npy", values.astype(dtype))
        array = np.load(tmp_path / "values.npy", mmap_mode="r")
        for rows in (np.array([[0, 1, 2], [2, 49, 48]]), np.array([7]), np.arange(50), np.zeros((0, 2), np.int64)):
            for resident in (True, False):
                taken = Rows(array, resident)[rows]
                assert taken.dtype == dtype and np.array_equal(taken, array[rows])


def test_the_smallest_arrays_stay_in_memory(tmp_path, monkeypatch):
    """104 steps in 12 episodes: 928 bytes of observations, 832 of actions, 416 of rewards, 104 flags."""
    data = load_dataset(write_dataset(tmp_path / "point"))
    kept = {}
    for budget in (103, 104, 519, 520, 1352, 2280):
        monkeypatch.setattr("spc_core.data.packed.RESIDENT_BYTES", budget)
        kept[budget] = [int(reader.resident) for reader in rows_of(data)]
    assert kept == {103: [0, 0, 0, 0], 104: [0, 0, 0, 1], 519: [0, 0, 0, 1], 520: [0, 0, 1, 1], 1352: [0, 1, 1, 1],
                    2280: [1, 1, 1, 1]}  # fmt: skip


def test_statistics_taken_in_pieces_are_those_of_all_the_data(tmp_path, monkeypatch):
    data = load_dataset(write_dataset(tmp_path / "point"))
    monkeypatch.setattr("spc_core.training.train.STATS_CHUNK", 7)
    stats = data_stats(data)
    steps = np.arange(data.step_count)
    rows = steps + np.repeat(np.arange(data.episode_count), np.diff(data.episode_starts))
    seen, led_to = (data.observations[r].astype(np.float64) for r in (rows, rows + 1))
    np.testing.assert_allclose(stats.observation_mean, seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats.observation_std, seen.std(0), rtol=1e-5)
    np.testing.assert_allclose(stats.change_std, (led_to - seen).std(0), rtol=1e-5)
    np.testing.assert_allclose(stats.reward_mean, data.rewards.astype(np.float64).mean(), rtol=1e-6)
    np.testing.assert_allclose(stats.reward_std, data.rewards.astype(np.float64).std(), rtol=1e-6)


def test_a_small_change_far_from_zero_is_measured_and_a_constant_is_exactly_constant():
    moments = Moments()
    for piece in np.split(np.stack([1e6 + 0.5 * (np.arange(60) % 2), np.full(60, 0.1)], 1).astype(np.float32), 4):
        moments.add(piece)
    np.testing.assert_allclose(moments.mean, [1e6 + 0.25, np.float32(0.1)])
    assert moments.std.tolist() == [0.25, 0.0]


HELD = [("point/train/00",), ("point/train/01", "point/train/02"), ("point/train/03",)]


def packed(root):
    return sorted(os.listdir(root / ".packed"))


def test_another_choice_of_held_out_tasks_replaces_the_copy(tmp_path):
    root = write_dataset(tmp_path / "point")
    whole = load_dataset(root).sha256
    for held_out in HELD:
        data = load_dataset(root, held_out)
        assert not {task.task_id for task in data.tasks} & {*held_out} and len(data.tasks) == 4 - len(held_out)
        assert data.sha256 == packed_sha256(root) == whole
        del data
        assert len(packed(root)) == 1
    (copy,) = packed(root)
    load_dataset(root, HELD[-1])
    assert packed(root) == [copy]


USER = """
import sys
from spc_core.data.packed import load_dataset
data = load_dataset(sys.argv[1], sys.argv[2:])
print("open", flush=True)
sys.stdin.readline()
print(load_dataset(sys.argv[1], sys.argv[2:]).rewards.sum() == data.rewards.sum())
sys.stdin.readline()
"""


def test_a_copy_that_a_process_uses_stays_until_that_ends_however(tmp_path):
    root = write_dataset(tmp_path / "point")
    with subprocess.Popen(
        [sys.executable, "-c", USER, str(root), *HELD[0]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as user:
        try:
            assert user.stdin and user.stdout and user.stdout.readline() == "open\n"
            (used,) = packed(root)
            for held_out in HELD[1:]:
                load_dataset(root, held_out)
                assert len(packed(root)) == 2 and used in packed(root)
            user.stdin.write("\n")
            user.stdin.flush()
            assert user.stdout.readline() == "True\n"
        finally:
            user.kill()
    (root / ".packed" / "partial-of-a-packing-that-was-killed").mkdir()
    load_dataset(root)
    assert len(packed(root)) == 1 and used not in packed(root)


def test_a_copy_in_the_making_is_left_alone(tmp_path, monkeypatch):
    root = write_dataset(tmp_path / "point")
    write, seen = packed_module._write_arrays, []

    def write_while_another_packs(folder, *arguments):
        if not seen:
            seen.append(folder)
            load_dataset(root, HELD[0])
            assert folder.is_dir()
        return write(folder, *arguments)

    monkeypatch.setattr(packed_module, "_write_arrays", write_while_another_packs)
    assert load_dataset(root).step_count == 104 and len(packed(root)) == 2


MEMORY = """
import sys, numpy as np
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.synthetic import POINT, tiny_config
from spc_core.data import packed
from spc_core.data.dataset import TaskEntry
from spc_core.data.packed import PackedDataset
from spc_core.data.sampler import Sampler
from spc_core.training.train import data_stats

folder, megabytes, packed.RESIDENT_BYTES = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) * 2**20
episodes = megabytes * 10**6 // (200 * 21) // 4 * 4
steps = episodes * 200

def disk(name, rows, dtype, *shape):
    path = folder / (name + ".npy")
    made = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(rows, *shape))  # a hole: takes no disk
    made[:500] = np.random.default_rng(0).normal(size=(500, *shape)).astype(dtype)
    del made
    return np.load(path, mmap_mode="r")

data = PackedDataset(
    folder, POINT, tuple(TaskEntry(str(i), {}) for i in range(4)), "",
    disk("observations", steps + episodes, np.float32, 2), disk("actions", steps, np.float32, 2),
    disk("rewards", steps, np.float32), disk("terminated", steps, np.bool_),
    np.arange(episodes + 1) * 200, np.arange(episodes) // (episodes // 4),
)

def resident():
    total, ours = 0, False
    for line in open("/proc/self/smaps"):
        if not line.split()[0].endswith(":"):  # the head of a mapping
            ours = str(folder) in line
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) / 1024
    return total

peak = 0
sampler = Sampler(data, data_stats(data), tiny_config(tasks_per_batch=4, windows_per_task=64), 0)
for _ in range(100):
    sampler.batch()
    peak = max(peak, resident())
print(peak)
"""


def mapped_mb(folder, megabytes, resident_mb):
    """How many MB of the dataset's files are resident during statistics and 100 batches, at most."""
    folder.mkdir()
    command = [
        sys.executable,
        "-c",
        MEMORY,
        str(TEST_FOLDER),
        str(folder),
        str(megabytes),
        str(resident_mb),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_resident_memory_does_not_grow_with_the_dataset(tmp_path):
    """The budget is cut to 16 MB here, so that 200 MB are far more; the last case shows that the measure measures."""
    small, large = (mapped_mb(tmp_path / str(size), size, resident_mb=16) for size in (20, 200))
    assert small <= 16 and large <= 16
    assert mapped_mb(tmp_path / "whole", 200, resident_mb=1000) > 60
