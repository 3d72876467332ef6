# SPDX-License-Identifier: Apache-2.0
"""Statistics of the training data, which convert between the contract's units and the networks' unit scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from spc_core.contract.contract import Contract
from spc_core.method.config import ConfigError

NEVER_CHANGED = 1e30  # spread of a field that is constant in the data: on unit scale it is 0, whatever it reads later


@dataclasses.dataclass(frozen=True)
class Stats:
    """Mean and spread of the training data, float32, one entry for each field; actions scale by their limits."""

    observation_mean: np.ndarray  # (O,)
    observation_std: np.ndarray  # (O,)
    change_std: np.ndarray  # (O,) of s' - s
    reward_mean: float
    reward_std: float
    action_low: np.ndarray  # (A,) in the contract's unit
    action_high: np.ndarray  # (A,)

    @property
    def action_span(self) -> np.ndarray:
        """(A,) float32, the width of each action's range."""
        return self.action_high - self.action_low

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """(..., O) in the contract's units to unit scale."""
        return ((observation - self.observation_mean) / self.observation_std).astype(np.float32, copy=False)

    def action(self, action: np.ndarray) -> np.ndarray:
        """(..., A) in the contract's units to [-1, 1]; a command beyond the limits counts as the limit."""
        share = (action - self.action_low) / self.action_span
        return np.clip(2 * share - 1, -1, 1).astype(np.float32, copy=False)

    def action_units(self, action: np.ndarray) -> np.ndarray:
        """(..., A) in [-1, 1] to the contract's units, float64."""
        return self.action_low + (np.asarray(action, np.float64) + 1) / 2 * self.action_span

    @property
    def ignored(self) -> np.ndarray:
        """(O,) bool, the observed fields that never changed in the data, and that nothing can be learnt from."""
        return self.observation_std >= np.float32(NEVER_CHANGED)

    def reward(self, reward: Any) -> Any:
        return np.float32((reward - self.reward_mean) / self.reward_std)

    def terminal_value(self, discount: float) -> float:
        """What no more rewards are worth: a shifted reward of 0, for ever. A plain 0 would pay as the mean reward."""
        return -self.reward_mean / self.reward_std / (1 - discount)

    def transition(
        self, observation: np.ndarray, action: np.ndarray, reward: np.ndarray | float, next_observation: np.ndarray
    ) -> np.ndarray:
        """The context encoder's input (..., 2 O + A + 1): s, a, r, s' - s, each on unit scale."""
        change = ((next_observation - observation) / self.change_std).astype(np.float32, copy=False)
        reward = np.asarray(self.reward(reward), np.float32)[..., None]
        return np.concatenate([self.observation(observation), self.action(action), reward, change], -1)

    def to_dict(self) -> dict[str, Any]:
        return {key: np.asarray(value).tolist() for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Stats:
        """Raises ValueError for missing or unknown entries, so that nothing runs without normalisation."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise ValueError(
                f"statistics lack {sorted(names - set(values))}, or have unknown {sorted(set(values) - names)}"
            )
        made: dict[str, Any] = {
            key: float(value) if key.startswith("reward") else np.asarray(value, np.float32)
            for key, value in values.items()
        }
        return cls(**made)


@dataclasses.dataclass(frozen=True)
class TaskScale:
    """The true task parameters as a task vector: those that differ between training tasks, with mean and spread."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, tasks: Sequence[Mapping[str, float]]) -> TaskScale:
        """Raises ConfigError where tasks do not all have the same parameters, or none of them varies."""
        names = tuple(sorted(tasks[0]))
        others = [task for task in tasks if tuple(sorted(task)) != names]
        if others:
            raise ConfigError(
                f"method.context 'oracle' needs the same parameters of every task, but one has {sorted(others[0])} and "
                f"another {list(names)}; record `spc.task_params` with each bag"
            )
        values = np.array([[task[name] for name in names] for task in tasks], np.float64).reshape(len(tasks), -1)
        mean, std = values.mean(0), values.std(0)
        varying = np.flatnonzero(std > 0)
        if not len(varying):
            raise ConfigError(
                "method.context 'oracle' needs task parameters, but the dataset has none that differ between tasks; "
                "record `spc.task_params` with each bag, or choose another method"
            )
        kept = tuple(names[i] for i in varying)
        return cls(names=kept, mean=tuple(mean[varying].tolist()), std=tuple(std[varying].tolist()))

    def vector(self, params: Mapping[str, float]) -> np.ndarray:
        """The parameters of a task on unit scale (Z,). Raises ConfigError naming one that is missing."""
        missing = [name for name in self.names if name not in params]
        if missing:
            raise ConfigError(f"the task lacks the parameter '{missing[0]}' that the oracle was trained with")
        values = np.array([params[name] for name in self.names])
        return (values - np.array(self.mean)) / np.array(self.std)


class Moments:
    """Mean and standard deviation of rows that arrive in chunks, in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._shift = self._sum = self._squares = np.zeros(0)

    def add(self, rows: np.ndarray) -> None:
        """Add rows (N, F). Deviations from the first row keep all digits, and are exactly 0 in a constant field."""
        if self._count == 0:
            self._shift = rows[0].astype(np.float64)
            self._sum = self._squares = np.zeros_like(self._shift)
        deviations = rows - self._shift
        self._count += len(rows)
        self._sum = self._sum + deviations.sum(0)
        self._squares = self._squares + np.square(deviations).sum(0)

    @property
    def mean(self) -> np.ndarray:
        return self._shift + self._sum / self._count

    @property
    def std(self) -> np.ndarray:
        variance = self._squares / self._count - np.square(self._sum / self._count)
        return np.sqrt(np.maximum(variance, 0))


def compute_stats(contract: Contract, chunks: Iterable[tuple[np.ndarray, np.ndarray]]) -> Stats:
    """Statistics of chunks of data: pairs of consecutive observations (N, 2, O), and rewards (N,).

    Raises ValueError where no observation, or no reward, ever changes.
    """
    seen, change, reward = Moments(), Moments(), Moments()
    for observations, rewards in chunks:
        seen.add(observations[:, 0])
        change.add(observations[:, 1] - observations[:, 0])
        reward.add(rewards[:, None])
    varies = seen.std > 1e-8
    if not varies.any():
        raise ValueError(f"no observation ever changes in the data: {', '.join(contract.observation_names)}")
    if not reward.std[0] > 1e-8:
        raise ValueError(f"the reward is {reward.mean[0]:g} in every transition; nothing can be learnt from it")
    spread = np.where(varies, seen.std, NEVER_CHANGED)
    return Stats(
        observation_mean=seen.mean.astype(np.float32),
        observation_std=spread.astype(np.float32),
        change_std=np.where(change.std > 1e-6 * spread, change.std, spread).astype(np.float32),
        reward_mean=float(reward.mean[0]),
        reward_std=float(reward.std[0]),
        action_low=np.asarray(contract.action.low, np.float32),
        action_high=np.asarray(contract.action.high, np.float32),
    )
