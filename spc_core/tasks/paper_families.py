# SPDX-License-Identifier: Apache-2.0
"""The MuJoCo families of the paper: what is hidden, what is rewarded, and when an episode ends."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from spc_core.system.config_files import find_config

from .ant_gait import AntGait
from .locomotion import ASSETS, IN_A_ROW, Body, LocomotionEnv, tasks_in_a_row
from .task import Family, Task, make_task

ALONG = {"twist.linear.x": ("qvel", 0)}  # the speed alone: the way covered would tell the task
PLACE = {"position.x": ("qpos", 0), "position.y": ("qpos", 1)}
TORSO = {
    "position.z": ("qpos", 2),
    **{f"orientation.{axis}": ("qpos", index) for axis, index in (("x", 4), ("y", 5), ("z", 6), ("w", 3))},
    **{f"twist.linear.{axis}": ("qvel", index) for index, axis in enumerate("xyz")},
    **{f"twist.angular.{axis}": ("qvel", 3 + index) for index, axis in enumerate("xyz")},
}
CHEETAH = Body(ASSETS / "half_cheetah.xml", 5, (1, 1), ALONG, 0.1, 0.1, normal_velocity=True, total_mass=14.0)
HOPPER = Body(ASSETS / "hopper.xml", 4, (1, 1), ALONG, 0.005, 0.005, velocity_limit=10.0)
WALKER = dataclasses.replace(HOPPER, mjcf=ASSETS / "walker2d_v5.xml")
ANT = Body(ASSETS / "ant.xml", 5, (7, 6), TORSO, 0.1, 0.1, normal_velocity=True)
ANT_ON_A_MAP = dataclasses.replace(ANT, odom={**PLACE, **TORSO})
NEAR_M = 0.3  # from where an ant on its way to a goal makes smaller steps
ANT_NOISE = 0.3  # share of the torque: more would drown its gait
POINT = Body(Path(__file__).with_name("point_robot.xml"), 1, (2, 2), PLACE, 0.1, 0.0)


def _row(family: str, places: Mapping[str, tuple[float, ...]] = IN_A_ROW, /, **params: Callable[[float], float]):
    return tasks_in_a_row(family, lambda place: {name: value(place) for name, value in params.items()}, places)


def _goals(split: str, *radii: float, first: float) -> tuple[Task, ...]:
    """Ten goals of ant_goal on each half circle, every 18 degrees."""
    angles = [(first + i) * math.pi / 10 for i in range(10)]
    goals = [(radius * math.cos(angle), radius * math.sin(angle)) for radius in radii for angle in angles]
    return tuple(make_task("ant_goal", split, i, goal_x=x, goal_y=y) for i, (x, y) in enumerate(goals))


def _scale(place: float) -> float:
    return 1.5 ** (-2 + 4 * place / 39)


TASKS = {
    "cheetah_vel": _row("cheetah_vel", speed=lambda place: 0.1 + 0.1 * place),
    # Angles as cosine and sine, so that who is told them meets no jump.
    "ant_dir": _row(
        "ant_dir",
        direction_x=lambda place: math.cos(2 * math.pi * place / 40),
        direction_y=lambda place: math.sin(2 * math.pi * place / 40),
    ),
    "ant_goal": {
        "train": _goals("train", 0.8, 1.2, first=0.5),
        "val": _goals("val", 1.0, first=0.0),
        "id": _goals("id", 1.0, first=0.5),
        "ood": _goals("ood", 1.6, first=0.5),
    },
    **{f"{robot}_{what}": _row(f"{robot}_{what}", **{what: _scale})
       for robot in ("hopper", "walker") for what in ("mass", "friction")},
    "point_robot": _row(
        "point_robot",
        {
            "train": tuple(range(10, 30)),
            "val": tuple(10.5 + 2 * i for i in range(10)),
            "id": (*range(5, 10), *range(30, 35)),
            "ood": (*range(5), *range(35, 40)),
        },
        goal_x=lambda place: math.cos(math.pi * place / 39),
        goal_y=lambda place: math.sin(math.pi * place / 39),
    ),
}  # fmt: skip


class PaperEnv(LocomotionEnv):
    """A family of the paper."""

    def first_task(self) -> Task:
        return TASKS[self.family]["train"][0]


class CheetahVel(PaperEnv):
    """Run at a speed that the observation (17,) does not show; only the reward reveals it."""

    family, body = "cheetah_vel", CHEETAH

    def reward(self, start: np.ndarray, action: np.ndarray) -> float:
        """-|speed - wanted speed| - 0.05 |a|^2."""
        return -abs(float(self.speed(start)[0]) - self.task.params["speed"]) - 0.05 * float(action @ action)


class AntEnv(PaperEnv):
    """An ant, whose expert is a gait written by hand."""

    has_expert = True

    def __init__(self, task: Task | None = None) -> None:
        super().__init__(task)
        self._gait = AntGait(self.observation_names, self.action_names, self.step_s)
        self.noise_action = ANT_NOISE * self.action_high

    def way(self, observation: np.ndarray, params: Mapping[str, float]) -> np.ndarray:
        """Where to go (2,), at most of length 1."""
        raise NotImplementedError

    def expert(self, observation: np.ndarray, task: Task | None = None) -> np.ndarray:
        return self._gait.act(observation, self.way(observation, (task or self.task).params))


class AntDir(AntEnv):
    """Run in a direction that the observation (27,) does not show, from anywhere; only the reward reveals it."""

    family, body = "ant_dir", ANT
    terminates = True

    def way(self, observation: np.ndarray, params: Mapping[str, float]) -> np.ndarray:
        return np.array([params["direction_x"], params["direction_y"]])

    def reward(self, start: np.ndarray, action: np.ndarray) -> float:
        """Speed in the wanted direction + 1 - 0.5 |a|^2."""
        params, speed = self.task.params, self.speed(start)
        along = float(speed[0]) * params["direction_x"] + float(speed[1]) * params["direction_y"]
        return along + 1 - 0.5 * float(action @ action)

    def fallen(self) -> bool:
        """The torso is below 0.2 m or above 1 m."""
        return not 0.2 <= self.data.qpos[2] <= 1.0


class AntGoal(AntEnv):
    """Run to a goal that the observation (29,) does not show; only the reward reveals it."""

    family, body = "ant_goal", ANT_ON_A_MAP

    def __init__(self, task: Task | None = None) -> None:
        super().__init__(task)
        self._place = [self.observation_names.index(name) for name in PLACE]

    def reward(self, start: np.ndarray, action: np.ndarray) -> float:
        """-|x - goal x| - |y - goal y| - 0.1 |a|^2."""
        x, y = self.data.qpos[:2].tolist()
        params = self.task.params
        return -abs(x - params["goal_x"]) - abs(y - params["goal_y"]) - 0.1 * float(action @ action)

    def way(self, observation: np.ndarray, params: Mapping[str, float]) -> np.ndarray:
        """Towards the goal, with full steps until it is near."""
        way = (np.array([params["goal_x"], params["goal_y"]]) - observation[self._place]) / NEAR_M
        return way / max(1.0, float(np.hypot(*way)))


class Runner(PaperEnv):
    """Run forward without falling."""

    height: tuple[float, float]  # m, of the torso while it has not fallen
    tilt: float  # rad
    terminates = True

    def reward(self, start: np.ndarray, action: np.ndarray) -> float:
        """Speed + 1 - 0.001 |a|^2."""
        return float(self.speed(start)[0]) + 1 - 0.001 * float(action @ action)

    def fallen(self) -> bool:
        """The torso is too low, too high, or tilted."""
        height, tilt = self.data.qpos[1:3].tolist()
        return not (self.height[0] < height < self.height[1] and abs(tilt) < self.tilt)


class Heavy(Runner):
    """Hidden is a factor of all masses."""

    def apply_params(self, params: Mapping[str, float]) -> None:
        self.scale_mass(params["mass"])


class Slippery(Runner):
    """Hidden is a factor of all frictions."""

    def apply_params(self, params: Mapping[str, float]) -> None:
        self.scale_friction(params["friction"])


class HopperMass(Heavy):
    """Hop forward with a mass that the observation (11,) does not show."""

    family, body, height, tilt = "hopper_mass", HOPPER, (0.7, math.inf), 0.2


class HopperFriction(Slippery):
    """Hop forward on a floor whose friction the observation (11,) does not show."""

    family, body, height, tilt = "hopper_friction", HOPPER, (0.7, math.inf), 0.2


class WalkerMass(Heavy):
    """Walk forward with a mass that the observation (17,) does not show."""

    family, body, height, tilt = "walker_mass", WALKER, (0.8, 2.0), 1.0


class WalkerFriction(Slippery):
    """Walk forward on a floor whose friction the observation (17,) does not show."""

    family, body, height, tilt = "walker_friction", WALKER, (0.8, 2.0), 1.0


class PointRobot(PaperEnv):
    """Slide to a goal that the observation (2,) does not show; actions are shares of 2 m/s."""

    family, body = "point_robot", POINT
    episode_steps = 40
    has_expert = True

    def reward(self, start: np.ndarray, action: np.ndarray) -> float:
        """-distance to the goal."""
        x, y = self.data.qpos.tolist()
        return -math.hypot(x - self.task.params["goal_x"], y - self.task.params["goal_y"])

    def expert(self, observation: np.ndarray, task: Task | None = None) -> np.ndarray:
        params = (task or self.task).params
        goal = np.array([params["goal_x"], params["goal_y"]])
        return ((goal - observation) * self.control_hz / 2).clip(-1, 1)  # there in one step, if it is near enough

    def rest_action(self, observation: np.ndarray) -> np.ndarray:
        return (-observation).clip(-1, 1)

    def success(self, observation: np.ndarray, next_observation: np.ndarray) -> bool:
        """The point ended within 0.1 m of the goal."""
        goal = np.array([self.task.params["goal_x"], self.task.params["goal_y"]])
        return math.dist(next_observation, goal) < 0.1


ENVS: Mapping[str, type[PaperEnv]] = {
    env.family: env
    for env in (CheetahVel, AntDir, AntGoal, HopperMass, HopperFriction, WalkerMass, WalkerFriction, PointRobot)
}


def family(name: str) -> Family:
    """For the registry of families."""
    return Family(name, ENVS[name], TASKS[name], find_config("contracts", name))
