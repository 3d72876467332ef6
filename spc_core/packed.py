# SPDX-License-Identifier: Apache-2.0
"""A dataset packed into a few memory-mapped arrays, for training: ROOT/.packed/<fingerprint>/*.npy"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from spc_core.contract import Contract
from spc_core.dataset import DatasetError, TaskEntry
from spc_core.dataset_reader import StoredTask, dataset_contract, stored_tasks

PACK_VERSION = 1


@dataclasses.dataclass(frozen=True)
class PackedDataset:
    """All episodes of all tasks, one after the other; the arrays are memory-mapped and read-only.

    Episode e has the steps s in [episode_starts[e], episode_starts[e+1]). Step s saw row s + e of the
    observations and led to row s + e + 1.
    """

    root: Path
    contract: Contract
    tasks: tuple[TaskEntry, ...]
    sha256: str  # of the content, whatever the files' names and times
    observations: np.ndarray  # (N + E, O) float32
    actions: np.ndarray  # (N, A) float32
    rewards: np.ndarray  # (N,) float32
    terminated: np.ndarray  # (N,) bool, True only at the last step of an episode whose task ended
    episode_starts: np.ndarray  # (E + 1,) int64, in steps
    episode_task: np.ndarray  # (E,) int64, index into tasks

    @property
    def step_count(self) -> int:
        return len(self.rewards)

    @property
    def episode_count(self) -> int:
        return len(self.episode_task)


def load_dataset(root: str | Path) -> PackedDataset:
    """Open a dataset for training; packs it on first use. Raises DatasetError."""
    root = Path(root)
    stores = stored_tasks(root)
    contract = dataset_contract(root, stores)
    folder = root / ".packed" / _fingerprint(root)
    if not folder.is_dir():
        try:
            _pack(folder, root, stores, contract)
        except OSError as error:
            raise DatasetError(f"{root}: cannot be packed ({error}); make room or make it writable") from None
    summary = json.loads((folder / "summary.json").read_text())
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _PACKED}
    tasks = tuple(TaskEntry(task["task_id"], task["params"]) for task in summary["tasks"])
    return PackedDataset(root=root, contract=contract, tasks=tasks, sha256=summary["sha256"], **arrays)


_PACKED = ("observations", "actions", "rewards", "terminated", "episode_starts", "episode_task")


def _pack(folder: Path, root: Path, stores: list[StoredTask], contract: Contract) -> None:
    """Write the arrays of PackedDataset, episode by episode, into `folder`, which appears whole or not."""
    steps, episodes = sum(s.step_count for s in stores), sum(s.episode_count for s in stores)
    shapes = {
        "observations": ((steps + episodes, contract.observation_dim), np.float32),
        "actions": ((steps, contract.action_dim), np.float32),
        "rewards": ((steps,), np.float32),
        "terminated": ((steps,), np.bool_),
        "episode_starts": ((episodes + 1,), np.int64),
        "episode_task": ((episodes,), np.int64),
    }
    needed = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
    if shutil.disk_usage(root).free < needed + 1_000_000:  # a full disk kills whoever writes to a mapped file
        raise OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB needed")
    folder.parent.mkdir(exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        out: dict[str, Any] = {
            name: np.lib.format.open_memmap(partial / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
            for name, (shape, dtype) in shapes.items()
        }
        digest = hashlib.sha256(contract.sha256.encode())
        e = s = 0
        for number, store in enumerate(stores):
            digest.update(json.dumps([store.entry.task_id, store.entry.params], sort_keys=True).encode())
            for episode in store.episodes():
                end = s + len(episode)
                out["observations"][s + e : end + e + 1] = episode.observations
                out["actions"][s:end], out["rewards"][s:end] = episode.actions, episode.rewards
                out["terminated"][end - 1] = episode.terminated
                out["episode_starts"][e + 1], out["episode_task"][e] = end, number
                for array in (episode.observations, episode.actions, episode.rewards):
                    digest.update(np.ascontiguousarray(array).tobytes())
                digest.update(bytes([episode.terminated]))
                e, s = e + 1, end
        for array in out.values():
            array.flush()
        tasks = [{"task_id": store.entry.task_id, "params": dict(store.entry.params)} for store in stores]
        summary = json.dumps({"sha256": digest.hexdigest(), "tasks": tasks}, indent=1)
        (partial / "summary.json").write_text(summary, encoding="utf-8")
        os.chmod(partial, 0o755)
        with contextlib.suppress(OSError):  # another process may have packed it meanwhile
            partial.rename(folder)
        if not folder.is_dir():
            raise DatasetError(f"{root}: could not put the packed arrays at {folder}; is the disk full?")
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fingerprint(root: Path) -> str:
    """Changes whenever a file of the dataset does; cheap, since it looks at names, sizes and times only."""
    digest = hashlib.sha256(f"{PACK_VERSION}".encode())
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name != ".packed")
        for name in sorted(files):
            if folder != str(root):  # reports beside the tasks do not matter
                status = os.stat(os.path.join(folder, name))
                place = os.path.relpath(folder, root)
                digest.update(f"{place}/{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
