# SPDX-License-Identifier: Apache-2.0
"""The terms that a reward is a weighted sum of: what each kind measures, and the shape of what it pays for that.

The error of a term is a length: of its fields, each divided by its scale. Errors cost (absolute, square), or pay the
more the smaller they are (exponential, band); weights are positive either way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from spc_core.contract.reward_expression import parse_expression, wrap
from spc_core.contract.reward_rows import AFTER, BEFORE, PREVIOUS, Place, RewardFields, Rows
from spc_core.contract.sections import TermSpec

Values = Callable[[Rows], np.ndarray]
"""Of N transitions a number each, (N,)."""


@dataclasses.dataclass(frozen=True)
class Term:
    """A term whose names are found: what it pays, weight included."""

    name: str
    pays: Values
    uses_previous: bool = False
    met: Values | None = None  # (N,) bool, of a success term


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a contract may say of a kind of term, and how it is built; `shape` is the default, '' for none."""

    keys: tuple[str, ...]
    required: tuple[str, ...]
    shape: str
    build: Callable[[TermSpec, RewardFields], Term]


SHAPES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "absolute": lambda error: -error,
    "square": lambda error: -(error * error),
    "exponential": lambda error: np.exp(-(error * error)),
    "band": lambda error: np.where(error <= 1.0, 1.0, 0.0),
}


def build_terms(specs: Sequence[TermSpec], fields: RewardFields) -> tuple[Term, ...]:
    """Raises ValueError with place, problem and fix."""
    return tuple(KINDS[spec.kind].build(spec, fields) for spec in specs)


def length(columns: Sequence[np.ndarray]) -> np.ndarray:
    """The Euclidean length, (N,); added column by column, since the order of np.sum depends on the memory layout."""
    return np.abs(columns[0]) if len(columns) == 1 else np.sqrt(sum_of_squares(columns))


def sum_of_squares(columns: Sequence[np.ndarray]) -> np.ndarray:
    total = np.square(columns[0])
    for column in columns[1:]:
        total = total + np.square(column)
    return total


def _differences(spec: TermSpec, ours: Sequence[Place], targets: Sequence[Place | float]) -> Values:
    """The length of the scaled differences of places from targets."""

    def error(rows: Rows) -> np.ndarray:
        columns = []
        for ours_at, target, scale in zip(ours, targets, spec.scales, strict=True):
            apart = rows.column(ours_at) - (rows.column(target) if isinstance(target, Place) else target)
            columns.append((wrap(apart) if spec.angle else apart) / scale)
        return length(columns)

    return error


def _paid(spec: TermSpec, error: Values, uses_previous: bool = False) -> Term:
    """A term that pays by the shape of an error."""
    shape = SHAPES[spec.shape]
    return Term(spec.name, lambda rows: spec.weight * shape(error(rows)), uses_previous)


def _find(spec: TermSpec, key: str, names: Sequence[str], find: Callable[[str], Place]) -> list[Place]:
    """The places of the names of a key of the term."""
    places = []
    for i, name in enumerate(names):
        try:
            places.append(find(name))
        except ValueError as error:
            raise ValueError(f"{spec.path}.{key}{f'[{i}]' if len(names) > 1 else ''}: '{name}' {error}") from None
    return places


def _observed(spec: TermSpec, fields: RewardFields, when: str = AFTER) -> list[Place]:
    return _find(spec, "of", spec.of, lambda name: fields.find(name, when))


def _targets(spec: TermSpec, fields: RewardFields) -> list[Place | float]:
    """Constants, or fields as they were when the action was chosen."""
    targets: list[Place | float] = []
    for target in spec.to:
        named = isinstance(target, str)
        targets.append(_find(spec, "to", [target], lambda n: fields.find(n, BEFORE))[0] if named else target)
    return targets


def _distance(spec: TermSpec, fields: RewardFields) -> Term:
    places, targets = _observed(spec, fields), _targets(spec, fields)
    uses = any(place.when == PREVIOUS for place in [*places, *targets] if isinstance(place, Place))
    return _paid(spec, _differences(spec, places, targets), uses)


def _progress(spec: TermSpec, fields: RewardFields) -> Term:
    """How much nearer the step led to the target of o_k."""
    for name in spec.of:
        if name.partition(".")[0] in (AFTER, BEFORE, "action", PREVIOUS):
            raise ValueError(f"{spec.path}.of: '{name}' has a prefix, but progress compares a field before and after "
                             "the step; write the observed field alone")  # fmt: skip
    targets = _targets(spec, fields)
    ahead = _differences(spec, _observed(spec, fields, BEFORE), targets)
    left = _differences(spec, _observed(spec, fields), targets)
    return Term(spec.name, lambda rows: spec.weight * (ahead(rows) - left(rows)))


def _commanded(spec: TermSpec, fields: RewardFields) -> list[Place]:
    """The named numbers of the action, or all."""
    names = [name.removeprefix("action.") for name in spec.of]
    return _find(spec, "of", names or fields.commanded, fields.find_action)


def _effort(spec: TermSpec, fields: RewardFields) -> Term:
    """The action in shares of its largest magnitude."""
    places = _commanded(spec, fields)
    sizes = [fields.action_scale[place.column] for place in places]

    def error(rows: Rows) -> np.ndarray:
        shares = [rows.column(place) / size for place, size in zip(places, sizes, strict=True)]
        return length(shares) / spec.scales[0]

    return _paid(spec, error)


def _smoothness(spec: TermSpec, fields: RewardFields) -> Term:
    """The change of the action since the last step, in shares of its largest magnitude."""
    places = _commanded(spec, fields)
    sizes = [fields.action_scale[place.column] for place in places]

    def error(rows: Rows) -> np.ndarray:
        changes = [
            (rows.column(place) - rows.column(Place(PREVIOUS, place.column))) / size
            for place, size in zip(places, sizes, strict=True)
        ]
        return length(changes) / spec.scales[0]

    return _paid(spec, error, uses_previous=True)


def _alive(spec: TermSpec, fields: RewardFields) -> Term:
    return Term(spec.name, lambda rows: rows.full(spec.weight))


def _bounds(spec: TermSpec, fields: RewardFields) -> Term:
    """How far the fields are outside their band."""
    places = _observed(spec, fields)
    low, high = spec.within or (-math.inf, math.inf)
    ranges = [fields.range_of(place) for place in places]
    if all(low <= least and most <= high for least, most in ranges):
        raise ValueError(f"{spec.path}.within: is [{low:g}, {high:g}], which {_said(spec, fields, places)} never "
                         "leave, as the contract defines them; make it narrower, or remove the term")  # fmt: skip

    def error(rows: Rows) -> np.ndarray:
        beyond = []
        for place, scale in zip(places, spec.scales, strict=True):
            value = rows.column(place)
            beyond.append(np.maximum(np.maximum(low - value, value - high), 0.0) / scale)
        return length(beyond)

    return _paid(spec, error, any(place.when == PREVIOUS for place in places))


def _success(spec: TermSpec, fields: RewardFields) -> Term:
    """The weight in each step that ends where the condition holds: near a target, or inside a band."""
    places, targets = _observed(spec, fields), _targets(spec, fields)
    ranges = [fields.range_of(place) for place in places]
    low, high = spec.within or (-math.inf, spec.near)
    if targets:
        pairs = zip(ranges, targets, strict=True)
        nearest = [0.0 if spec.angle else _apart(own, _range(target, fields)) for own, target in pairs]
        possible, told = math.hypot(*nearest) <= spec.near, f"{spec.near:g}"
        met = _is_near(_differences(spec, places, targets), spec.near)
    else:
        possible = all(least <= high and low <= most for least, most in ranges)
        told, met = f"[{low:g}, {high:g}]", _is_inside(places, low, high)
    if not possible:
        edges = ", ".join(f"[{least:g}, {most:g}]" for least, most in ranges)
        raise ValueError(f"{spec.path}.within: is {told}, which can never hold: {_said(spec, fields, places)} stay "
                         f"within {edges}, as the contract defines them; correct one of them")  # fmt: skip
    uses = any(place.when == PREVIOUS for place in [*places, *targets] if isinstance(place, Place))
    return Term(spec.name, lambda rows: np.where(met(rows), spec.weight, 0.0), uses, met)


def _is_near(error: Values, near: float) -> Values:
    return lambda rows: error(rows) <= near


def _is_inside(places: Sequence[Place], low: float, high: float) -> Values:
    """All of the places are inside the band."""

    def inside(rows: Rows) -> np.ndarray:
        columns = [rows.column(place) for place in places]
        return np.logical_and.reduce([(column >= low) & (column <= high) for column in columns])

    return inside


def _range(target: Place | float, fields: RewardFields) -> tuple[float, float]:
    return fields.range_of(target) if isinstance(target, Place) else (target, target)


def _apart(one: tuple[float, float], other: tuple[float, float]) -> float:
    """The distance of two ranges."""
    return max(one[0] - other[1], other[0] - one[1], 0.0)


def _said(spec: TermSpec, fields: RewardFields, places: Sequence[Place]) -> str:
    return ", ".join(fields.name_of(place) for place in places)


def _expression(spec: TermSpec, fields: RewardFields) -> Term:
    try:
        found = parse_expression(spec.expression, fields)
    except ValueError as error:
        raise ValueError(f"{spec.path}: {error}") from None
    return Term(spec.name, lambda rows: spec.weight * found.compute(rows), found.uses_previous)


ERROR_KEYS = ("scale", "shape")
KINDS: Mapping[str, Kind] = {
    "distance": Kind(("of", "to", "angle", *ERROR_KEYS), ("of", "to"), "absolute", _distance),
    "tracking": Kind(("of", "to", "angle", *ERROR_KEYS), ("of", "to"), "exponential", _distance),
    "progress": Kind(("of", "to", "angle", "scale"), ("of", "to"), "", _progress),
    "effort": Kind(("of", *ERROR_KEYS), (), "square", _effort),
    "smoothness": Kind(("of", *ERROR_KEYS), (), "square", _smoothness),
    "bounds": Kind(("of", "within", *ERROR_KEYS), ("of", "within"), "absolute", _bounds),
    "alive": Kind((), (), "", _alive),
    "success": Kind(("of", "to", "within", "angle"), ("of", "within"), "", _success),
    "expression": Kind(("value",), ("value",), "", _expression),
}
