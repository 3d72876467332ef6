# SPDX-License-Identifier: Apache-2.0
"""The two-link torque arm that the arm families share: the physics on paper, the environment."""

# pyright: reportAttributeAccessIssue=false
# (mujoco re-exports its compiled functions without stubs)

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np

from .physics import new_model
from .task import Task
from .task_env import TaskEnv

JOINTS = ("shoulder", "elbow")
CONTROL_HZ = 50
EPISODE_STEPS = 100
EFFORT_WEIGHT = 0.01  # reward lost at ||a / a_max||^2 = 1; at most 0.02 a step
SUCCESS_DISTANCE = 0.1  # rad from the goal at the end of an episode
MAX_POSITION = 2 * math.pi  # rad, bounds of the observation space; joints stop at 3.1
MAX_VELOCITY = 200.0  # rad/s, above what full torque against the joint damping can reach


@dataclass(frozen=True)
class ArmDynamics:
    """Equations of motion of the arm, M(q) acc + c(q, v) + d v + g(q) = torque, from constants of the MJCF.

    Angles in rad, the elbow's relative to the upper arm; `payload` is a mass in kg at the tip.
    """

    lengths: tuple[float, float]  # m, joint to joint, elbow to tip
    centres: tuple[float, float]  # m, joint to the link's centre of mass
    masses: tuple[float, float]  # kg
    inertias: tuple[float, float]  # kg m^2 about the centre of mass
    armature: float  # kg m^2, rotor inertia seen at each joint
    damping: float  # Nm s/rad
    gravity: float  # m/s^2, 0 in the horizontal plane

    @classmethod
    def from_model(cls, model: mujoco.MjModel) -> ArmDynamics:
        """Read the constants from a compiled model; the payload's own mass is not among them."""
        upper, fore = model.body("upper_arm").id, model.body("forearm").id
        return cls(
            lengths=(float(model.body_pos[fore, 0]), float(model.site("tip").pos[0])),
            centres=(float(model.body_ipos[upper, 0]), float(model.body_ipos[fore, 0])),
            masses=(float(model.body_mass[upper]), float(model.body_mass[fore])),
            inertias=(float(model.body_inertia[upper].max()), float(model.body_inertia[fore].max())),
            armature=float(model.dof_armature[0]),
            damping=float(model.dof_damping[0]),
            gravity=-float(model.opt.gravity[2]),
        )

    def mass_matrix(self, elbow: float, payload: float) -> tuple[float, float, float]:
        """Joint-space inertia (M11, M12, M22) in kg m^2."""
        (l1, l2), (c1, c2), (m1, m2), (i1, i2) = self.lengths, self.centres, self.masses, self.inertias
        coupling = (m2 * c2 + payload * l2) * l1 * math.cos(elbow)
        fore = i2 + m2 * c2**2 + payload * l2**2
        upper = i1 + m1 * c1**2 + (m2 + payload) * l1**2
        return upper + fore + 2 * coupling + self.armature, fore + coupling, fore + self.armature

    def coriolis(self, elbow: float, velocity: np.ndarray, payload: float) -> tuple[float, float]:
        """Centrifugal and Coriolis torque (2,) in Nm."""
        v1, v2 = float(velocity[0]), float(velocity[1])
        h = (self.masses[1] * self.centres[1] + payload * self.lengths[1]) * self.lengths[0] * math.sin(elbow)
        return -h * v2 * (2 * v1 + v2), h * v1 * v1

    def gravity_torque(self, position: np.ndarray, payload: float) -> np.ndarray:
        """Torque (2,) in Nm that holds the arm still at `position` (2,)."""
        (l1, l2), (c1, c2), (m1, m2) = self.lengths, self.centres, self.masses
        shoulder, elbow = float(position[0]), float(position[1])
        upper = (m1 * c1 + (m2 + payload) * l1) * math.cos(shoulder)
        fore = (m2 * c2 + payload * l2) * math.cos(shoulder + elbow)
        return np.array([self.gravity * (upper + fore), self.gravity * fore])

    def torque(
        self, position: np.ndarray, velocity: np.ndarray, acceleration: np.ndarray, payload: float
    ) -> np.ndarray:
        """Inverse dynamics: the torque (2,) in Nm that gives `acceleration` (2,) in rad/s^2."""
        elbow = float(position[1])
        m11, m12, m22 = self.mass_matrix(elbow, payload)
        h1, h2 = self.coriolis(elbow, velocity, payload)
        a1, a2 = float(acceleration[0]), float(acceleration[1])
        inertial = np.array([m11 * a1 + m12 * a2 + h1, m12 * a1 + m22 * a2 + h2])
        return inertial + self.damping * velocity + self.gravity_torque(position, payload)


class ArmEnv(TaskEnv):
    """The arm in MuJoCo; a family adds its tasks, its target and its expert.

    Observation (4 + extra,) in rad and rad/s, action (2,) in Nm, 10 physics steps of 2 ms each control step.
    """

    home: tuple[float, float]  # rad
    control_hz = CONTROL_HZ
    episode_steps = EPISODE_STEPS
    has_expert = True
    distance_scale: float  # 1/rad, how fast the reward saturates
    start_spread = 0.4  # rad, an episode starts within home +- this
    progress_weight = 0.0  # of the reward for coming closer
    action_names = JOINTS
    observation_names = tuple(f"{reading}.{joint}" for reading in ("position", "velocity") for joint in JOINTS)

    def __init__(self, task: Task | None = None) -> None:
        self.model = new_model(Path(__file__).with_name(f"{self.family}.xml"))
        self.data = mujoco.MjData(self.model)
        self.dofs = int(self.model.nv)
        self.dynamics = ArmDynamics.from_model(self.model)
        self.action_low, self.action_high = self.model.actuator_ctrlrange.T.copy()
        self._limits = self.action_low.tolist(), self.action_high.tolist()
        self.action_space = gymnasium.spaces.Box(self.action_low, self.action_high, dtype=np.float64)
        is_velocity = [name.startswith("velocity") for name in self.observation_names]
        bound = np.where(is_velocity, MAX_VELOCITY, MAX_POSITION)
        self.observation_space = gymnasium.spaces.Box(-bound, bound, dtype=np.float64)
        self._substeps = round(1 / (self.control_hz * self.model.opt.timestep))
        self._step_count: int | None = None  # until the first reset
        self.set_task(self.default_task() if task is None else task)

    def default_task(self) -> Task:
        """The task of an environment that was given none."""
        raise NotImplementedError

    def start_episode(self, episode: np.random.Generator) -> None:
        """Draw what the episode asks for (by default nothing) from a generator of its own."""

    def continue_episode(self, step_count: int) -> None:
        """Change what the episode asks for (by default nothing) before step `step_count` is observed."""

    def target(self) -> np.ndarray:
        """Joint positions (2,) in rad that the coming step is rewarded for."""
        raise NotImplementedError

    def goal(self, observation: np.ndarray) -> np.ndarray:
        """The same, from the observation and the task alone."""
        return self.target()

    def success(self, observation: np.ndarray, next_observation: np.ndarray) -> bool:
        """The joints ended within SUCCESS_DISTANCE of where they were to be."""
        miss = next_observation[:2] - self.goal(observation)
        return math.hypot(float(miss[0]), float(miss[1])) < SUCCESS_DISTANCE

    def position(self) -> np.ndarray:
        """Joint positions (2,) in rad."""
        return self.data.qpos.copy()

    def velocity(self) -> np.ndarray:
        """Joint velocities (2,) in rad/s."""
        return self.data.qvel.copy()

    def observation(self) -> np.ndarray:
        """The readings named in `observation_names`, float64."""
        return np.concatenate((self.data.qpos, self.data.qvel))

    def reward(self, position: Sequence[float], next_position: Sequence[float], action: Sequence[float]) -> float:
        """-miss' - effort + progress_weight x (miss - miss'), with miss in [0, 1] from the distance to the target.

        Bounded; the progress terms of an episode add up to what the miss fell from its start to its end.
        """
        shoulder, elbow = self.target().tolist()
        miss = self.miss(math.hypot(position[0] - shoulder, position[1] - elbow))
        next_miss = self.miss(math.hypot(next_position[0] - shoulder, next_position[1] - elbow))
        most = self._limits[1]
        effort = (action[0] / most[0]) ** 2 + (action[1] / most[1]) ** 2
        return self.progress_weight * (miss - next_miss) - next_miss - EFFORT_WEIGHT * effort

    def miss(self, distance: float) -> float:
        """The cost of a distance (rad) from the target, in [0, 1]."""
        return math.tanh(self.distance_scale * distance)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode near home, in options["task"] if given; the seed decides state and targets."""
        episode = self.begin_episode(seed, options)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = np.asarray(self.home) + self.start_spread * episode.uniform(-1, 1, 2)
        self.data.qvel[:] = episode.uniform(-0.5, 0.5, 2)
        mujoco.mj_forward(self.model, self.data)
        self._step_count = 0
        self.start_episode(episode)
        return self.observation(), {"task_id": self.task.task_id}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold torques (2,) in Nm, clipped to the limits, for 20 ms; truncated from step 100 on."""
        wanted = np.asarray(action, dtype=np.float64)
        torque = wanted.tolist()  # a few numbers are faster without NumPy
        if wanted.shape != (2,) or not all(map(math.isfinite, torque)):
            raise ValueError(f"action must be {len(JOINTS)} finite torques in Nm, got {action!r}")
        if self._step_count is None:
            raise RuntimeError("step() before the first reset(): call reset() to start an episode")
        torque = [
            low if t < low else high if t > high else t for t, low, high in zip(torque, *self._limits, strict=True)
        ]
        data = self.data
        data.ctrl[:] = torque
        position = data.qpos.tolist()
        mujoco.mj_step(self.model, data, nstep=self._substeps)
        reward = self.reward(position, data.qpos.tolist(), torque)
        self._step_count += 1
        self.continue_episode(self._step_count)
        return self.observation(), reward, False, self._step_count >= self.episode_steps, {}

    def computed_torque(
        self, observation: np.ndarray, target: np.ndarray, bandwidth: float, payload: float, max_lead: float
    ) -> np.ndarray:
        """Torque (2,) that moves to `target` (2,) like a critically damped spring of `bandwidth` rad/s.

        The pull grows up to `max_lead` rad of error and no further, which bounds the approach speed.
        """
        position, velocity = observation[:2], observation[2:4]
        error = np.asarray(target) - position
        length = math.hypot(error[0], error[1])
        if length > max_lead:
            error = error * (max_lead / length)
        return self.dynamics.torque(position, velocity, bandwidth * (bandwidth * error - 2 * velocity), payload)

    def clip(self, action: np.ndarray) -> np.ndarray:
        """The action within its limits."""
        return np.minimum(np.maximum(action, self.action_low), self.action_high)
