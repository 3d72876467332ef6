# SPDX-License-Identifier: Apache-2.0
"""Hidden parameters of a family.yaml: what of a model each kind sets, and tasks spread evenly over their ranges."""

# pyright: reportAttributeAccessIssue=false
# (mujoco re-exports its compiled functions without stubs)

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import mujoco
import numpy as np

AXES = ("x", "y", "z")
Setter = Callable[[mujoco.MjModel, mujoco.MjModel, int, float], None]


@dataclass(frozen=True)
class Kind:
    """What a parameter of this kind sets, in a model and from the model of the file."""

    meaning: str
    least: float  # smallest value
    of: str  # what it names: body, geom, joint, actuator, or a fixed word
    set: Setter | None = None  # (model, nominal, id, value); None: the environment does it


def _mass(model: mujoco.MjModel, nominal: mujoco.MjModel, body: int, value: float) -> None:
    model.body_mass[body] = value
    model.body_inertia[body] = nominal.body_inertia[body] * (value / nominal.body_mass[body])


def _friction(model: mujoco.MjModel, nominal: mujoco.MjModel, geom: int, value: float) -> None:
    model.geom_friction[geom, 0] = value


def _damping(model: mujoco.MjModel, nominal: mujoco.MjModel, joint: int, value: float) -> None:
    model.dof_damping[model.jnt_dofadr[joint]] = value


def _gain(model: mujoco.MjModel, nominal: mujoco.MjModel, actuator: int, value: float) -> None:
    model.actuator_gainprm[actuator] = value * nominal.actuator_gainprm[actuator]
    model.actuator_biasprm[actuator] = value * nominal.actuator_biasprm[actuator]


def _gravity(model: mujoco.MjModel, nominal: mujoco.MjModel, _: int, value: float) -> None:
    model.opt.gravity[:] = 0, 0, -value


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "mass": Kind("kg; the inertia follows", 1e-6, "body", _mass),
        "friction": Kind("sliding coefficient; a contact has the larger of its two geoms'", 0.0, "geom", _friction),
        "damping": Kind("Nms/rad or Ns/m of a hinge or slide", 0.0, "joint", _damping),
        "gain": Kind("factor of an actuator's force", 0.0, "actuator", _gain),
        "gravity": Kind("m/s^2 downwards", -math.inf, "down", _gravity),
        "place": Kind("m, a coordinate of a body in its parent, such as goal.x", -math.inf, "body"),
        "delay": Kind("s from a command to the actuators", 0.0, "commands"),
    }
)


@dataclass(frozen=True)
class Parameter:
    """One hidden parameter, and the values that its tasks take."""

    name: str
    kind: str
    targets: tuple[str, ...]  # all have the same value
    low: float
    high: float
    lowest: float  # of tasks beyond the range
    highest: float

    @property
    def reaches_beyond(self) -> bool:
        return self.lowest < self.low or self.highest > self.high

    def inside(self, share: float) -> float:
        """The value at a share of the range, 0 to 1."""
        return self.low + share * (self.high - self.low)

    def beyond(self, share: float) -> float:
        """The value at a share of what lies beyond the range, below it and above it; never the range's ends."""
        below, above = self.low - self.lowest, self.highest - self.high
        along = share * (below + above)
        return self.lowest + along if along < below else self.highest - (along - below)


def spread(count: int, size: int, first: int) -> np.ndarray:
    """Points (count, size) of the unit cube, evenly spread and always the same; from number `first` of a sequence.

    The additive sequence of the generalised golden ratio (M. Roberts, "The unreasonable effectiveness of quasirandom
    sequences").
    """
    ratio = 2.0
    for _ in range(60):  # the root of x^(size + 1) = x + 1
        ratio = (1 + ratio) ** (1 / (size + 1))
    steps = ratio ** -np.arange(1.0, size + 1)
    return (0.5 + np.outer(first + np.arange(1, count + 1), steps)) % 1.0


def draw_tasks(parameters: Sequence[Parameter], counts: Mapping[str, int]) -> dict[str, list[dict[str, float]]]:
    """Parameters of tasks by split: inside all ranges, but in "ood" one parameter, in turn, lies beyond its own."""
    first, drawn = 0, {}
    outer = [i for i, parameter in enumerate(parameters) if parameter.reaches_beyond]
    for split, count in counts.items():
        points = spread(count, len(parameters), first)
        first += count
        drawn[split] = []
        for number, point in enumerate(points.tolist()):
            beyond = outer[number % len(outer)] if split == "ood" else None
            places = enumerate(zip(parameters, point, strict=True))
            drawn[split].append({p.name: p.beyond(x) if i == beyond else p.inside(x) for i, (p, x) in places})
    return drawn
