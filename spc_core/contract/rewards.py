# SPDX-License-Identifier: Apache-2.0
"""The fixed registry of reward functions: a contract names an entry, never code to import."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

RewardFunction = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(o_k, a_k, o_{k+1}) in the contract's units, (..., O), (..., A), (..., O), to r_k, (...).

Bitwise the same result row by row or in bulk.
"""


@dataclasses.dataclass(frozen=True)
class RewardEntry:
    """A reward function's default weights, and its constructor from field names, action scale and weights."""

    weights: Mapping[str, float]
    build: Callable[[tuple[str, ...], np.ndarray, Mapping[str, float]], RewardFunction]


def _reach(names: tuple[str, ...], action_scale: np.ndarray, weights: Mapping[str, float]) -> RewardFunction:
    """-distance * tanh(scale * |position' - target|) - effort * |a / action_scale|^2, joint by joint name.

    The target is that of o_k, since a_k responds to o_k. Bounded, so that critics stay bounded.
    """
    joints = [name.removeprefix("target.position.") for name in names if name.startswith("target.position.")]
    if not joints:
        raise ValueError("reward 'reach' needs observed fields target.position.<joint>; observe the topic 'target'")
    position = [_index(names, f"joint_states.position.{joint}") for joint in joints]
    target = [_index(names, f"target.position.{joint}") for joint in joints]

    def reward(observation: np.ndarray, action: np.ndarray, next_observation: np.ndarray) -> np.ndarray:
        distance = np.sqrt(_sum_of_squares(next_observation[..., position] - observation[..., target]))
        effort = _sum_of_squares(action / action_scale)
        return -weights["distance"] * np.tanh(weights["scale"] * distance) - weights["effort"] * effort

    return reward


def _sum_of_squares(values: np.ndarray) -> np.ndarray:
    """Over the last axis, term by term: the order of np.sum, and so its last bit, depends on the memory layout."""
    total = np.square(values[..., 0])
    for i in range(1, values.shape[-1]):
        total = total + np.square(values[..., i])
    return total


def _index(names: tuple[str, ...], name: str) -> int:
    if name not in names:
        raise ValueError(f"reward 'reach' needs the observed field '{name}'; observed are: {', '.join(names)}")
    return names.index(name)


REWARDS: Mapping[str, RewardEntry] = {
    "reach": RewardEntry(weights={"distance": 1.0, "scale": 1.0, "effort": 0.0}, build=_reach),
}
