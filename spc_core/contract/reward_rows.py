# SPDX-License-Identifier: Apache-2.0
"""What a reward may name, and the numbers of transitions as columns.

A name is that of an observed field, with or without its topic, as the step leaves it: in o_{k+1}. With `before.` it is
in o_k, and `action.` and `previous_action.` name a field of a_k and a_{k-1}. Where there is no command before, at an
episode's start or behind a gap, `previous_action.` is a_k: the command did not change.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from spc_core.contract.sections import observed_column
from spc_core.system.config_files import suggest

AFTER, BEFORE, ACTION, PREVIOUS = "after", "before", "action", "previous_action"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a number of a transition is: `when` is one of the four prefixes of names."""

    when: str
    column: int


class Rows:
    """N transitions as columns (N,), at least two and each contiguous, so that one and many are computed alike.

    Numpy takes other loops for a single number than for many, whose exp or sin may differ in the last bit.
    """

    def __init__(self, before: np.ndarray, action: np.ndarray, after: np.ndarray, previous: np.ndarray | None) -> None:
        """(..., O), (..., A), (..., O) and (..., A) float64; `previous` is NaN in rows that have none, or None."""
        self.shape = before.shape[:-1]
        self._count = math.prod(self.shape)
        self._given = {BEFORE: before, ACTION: action, AFTER: after, PREVIOUS: previous}
        self._columns: dict[str, np.ndarray] = {}

    def column(self, place: Place) -> np.ndarray:
        """(N,) contiguous."""
        columns = self._columns.get(place.when)
        if columns is None:
            columns = self._columns[place.when] = self._of(place.when)
        return columns[place.column] if self._count == 1 else np.ascontiguousarray(columns[place.column])

    def _of(self, when: str) -> np.ndarray:
        """Columns (width, N)."""
        values = self._given[when]
        if when == PREVIOUS:
            action = self._given[ACTION]
            values = action if values is None else np.where(np.isnan(values), action, values)
        assert values is not None
        if self._count != 1:
            return np.asarray(values, np.float64).reshape(-1, values.shape[-1]).T
        twice = np.empty((values.shape[-1], 2))
        twice[:] = values.reshape(-1, 1)
        return twice

    def full(self, value: float) -> np.ndarray:
        """(N,)"""
        return np.full(2 if self._count == 1 else self._count, value)

    def shaped(self, values: np.ndarray) -> np.ndarray:
        """Numbers (N,) in the shape of the transitions that were given."""
        return values[: self._count].reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class RewardFields:
    """The fields of a contract that its reward may use."""

    observed: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...]  # of observed fields, as far as their transforms tell
    commanded: tuple[str, ...]
    low: tuple[float, ...]  # limits of the action
    high: tuple[float, ...]
    period_s: float

    @functools.cached_property
    def action_scale(self) -> tuple[float, ...]:
        """The largest magnitude of each number of the action."""
        return tuple(max(abs(low), abs(high)) for low, high in zip(self.low, self.high, strict=True))

    def find(self, name: str, when: str = AFTER) -> Place:
        """The place of a name; of an observed field without prefix at `when`. Raises ValueError: problem and fix."""
        prefix, _, field = name.partition(".")
        if prefix in (ACTION, PREVIOUS):
            return self.find_action(field, prefix)
        if prefix in (AFTER, BEFORE):
            name, when = field, prefix
        try:
            return Place(when, observed_column(self.observed, name))
        except ValueError as error:
            if name in self.commanded or any(field.endswith(f".{name}") for field in self.commanded):
                raise ValueError(f"is commanded, not observed; write action.{name}") from None
            raise ValueError(str(error)) from None

    def find_action(self, name: str, when: str = ACTION) -> Place:
        """The place of a field of the action. Raises ValueError."""
        found = [i for i, field in enumerate(self.commanded) if field == name or field.endswith(f".{name}")]
        found = [self.commanded.index(name)] if name in self.commanded else found
        if len(found) != 1:
            problem = "is commanded more than once; write its topic too" if found else "is not commanded"
            known = ", ".join(f"{when}.{field}" for field in self.commanded)
            raise ValueError(f"{problem}{suggest(name, self.commanded)}; known: {known}")
        return Place(when, found[0])

    def range_of(self, place: Place) -> tuple[float, float]:
        """The lowest and the highest value, infinite where the contract does not tell."""
        if place.when in (AFTER, BEFORE):
            return self.ranges[place.column]
        return self.low[place.column], self.high[place.column]

    def name_of(self, place: Place) -> str:
        names = self.observed if place.when in (AFTER, BEFORE) else self.commanded
        return names[place.column]
