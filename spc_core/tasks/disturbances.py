# SPDX-License-Identifier: Apache-2.0
"""Seeded disturbances of a simulated robot: delays, noise, lost messages and pushes."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, deque
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class DisturbanceConfig:
    """Strength of each disturbance; the defaults are none."""

    sensor_delay_ms: float = 0.0  # observations lag their timestamps by this much
    actuator_delay_ms: float = 0.0  # a command takes effect this much later
    noise: tuple[str, ...] = ()  # "<topic>=<std>" or "<topic>.<field>=<std>", in the unit of the field
    noise_relative: float = 0.0  # std as a share of each value
    sensor_dropout: float = 0.0  # share of state messages that are lost
    command_dropout: float = 0.0  # share of commands that are lost
    push_impulse: float = 0.0  # largest impulse on each degree of freedom, Nms (hinge) or Ns (slide)
    push_interval_s: float = 2.0  # mean time between two pushes


class DelayLine:
    """Returns the value put in `delay` steps ago; between two steps, both by their share of the step."""

    def __init__(self, delay: float) -> None:
        """`delay` is in steps and need not be whole."""
        self._whole, self._share = int(delay), delay - int(delay)
        self._values: deque[np.ndarray] = deque(maxlen=self._whole + 2)

    def reset(self, first: np.ndarray) -> None:
        """As if `first` had always been put in."""
        self._values.extend([first] * (self._whole + 2))

    def push(self, value: np.ndarray) -> np.ndarray:
        """Put in the value of this step; returns the one that has come through."""
        self._values.append(value)
        older, newer = self._values[0], self._values[1]
        if self._share == 0.0:
            return newer
        return (1 - self._share) * newer + self._share * older


class Disturbances:
    """One episode's disturbances. Each kind draws from a stream of its own, so that none changes another's draws."""

    def __init__(
        self, config: DisturbanceConfig, names: Sequence[str], safe: np.ndarray, period_s: float, seed: int
    ) -> None:
        """`names` are the observed fields as "<topic>.<field>"; the same config and seed give the same episode.

        Raises ValueError for noise on fields that are not observed.
        """
        self.config, self.counts = config, Counter[str]()
        self._std = noise_std(config.noise, names)
        self._noisy = config.noise_relative > 0 or bool(self._std.any())
        self._push_chance = min(1.0, period_s / config.push_interval_s) if config.push_impulse > 0 else 0.0
        self._period_s = period_s
        self._sensors = DelayLine(config.sensor_delay_ms / 1000 / period_s)
        self._actuators = DelayLine(config.actuator_delay_ms / 1000 / period_s)
        self._actuators.reset(np.asarray(safe, dtype=np.float64))
        self._started = False
        streams = np.random.SeedSequence([0x5BC, seed]).spawn(4)
        self._noise, self._sensor_loss, self._command_loss, self._pushes = map(np.random.default_rng, streams)

    def measured(self, observation: np.ndarray) -> np.ndarray:
        """The measured observation (O,) of this tick, from the true one: late, then noisy."""
        if not self._started:
            self._sensors.reset(observation)
            self._started = True
        late = self._sensors.push(observation)
        if not self._noisy:
            return late
        std = np.hypot(self._std, self.config.noise_relative * np.abs(late))
        return late + std * self._noise.standard_normal(len(late))

    def applied(self, command: np.ndarray) -> np.ndarray:
        """The actuators' action (A,) in the step that begins now, given its command."""
        return self._actuators.push(command)

    def push(self, dofs: int) -> np.ndarray:
        """Forces (dofs,) in N or Nm for the step that begins now; mostly zero."""
        if self._push_chance == 0.0 or self._pushes.random() >= self._push_chance:
            return np.zeros(dofs)
        self.counts["pushes"] += 1
        impulse = self.config.push_impulse * self._pushes.uniform(-1, 1, dofs)
        return impulse / self._period_s

    def command_lost(self) -> bool:
        """Whether this command never arrives."""
        return self._lose("commands lost", self._command_loss, self.config.command_dropout, 1) == [0]

    def states_lost(self, messages: int) -> list[int]:
        """Which of so many state messages never arrive."""
        return self._lose("states lost", self._sensor_loss, self.config.sensor_dropout, messages)

    def _lose(self, what: str, stream: np.random.Generator, chance: float, messages: int) -> list[int]:
        lost = np.flatnonzero(stream.random(messages) < chance).tolist() if chance > 0 else []
        if lost:
            self.counts[what] += len(lost)
        return lost


def noise_std(entries: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Noise of each observed field (O,); an entry holds for the field of that name and all below it.

    Raises ValueError with the entry and the possible values.
    """
    std = np.zeros(len(names))
    for entry in filter(None, entries):
        group, equals, number = entry.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not equals or not (math.isfinite(value) and value >= 0):
            raise ValueError(f"noise: '{entry}' is not <field group>=<std>, for example {names[0]}=0.01")
        chosen = [i for i, name in enumerate(names) if name == group or name.startswith(f"{group}.")]
        if not chosen:
            raise ValueError(f"noise: no observed field is or begins with '{group}'; observed are {', '.join(names)}")
        std[chosen] = value
    return std
