# SPDX-License-Identifier: Apache-2.0
"""Reading of datasets written by dataset.py: tasks, their contract, and their episodes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from minari.dataset.minari_storage import MinariStorage

from spc_core.contract.contract import Contract, ContractError, load_contract, parse_contract
from spc_core.data.dataset import DatasetError, Episode, TaskEntry

READ_STEPS = 100_000  # of a task that are in memory together


def read_episodes(root: str | Path) -> Iterator[tuple[TaskEntry, Episode]]:
    """All episodes as stored on disk, task by task, with all three ends and their sources."""
    root = Path(root)
    stores = stored_tasks(root)
    dataset_contract(root, stores)
    for store in stores:
        for episode in store.episodes():
            yield store.entry, episode


class StoredTask:
    """One task's Minari dataset on disk."""

    def __init__(self, data: Path) -> None:
        self.data = data
        with _named_errors(data):
            self.metadata = MinariStorage.read_raw_metadata(data)
            self.contract = parse_contract(self.metadata["spc_contract"], str(data))
            self.entry = TaskEntry(self.metadata["spc_task_id"], self.metadata["spc_task_params"])
            self.step_count, self.episode_count = (
                self.metadata["total_steps"],
                self.metadata["total_episodes"],
            )

    def episodes(self) -> Iterator[Episode]:
        with _named_errors(self.data):
            storage = MinariStorage.read(self.data)
            steps = 0
            for group in _groups(storage.get_episode_metadata(range(self.episode_count))):
                raws = storage.get_episodes([about["id"] for about in group])
                for about, raw in zip(group, raws, strict=True):
                    steps += len(raw["rewards"])
                    if len(raw["rewards"]) != about["total_steps"]:
                        raise DatasetError(
                            f"{self.data}: episode {about['id']} has {len(raw['rewards'])} steps, its metadata "
                            f"says {about['total_steps']}; convert again"
                        )
                    yield _episode(raw, about)
            if steps != self.step_count:
                raise DatasetError(
                    f"{self.data}: its episodes have {steps} steps, its metadata says {self.step_count}; convert again"
                )


def _groups(details: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Details of episodes that are read together: Minari reads all that it is asked for into memory at once."""
    group: list[dict[str, Any]] = []
    steps = 0
    for about in details:
        if group and steps + about["total_steps"] > READ_STEPS:
            yield group
            group, steps = [], 0
        group.append(about)
        steps += about["total_steps"]
    if group:
        yield group


def _episode(raw: dict[str, Any], about: dict[str, Any]) -> Episode:
    """Minari's arrays and our details of an episode."""
    return Episode(
        observations=raw["observations"],
        actions=raw["actions"],
        rewards=raw["rewards"],
        times_ns=raw["infos"]["time_ns"].reshape(-1),
        terminated=bool(raw["terminations"][-1]),
        truncated=bool(raw["truncations"][-1]),
        cut=about["cut"],
        source=about["source"],
        source_sha256=about["source_sha256"],
        behaviour=about["behaviour"],
        labels=about.get("labels", {}),  # older datasets have none
    )


def stored_tasks(root: Path) -> list[StoredTask]:
    """The tasks of a dataset, sorted by task id."""
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; give the folder that `spc convert` wrote")
    found = [StoredTask(path.parent) for path in sorted(root.glob("*/*/data/metadata.json"))]
    if not found:
        raise DatasetError(f"{root}: not a dataset, it holds no <name>/<task>-v0/data; make one with `spc convert`")
    return sorted(found, key=lambda store: store.entry.task_id)


def dataset_contract(root: Path, stores: list[StoredTask]) -> Contract:
    """The one contract of all tasks."""
    first = stores[0]
    for store in stores[1:]:
        if store.contract.sha256 != first.contract.sha256 and (lines := first.contract.differences(store.contract)):
            raise DatasetError(
                f"{root}: tasks '{first.entry.task_id}' and '{store.entry.task_id}' have other contracts; "
                f"convert their bags together. In the order of the tasks:\n  " + "\n  ".join(lines)
            )
    file = root / "contract.yaml"
    return load_contract(file) if file.is_file() else first.contract


@contextlib.contextmanager
def _named_errors(data: Path) -> Iterator[None]:
    """Give an error its dataset. Damaged files make Minari and arrow raise anything, so all is caught."""
    try:
        yield
    except (DatasetError, ContractError):
        raise
    except Exception as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise DatasetError(f"{data}: not readable as a dataset of this program ({what}); convert again") from error
