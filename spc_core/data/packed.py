# SPDX-License-Identifier: Apache-2.0
"""A dataset packed into a few memory-mapped arrays, for training: ROOT/.packed/<fingerprint>/*.npy; rows are read from
memory or from disk, so that memory does not grow with the dataset.

A copy without held-out tasks is one of its own. Who packs removes the copies that no process uses: each user holds a
shared lock (flock) on its copy's folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spc_core.contract.contract import Contract
from spc_core.data.dataset import DatasetError, TaskEntry, check_episode
from spc_core.data.reader import StoredTask, dataset_contract, stored_tasks

PACK_VERSION = 2  # arrays of another version are packed again


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
    command_delay: Mapping[str, Any] | None = None  # of DelayEstimate, from command to state; None: not known
    command_lag: Mapping[str, Any] | None = None  # of CommandLag, from state to command; None: not known
    held_out: tuple[str, ...] = ()  # tasks that are in none of the above but the checksum and the command timing

    @property
    def step_count(self) -> int:
        return len(self.rewards)

    @property
    def episode_count(self) -> int:
        return len(self.episode_task)


ARRAYS = ("observations", "actions", "rewards", "terminated", "episode_starts", "episode_task")


def load_dataset(root: str | Path, held_out: Sequence[str] = ()) -> PackedDataset:
    """Open a dataset for training, without the tasks `held_out`; packs it on first use. Raises DatasetError."""
    root = Path(root)
    stores = stored_tasks(root)
    contract = dataset_contract(root, stores)
    folder = root / ".packed" / _copy_name(root, held_out)
    while (lock := _hold(folder)) is None:
        try:
            _pack(folder, root, stores, contract, held_out)
        except OSError as error:
            raise DatasetError(f"{root}: cannot be packed ({error}); make room or make it writable") from None
    summary = json.loads((folder / "summary.json").read_text())
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    tasks = tuple(TaskEntry(task["task_id"], task["params"]) for task in summary["tasks"])
    report = conversion_report(root)
    timing = {name: report.get(name) for name in ("command_delay", "command_lag")}
    data = PackedDataset(
        root=root,
        contract=contract,
        tasks=tasks,
        sha256=summary["sha256"],
        held_out=tuple(held_out),
        **timing,
        **arrays,
    )
    weakref.finalize(data, os.close, lock)
    return data


def packed_sha256(root: Path) -> str | None:
    """The checksum of a dataset that is packed as it is now; None where it has changed since, or was copied."""
    for file in root.glob(f".packed/{_fingerprint(root)}*/summary.json"):  # the same whatever is held out
        return json.loads(file.read_text())["sha256"]
    return None


def _hold(folder: Path) -> int | None:
    """A lock that keeps a packed copy from being removed, until it is closed; None where there is no such copy."""
    if not folder.is_dir():
        return None
    with _alone(folder.parent):
        return _locked(folder, fcntl.LOCK_SH) if folder.is_dir() else None


def _remove_unused(packed: Path) -> None:
    """Remove the copies that no process holds, and what is left of a packing that was killed."""
    with _alone(packed):
        for folder in packed.iterdir():
            with contextlib.suppress(OSError):  # it is in use, not ours, or on a disk without locks
                lock = os.open(folder, os.O_RDONLY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    hidden = folder.rename(packed / f".{folder.name}")  # nobody opens it, should this be killed
                    shutil.rmtree(hidden)
                finally:
                    os.close(lock)


@contextlib.contextmanager
def _alone(packed: Path) -> Iterator[None]:
    """No other process takes or removes a packed copy meanwhile."""
    lock = _locked(packed, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(lock)


def _locked(folder: Path, kind: int) -> int:
    lock = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):  # a disk without locks, where nothing is removed either
        fcntl.flock(lock, kind)
    return lock


def conversion_report(root: Path) -> dict[str, Any]:
    """The report stored next to the tasks; empty for older datasets, which have none."""
    file = root / "conversion.json"
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{file}: damaged ({error}); copy it again, or convert again") from None


def _pack(folder: Path, root: Path, stores: list[StoredTask], contract: Contract, held_out: Sequence[str]) -> None:
    """Write the arrays of PackedDataset into `folder`, which appears whole or not."""
    folder.parent.mkdir(exist_ok=True)
    _remove_unused(folder.parent)
    packed = [store for store in stores if store.entry.task_id not in held_out]
    steps, episodes = sum(s.step_count for s in packed), sum(s.episode_count for s in packed)
    step_bytes, row_bytes = 4 * contract.action_dim + 4 + 1, 4 * contract.observation_dim
    needed = steps * step_bytes + (steps + episodes) * row_bytes + 16 * episodes
    if shutil.disk_usage(root).free < needed + 1_000_000:  # report it now, not after an hour of work
        raise OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB needed")
    with _alone(folder.parent):
        partial = Path(tempfile.mkdtemp(prefix="partial-", dir=folder.parent))
        lock = _locked(partial, fcntl.LOCK_SH)
    try:
        digest = _write_arrays(partial, stores, contract, steps, episodes, held_out)
        tasks = [{"task_id": store.entry.task_id, "params": dict(store.entry.params)} for store in packed]
        summary = json.dumps({"sha256": digest, "tasks": tasks}, indent=1)
        (partial / "summary.json").write_text(summary, encoding="utf-8")
        os.chmod(partial, 0o755)
        with contextlib.suppress(OSError):  # another process may have packed it meanwhile
            partial.rename(folder)
        if not folder.is_dir():
            raise DatasetError(f"{root}: could not put the packed arrays at {folder}; is the disk full?")
    finally:
        os.close(lock)
        shutil.rmtree(partial, ignore_errors=True)


def _write_arrays(
    folder: Path, stores: list[StoredTask], contract: Contract, steps: int, episodes: int, held_out: Sequence[str]
) -> str:
    """Write the arrays, one episode in memory at a time; returns the digest of the content, held-out tasks included."""
    digest = hashlib.sha256(contract.sha256.encode())
    lengths: list[int] = []
    episode_task: list[int] = []
    packed = 0
    with contextlib.ExitStack() as files:
        rows = (steps + episodes, contract.observation_dim)
        observations = files.enter_context(_ArrayFile(folder, "observations", rows))
        actions = files.enter_context(_ArrayFile(folder, "actions", (steps, contract.action_dim)))
        rewards = files.enter_context(_ArrayFile(folder, "rewards", (steps,)))
        terminated = files.enter_context(_ArrayFile(folder, "terminated", (steps,), np.bool_))
        for store in stores:
            held = store.entry.task_id in held_out
            digest.update(json.dumps([store.entry.task_id, store.entry.params], sort_keys=True).encode())
            for index, episode in enumerate(store.episodes()):
                source = f"{store.data}: task '{store.entry.task_id}', episode {index} ({episode.source})"
                check_episode(episode, contract, source)
                flags = np.zeros(len(episode), np.bool_)
                flags[-1] = episode.terminated
                for array in (episode.observations, episode.actions, episode.rewards):
                    digest.update(np.ascontiguousarray(array).tobytes())
                digest.update(bytes([episode.terminated]))
                if held:
                    continue
                observations.write(episode.observations)
                actions.write(episode.actions)
                rewards.write(episode.rewards)
                terminated.write(flags)
                lengths.append(len(episode))
                episode_task.append(packed)
            packed += not held
    np.save(folder / "episode_starts.npy", np.cumsum([0, *lengths], dtype=np.int64))
    np.save(folder / "episode_task.npy", np.array(episode_task, np.int64))
    return digest.hexdigest()


class _ArrayFile:
    """A .npy file that grows row by row; unlike a memory-mapped one it takes no memory, and a full disk is an error."""

    def __init__(self, folder: Path, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> None:
        self._dtype = np.dtype(dtype)
        self._stream = (folder / f"{name}.npy").open("wb")
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._stream, header)

    def write(self, rows: np.ndarray) -> None:
        self._stream.write(np.ascontiguousarray(rows, self._dtype).tobytes())

    def __enter__(self) -> _ArrayFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def _copy_name(root: Path, held_out: Sequence[str]) -> str:
    """The folder of a packed copy."""
    chosen = hashlib.sha256(json.dumps(sorted(held_out)).encode()).hexdigest()[:8]
    return f"{_fingerprint(root)}-without-{chosen}" if held_out else _fingerprint(root)


def _fingerprint(root: Path) -> str:
    """Changes whenever a file of the dataset does; cheap, since it looks at names, sizes and times only."""
    digest = hashlib.sha256(f"{PACK_VERSION}".encode())
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name != ".packed")
        for name in sorted(files):
            if folder != str(root):  # reports next to the tasks do not matter
                status = os.stat(os.path.join(folder, name))
                place = os.path.relpath(folder, root)
                digest.update(f"{place}/{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


RESIDENT_BYTES = 512 * 2**20  # of a dataset that may stay in this process's memory


class Rows:
    """Rows of an array (N, ...): from memory, or read from its file each time.

    Pages of a memory-mapped file count as this process's memory from their first use on. Giving them back costs more
    than reading: a page fault maps 16 pages, and each is unmapped again. So a large file is read, not mapped.
    """

    def __init__(self, array: np.ndarray, resident: bool) -> None:
        self._array = array.view(np.ndarray)  # indexing a np.memmap costs more
        self._descriptor = -1
        if not resident and isinstance(array, np.memmap) and array.filename is not None:
            self._offset, self._row_bytes = array.offset, array.strides[0]
            self._descriptor = os.open(array.filename, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # the next rows are not the next to be read

    @property
    def resident(self) -> bool:
        return self._descriptor < 0

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Copies of the rows (...) as an array (..., *shape of a row)."""
        if self.resident:
            return self._array.take(rows, axis=0)
        flat = rows.ravel()
        begin = np.flatnonzero(np.diff(flat, prepend=-2) != 1)  # of each run of consecutive rows: one read
        sizes = np.diff(begin, append=len(flat)) * self._row_bytes
        places = flat[begin] * self._row_bytes + self._offset
        pread, file = os.pread, self._descriptor
        data = bytearray().join([pread(file, n, at) for n, at in zip(sizes.tolist(), places.tolist(), strict=True)])
        return np.frombuffer(data, self._array.dtype).reshape(*rows.shape, *self._array.shape[1:])


def rows_of(data: PackedDataset) -> tuple[Rows, Rows, Rows, Rows]:
    """Observations, actions, rewards and terminal flags; the smallest stay in memory while RESIDENT_BYTES last."""
    arrays = (data.observations, data.actions, data.rewards, data.terminated)
    left, readers = RESIDENT_BYTES, {}
    for place, array in sorted(enumerate(arrays), key=lambda pair: pair[1].nbytes):
        left -= array.nbytes
        readers[place] = Rows(array, resident=left >= 0)
    return readers[0], readers[1], readers[2], readers[3]
