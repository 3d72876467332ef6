# SPDX-License-Identifier: Apache-2.0
"""Behaviours for recording data: an expert, a noisy expert, smooth random motion, or a state of a learning agent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol, get_args

import numpy as np

from .families import tasks
from .snapshots import Snapshots, within_limits
from .task import FamilyError, Task

Kind = Literal["expert", "noisy", "random", "snapshot"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NOISE_TIME_S = 0.25  # correlation time of the noise
NOISE_SCALE = {
    "expert": (0.0, 0.0),
    "noisy": (0.1, 0.7),
    "random": (0.2, 1.0),
    "snapshot": (0.0, 0.0),
}  # of noise_action, drawn per episode
LEG_S = (0.2, 0.7)  # a noisy expert drives in legs of so long ...
OWN_LEG_SHARE = 0.6  # ... this share of them for its own task, the others for any training task


class Controllable(Protocol):
    """The part of a family that a behaviour needs: no simulator, so that a robot node can hold one."""

    family: str
    task: Task
    control_hz: float
    has_expert: bool
    snapshots: Snapshots | None
    action_low: np.ndarray
    action_high: np.ndarray
    noise_action: np.ndarray

    def expert(self, observation: np.ndarray, task: Task | None = None) -> np.ndarray: ...

    def rest_action(self, observation: np.ndarray) -> np.ndarray: ...


class SmoothNoise:
    """An Ornstein-Uhlenbeck process of unit variance, stepped exactly."""

    def __init__(self, size: int, rate_hz: float, time_s: float) -> None:
        self._decay = math.exp(-1 / (rate_hz * time_s))
        self._value = np.zeros(size)

    def reset(self, rng: np.random.Generator) -> None:
        """Start from the stationary distribution."""
        self._value = rng.standard_normal(self._value.size)

    def step(self, rng: np.random.Generator) -> np.ndarray:
        """The next value (size,)."""
        spread = math.sqrt(1 - self._decay**2)
        self._value = self._decay * self._value + spread * rng.standard_normal(self._value.size)
        return self._value


class Behaviour:
    """One way of acting for `env.task`, from observations alone; call reset() before each episode."""

    def __init__(self, env: Controllable, kind: str, seed: int) -> None:
        if kind not in KINDS:
            raise ValueError(f"unknown behaviour {kind!r}; known: {', '.join(KINDS)}")
        if kind not in kinds_of(env):
            raise FamilyError(f"family '{env.family}' has no behaviour '{kind}', only: {', '.join(kinds_of(env))}")
        self.env = env
        self.kind = kind
        self._rng = np.random.default_rng(seed)
        self._noise = SmoothNoise(env.action_low.size, env.control_hz, NOISE_TIME_S)
        self.reset()

    def reset(self) -> None:
        """Draw this episode's noise scale, or state of the agent; a noisy expert begins its first leg."""
        self._scale = self._rng.uniform(*NOISE_SCALE[self.kind]) * self.env.noise_action
        self._noise.reset(self._rng)
        self._leg_task: Task | None = None  # None: the own one
        self._leg_steps = 0
        if self.kind == "snapshot" and self.env.snapshots is not None:
            self._state = int(self._rng.integers(len(self.env.snapshots)))

    def act(self, observation: np.ndarray) -> np.ndarray:
        """The next action (action_dim,) within its limits, in physical units."""
        if self.kind == "snapshot":
            assert self.env.snapshots is not None
            action = self.env.snapshots.act(self._state, observation, self.env.task, self._rng)
            return within_limits(action, self.env.action_low, self.env.action_high)
        if self.kind == "random":
            action = self.env.rest_action(observation)
        else:
            if self.kind == "noisy":
                self._drive_leg()
            action = self.env.expert(observation, self._leg_task or self.env.task)
        if self.kind != "expert":
            action = action + self._scale * self._noise.step(self._rng)
        return np.minimum(np.maximum(action, self.env.action_low), self.env.action_high)

    def _drive_leg(self) -> None:
        """Continue the leg, or begin another: errors and corrections, so that actions do not give the task away."""
        if self._leg_steps == 0:
            known = tasks(self.env.family, "train")
            own = self._rng.uniform() < OWN_LEG_SHARE
            self._leg_task = None if own else known[self._rng.integers(len(known))]
            self._leg_steps = round(self._rng.uniform(*LEG_S) * self.env.control_hz)
        self._leg_steps -= 1


def kinds_of(env: Controllable) -> tuple[Kind, ...]:
    """The behaviours that the family has."""
    if env.snapshots is not None:
        return KINDS
    return ("expert", "noisy", "random") if env.has_expert else ("random",)


def behaviour_mix(episode: int, kinds: Sequence[Kind] = ("expert", "noisy", "random")) -> Kind:
    """The kind of the n-th recorded episode: a state of a learning agent, or else expert, noisy, random in turn."""
    return "snapshot" if "snapshot" in kinds else kinds[episode % len(kinds)]


def episode_seed(seed: int, task_index: int, episode: int) -> int:
    """A seed of its own for each recorded episode: the same task and number give the same episode."""
    return seed * 1_000_000 + task_index * 10_000 + episode
