# SPDX-License-Identifier: Apache-2.0
"""A small dataset of a simulated family, made in this process."""

from __future__ import annotations

from pathlib import Path

from spc_core.contract.contract import load_contract
from spc_core.data.dataset import DatasetWriter
from spc_core.system.config_files import find_config
from spc_core.tasks import tasks
from spc_core.trials.offline_data import behaviour_episodes


def write_arm_dataset(root: Path, family: str = "arm_reach", task_count: int = 4, episodes: int = 3) -> Path:
    """Episodes of the first training tasks: expert, noisy and random by turns."""
    with DatasetWriter(root, load_contract(find_config("contracts", family))) as writer:
        for task in tasks(family, "train")[:task_count]:
            for episode in behaviour_episodes(task, episodes, seed=0):
                writer.add_episode(task.task_id, task.params, episode)
    return root
