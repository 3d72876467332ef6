# SPDX-License-Identifier: Apache-2.0
"""The LeRobot export against the published format, LeRobotDataset v3.0 (codebase_version "v3.0").

What is asserted was read from lerobot 0.6.2: datasets/utils.py (DatasetInfo, paths), utils/constants.py
(DEFAULT_FEATURES), datasets/dataset_metadata.py (tasks and episodes), datasets/compute_stats.py (statistics) and
datasets/feature_utils.py (a feature of shape (1,) is a plain column, else a list of fixed size). lerobot itself brings
torchvision and is no dependency of these tests; its release 0.4.4 opened an export of the demo's dataset.
"""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spc_core.data.column_stats import ColumnStats, RowSample
from spc_core.data.dataset import DatasetError, DatasetWriter
from spc_core.data.export import lerobot
from spc_core.data.export.lerobot import export
from spc_core.data.reader import read_episodes
from spc_ros.cli import main
from support.contracts import make_contract
from support.synthetic import POINT, episode, write_dataset

DEFAULT_FEATURES = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "frame_index": {"dtype": "int64", "shape": [1], "names": None},
    "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    "index": {"dtype": "int64", "shape": [1], "names": None},
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}
INFO_FIELDS = {
    "codebase_version", "fps", "features", "total_episodes", "total_frames", "total_tasks", "chunks_size",
    "data_files_size_in_mb", "video_files_size_in_mb", "data_path", "video_path", "robot_type", "splits",
}  # fmt: skip
STATS = {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}
DTYPES = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}


def check_lerobot(root):
    """Everything the format says of a dataset without video; returns info, frames and episode rows."""
    info = json.loads((root / "meta/info.json").read_text())
    assert set(info) == INFO_FIELDS and info["codebase_version"] == "v3.0"
    assert info["data_path"] == "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    assert info["video_path"] is None and info["fps"] > 0 and info["chunks_size"] > 0
    assert info["splits"] == {"train": f"0:{info['total_episodes']}"}
    assert {name: info["features"].get(name) for name in DEFAULT_FEATURES} == DEFAULT_FEATURES
    rows = pa.concat_tables([pq.read_table(file) for file in sorted((root / "meta/episodes").glob("*/*.parquet"))])
    frames = check_frames(root, info, rows)
    check_tasks(root, info, frames, rows)
    check_stats(root, info, frames, rows)
    return info, frames, rows


def check_frames(root, info, rows):
    """Every file holds just the features, and the episodes that their rows say, one row group each."""
    arrow = {}
    for name, about in info["features"].items():
        assert set(about) == {"dtype", "shape", "names"}
        (size,), names = about["shape"], about["names"]
        assert names is None or len(names) == size
        arrow[name] = DTYPES[about["dtype"]] if size == 1 else pa.list_(DTYPES[about["dtype"]], size)
    files = sorted((root / "data").glob("*/*.parquet"))
    for file in files:
        schema = pq.read_schema(file)
        assert dict(zip(schema.names, schema.types, strict=True)) == arrow
    frames = pa.concat_tables([pq.read_table(file) for file in files])
    assert frames.num_rows == info["total_frames"] and rows.num_rows == info["total_episodes"]
    numbers = {name: frames[name].to_numpy() for name in DEFAULT_FEATURES}
    np.testing.assert_array_equal(numbers["index"], np.arange(frames.num_rows))
    np.testing.assert_allclose(numbers["timestamp"], numbers["frame_index"] / info["fps"], atol=1e-4)
    end = 0
    for number, row in enumerate(rows.to_pylist()):
        begin, end, before = row["dataset_from_index"], row["dataset_to_index"], end
        assert (row["episode_index"], begin, end - begin) == (number, before, row["length"])
        assert set(numbers["episode_index"][begin:end]) == {number}
        np.testing.assert_array_equal(numbers["frame_index"][begin:end], np.arange(end - begin))
        place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        own = pq.read_table(root / info["data_path"].format(**place), columns=["episode_index"])
        assert number in own["episode_index"].to_pylist()
        place = {key: row[f"meta/episodes/{key}"] for key in place}
        own = pq.read_table(
            root / "meta/episodes" / "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet".format(**place)
        )
        assert number in own["episode_index"].to_pylist()
    assert end == frames.num_rows
    return frames


def check_tasks(root, info, frames, rows):
    """tasks.parquet is a pandas frame with task_index by the index `task`, as pandas says in the metadata."""
    table = pq.read_table(root / "meta/tasks.parquet")
    assert table.schema.pandas_metadata["index_columns"] == ["task"]
    assert {column["name"] for column in table.schema.pandas_metadata["columns"]} == {"task", "task_index"}
    tasks = dict(zip(table["task_index"].to_pylist(), table["task"].to_pylist(), strict=True))
    assert list(tasks) == list(range(info["total_tasks"])) and len(set(tasks.values())) == len(tasks)
    of_frames = frames["task_index"].to_numpy()
    for row in rows.to_pylist():
        mine = {tasks[i] for i in of_frames[row["dataset_from_index"] : row["dataset_to_index"]]}
        assert mine == set(row["tasks"])


def check_stats(root, info, frames, rows):
    """All statistics of all features, of the dataset and of each episode, against numpy."""
    total = json.loads((root / "meta/stats.json").read_text())
    assert set(total) == set(info["features"])
    for name, about in info["features"].items():
        values = np.array(frames[name].to_pylist(), np.float64).reshape(frames.num_rows, -1)
        check_feature(total[name], values, about["shape"])
        for row in rows.to_pylist():
            mine = {key: row[f"stats/{name}/{key}"] for key in STATS}
            check_feature(mine, values[row["dataset_from_index"] : row["dataset_to_index"]], about["shape"])


def check_feature(stats, values, shape):
    assert set(stats) == STATS and stats["count"] == [len(values)]
    wanted = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    wanted |= {f"q{q:02d}": np.quantile(values, q / 100, axis=0) for q in (1, 10, 50, 90, 99)}
    for key, numbers in wanted.items():
        assert np.shape(stats[key]) == tuple(shape)
        np.testing.assert_allclose(stats[key], numbers, rtol=1e-6, atol=1e-9, err_msg=key)


def write_all_ends(root, steps=(5, 1, 7)):
    """Two tasks with a truncated, a terminated and a cut episode each; one has a single step."""
    rng = np.random.default_rng(0)
    with DatasetWriter(root, POINT) as writer:
        for task in ("point/train/00", "point/train/01"):
            truncated, terminated, cut = (episode(rng, np.zeros(2), n, i == 1) for i, n in enumerate(steps))
            cut = dataclasses.replace(cut, truncated=False, cut="reward: not finite", behaviour="noisy")
            for made in (truncated, terminated, cut):
                writer.add_episode(task, {"goal": 1.0}, made)
    return root


def test_the_export_is_what_lerobot_publishes_and_holds_the_datasets_numbers(tmp_path):
    root = write_all_ends(tmp_path / "point")
    done = export(root, tmp_path / "out")
    info, frames, rows = check_lerobot(tmp_path / "out")
    assert (done.tasks, done.episodes, done.frames, done.files) == (2, 6, 26, 1)
    assert info["robot_type"] == "point" and info["fps"] == 50
    assert info["features"]["observation.state"]["names"] == ["joint_states.position.x", "joint_states.position.y"]
    assert info["features"]["action"]["names"] == ["velocity.x", "velocity.y"]
    lines = rows.to_pylist()
    for (entry, mine), row in zip(read_episodes(root), lines, strict=True):
        own = frames.slice(row["dataset_from_index"], row["length"])
        for name, values in (("observation.state", mine.observations[:-1]), ("action", mine.actions),
                             ("next.reward", mine.rewards)):  # fmt: skip
            np.testing.assert_array_equal(np.array(own[name].to_pylist(), np.float32), values.astype(np.float32))
        assert own["time_ns"].to_pylist() == mine.times_ns[:-1].tolist()
        np.testing.assert_array_equal(np.float32(row["last_observation"]), mine.observations[-1].astype(np.float32))
        assert (row["last_time_ns"], row["tasks"]) == (mine.times_ns[-1], [entry.task_id])
        assert (row["source"], row["behaviour"], row["cut"]) == (mine.source, mine.behaviour, mine.cut or "")
    ours = json.loads((tmp_path / "out/meta/spc.json").read_text())
    assert ours["tasks"][1] == {"task_id": "point/train/01", "params": {"goal": 1.0}}
    assert (tmp_path / "out/meta/contract.yaml").read_text() == POINT.text


def test_three_ends_stay_apart(tmp_path):
    """next.done is what stops bootstrapping: the task's end only. The flags stand at an episode's last frame."""
    export(write_all_ends(tmp_path / "point"), tmp_path / "out")
    _, frames, rows = check_lerobot(tmp_path / "out")
    assert rows["end"].to_pylist() == ["truncated", "terminated", "cut"] * 2
    wanted = {"next.truncated": {4, 17}, "next.done": {5, 18}, "next.cut": {12, 25}}
    for name, places in wanted.items():
        assert set(np.flatnonzero(frames[name].to_numpy())) == places


def test_large_data_is_split_into_files_and_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot, "CHUNK_FILES", 2)
    monkeypatch.setattr(lerobot, "BUFFERED_EPISODES", 3)
    root = write_dataset(tmp_path / "point", task_count=3, lengths=(200, 300, 250))
    done = export(root, tmp_path / "out", file_mb=0.03)
    info, _, rows = check_lerobot(tmp_path / "out")
    places = list(zip(rows["data/chunk_index"].to_pylist(), rows["data/file_index"].to_pylist(), strict=True))
    assert places == sorted(places) and len(set(places)) == done.files > 2 and {file for _, file in places} == {0, 1}
    sizes = [file.stat().st_size for file in (tmp_path / "out/data").glob("*/*.parquet")]
    assert max(sizes) < 0.04 * 2**20  # the footer comes on top
    assert info["chunks_size"] == 2
    assert len(set(rows["meta/episodes/file_index"].to_pylist())) > 1


def test_one_field_is_a_plain_column_and_a_broken_rate_stays(tmp_path):
    contract = make_contract({"observation.0.fields": ["position.x"]}, base=POINT, rate_hz=12.5)
    made = episode(np.random.default_rng(0), np.zeros(2), 4)
    with DatasetWriter(tmp_path / "point", contract) as writer:
        writer.add_episode("a", {}, dataclasses.replace(made, observations=made.observations[:, :1]))
    export(tmp_path / "point", tmp_path / "out", robot_type="so101")
    info, frames, _ = check_lerobot(tmp_path / "out")
    assert (info["fps"], info["robot_type"]) == (12.5, "so101")
    assert frames["observation.state"].to_pylist() == made.observations[:-1, 0].astype(np.float32).tolist()
    assert frames["timestamp"].to_pylist() == pytest.approx([0, 0.08, 0.16, 0.24])


def test_nothing_half_written_and_nothing_foreign_overwritten(tmp_path, monkeypatch):
    root = write_dataset(tmp_path / "point", task_count=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    with pytest.raises(DatasetError, match="mine: is not a LeRobotDataset, so it is not overwritten"):
        export(root, tmp_path / "mine", overwrite=True)
    export(root, tmp_path / "out")
    with pytest.raises(DatasetError, match="out: exists already"):
        export(root, tmp_path / "out")
    before = sorted(path.name for path in tmp_path.iterdir())
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk is full"):
        patch.setattr(lerobot, "write_tasks", lambda *_: (_ for _ in ()).throw(OSError("disk is full")))
        export(root, tmp_path / "out", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    check_lerobot(tmp_path / "out")
    assert main(["export", str(root), "--format", "lerobot", "--out", str(tmp_path / "out"), "--overwrite"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    check_lerobot(tmp_path / "out")


def test_a_sample_of_many_rows_is_bounded_and_even():
    """100,000 rows with a period of 100, in pieces of 100, downsampled to at most 2,000: no phase is preferred."""
    sample = RowSample(limit=2000)
    for begin in range(0, 100_000, 100):
        sample.add(np.arange(begin, begin + 100))
    rows = sample.rows()
    assert 1000 < len(rows) <= 2000 and (np.diff(rows) > 0).all()
    counts = np.histogram(rows % 100, 10)[0], np.histogram(rows, 10, (0, 100_000))[0]
    assert all(count.min() / count.mean() > 0.7 and count.max() / count.mean() < 1.3 for count in counts)
    stats = ColumnStats(limit=2000)
    for piece in np.split(np.random.default_rng(0).normal(size=(100_000, 2)), 100):
        stats.add(piece)
    np.testing.assert_allclose(stats.quantiles([0.1, 0.5, 0.9]), np.outer([-1.2816, 0, 1.2816], [1, 1]), atol=0.12)
