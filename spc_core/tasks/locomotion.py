# SPDX-License-Identifier: Apache-2.0
"""Robots that walk, and one that slides: the environment that the families of the paper share.

The MJCFs of the walking robots are those of the installed gymnasium.
"""

# pyright: reportAttributeAccessIssue=false
# (mujoco re-exports its compiled functions without stubs)

from __future__ import annotations

import copy
import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np

from .physics import derive_constants, load_model, model_of_text
from .snapshots import agent_file, load_snapshots
from .task import Task, make_task
from .task_env import TaskEnv

ASSETS = Path(gymnasium.__file__).with_name("envs") / "mujoco" / "assets"
STEPS = 200
# The paper's split of 40 tasks in a row. The validation tasks, which are ours, lie between training tasks too, halfway
# between two that are neighbours but for the first.
IN_A_ROW: Mapping[str, tuple[float, ...]] = {
    "train": tuple(i for i in range(5, 35) if i % 3),
    "val": (5.5, *(7.5 + 3 * i for i in range(9))),
    "id": tuple(range(6, 34, 3)),
    "ood": (*range(5), *range(35, 40)),
}


def tasks_in_a_row(
    family: str, params: Callable[[float], Mapping[str, float]], places: Mapping[str, tuple[float, ...]] = IN_A_ROW
) -> dict[str, tuple[Task, ...]]:
    """Tasks by split, from the parameters at a place in the row, 0 to 39."""
    return {
        split: tuple(make_task(family, split, index, **params(place)) for index, place in enumerate(row))
        for split, row in places.items()
    }


@dataclass(frozen=True)
class Body:
    """A robot: its model, what of its state is observed, and how it starts.

    Observed are all joints behind the first `root` coordinates of the state, and then of the whole state, positions
    and velocities, the entries `odom`.
    """

    mjcf: Path
    substeps: int  # physics steps of a control step
    root: tuple[int, int]  # leading positions and velocities that are no joint to observe
    odom: Mapping[str, tuple[str, int]]  # name to ("qpos" or "qvel", index)
    start_position: float  # start within +- this of the model's pose, each coordinate
    start_velocity: float  # uniformly within +- this, or with that standard deviation
    normal_velocity: bool = False
    velocity_limit: float = math.inf  # observed velocities are clipped to +- this
    total_mass: float = 0.0  # kg; 0: as in the file

    def model(self) -> mujoco.MjModel:
        """A model of its own for each caller."""
        return copy.copy(self.nominal)

    def text(self) -> str:
        """The MJCF without the attribute settotalmass, of which MuJoCo warns; `nominal` does what it does."""
        return re.sub(r' settotalmass="[^"]*"', "", self.mjcf.read_text(encoding="utf-8"))

    @functools.cached_property
    def nominal(self) -> mujoco.MjModel:
        """The model, not to be changed."""
        if not self.total_mass:
            return load_model(self.mjcf)
        model = model_of_text(self.text())
        mujoco.mj_setTotalmass(model, self.total_mass)
        derive_constants(model, mujoco.MjData(model))
        return model


class LocomotionEnv(TaskEnv):
    """A robot of the paper's families, rewarded for how it moves; actions (A,) are shares of each motor's torque."""

    body: Body
    episode_steps = STEPS

    def __init__(self, task: Task | None = None) -> None:
        body = self.body
        self.model, self.nominal = body.model(), body.nominal
        self.data, self._scratch = mujoco.MjData(self.model), mujoco.MjData(self.model)
        self.dofs = int(self.model.nv)
        self.step_s = body.substeps * self.model.opt.timestep
        self.control_hz = 1 / self.step_s
        joints = [self.model.joint(i) for i in range(self.model.njnt)]
        seen = [joint.name for joint in joints if joint.qposadr[0] >= body.root[0]]
        self.observation_names = (*(f"position.{j}" for j in seen), *(f"velocity.{j}" for j in seen), *body.odom)
        self.action_names = tuple(joints[i].name for i in self.model.actuator_trnid[:, 0])
        first = {"qpos": 0, "qvel": self.model.nq}
        places = [*range(body.root[0], self.model.nq), *range(self.model.nq + body.root[1], self.model.nq + self.dofs)]
        self._observed = np.array([*places, *(first[array] + index for array, index in body.odom.values())])
        self.action_low, self.action_high = self.model.actuator_ctrlrange.T.copy()
        self.noise_action = self.action_high.copy()
        self.action_space = gymnasium.spaces.Box(self.action_low, self.action_high, dtype=np.float64)
        self.observation_space = gymnasium.spaces.Box(-math.inf, math.inf, self._observed.shape, dtype=np.float64)
        self._step_count: int | None = None  # until the first reset
        self._mass_scale = 1.0
        self.set_task(self.first_task() if task is None else task)
        if not self.has_expert and (path := agent_file(self.family)).is_file():
            told = tuple(self.task.params)
            self.snapshots = load_snapshots(path, self.family, self.observation_names, told, len(self.action_names))
            self.has_expert = True

    def first_task(self) -> Task:
        """The task of an environment that was given none."""
        raise NotImplementedError

    def apply_params(self, params: Mapping[str, float]) -> None:
        """By default the parameters are of the reward alone."""

    def reward(self, start: np.ndarray, action: np.ndarray) -> float:
        """Of a step that began at the positions `start` (NQ,)."""
        raise NotImplementedError

    def fallen(self) -> bool:
        """Whether the episode ends here."""
        return False

    def speed(self, start: np.ndarray) -> np.ndarray:
        """The mean velocity (2,) in m/s of the first two coordinates in the step."""
        return (self.data.qpos[:2] - start[:2]) / self.step_s

    def observation(self) -> np.ndarray:
        """The readings named in `observation_names`, float64."""
        limit, velocity = self.body.velocity_limit, self.data.qvel
        if limit < math.inf:
            velocity = velocity.clip(-limit, limit)
        return np.concatenate((self.data.qpos, velocity))[self._observed]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode near the model's pose, in options["task"] if given; the seed decides the state."""
        episode = self.begin_episode(seed, options)
        body, data = self.body, self.data
        mujoco.mj_resetData(self.model, data)
        data.qpos[:] += episode.uniform(-body.start_position, body.start_position, self.model.nq)
        draw = episode.standard_normal if body.normal_velocity else lambda size: episode.uniform(-1, 1, size)
        data.qvel[:] = body.start_velocity * draw(self.dofs)
        mujoco.mj_normalizeQuat(self.model, data.qpos)
        mujoco.mj_forward(self.model, data)
        self._step_count = 0
        return self.observation(), {"task_id": self.task.task_id}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold an action (A,), clipped to its limits, for a period; ends when the robot falls or time is up."""
        action = np.asarray(action, dtype=np.float64)
        if action.shape != self.action_low.shape or not np.isfinite(action).all():
            raise ValueError(f"action must be {len(self.action_names)} finite shares of torque, got {action!r}")
        if self._step_count is None:
            raise RuntimeError("step() before the first reset(): call reset() to start an episode")
        action = np.minimum(np.maximum(action, self.action_low), self.action_high)
        self.data.ctrl[:] = action
        start = self.data.qpos.copy()
        mujoco.mj_step(self.model, self.data, nstep=self.body.substeps)
        self._step_count += 1
        fallen = self.fallen()
        late = self._step_count >= self.episode_steps
        return self.observation(), self.reward(start, action), fallen, late and not fallen, {}

    def rest_action(self, observation: np.ndarray) -> np.ndarray:
        return np.zeros(len(self.action_names))

    def scale_mass(self, scale: float) -> None:
        """Multiply every mass and inertia of the file's robot."""
        if scale != self._mass_scale:
            self._mass_scale = scale
            self.model.body_mass[:] = scale * self.nominal.body_mass
            self.model.body_inertia[:] = scale * self.nominal.body_inertia
            derive_constants(self.model, self._scratch)

    def scale_friction(self, scale: float) -> None:
        """Multiply every friction of the file's robot and floor."""
        self.model.geom_friction[:] = scale * self.nominal.geom_friction
