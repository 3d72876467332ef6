# SPDX-License-Identifier: Apache-2.0
"""base_drive: a differential-drive base whose dynamics differ. Its load and the friction of the floor are hidden.

No arm: commands without a header (a twist), a goal that is published once and then stays, and wheel speeds at half
the rate of the odometry.
"""

# pyright: reportAttributeAccessIssue=false
# (mujoco re-exports its compiled functions without stubs)

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np

from spc_core.system.config_files import find_config

from .physics import derive_constants, new_model
from .task import Family, Task, average_task, make_task
from .task_env import TaskEnv

FAMILY = "base_drive"
CONTROL_HZ = 25
MAX_COMMAND = (3.0, 10.0)  # m/s, rad/s: speeds of the unloaded base without friction
GOAL_SPREAD = (0.6, 0.2)  # m, goals lie uniformly within the origin +- this: along the base's first heading
GOAL_STEPS = 50  # control steps between two goals
START_SPREAD = (0.3, 0.1, 0.5)  # m, m, rad around the origin
LOAD_KG = (0.0, 20.0)  # range of the training tasks
FRICTION = (0.05, 0.6)  # rolling resistance / weight
BASE_KG, BASE_INERTIA = 8.0, 0.16  # as in the MJCF
LOAD_RADIUS_SQUARED = 0.01125  # m^2, the load's inertia about the vertical / its mass
SCRUB_M = 0.08  # turning resistance / rolling resistance
TRACK_M, WHEEL_RADIUS_M = 0.4, 0.08
DRIVE_GAIN = 100.0  # N per m/s, of both wheels
TURN_GAIN = DRIVE_GAIN * TRACK_M**2 / 4  # Nm per rad/s
WHEELS_EVERY = 2  # ticks between two readings of the wheel speeds
BANDWIDTH = (3.0, 8.0)  # rad/s of the expert's critically damped approach, driving and turning
REST_BANDWIDTH = (2.0, 4.0)
MAX_LEAD = 0.6  # m of error that the expert answers in full
EFFORT_WEIGHT = 0.01
DISTANCE_SCALE = 4.0  # 1/m, how fast the reward saturates
SUCCESS_DISTANCE = 0.1  # m
MAX_POSITION, MAX_SPEED, MAX_TURN = 20.0, 5.0, 20.0  # bounds of the observation space


def _task(split: str, index: int, load: float, friction: float) -> Task:
    return make_task(FAMILY, split, index, load=load, friction=friction)


def _inside(split: str, index: int, x: float, y: float) -> Task:
    """A task at (x, y) of the unit square spanned by the training ranges."""
    load = LOAD_KG[0] + x * (LOAD_KG[1] - LOAD_KG[0])
    return _task(split, index, load, FRICTION[0] + y * (FRICTION[1] - FRICTION[0]))


_OUTSIDE = (
    *((23.0, 0.06), (26.0, 0.12), (28.0, 0.18), (24.0, 0.09)),  # heavier
    *((3.0, 0.72), (8.0, 0.75), (14.0, 0.7), (5.0, 0.01)),  # rougher, smoother
    *((23.0, 0.66), (27.0, 0.02)),  # both
)
# Lattices as in arm_payload: every row and every column of the grid holds one task, and neighbours lie far apart.
TASKS = {
    "train": tuple(_inside("train", i, i / 19, (7 * i + 5) % 20 / 19) for i in range(20)),
    "val": tuple(_inside("val", i, (i + 0.5) / 10, ((3 * i + 1) % 10 + 0.5) / 10) for i in range(10)),
    "id": tuple(_inside("id", i, (i + 0.5) / 10, ((3 * i + 7) % 10 + 0.5) / 10) for i in range(10)),
    "ood": tuple(_task("ood", i, *point) for i, point in enumerate(_OUTSIDE)),
}
MEAN_TASK = average_task(TASKS["train"])


class BaseDrive(TaskEnv):
    """Drive to the goal in the observation (10,), forwards or backwards, with a load and a floor that it does not show.

    Action (2,): the speed in m/s and rad/s that the base would reach without load and friction; both slow it down.
    """

    family = FAMILY
    control_hz = CONTROL_HZ
    episode_steps = 100
    has_expert = True
    progress_weight = 5.0  # of the reward for coming closer
    latched_topics = ("goal",)
    noise_action = np.array([1.5, 4.0])
    action_names = ("linear.x", "angular.z")
    action_low, action_high = -np.array(MAX_COMMAND), np.array(MAX_COMMAND)
    observation_names = (
        *("position.x", "position.y", "orientation.z", "orientation.w", "linear.x", "angular.z"),
        *("velocity.left", "velocity.right", "goal.x", "goal.y"),
    )

    def __init__(self, task: Task | None = None) -> None:
        self.model = new_model(Path(__file__).with_suffix(".xml"))
        self.data, self._scratch = mujoco.MjData(self.model), mujoco.MjData(self.model)
        self.dofs = int(self.model.nv)
        self.action_space = gymnasium.spaces.Box(self.action_low, self.action_high, dtype=np.float64)
        wheels = (MAX_SPEED + MAX_TURN * TRACK_M / 2) / WHEEL_RADIUS_M
        bound = np.array([*[MAX_POSITION] * 2, 1, 1, MAX_SPEED, MAX_TURN, wheels, wheels, *[MAX_POSITION] * 2])
        self.observation_space = gymnasium.spaces.Box(-bound, bound, dtype=np.float64)
        self._substeps = round(1 / (self.control_hz * self.model.opt.timestep))
        self._step_count: int | None = None  # until the first reset
        self._wheels = (0.0, 0.0)
        self.set_task(TASKS["train"][0] if task is None else task)

    def apply_params(self, params: Mapping[str, float]) -> None:
        """Set load (kg) and friction and the constants MuJoCo derives from them; the state stays."""
        model = self.model
        load = model.body("load").id
        model.body_mass[load] = params["load"]
        model.body_inertia[load] = max(params["load"] * LOAD_RADIUS_SQUARED, 1e-9)
        for name, most in zip(("rolling", "turning"), resistance(params), strict=True):
            model.actuator_forcerange[model.actuator(name).id] = -most, most
        derive_constants(model, self._scratch)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode near the origin, in options["task"] if given; the seed decides state and goals."""
        self._episode = self.begin_episode(seed, options)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = np.asarray(START_SPREAD) * self._episode.uniform(-1, 1, 3)
        mujoco.mj_forward(self.model, self.data)
        self._step_count = 0
        self._goal = self._draw_goal()
        self._wheels = self._wheel_speeds()
        return self.observation(), {"task_id": self.task.task_id}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold a command (2,) in m/s and rad/s, clipped to the limits, for 40 ms; truncated from step 100 on."""
        command = np.asarray(action, dtype=np.float64)
        if command.shape != (2,) or not all(map(math.isfinite, command.tolist())):
            raise ValueError(f"action must be a finite speed in m/s and turn in rad/s, got {action!r}")
        if self._step_count is None:
            raise RuntimeError("step() before the first reset(): call reset() to start an episode")
        command = self.clip(command)
        side = command[1] * TRACK_M / 2
        self.data.ctrl[:2] = command[0] - side, command[0] + side
        position = self.data.qpos.tolist()
        mujoco.mj_step(self.model, self.data, nstep=self._substeps)
        reward = self.reward(position, self.data.qpos.tolist(), command.tolist())
        self._step_count += 1
        if self._step_count % GOAL_STEPS == 0:
            self._goal = self._draw_goal()
        if self._step_count % WHEELS_EVERY == 0:
            self._wheels = self._wheel_speeds()
        return self.observation(), reward, False, self._step_count >= self.episode_steps, {}

    def resting_topics(self) -> tuple[str, ...]:
        """The wheels are read at every second tick only; in between the last reading holds."""
        return ("wheels",) if (self._step_count or 0) % WHEELS_EVERY else ()

    def target(self) -> np.ndarray:
        """The goal (2,) in m that the coming step is rewarded for."""
        return self._goal

    def success(self, observation: np.ndarray, next_observation: np.ndarray) -> bool:
        """The base ended within SUCCESS_DISTANCE of where it was to be."""
        miss = next_observation[:2] - observation[8:10]
        return math.hypot(float(miss[0]), float(miss[1])) < SUCCESS_DISTANCE

    def observation(self) -> np.ndarray:
        """The readings named in `observation_names`, float64."""
        x, y, yaw = self.data.qpos.tolist()
        speed, turn = self._speeds()
        half = 0.5 * math.remainder(yaw, 2 * math.pi)  # the quaternion with w >= 0
        return np.array([x, y, math.sin(half), math.cos(half), speed, turn, *self._wheels, *self._goal.tolist()])

    def reward(self, position: Sequence[float], next_position: Sequence[float], action: Sequence[float]) -> float:
        """-miss' - effort + progress_weight x (miss - miss'), with miss = tanh(DISTANCE_SCALE x distance), 0 to 1."""
        miss, next_miss = self._miss(position), self._miss(next_position)
        effort = (action[0] / MAX_COMMAND[0]) ** 2 + (action[1] / MAX_COMMAND[1]) ** 2
        return self.progress_weight * (miss - next_miss) - next_miss - EFFORT_WEIGHT * effort

    def expert(self, observation: np.ndarray, task: Task | None = None) -> np.ndarray:
        return self._drive(observation, observation[8:10], (task or self.task).params, BANDWIDTH)

    def rest_action(self, observation: np.ndarray) -> np.ndarray:
        return self._drive(observation, np.zeros(2), MEAN_TASK.params, REST_BANDWIDTH)

    def clip(self, action: np.ndarray) -> np.ndarray:
        """The action within its limits."""
        return np.minimum(np.maximum(action, self.action_low), self.action_high)

    def _drive(
        self, observation: np.ndarray, goal: np.ndarray, params: Mapping[str, float], bandwidth: tuple[float, float]
    ) -> np.ndarray:
        """Inverse dynamics of a critically damped approach, forwards or backwards, with yaw within +-90 degrees."""
        x, y, speed, turn = (float(observation[i]) for i in (0, 1, 4, 5))
        yaw = 2 * math.atan2(float(observation[2]), float(observation[3]))
        dx, dy = float(goal[0]) - x, float(goal[1]) - y
        heading = math.atan2(dy, dx)
        heading -= math.pi * round(heading / math.pi)  # the line to the goal has two directions
        near = min(1.0, math.hypot(dx, dy) / 0.1)  # close to the goal its direction means little
        error = near * math.remainder(heading - yaw, 2 * math.pi)
        ahead = min(max(dx * math.cos(yaw) + dy * math.sin(yaw), -MAX_LEAD), MAX_LEAD)
        drive, steer = bandwidth
        mass, inertia = inertias(params)
        rolling, turning = resistance(params)
        force = mass * drive * (drive * ahead - 2 * speed) + rolling * math.tanh((speed + 2 * ahead) / 0.05)
        torque = inertia * steer * (steer * error - 2 * turn) + turning * math.tanh((turn + 4 * error) / 0.5)
        return self.clip(np.array([speed + force / DRIVE_GAIN, turn + torque / TURN_GAIN]))

    def _draw_goal(self) -> np.ndarray:
        return self._episode.uniform(-1, 1, 2) * np.asarray(GOAL_SPREAD)

    def _speeds(self) -> tuple[float, float]:
        """Speed along the heading in m/s, and turn in rad/s."""
        yaw = self.data.qpos.tolist()[2]
        vx, vy, turn = self.data.qvel.tolist()
        return vx * math.cos(yaw) + vy * math.sin(yaw), turn

    def _wheel_speeds(self) -> tuple[float, float]:
        """Of the left and the right wheel in rad/s."""
        speed, turn = self._speeds()
        side = turn * TRACK_M / 2
        return (speed - side) / WHEEL_RADIUS_M, (speed + side) / WHEEL_RADIUS_M

    def _miss(self, position: Sequence[float]) -> float:
        x, y = self._goal.tolist()
        return math.tanh(DISTANCE_SCALE * math.hypot(position[0] - x, position[1] - y))


def inertias(params: Mapping[str, float]) -> tuple[float, float]:
    """Mass in kg and inertia about the vertical in kg m^2, with the load."""
    return BASE_KG + params["load"], BASE_INERTIA + params["load"] * LOAD_RADIUS_SQUARED


def resistance(params: Mapping[str, float]) -> tuple[float, float]:
    """What the floor takes at most: a force in N on driving, and a torque in Nm on turning."""
    rolling = params["friction"] * inertias(params)[0] * 9.81
    return rolling, SCRUB_M * rolling


def family() -> Family:
    """For the registry of families."""
    return Family(FAMILY, BaseDrive, TASKS, find_config("contracts", FAMILY), MEAN_TASK)
