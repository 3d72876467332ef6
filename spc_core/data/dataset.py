# SPDX-License-Identifier: Apache-2.0
"""Datasets: Minari on disk, one Minari dataset per task. Read by reader.py, packed for training by packed.py.

    ROOT/contract.yaml
    ROOT/<contract name>/<task>-v0/data/      minari.load_dataset("<contract name>/<task>-v0") with
                                              MINARI_DATASETS_PATH=ROOT reads it
    ROOT/.packed/<fingerprint>/*.npy          made on first use

An episode ends `terminated` (the task ended), `truncated` (time limit or operator) or `cut` (a gap in the
data). Minari knows the first two; a cut is stored in the episode's metadata, with both of Minari's flags False.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from spc_core.contract.contract import Contract
from spc_core.system.atomic_files import AtomicFolder

FORMAT = "arrow"
MAX_STEPS = 100_000  # Minari's arrow reader returns only the first 131,072 rows of an episode
FLUSH_STEPS = 20_000  # steps of a task buffered before they are written
LARGEST = 3e38  # just below the largest finite float32
LONGEST_NAME = 80  # letters of a task that its folder is named by; a file system allows about 250


class DatasetError(ValueError):
    """An unusable or unwritable dataset; the message names the folder, the problem and the fix."""


@dataclasses.dataclass(frozen=True)
class Episode:
    """T consecutive transitions and their one end: terminated, truncated, or cut with a reason."""

    observations: np.ndarray  # (T+1, O) float64
    actions: np.ndarray  # (T, A) float64
    rewards: np.ndarray  # (T,) float64
    times_ns: np.ndarray  # (T+1,) int64
    terminated: bool
    truncated: bool
    cut: str | None
    source: str  # the bag it came from
    source_sha256: str = ""
    behaviour: str = ""  # who acted, where known
    labels: Mapping[str, str | float | bool] = dataclasses.field(default_factory=dict)  # success, notes, ...

    def __len__(self) -> int:
        return len(self.rewards)


@dataclasses.dataclass(frozen=True)
class TaskEntry:
    """A task of a dataset. `params` are its hidden parameters where a simulation knows them."""

    task_id: str
    params: Mapping[str, float]

    @property
    def split(self) -> str:
        """'train', 'val', 'id' or 'ood' in ids like family/split/index; '' in any other id."""
        parts = self.task_id.split("/")
        return parts[1] if len(parts) == 3 else ""


class DatasetWriter:
    """Collects episodes in a hidden folder next to `root`, which close() renames: no incomplete dataset appears."""

    def __init__(self, root: str | Path, contract: Contract, overwrite: bool = False) -> None:
        """Raises DatasetError where `root` is taken, unless it is a dataset and `overwrite` is set."""
        self.root, self.contract = Path(root), contract
        self._whole = AtomicFolder(self.root, overwrite, "contract.yaml", "a dataset", DatasetError)
        self._folder = self._whole.path
        self._tasks: dict[str, _TaskWriter] = {}
        self.write_text("contract.yaml", contract.text)

    def add_episode(self, task_id: str, params: Mapping[str, float], episode: Episode) -> None:
        """Add an episode to its task. Raises DatasetError for wrong shapes, or inconsistent task parameters."""
        check_episode(episode, self.contract, episode.source)
        entry = TaskEntry(task_id, dict(params))
        writer = self._tasks.get(task_id)
        if writer is None:
            folder = self._folder / self._dataset_id(task_id)
            writer = self._tasks[task_id] = _TaskWriter(folder, self._dataset_id(task_id), entry, self.contract)
        if writer.entry != entry:
            raise DatasetError(
                f"task '{task_id}': {episode.source} gives it the parameters {dict(params)}, other episodes "
                f"{dict(writer.entry.params)}; give tasks with different parameters different ids"
            )
        for chunk in _chunks(episode):
            writer.add(chunk)

    def flush(self) -> None:
        """Write buffered episodes; call it after the last episode of a task."""
        for writer in self._tasks.values():
            writer.flush()

    def write_text(self, name: str, text: str) -> None:
        """Put a text file, such as a report, into the dataset's root."""
        (self._folder / name).write_text(text, encoding="utf-8")

    def close(self) -> Path:
        """Write buffered episodes and rename the folder. Raises DatasetError if there is no episode."""
        if not self._tasks:
            self.abort()
            raise DatasetError(f"{self.root}: not written, since there is no episode to write")
        self.flush()
        return self._whole.commit()

    def abort(self) -> None:
        """Discard the dataset; does nothing after close()."""
        self._whole.abort()

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, error_type: object, *_: object) -> None:
        if error_type is not None:
            self.abort()
        elif self._whole.open:
            self.close()

    def _dataset_id(self, task_id: str) -> str:
        """Minari's id of a task: letters, digits, - and _ only, not too many, and another one for each task."""
        space = _slug(self.contract.name)[:LONGEST_NAME]
        name = _slug(task_id.removeprefix(f"{self.contract.name}/"))
        long = len(name) > LONGEST_NAME
        name = name[:LONGEST_NAME].strip("-")
        taken = {writer.dataset_id for known, writer in self._tasks.items() if known != task_id}
        if long or f"{space}/{name}-v0" in taken:
            name += f"-{hashlib.sha256(task_id.encode()).hexdigest()[:8]}"
        return f"{space}/{name}-v0"


class _TaskWriter:
    """The Minari dataset of one task."""

    def __init__(self, folder: Path, dataset_id: str, entry: TaskEntry, contract: Contract) -> None:
        self.dataset_id, self.entry = dataset_id, entry
        folder.mkdir(parents=True)
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (contract.observation_dim,), np.float64)
        low, high = np.array(contract.action.low), np.array(contract.action.high)
        self.storage = MinariStorage.new(
            folder / "data",
            observation_space,
            gymnasium.spaces.Box(low, high, dtype=np.float64),
            data_format=FORMAT,
        )
        self.storage.get_size = lambda: 0.0  # Minari walks all files after each episode for it
        self.storage.update_metadata(
            {
                "dataset_id": dataset_id,
                "minari_version": minari.__version__,
                "description": f"{entry.task_id}, recorded under the contract '{contract.name}'",
                "spc_contract": contract.text,
                "spc_contract_sha256": contract.sha256,
                "spc_rate_hz": contract.rate_hz,
                "spc_task_id": entry.task_id,
                "spc_task_params": dict(entry.params),
            }
        )
        self.waiting: list[Episode] = []

    def add(self, episode: Episode) -> None:
        self.waiting.append(episode)
        if sum(len(e) for e in self.waiting) >= FLUSH_STEPS:
            self.flush()

    def flush(self) -> None:
        if not self.waiting:
            return
        first = self.storage.total_episodes
        self.storage.update_episodes([_buffer(episode) for episode in self.waiting])
        details = [_details(episode) for episode in self.waiting]
        self.storage.update_episode_metadata(details, range(first, first + len(details)))
        self.waiting = []


def check_episode(episode: Episode, contract: Contract, name: str) -> None:
    """Raises DatasetError, which begins with `name`, for wrong shapes, numbers that are not finite, or wrong ends."""
    t = len(episode.rewards)
    shapes = {
        "observations": (t + 1, contract.observation_dim),
        "actions": (t, contract.action_dim),
        "rewards": (t,),
        "times_ns": (t + 1,),
    }
    for array, shape in shapes.items():
        if (found := getattr(episode, array).shape) != shape:
            raise DatasetError(f"{name}: {array} have the shape {found}, expected {shape}")
    _check_finite(episode.observations, [f"observation {field}" for field in contract.observation_names], name)
    _check_finite(episode.actions, [f"action {field}" for field in contract.action.fields], name)
    _check_finite(episode.rewards[:, None], ["reward"], name)
    ends = [episode.terminated, episode.truncated, episode.cut is not None]
    if t < 1 or sum(ends) != 1:
        raise DatasetError(
            f"{name}: an episode has at least one step and one end, got {t} steps, "
            f"terminated {episode.terminated}, truncated {episode.truncated}, cut {episode.cut!r}"
        )


def _check_finite(values: np.ndarray, fields: list[str], name: str) -> None:
    """Numbers (T, F) must be finite in float32 too, as training reads them."""
    if values.size and max(abs(values.min()), abs(values.max())) <= LARGEST:  # False where one is NaN
        return
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(values.astype(np.float32))
    if bad.any():
        step, field = np.argwhere(bad)[0]
        raise DatasetError(
            f"{name}: {fields[field]} is {values[step, field]:g} at step {step}, which cannot be used for training; "
            "cut the episode there"
        )


def _chunks(episode: Episode) -> list[Episode]:
    """The episode in chunks that Minari can read back; no transition is lost."""
    chunks = []
    for begin in range(0, len(episode), MAX_STEPS):
        end = min(begin + MAX_STEPS, len(episode))
        last = end == len(episode)
        chunks.append(
            dataclasses.replace(
                episode,
                observations=episode.observations[begin : end + 1],
                actions=episode.actions[begin:end],
                rewards=episode.rewards[begin:end],
                times_ns=episode.times_ns[begin : end + 1],
                terminated=episode.terminated and last,
                truncated=episode.truncated and last,
                cut=episode.cut if last else f"continued: longer than {MAX_STEPS} steps",
            )
        )
    return chunks


def _buffer(episode: Episode) -> EpisodeBuffer:
    t = len(episode)
    terminations, truncations = np.zeros(t, np.bool_), np.zeros(t, np.bool_)
    terminations[-1], truncations[-1] = episode.terminated, episode.truncated
    buffers: dict[str, Any] = {
        "observations": episode.observations,
        "actions": episode.actions,
        "rewards": episode.rewards,
        "terminations": terminations,
        "truncations": truncations,
        "infos": {"time_ns": episode.times_ns.reshape(-1, 1)},  # Minari cannot read flat infos back
    }
    return EpisodeBuffer(**buffers)


def _details(episode: Episode) -> dict[str, Any]:
    return {name: getattr(episode, name) for name in ("cut", "source", "source_sha256", "behaviour", "labels")}


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-") or "task"
