# SPDX-License-Identifier: Apache-2.0
"""The environment of a family of tasks."""

# pyright: reportAttributeAccessIssue=false
# (mujoco re-exports its compiled functions without stubs)

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gymnasium
import mujoco
import numpy as np

from .task import FamilyError, Task

if TYPE_CHECKING:
    from .snapshots import Snapshots


class TaskEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A family of tasks as one environment; only `task` differs, and the observation does not show it."""

    metadata = {"render_modes": []}
    family: str
    control_hz: float
    episode_steps: int
    observation_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_low: np.ndarray  # (action_dim,), physical units
    action_high: np.ndarray
    noise_action: np.ndarray  # (action_dim,), strongest exploration noise (1 sigma) that keeps to the workspace
    model: mujoco.MjModel
    data: mujoco.MjData
    dofs: int  # degrees of freedom that can be pushed
    task: Task
    latched_topics: tuple[str, ...] = ()  # observed topics that are published when they change, and kept for latecomers
    terminates = False  # whether episodes can end before their time is up
    has_expert = False  # whether expert() is there: the 1 of normalised scores, and the driver of recordings
    snapshots: Snapshots | None = None  # of a learnt agent: the drivers of recordings, the best of them the expert

    def resting_topics(self) -> tuple[str, ...]:
        """Observed topics without a new message at this tick; in between, the last one holds."""
        return ()

    def push(self, force: np.ndarray) -> None:
        """Forces (dofs,) in N or Nm from outside, from now until the next call or reset."""
        self.data.qfrc_applied[:] = force

    def apply_params(self, params: Mapping[str, float]) -> None:
        """Write a task's parameters into the model."""
        raise NotImplementedError

    def set_task(self, task: Task) -> None:
        """Apply a task's parameters at once, in the middle of an episode too; the robot's state stays."""
        if task.family != self.family:
            raise ValueError(f"task {task.task_id!r} belongs to family {task.family!r}, this is {self.family!r}")
        self.apply_params(task.params)
        self.task = task

    def begin_episode(self, seed: int | None, options: Mapping[str, Any] | None) -> np.random.Generator:
        """The common part of reset(): set options["task"] if given; returns a generator for this episode alone.

        So an episode's length does not change the episodes after it.
        """
        gymnasium.Env.reset(self, seed=seed)
        unknown = set(options or {}) - {"task"}
        if unknown:
            raise ValueError(f"unknown reset options {sorted(unknown)}; known: ['task']")
        if options and options.get("task") is not None:
            self.set_task(options["task"])
        return np.random.default_rng(self.np_random.integers(2**63))

    def expert(self, observation: np.ndarray, task: Task | None = None) -> np.ndarray:
        """The privileged controller's action for `task` (default: its own), from the observation alone."""
        if self.snapshots is None:
            raise FamilyError(f"family '{self.family}' has no expert; learn one with `spc behaviour {self.family}`")
        from .snapshots import within_limits  # which imports this file

        return within_limits(self.snapshots.act(-1, observation, task or self.task), self.action_low, self.action_high)

    def uninformed(self, observation: np.ndarray) -> np.ndarray:
        """What the expert does that knows the family but not the task: it assumes the mean task, or, if it is learnt,
        is told nothing."""
        if self.snapshots is None:
            from .families import mean_task  # which imports this file

            return self.expert(observation, mean_task(self.family))
        from .snapshots import within_limits

        return within_limits(self.snapshots.act(-1, observation, None), self.action_low, self.action_high)

    def rest_action(self, observation: np.ndarray) -> np.ndarray:
        """An action that lets a robot of the mean task drift slowly home: what random motion is added to."""
        raise NotImplementedError

    def success(self, observation: np.ndarray, next_observation: np.ndarray) -> bool | None:
        """Whether an episode that ended with this transition succeeded; None: not known."""
        return None
