# SPDX-License-Identifier: Apache-2.0
"""Half cheetahs whose dynamics differ, not their reward: legs of another length, motors that pull otherwise."""

# pyright: reportAttributeAccessIssue=false
# (mujoco re-exports its compiled functions without stubs)

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import mujoco
import numpy as np

from spc_core.system.config_files import find_config

from .locomotion import LocomotionEnv, tasks_in_a_row
from .paper_families import CHEETAH
from .physics import derive_constants
from .task import Family, Task

FIELDS = ("body_inertia", "body_ipos", "body_mass", "body_pos", "bvh_aabb",
          "geom_aabb", "geom_pos", "geom_rbound", "geom_size")  # what a limb's length changes  # fmt: skip
LIMBS = ("bshin", "bfoot", "fshin", "ffoot")
TASKS = {
    "cheetah_length": tasks_in_a_row("cheetah_length", lambda place: {"length": 1.5 ** (-2 + 4 * place / 39)}),
    # On a circle through (1, 1), which is the robot of the file: each leg from as strong as it backwards, over dead.
    "cheetah_motors": tasks_in_a_row(
        "cheetah_motors",
        lambda place: {
            "back": math.sqrt(2) * math.cos(2 * math.pi * place / 40),
            "front": math.sqrt(2) * math.sin(2 * math.pi * place / 40),
        },
    ),
}


class CheetahRun(LocomotionEnv):
    """Run forward as fast as possible."""

    body = CHEETAH

    def first_task(self) -> Task:
        return TASKS[self.family]["train"][0]

    def reward(self, start: np.ndarray, action: np.ndarray) -> float:
        """Speed - 0.05 |a|^2."""
        return float(self.speed(start)[0]) - 0.05 * float(action @ action)


class CheetahLength(CheetahRun):
    """Run on shins and feet whose length the observation (17,) does not show; heights are those above its stand."""

    family = "cheetah_length"

    def apply_params(self, params: Mapping[str, float]) -> None:
        for name, values in _with_limbs(params["length"]).items():
            getattr(self.model, name)[:] = values
        derive_constants(self.model, self._scratch)


class CheetahMotors(CheetahRun):
    """Run with motors whose strength and sign, of each leg, the observation (17,) does not show."""

    family = "cheetah_motors"

    def apply_params(self, params: Mapping[str, float]) -> None:
        legs = [params["back"]] * 3 + [params["front"]] * 3
        self.model.actuator_gear[:, 0] = self.nominal.actuator_gear[:, 0] * legs


@functools.lru_cache(maxsize=128)
def _with_limbs(length: float) -> dict[str, np.ndarray]:
    """What in the model differs with shins and feet of `length` times the usual one, and as heavy for each metre."""
    spec = mujoco.MjSpec.from_string(CHEETAH.text())
    for name in LIMBS:
        limb = spec.geom(name)
        limb.pos = np.array(limb.pos) * length
        limb.size = (limb.size[0], limb.size[1] * length, 0)
        for child in spec.body(name).bodies:
            child.pos = np.array(child.pos) * length
    model = spec.compile()
    density = CHEETAH.nominal.body_mass[1] / model.body_mass[1]  # of the torso, which stays as it is
    model.body_mass[:] *= density
    model.body_inertia[:] *= density
    model.body_pos[1, 2] += _lowest(CHEETAH.nominal) - _lowest(model)
    return {name: getattr(model, name).copy() for name in FIELDS}


def _lowest(model: mujoco.MjModel) -> float:
    """Height of the lowest end of a capsule, as the robot stands in its file."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    ends = data.geom_xpos[1:, 2] - np.abs(data.geom_xmat[1:, 8]) * model.geom_size[1:, 1]
    return float(np.min(ends - model.geom_size[1:, 0]))


ENVS: Mapping[str, type[CheetahRun]] = {env.family: env for env in (CheetahLength, CheetahMotors)}


def family(name: str) -> Family:
    """For the registry of families."""
    return Family(name, ENVS[name], TASKS[name], find_config("contracts", name))
