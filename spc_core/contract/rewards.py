# SPDX-License-Identifier: Apache-2.0
"""The reward that a contract computes: a sum of terms, its own or those of an entry of a fixed registry.

A contract names terms and entries, never code to import.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from spc_core.contract.reward_rows import AFTER, BEFORE, Place, RewardFields, Rows
from spc_core.contract.reward_terms import Term, sum_of_squares

Array = np.ndarray
MEND_REWARD = "guard divisions, roots and logarithms in the contract's reward, as in max(x, 0.001)"


class RewardError(ValueError):
    """A reward that is not a finite number; the message names the term."""


class RewardFunction:
    """The reward r_k of (o_k, a_k, o_{k+1}), in the contract's units: the sum of its terms, in their order.

    Bitwise the same result row by row or in bulk.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        self._terms = tuple(terms)
        self.names = tuple(term.name for term in terms)
        self.uses_previous = any(term.uses_previous for term in terms)  # whether a_{k-1} matters
        self.successes = tuple(term.name for term in terms if term.met is not None)

    def __call__(self, before: Array, action: Array, after: Array, previous: Array | None = None) -> Array:
        """(..., O), (..., A), (..., O) to (...). `previous` (..., A) is a_{k-1}, NaN where there is none."""
        rows = Rows(before, action, after, previous)
        with np.errstate(all="ignore"):  # what is not finite is refused by name, not warned of
            total = self._terms[0].pays(rows)
            for term in self._terms[1:]:
                total = total + term.pays(rows)
        return rows.shaped(total)

    def paid(self, before: Array, action: Array, after: Array, previous: Array | None = None) -> float:
        """The reward of one transition, (O,), (A,), (O,). Raises RewardError if it is not finite."""
        row = before, action, after, previous
        reward = float(self(*row))
        if not math.isfinite(reward):
            raise RewardError(f"the reward's term '{self.culprit(*row)}' is not finite; {MEND_REWARD}")
        return reward

    def parts(self, before: Array, action: Array, after: Array, previous: Array | None = None) -> Array:
        """What each term pays, (K, ...)."""
        rows = Rows(before, action, after, previous)
        with np.errstate(all="ignore"):
            return np.stack([rows.shaped(term.pays(rows)) for term in self._terms])

    def succeeded(self, before: Array, action: Array, after: Array, previous: Array | None = None) -> Array:
        """Whether the condition of any success term holds, (...) bool."""
        rows = Rows(before, action, after, previous)
        found = rows.full(0.0) > 0
        with np.errstate(all="ignore"):
            for term in self._terms:
                if term.met is not None:
                    found = found | term.met(rows)
        return rows.shaped(found)

    def culprit(self, before: Array, action: Array, after: Array, previous: Array | None = None) -> str:
        """The first term that is not finite in one transition, (O,), (A,), (O,); 'sum' where only the sum is not."""
        parts = self.parts(before, action, after, previous)
        bad = np.flatnonzero(~np.isfinite(parts))
        return self.names[bad[0]] if len(bad) else "sum"


def actions_before(previous: np.ndarray | None, actions: np.ndarray) -> np.ndarray:
    """The action before each of an unbroken run (T, A): `previous` or NaN for the first, and then each its last."""
    first = np.full((1, actions.shape[1]), np.nan) if previous is None else previous[None]
    return np.concatenate([first, actions[:-1]])


@dataclasses.dataclass(frozen=True)
class RewardEntry:
    """A reward function's default weights, and its terms from the fields of a contract and weights."""

    weights: Mapping[str, float]
    build: Callable[[RewardFields, Mapping[str, float]], Sequence[Term]]


def _reach(fields: RewardFields, weights: Mapping[str, float]) -> Sequence[Term]:
    """-distance * tanh(scale * |position' - target|) - effort * |a / action_scale|^2, joint by joint name.

    The target is that of o_k, since a_k responds to o_k. Bounded, so that critics stay bounded.
    """
    names = fields.observed
    joints = [name.removeprefix("target.position.") for name in names if name.startswith("target.position.")]
    if not joints:
        raise ValueError("reward 'reach' needs observed fields target.position.<joint>; observe the topic 'target'")
    position = [Place(AFTER, _index(names, f"joint_states.position.{joint}")) for joint in joints]
    target = [Place(BEFORE, _index(names, f"target.position.{joint}")) for joint in joints]

    def distance(rows: Rows) -> np.ndarray:
        apart = [rows.column(p) - rows.column(t) for p, t in zip(position, target, strict=True)]
        return -weights["distance"] * np.tanh(weights["scale"] * np.sqrt(sum_of_squares(apart)))

    def effort(rows: Rows) -> np.ndarray:
        shares = [rows.column(Place("action", i)) / size for i, size in enumerate(fields.action_scale)]
        return -(weights["effort"] * sum_of_squares(shares))

    return Term("distance", distance), Term("effort", effort)


def _index(names: tuple[str, ...], name: str) -> int:
    if name not in names:
        raise ValueError(f"reward 'reach' needs the observed field '{name}'; observed are: {', '.join(names)}")
    return names.index(name)


REWARDS: Mapping[str, RewardEntry] = {
    "reach": RewardEntry(weights={"distance": 1.0, "scale": 1.0, "effort": 0.0}, build=_reach),
}
