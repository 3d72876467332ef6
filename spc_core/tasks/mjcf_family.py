# SPDX-License-Identifier: Apache-2.0
"""The environment of a family.yaml: an MJCF behind a contract, with hidden parameters."""

# pyright: reportAttributeAccessIssue=false
# (mujoco re-exports its compiled functions without stubs)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import mujoco
import numpy as np

from spc_core.contract.contract import Contract
from spc_core.system.config_files import suggest

from .disturbances import DelayLine
from .hidden import AXES, KINDS, Parameter
from .mjcf import ONE_NUMBER, MjcfEnv
from .physics import derive_constants, new_model
from .snapshots import load_snapshots
from .task import FamilyError, Task
from .task_env import TaskEnv


@dataclass(frozen=True)
class MjcfFamily:
    """What a family.yaml says of its environment; `source` names the file, for errors."""

    source: str
    name: str
    model: Path
    contract: Contract
    episode_steps: int
    keyframe: str
    start_position: float  # start within +- this of the keyframe, each coordinate
    start_velocity: float
    bounds: Mapping[str, tuple[float, float]]  # by observed field; outside them an episode terminates
    parameters: tuple[Parameter, ...]
    agent: Path | None  # a learnt agent's file


class MjcfFamilyEnv(MjcfEnv):
    """A robot with hidden parameters, described in a family.yaml."""

    def __init__(self, told: MjcfFamily, task: Task) -> None:
        """Raises FamilyError and ModelError for what is not in the model."""
        super().__init__(told.model, told.contract, told.keyframe, model=new_model(told.model))
        self.told, self.family, self.episode_steps = told, told.name, told.episode_steps
        self.terminates = bool(told.bounds)
        self.nominal, self._scratch = new_model(told.model), mujoco.MjData(self.model)
        self.noise_action = (self.action_high - self.action_low) / 2
        self.action_space = gymnasium.spaces.Box(self.action_low, self.action_high, dtype=np.float64)
        size = (len(self.observation_names),)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, size, dtype=np.float64)
        self._targets = {parameter.name: self._find(parameter) for parameter in told.parameters}
        self._bounds = np.array([told.bounds.get(name, (-np.inf, np.inf)) for name in self.observation_names]).T
        self._payment = None if self.has_reward else self._find_payment()
        self._reads_sensors |= self._payment is not None
        self._applied = np.asarray(told.contract.action.safe, dtype=np.float64)
        self._delay = DelayLine(0.0)
        self._params: Mapping[str, float] = {}
        if told.agent is not None:
            params, actions = tuple(task.params), len(self.action_names)
            self.snapshots = load_snapshots(told.agent, told.name, self.observation_names, params, actions)
            self.has_expert = True
        self.set_task(task)

    def set_task(self, task: Task) -> None:
        TaskEnv.set_task(self, task)

    def apply_params(self, params: Mapping[str, float]) -> None:
        if params == self._params:
            return
        for parameter in self.told.parameters:
            value, kind = params[parameter.name], KINDS[parameter.kind]
            if parameter.kind == "delay":
                self._delay = DelayLine(value * self.control_hz)
                self._delay.reset(self._applied)
            for index, axis in self._targets[parameter.name]:
                if kind.set is not None:
                    kind.set(self.model, self.nominal, index, value)
                else:
                    self.model.body_pos[index, axis] = value
        self._params = dict(params)
        derive_constants(self.model, self._scratch)

    def start_episode(self, episode: np.random.Generator) -> None:
        told, data = self.told, self.data
        data.qpos[:] += told.start_position * episode.uniform(-1, 1, self.model.nq)
        data.qvel[:] += told.start_velocity * episode.uniform(-1, 1, self.model.nv)
        mujoco.mj_normalizeQuat(self.model, data.qpos)
        self._applied = np.asarray(told.contract.action.safe, dtype=np.float64)
        self._delay.reset(self._applied)

    def applied(self, action: np.ndarray) -> np.ndarray:
        self._applied = self._delay.push(action)
        return self._applied

    def ended(self, observation: np.ndarray) -> bool:
        low, high = self._bounds
        return bool(((observation < low) | (observation > high)).any())

    def reward(self, before: np.ndarray, action: np.ndarray) -> float | None:
        if self._payment is None:
            return super().reward(before, action)
        return float(self.data.sensordata[self._payment])

    def rest_action(self, observation: np.ndarray) -> np.ndarray:
        return np.asarray(self.contract.action.safe, dtype=np.float64)

    def _find_payment(self) -> int:
        """The sensor that is the reward."""
        reward = self.contract.reward
        found = self._sensor(f"{reward.topic}.{reward.field}")
        found = self._sensor(f"{reward.topic}") if found is None else found
        if found is None:
            raise self._error(
                f"no sensor '{reward.topic}', the reward topic of contract '{self.contract.name}'; add one, or give "
                f"the contract a reward function; sensors are {self._names('sensor')}"
            )
        return found

    def _find(self, parameter: Parameter) -> list[tuple[int, int]]:
        """Number in the model, and coordinate, of each thing that a parameter sets."""
        kind = KINDS[parameter.kind]
        if kind.of in ("down", "commands"):
            return [(0, 0)] if kind.set is not None else []
        return [self._find_target(parameter, target, kind.of) for target in parameter.targets]

    def _find_target(self, parameter: Parameter, target: str, of: str) -> tuple[int, int]:
        name, axis = target, 0
        if parameter.kind == "place":
            name, _, letter = target.rpartition(".")
            if letter not in AXES or not name:
                raise self._wrong(parameter, f"'{target}' is not <body>.x, .y or .z")
            axis = AXES.index(letter)
        index = self._id(of, name)
        if index < 0:
            known = self._names(of)
            near = suggest(name, known.split(", "))
            raise self._wrong(parameter, f"no {of} '{name}'{near} in model {self.path}; it has {known}")
        if parameter.kind == "mass" and not self.nominal.body_mass[index] > 0:
            raise self._wrong(parameter, f"body '{name}' has no mass in model {self.path}; give it a geom with one")
        if parameter.kind == "damping" and mujoco.mjtJoint(self.nominal.jnt_type[index]) not in ONE_NUMBER:
            raise self._wrong(parameter, f"joint '{name}' is neither hinge nor slide; name one that is")
        return index, axis

    def _wrong(self, parameter: Parameter, text: str) -> FamilyError:
        return FamilyError(f"{self.told.source}: parameters.{parameter.name}.{parameter.kind}: {text}")
