# SPDX-License-Identifier: Apache-2.0
"""Collects simulated behaviour data as a dataset at once: the episodes that bags would hold, without ROS."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from spc_core.contract.contract import load_contract
from spc_core.data.dataset import DatasetWriter, Episode
from spc_core.system.wording import plural
from spc_core.tasks import Task, find_family, tasks
from spc_core.trials.offline_data import behaviour_episodes

SHARE = 10  # episodes of a task that a process plays in one go: what may be lost or waited for


def collect_directly(
    family: str,
    out: str | Path,
    episodes: int,
    split: str = "train",
    seed: int = 0,
    processes: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Write `episodes` of each task of a split as a dataset, which appears whole or not at all; returns its folder.

    Equal to what `spc collect` records with this seed and `spc convert` aligns, but for times and sources. `processes`:
    0 for one a core. Raises DatasetError, FamilyError, and ValueError for a split or number without an episode.
    """
    chosen = tasks(family, split)
    if episodes < 1 or not chosen:
        raise ValueError(
            f"{family}: split '{split}' has {plural(len(chosen), 'task')}, of {episodes} episodes each; "
            "nothing to collect"
        )
    parts = [(task, first) for task in chosen for first in range(0, episodes, SHARE)]
    play = functools.partial(_play, family, episodes, seed)
    workers = min(processes or os.cpu_count() or 1, len(parts))
    done, total = 0, len(chosen) * episodes
    with (
        DatasetWriter(out, load_contract(find_family(family).contract)) as writer,
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _leave_interrupts_to_the_parent) as pool,
    ):
        try:
            for (task, _), played in zip(parts, pool.map(play, parts), strict=True):
                for episode in played:
                    writer.add_episode(task.task_id, task.params, episode)
                done += len(played)
                if progress is not None:
                    progress(done, total, task.task_id)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return Path(out)


def _play(family: str, episodes: int, seed: int, part: tuple[Task, int]) -> list[Episode]:
    task, first = part
    find_family(family)  # a family of a file is known to this process from here on
    return list(behaviour_episodes(task, min(episodes - first, SHARE), seed, first))


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
