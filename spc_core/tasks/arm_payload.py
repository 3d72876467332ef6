# SPDX-License-Identifier: Apache-2.0
"""arm_payload: the dynamics differ. The mass at the tip and the strength of the motors are hidden."""

# pyright: reportAttributeAccessIssue=false
# (mujoco re-exports its compiled functions without stubs)

from __future__ import annotations

import functools
from collections.abc import Mapping

import mujoco
import numpy as np

from spc_core.system.config_files import find_config

from .arm import JOINTS, ArmEnv
from .physics import derive_constants
from .task import Family, Task, average_task, make_task

FAMILY = "arm_payload"
HOME = (0.0, 0.3)  # rad, stretched out
TARGET_SPREAD = (0.6, 0.8)  # rad, targets lie uniformly within home +- this
TARGET_STEPS = 50  # control steps between two jumps of the target
PAYLOAD_KG = (0.0, 1.5)  # range of the training tasks
STRENGTH = (0.5, 1.5)  # true torque per commanded torque
BANDWIDTH = 8.0  # rad/s of the expert's critically damped approach: modest, so that wrong gravity shows
REST_BANDWIDTH = 5.0  # rad/s of the pull to home under random motion, or the arm would fall to its stops
MAX_LEAD = 1.0  # rad of error that the expert answers in full


def _task(split: str, index: int, payload: float, strength: float) -> Task:
    return make_task(FAMILY, split, index, payload=payload, strength=strength)


def _inside(split: str, index: int, x: float, y: float) -> Task:
    """A task at (x, y) of the unit square spanned by the training ranges."""
    payload = PAYLOAD_KG[0] + x * (PAYLOAD_KG[1] - PAYLOAD_KG[0])
    return _task(split, index, payload, STRENGTH[0] + y * (STRENGTH[1] - STRENGTH[0]))


_OUTSIDE = (
    *((1.9, 0.75), (2.1, 0.9), (2.1, 1.15), (1.85, 1.4)),  # heavier
    *((0.2, 0.4), (0.6, 0.43), (0.6, 1.65), (1.3, 1.7)),  # weaker, stronger
    *((1.7, 0.47), (2.0, 1.65)),  # both
)
# Lattices: every row and every column of the grid holds one task, and neighbours lie far apart. The id lattice is as
# far from the training tasks as the val one (0.113 and 0.100 of the square's side on average) and 0.14 from val. They
# and the ood tasks are the second choice: settings were chosen after a look at the first, which lie as far away.
TASKS = {
    "train": tuple(_inside("train", i, i / 19, (7 * i + 5) % 20 / 19) for i in range(20)),
    "val": tuple(_inside("val", i, (i + 0.5) / 10, ((3 * i + 1) % 10 + 0.5) / 10) for i in range(10)),
    "id": tuple(_inside("id", i, (i + 0.5) / 10, ((3 * i + 3) % 10 + 0.5) / 10) for i in range(10)),
    "ood": tuple(_task("ood", i, *point) for i, point in enumerate(_OUTSIDE)),
}
MEAN_TASK = average_task(TASKS["train"])


class ArmPayload(ArmEnv):
    """Follow the joint target in the observation (6,), with a payload and motors that it does not show."""

    family = FAMILY
    home = HOME
    distance_scale = 2.0
    noise_action = np.array([3.6, 1.8])  # Nm
    observation_names = (*ArmEnv.observation_names, *(f"target.{joint}" for joint in JOINTS))

    def default_task(self) -> Task:
        return TASKS["train"][0]

    @functools.cached_property
    def _scratch(self) -> mujoco.MjData:
        """Data for computing the model's constants."""
        return mujoco.MjData(self.model)

    def apply_params(self, params: Mapping[str, float]) -> None:
        """Set payload (kg) and strength and the constants MuJoCo derives from them; the state stays."""
        model = self.model
        model.body_mass[model.body("payload").id] = params["payload"]  # a point mass
        model.actuator_gear[:, 0] = params["strength"]
        derive_constants(model, self._scratch)

    def start_episode(self, episode: np.random.Generator) -> None:
        self._episode = episode
        self._draw_target()

    def continue_episode(self, step_count: int) -> None:
        if step_count % TARGET_STEPS == 0:
            self._draw_target()

    def _draw_target(self) -> None:
        spread = np.asarray(TARGET_SPREAD)
        self._target = np.asarray(HOME) + self._episode.uniform(-spread, spread)

    def target(self) -> np.ndarray:
        return self._target

    def goal(self, observation: np.ndarray) -> np.ndarray:
        return observation[4:6]

    def observation(self) -> np.ndarray:
        return np.concatenate((self.data.qpos, self.data.qvel, self._target))

    def expert(self, observation: np.ndarray, task: Task | None = None) -> np.ndarray:
        params = (task or self.task).params
        torque = self.computed_torque(observation, observation[4:6], BANDWIDTH, params["payload"], MAX_LEAD)
        return self.clip(torque / params["strength"])

    def rest_action(self, observation: np.ndarray) -> np.ndarray:
        params = MEAN_TASK.params
        torque = self.computed_torque(observation, np.array(HOME), REST_BANDWIDTH, params["payload"], MAX_LEAD)
        return self.clip(torque / params["strength"])


def family() -> Family:
    """For the registry of families."""
    return Family(FAMILY, ArmPayload, TASKS, find_config("contracts", FAMILY), MEAN_TASK)
