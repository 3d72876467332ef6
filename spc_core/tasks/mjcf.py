# SPDX-License-Identifier: Apache-2.0
"""Any MuJoCo model behind a contract: joints by name, sensors by topic, actuators by the contract's action fields."""

# pyright: reportAttributeAccessIssue=false
# (mujoco re-exports its compiled functions without stubs)

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from spc_core.contract.contract import Contract
from spc_core.contract.positional import BY_NAME, JOINT_STATE
from spc_core.contract.sections import Stream
from spc_core.system.config_files import suggest

from .physics import load_model
from .task import Task
from .task_env import TaskEnv

COMPONENTS = {4: "wxyz"}  # MuJoCo writes quaternions so; every other vector is x, y, z
COUNTS = {"joint": "njnt", "sensor": "nsensor", "actuator": "nu", "key": "nkey", "body": "nbody", "geom": "ngeom"}
ONE_NUMBER = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)
ON_JOINT = (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT)
DIVERGED = ("mjWARN_BADQPOS", "mjWARN_BADQVEL", "mjWARN_BADQACC")


class ModelError(ValueError):
    """A model that does not fit its contract; the message names the file, the field and the fix."""


class MjcfEnv(TaskEnv):
    """A model without task parameters. An episode begins at a keyframe and ends at the contract's `limit_s`.

    The observation holds the contract's fields, before its transforms. The reward is None where the contract
    does not give it as a function.
    """

    def __init__(
        self,
        path: str | Path,
        contract: Contract,
        keyframe: str = "",
        task_id: str = "",
        model: mujoco.MjModel | None = None,
    ) -> None:
        """`keyframe` "" is the model's first one, or qpos0 where it has none. `model`: of `path`, if it is compiled.

        Raises ModelError.
        """
        self.path, self.contract = Path(path), contract
        self.model = _load(self.path) if model is None else model
        self.data = mujoco.MjData(self.model)
        self.family = self.path.stem
        self.control_hz = contract.rate_hz
        self.episode_steps = _steps_until(contract.segments.limit_s, contract.rate_hz)
        self.dofs = int(self.model.nv)
        self.observation_names = tuple(f"{s.topic}.{path}" for s in contract.observation for path in s.fields)
        self.action_names = contract.action.fields
        self.action_low, self.action_high = np.array(contract.action.low), np.array(contract.action.high)
        self.task = Task(task_id or self.family, self.family, "mjcf", 0, {})
        self._readings = [self._reading(s, field) for s in contract.observation for field in s.fields]
        self._reads_sensors = any(a is self.data.sensordata for a, _ in self._readings)
        self._actuators = self._find_actuators()
        self._substeps = self._count_substeps()
        self._key = self._find_keyframe(keyframe)
        self._reward = contract.reward_function()
        self._transforms = [stream.transforms for stream in contract.observation]
        self._steps, self._observed = 0, np.empty(0)
        self._last_action: np.ndarray | None = None  # of the episode's last step

    def set_task(self, task: Task) -> None:
        self.task = task

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode, of options["task"] if given; the seed decides what is random in it."""
        episode = self.begin_episode(seed, options)
        if self._key is None:
            mujoco.mj_resetData(self.model, self.data)
        else:
            mujoco.mj_resetDataKeyframe(self.model, self.data, self._key)
        self.start_episode(episode)
        mujoco.mj_forward(self.model, self.data)
        self._steps = 0
        for transforms in self._transforms:
            transforms.reset()
        observation = self._observe()
        self._observed, self._last_action = self._transformed(observation), None
        return observation, {"task_id": self.task.task_id}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float | None, bool, bool, dict[str, Any]]:  # type: ignore[override]
        """Hold an action (A,) clipped to the contract's limits for a period; `broken` in the dict ends the episode."""
        action = np.clip(action, self.contract.action.low, self.contract.action.high)
        self.data.ctrl[self._actuators] = self.applied(action)
        mujoco.mj_step(self.model, self.data, nstep=self._substeps)
        if self._reads_sensors:  # which a step leaves as they were before its last physics step
            mujoco.mj_forward(self.model, self.data)
        self._steps += 1
        truncated = self._steps >= self.episode_steps
        if any(self.data.warning[getattr(mujoco.mjtWarning, name)].number for name in DIVERGED):
            broken = f"model {self.path}: the physics diverged; take a shorter timestep or weaker actuators"
            return np.full(len(self._readings), math.nan), None, False, False, {"broken": broken}
        observation = self._observe()
        before, self._observed = self._observed, self._transformed(observation)
        ended = self.ended(observation)
        reward, self._last_action = self.reward(before, action), action
        return observation, reward, ended, truncated and not ended, {}

    def start_episode(self, episode: np.random.Generator) -> None:
        """Change the state at the start of an episode; by default nothing."""

    def applied(self, action: np.ndarray) -> np.ndarray:
        """What reaches the actuators (A,) of an action within its limits; by default all of it."""
        return action

    def ended(self, observation: np.ndarray) -> bool:
        """Whether the task ended here; by default never."""
        return False

    def reward(self, before: np.ndarray, action: np.ndarray) -> float | None:
        """Of the step from an observation (O,), as in a dataset; None: the contract does not give it as a function."""
        if self._reward is None:
            return None
        return float(self._reward(before, action, self._observed, self._last_action))

    @property
    def has_reward(self) -> bool:
        """Whether the contract gives the reward as a function."""
        return self._reward is not None

    def _observe(self) -> np.ndarray:
        return np.array([array[index] for array, index in self._readings])

    def _transformed(self, raw: np.ndarray) -> np.ndarray:
        """The observation (O,) of the raw numbers (R,), as in a dataset."""
        t_ns, parts, begin = np.array([self._steps * self.contract.period_ns]), [], 0
        for stream, transforms in zip(self.contract.observation, self._transforms, strict=True):
            end = begin + len(stream.fields)
            parts.append(transforms(t_ns, raw[None, begin:end])[0])
            begin = end
        return np.concatenate(parts)

    def _reading(self, stream: Stream, field: str) -> tuple[np.ndarray, int]:
        """The place of an observed field: an array of the data, and its index. A sensor of that name wins."""
        found = self._sensor(f"{stream.topic}.{field}")
        if found is not None:
            return self.data.sensordata, found
        if stream.type == JOINT_STATE:
            return self._joint_reading(f"{stream.topic}.{field}", *field.split(".", 1))
        raise self._error(
            f"no sensor for the observed field '{stream.topic}.{field}'; name one '{stream.topic}.{field}', or one "
            f"with several numbers '{f'{stream.topic}.{field}'.rpartition('.')[0]}'; "
            f"sensors are {self._names('sensor')}"
        )

    def _joint_reading(self, name: str, what: str, joint: str) -> tuple[np.ndarray, int]:
        index = self._id("joint", joint)
        if index < 0:
            raise self._error(
                f"no joint '{joint}'{suggest(joint, self._names('joint').split(', '))} for the observed field "
                f"'{name}'; joints are {self._names('joint')}; correct the contract or the model"
            )
        if mujoco.mjtJoint(self.model.jnt_type[index]) not in ONE_NUMBER:
            raise self._error(
                f"joint '{joint}' of the observed field '{name}' is neither hinge nor slide, so it has no single "
                "number; observe it with a sensor (framepos, framequat, ...) on a topic of its own"
            )
        dof = int(self.model.jnt_dofadr[index])
        arrays = {
            "position": (self.data.qpos, int(self.model.jnt_qposadr[index])),
            "velocity": (self.data.qvel, dof),
            "effort": (self.data.qfrc_actuator, dof),
        }
        return arrays[what]

    def _sensor(self, name: str) -> int | None:
        """Index in sensordata of "<sensor>" or "<sensor>.<component>"; None: there is no such sensor."""
        sensor, _, component = name, "", ""
        index = self._id("sensor", sensor)
        if index < 0:
            sensor, _, component = name.rpartition(".")
            index = self._id("sensor", sensor) if sensor else -1
        if index < 0 and sensor.endswith(".data"):  # an array's field is data.<i>, its sensor may be the topic
            index = self._id("sensor", sensor.removesuffix(".data"))
        if index < 0:
            return None
        begin, size = int(self.model.sensor_adr[index]), int(self.model.sensor_dim[index])
        known = COMPONENTS.get(size, "xyz")
        place = int(component) if component.isdigit() else known.find(component) if component else 0
        if not 0 <= place < size or (size > 1 and not component):
            raise self._error(f"sensor '{sensor}' has {size} numbers, the observed field '{name}' is none of them")
        return begin + place

    def _find_actuators(self) -> np.ndarray:
        """Number of the actuator of each action field (A,)."""
        action = self.contract.action
        found = [self._actuator(field, part.type in BY_NAME) for part in action.parts for field in part.fields]
        for i, actuator in enumerate(found):
            if actuator in found[:i]:
                first = action.fields[found.index(actuator)]
                raise self._error(f"'{first}' and '{action.fields[i]}' drive one actuator; keep one of them")
        return np.array(found)

    def _actuator(self, field: str, by_joint: bool) -> int:
        """An actuator of that name, or else the only one on the joint of that name, or else by number."""
        name = field.split(".", 1)[1] if by_joint else field
        index = self._id("actuator", name)
        if index >= 0:
            return index
        joint = self._id("joint", name)
        on_joint = [
            i for i in range(self.model.nu)
            if joint >= 0 and mujoco.mjtTrn(self.model.actuator_trntype[i]) in ON_JOINT
            and self.model.actuator_trnid[i, 0] == joint
        ]  # fmt: skip
        number = field.removeprefix("data.")
        if number.isdigit() and int(number) < self.model.nu:
            return int(number)
        if len(on_joint) == 1:
            return on_joint[0]
        many = f", and {len(on_joint)} on the joint '{name}'" if on_joint else ""
        raise self._error(
            f"no actuator '{name}'{suggest(name, self._names('actuator').split(', '))}{many} for the action field "
            f"'{field}'; actuators are {self._names('actuator')}; correct the contract or the model"
        )

    def _count_substeps(self) -> int:
        steps = 1 / (self.contract.rate_hz * self.model.opt.timestep)
        if steps < 0.999 or abs(steps - round(steps)) > 1e-6 * steps:
            raise self._error(
                f"timestep {self.model.opt.timestep:g} s does not divide the period {1 / self.contract.rate_hz:g} s "
                f"of contract '{self.contract.name}'; set timestep to {1 / self.contract.rate_hz / math.ceil(steps):g}"
            )
        return round(steps)

    def _find_keyframe(self, name: str) -> int | None:
        if not name:
            return 0 if self.model.nkey else None
        index = self._id("key", name)
        if index < 0:
            raise self._error(f"no keyframe '{name}'; keyframes are {self._names('key')}")
        return index

    def _id(self, kind: str, name: str) -> int:
        return int(mujoco.mj_name2id(self.model, getattr(mujoco.mjtObj, f"mjOBJ_{kind.upper()}"), name))

    def _names(self, kind: str) -> str:
        """All names of a kind, for errors."""
        of_kind = getattr(mujoco.mjtObj, f"mjOBJ_{kind.upper()}")
        names = [mujoco.mj_id2name(self.model, of_kind, i) for i in range(getattr(self.model, COUNTS[kind]))]
        return ", ".join(name or "(unnamed)" for name in names) or "none"

    def _error(self, text: str) -> ModelError:
        return ModelError(f"model {self.path}: {text}")


def _steps_until(limit_s: float, rate_hz: float) -> int:
    return sys.maxsize if math.isinf(limit_s) else math.ceil(limit_s * rate_hz * (1 - 1e-12))


def _load(path: Path) -> mujoco.MjModel:
    if not path.is_file():
        raise ModelError(f"model {path}: no such file; give the path of an MJCF")
    try:
        return load_model(path)
    except ValueError as error:
        raise ModelError(f"model {path}: not a model that MuJoCo can read: {error}") from None
