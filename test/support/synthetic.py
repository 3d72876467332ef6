# SPDX-License-Identifier: Apache-2.0
"""Small data for tests: a point that moves by its action, with a hidden goal for each task."""

from pathlib import Path

import numpy as np

from spc_core.data.dataset import DatasetWriter, Episode
from spc_core.method.config import TrainConfig, load_config
from support.contracts import action_section, make_contract, stream_section

POINT = make_contract(
    name="point",
    observation=[stream_section("joint_states", ["position.x", "position.y"])],
    action=action_section(["velocity.x", "velocity.y"], high=[1, 2], max_rate=[100, 200]),
)


def tiny_config(method: str = "", **overrides: object) -> TrainConfig:
    """A configuration that trains in a second or two."""
    tiny = {
        "groups": 4,
        "continuous_dim": 8,
        "context_dim": 5,
        "encoder_init": 0.02,
        "encoder_hidden": [8],
        "dynamics_hidden": [8],
        "context_hidden": [8],
        "policy_hidden": [8],
    }
    base = {"updates": 20, "tasks_per_batch": 3, "windows_per_task": 4, "context_max": 6, "log_every": 5,
            "checkpoint_every": 10, "threads": 1, "device": "cpu", "model": tiny}  # fmt: skip
    return load_config("small", method, **{**base, **overrides})


def episode(rng: np.random.Generator, goal: np.ndarray, steps: int, terminated: bool = False) -> Episode:
    """Random motion of the point; the reward is minus the distance to the goal."""
    actions = rng.uniform(-1, 1, (steps, 2))
    observations = np.concatenate([rng.normal(size=(1, 2)), 0.1 * actions]).cumsum(0)
    rewards = -np.linalg.norm(observations[1:] - goal, axis=1)
    times = np.arange(steps + 1) * 20_000_000
    return Episode(observations, actions, rewards, times, terminated, not terminated, None, "synthetic")


def write_dataset(root: Path, task_count: int = 4, lengths: tuple[int, ...] = (5, 12, 9), seed: int = 0) -> Path:
    """A dataset of the point; the second episode of each task is terminated, the others truncated."""
    rng = np.random.default_rng(seed)
    with DatasetWriter(root, POINT) as writer:
        for task in range(task_count):
            goal = np.array([np.cos(task), np.sin(task)])
            for number, steps in enumerate(lengths):
                writer.add_episode(
                    f"point/train/{task:02d}", {"goal": float(task)}, episode(rng, goal, steps, number == 1)
                )
    return root
