# SPDX-License-Identifier: Apache-2.0
"""A small dataset of a simulated family, made in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spc_core.contract import find_config, load_contract
from spc_core.dataset import DatasetWriter, Episode
from spc_core.evaluate import behaviour_transitions
from spc_core.tasks import tasks

STEPS = 100  # of an episode


def write_arm_dataset(root: Path, family: str = "arm_reach", task_count: int = 4, episodes: int = 3) -> Path:
    """Episodes of the first training tasks: expert, noisy and random by turns."""
    with DatasetWriter(root, load_contract(find_config("contracts", family))) as writer:
        for task in tasks(family, "train")[:task_count]:
            rows = list(behaviour_transitions(task.task_id, episodes))
            for first in range(0, len(rows), STEPS):
                writer.add_episode(task.task_id, task.params, _episode(rows[first : first + STEPS]))
    return root


def _episode(rows) -> Episode:
    observations = np.array([*(t.observation for t in rows), rows[-1].next_observation])
    actions, rewards = np.array([t.action for t in rows]), np.array([t.reward for t in rows])
    times = np.arange(len(rows) + 1) * 20_000_000
    return Episode(observations, actions, rewards, times, False, True, None, "simulated")
