# SPDX-License-Identifier: Apache-2.0
"""Writes a dataset as a LeRobotDataset v3.0, without video; docs/datasets.md has the mapping.

OUT/data/chunk-000/file-000.parquet           one row for each transition: o_k, a_k, r_k and the flags
OUT/meta/info.json stats.json tasks.parquet   as LeRobot reads them
OUT/meta/episodes/chunk-000/file-000.parquet  one row for each episode, with its statistics, its end and o_T
OUT/meta/spc.json contract.yaml               data without a place in LeRobot: task parameters, the contract
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spc_core.contract.contract import Contract
from spc_core.data.column_stats import ColumnStats
from spc_core.data.dataset import DatasetError, Episode, check_episode
from spc_core.data.export.parquet_files import NAME, ParquetFiles
from spc_core.data.reader import StoredTask, dataset_contract, stored_tasks
from spc_core.system.atomic_files import AtomicFolder, write_atomic
from spc_core.system.wording import plural

VERSION = "v3.0"
FILE_MB, CHUNK_FILES = 100, 1000  # LeRobot's defaults
BUFFERED_EPISODES = 100  # rows of meta/episodes that are written together
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
EPISODE_COLUMNS: Mapping[str, pa.DataType] = {
    "episode_index": pa.int64(),
    "tasks": pa.list_(pa.string()),
    "length": pa.int64(),
    "data/chunk_index": pa.int64(),
    "data/file_index": pa.int64(),
    "dataset_from_index": pa.int64(),
    "dataset_to_index": pa.int64(),
    "meta/episodes/chunk_index": pa.int64(),
    "meta/episodes/file_index": pa.int64(),
}
OUR_EPISODE_COLUMNS: Mapping[str, pa.DataType] = {
    "end": pa.string(),  # terminated, truncated or cut
    "cut": pa.string(),  # why, where it was cut
    "source": pa.string(),
    "source_sha256": pa.string(),
    "behaviour": pa.string(),
    "last_observation": pa.list_(pa.float32()),  # o_T, which has no row
    "last_time_ns": pa.int64(),
}


@dataclasses.dataclass(frozen=True)
class Exported:
    """The result of an export."""

    out: Path
    tasks: int
    episodes: int
    frames: int
    files: int  # of data

    def summary(self) -> str:
        return (
            f"{self.out}: LeRobotDataset {VERSION}, {plural(self.tasks, 'task')}, {plural(self.episodes, 'episode')}, "
            f"{plural(self.frames, 'frame')} in {plural(self.files, 'data file')}"
        )


def export(
    dataset: str | Path,
    out: str | Path,
    robot_type: str = "",
    overwrite: bool = False,
    progress: Callable[[int, int, str], object] = lambda done, total, text: None,
    file_mb: float = FILE_MB,
) -> Exported:
    """Write `dataset` to the folder `out`, which appears whole or not at all.

    `robot_type` defaults to the contract's name; `progress` is called with episodes done, episodes in all, and a task
    id. Raises DatasetError, also where `out` is taken by something else than an export.
    """
    root = Path(dataset)
    stores = stored_tasks(root)
    contract = dataset_contract(root, stores)
    whole = AtomicFolder(out, overwrite, "meta/info.json", "a LeRobotDataset", DatasetError)
    try:
        (whole.path / "meta").mkdir()
        with _Export(whole.path, contract, file_mb) as writer:
            total = sum(store.episode_count for store in stores)
            for task, store in enumerate(stores):
                for number, episode in enumerate(store.episodes()):
                    name = f"{store.data}: task '{store.entry.task_id}', episode {number} ({episode.source})"
                    check_episode(episode, contract, name)
                    writer.add(task, store.entry.task_id, episode)
                    progress(writer.episodes, total, store.entry.task_id)
        write_tasks(whole.path / "meta" / "tasks.parquet", [store.entry.task_id for store in stores])
        info = writer.info(robot_type or contract.name, len(stores))
        write_atomic(whole.path / "meta" / "info.json", json.dumps(info, indent=4, ensure_ascii=False))
        write_atomic(whole.path / "meta" / "stats.json", json.dumps(writer.stats(), indent=4))
        write_atomic(whole.path / "meta" / "spc.json", json.dumps(_ours(contract, stores), indent=1) + "\n")
        write_atomic(whole.path / "meta" / "contract.yaml", contract.text)
        files = len(list((whole.path / "data").glob("*/*.parquet")))
        whole.commit()
    finally:
        whole.abort()
    return Exported(Path(out), len(stores), writer.episodes, writer.frames, files)


def features(contract: Contract) -> dict[str, dict[str, Any]]:
    """The columns of a frame, as info.json describes them; LeRobot's own five come last."""
    one = {"shape": [1], "names": None}
    state = list(contract.observation_names)
    action = list(contract.action.fields)
    return {
        "observation.state": {"dtype": "float32", "shape": [len(state)], "names": state},
        "action": {"dtype": "float32", "shape": [len(action)], "names": action},
        "next.reward": {"dtype": "float32", **one},
        "next.done": {"dtype": "bool", **one},
        "next.truncated": {"dtype": "bool", **one},
        "next.cut": {"dtype": "bool", **one},
        "time_ns": {"dtype": "int64", **one},
        "timestamp": {"dtype": "float32", **one},
        "frame_index": {"dtype": "int64", **one},
        "episode_index": {"dtype": "int64", **one},
        "index": {"dtype": "int64", **one},
        "task_index": {"dtype": "int64", **one},
    }


def frames(contract: Contract, episode: Episode, number: int, task: int, first: int) -> dict[str, np.ndarray]:
    """The columns of one episode's T frames; `first` is its first frame's place in the dataset."""
    t = len(episode)
    last = np.arange(t) == t - 1
    steps = np.arange(t, dtype=np.int64)
    return {
        "observation.state": episode.observations[:-1].astype(np.float32),
        "action": episode.actions.astype(np.float32),
        "next.reward": episode.rewards.astype(np.float32),
        "next.done": last & episode.terminated,
        "next.truncated": last & episode.truncated,
        "next.cut": last & (episode.cut is not None),
        "time_ns": episode.times_ns[:-1].astype(np.int64),
        "timestamp": (steps / contract.rate_hz).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(t, number, np.int64),
        "index": first + steps,
        "task_index": np.full(t, task, np.int64),
    }


class _Export:
    """The growing files of an export, and the statistics of all that went into them."""

    def __init__(self, folder: Path, contract: Contract, file_mb: float) -> None:
        self.contract, self.features = contract, features(contract)
        self.episodes = self.frames = 0
        self._file_mb = file_mb
        self._schema = pa.schema([(name, _arrow_type(about)) for name, about in self.features.items()])
        limit = round(file_mb * 2**20)
        self._data = ParquetFiles(folder / "data", self._schema, limit, CHUNK_FILES)
        stats = {f"stats/{name}/{key}": pa.list_(pa.float64()) for name in self.features for key in _STATS}
        stats |= {name: pa.list_(pa.int64()) for name in stats if name.endswith("/count")}
        self._row_schema = pa.schema(list({**EPISODE_COLUMNS, **OUR_EPISODE_COLUMNS, **stats}.items()))
        self._rows_files = ParquetFiles(folder / "meta" / "episodes", self._row_schema, limit, CHUNK_FILES)
        self._waiting: list[dict[str, Any]] = []
        self._totals = {name: ColumnStats() for name in self.features}

    def add(self, task: int, task_id: str, episode: Episode) -> None:
        columns = frames(self.contract, episode, self.episodes, task, self.frames)
        chunk, file = self._data.place(len(episode))
        arrays = [_arrow_array(values, self._schema.field(name).type) for name, values in columns.items()]
        self._data.write(pa.Table.from_arrays(arrays, schema=self._schema))
        row: dict[str, Any] = {
            "episode_index": self.episodes,
            "tasks": [task_id],
            "length": len(episode),
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": self.frames,
            "dataset_to_index": self.frames + len(episode),
            "end": "terminated" if episode.terminated else "truncated" if episode.truncated else "cut",
            "cut": episode.cut or "",
            "source": episode.source,
            "source_sha256": episode.source_sha256,
            "behaviour": episode.behaviour,
            "last_observation": episode.observations[-1].astype(np.float32).tolist(),
            "last_time_ns": int(episode.times_ns[-1]),
        }
        for name, values in columns.items():
            rows = values.reshape(len(values), -1)
            mine = ColumnStats()
            for stats in (mine, self._totals[name]):
                stats.add(rows)
            row |= {f"stats/{name}/{key}": value for key, value in stats_of(mine).items()}
        self._waiting.append(row)
        self.episodes += 1
        self.frames += len(episode)
        if len(self._waiting) >= BUFFERED_EPISODES:
            self._write_rows()

    def stats(self) -> dict[str, dict[str, list[float]]]:
        """Of all frames, by feature: stats.json."""
        return {name: stats_of(total) for name, total in self._totals.items()}

    def info(self, robot_type: str, tasks: int) -> dict[str, Any]:
        """info.json."""
        rate_hz = self.contract.rate_hz
        return {
            "codebase_version": VERSION,
            "robot_type": robot_type,
            "total_episodes": self.episodes,
            "total_frames": self.frames,
            "total_tasks": tasks,
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": max(1, round(self._file_mb)),
            "video_files_size_in_mb": 200,  # LeRobot's default; there is no video
            "fps": int(rate_hz) if rate_hz.is_integer() else rate_hz,
            "splits": {"train": f"0:{self.episodes}"},
            "data_path": f"data/{NAME}",
            "video_path": None,
            "features": self.features,
        }

    def _write_rows(self) -> None:
        if not self._waiting:
            return
        chunk, file = self._rows_files.place(len(self._waiting))
        for row in self._waiting:
            row |= {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file}
        self._rows_files.write(pa.Table.from_pylist(self._waiting, schema=self._row_schema))
        self._waiting = []

    def __enter__(self) -> _Export:
        return self

    def __exit__(self, error_type: object, *_: object) -> None:
        if error_type is None:
            self._write_rows()
        self._data.close()
        self._rows_files.close()


_STATS = ("min", "max", "mean", "std", "count", *QUANTILES)


def stats_of(stats: ColumnStats) -> dict[str, list[float]]:
    """LeRobot's statistics of a feature, each a list with an entry for each dimension, or one for the count."""
    values = {"min": stats.low, "max": stats.high, "mean": stats.mean, "std": stats.std}
    quantiles = dict(zip(QUANTILES, stats.quantiles(list(QUANTILES.values())), strict=True))
    return {
        **{name: value.tolist() for name, value in values.items()},
        "count": [stats.count],
        **{name: value.tolist() for name, value in quantiles.items()},
    }


def write_tasks(path: Path, task_ids: list[str]) -> None:
    """tasks.parquet: task_index by task. LeRobot reads it with pandas, whose index is named by the file's metadata."""
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_type, "metadata": None}
        for name, kind, numpy_type in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ]
    about = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    schema = pa.schema([("task_index", pa.int64()), ("task", pa.string())], {"pandas": json.dumps(about)})
    values = {"task_index": list(range(len(task_ids))), "task": task_ids}
    pq.write_table(pa.table(values, schema=schema), path)


def _ours(contract: Contract, stores: list[StoredTask]) -> dict[str, Any]:
    tasks = [{"task_id": store.entry.task_id, "params": dict(store.entry.params)} for store in stores]
    return {"contract": {"name": contract.name, "sha256": contract.sha256}, "tasks": tasks}


def _arrow_type(feature: Mapping[str, Any]) -> pa.DataType:
    """As `datasets` reads a feature: a number where it has one dimension of size 1, else a list of fixed size."""
    number = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}[feature["dtype"]]
    size = feature["shape"][0]
    return number if size == 1 else pa.list_(number, size)


def _arrow_array(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    flat = pa.array(values.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=kind) if pa.types.is_fixed_size_list(kind) else flat
