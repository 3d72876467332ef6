# SPDX-License-Identifier: Apache-2.0
"""Steps of an observation that are far beyond all its other steps: resets without a mark, second publishers, wraps.

A step is a jump if it is many times the usual one, and if nothing lies between: the next smaller step is a fraction of
it, or it goes to a single value and back, several times. So noise of any size, signals that seldom change and signals
of few values hold none.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spc_core.contract.contract import Contract

GAP = 8.0  # between a jump and the next smaller step
LONE_GAP = 50.0  # for a single jump of a single field
USUAL = 20.0  # jumps are at least that many times the median step
FEW = 30  # steps, fewer of which tell nothing
SAMPLED = 5_000  # steps that the median is taken of, drawn at random: each fifth could be of one kind
DUST = 1e-9  # of the largest value; smaller steps are rounding
ROW = 2  # jumps one after the other; more of them are movement
MOST = 0.45  # of all steps
SPIKES = 3  # single values far from those before and after, fewer of which are a sensor's
BACK = 0.25  # of a spike's height: how near it comes to where it began
ALIKE = 0.05  # spread of sizes that are one and the same
PLACES = 50  # that are kept
NAMED = 6  # fields and places in the text


class Guess(enum.Enum):
    """What jumps look like, and what to do about them."""

    QUATERNION = (
        "the quaternion changes its sign, which is the same rotation: read it as a whole, with a transform such as "
        "`as: rotation_6d`"
    )
    WRAP = "an angle or a count wraps around: read an angle with `as: sin_cos`"
    PUBLISHER = (
        "they go there and back at once, as with a second publisher on the topic: look with `ros2 topic info -v`, stop "
        "or remap one of the two, and record again"
    )
    RESET = (
        "as with a reset that no mark tells of: mark the episodes (`episode: {segment: topic, ...}`) or cut the bag "
        "there; nothing to do if it is meant, such as a goal that is set anew"
    )


@dataclasses.dataclass(frozen=True)
class Jumps:
    """Jumps of one kind in one recording."""

    guess: Guess
    fields: tuple[str, ...]
    count: int  # transitions
    steps: int  # all transitions
    size: float  # the smallest jump of the first field
    others: float  # its largest other step
    at_s: tuple[float, ...]  # the first places, in seconds since the first tick

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "guess": self.guess.name.lower(), "text": self.text}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Jumps:
        """The inverse of as_dict(), also through JSON."""
        known = {field.name: data[field.name] for field in dataclasses.fields(cls)}
        lists = {name: tuple(data[name]) for name in ("fields", "at_s")}
        return cls(**{**known, **lists, "guess": Guess[data["guess"].upper()]})

    @property
    def text(self) -> str:
        names = ", ".join(self.fields[:NAMED]) + (
            f" and {len(self.fields) - NAMED} more" if self.fields[NAMED:] else ""
        )
        places = ", ".join(f"{at:.2f}" for at in self.at_s[:NAMED]) + (", ..." if self.at_s[NAMED:] else "")
        return (
            f"{names}: {self.count} of {self.steps} transitions step by {self.size:.3g} or more, all others by "
            f"{self.others:.3g} at most, at {places} s; {self.guess.value}"
        )


@np.errstate(over="ignore", invalid="ignore")  # damaged samples may hold any number
def find_jumps(t_ns: np.ndarray, observations: np.ndarray, joined: np.ndarray, contract: Contract) -> list[Jumps]:
    """The jumps in (N, O) observations at (N,) ticks; `joined` (N - 1,) is whether a transition lies between two."""
    steps = int(joined.sum())
    if steps < FEW:
        return []
    names, groups = contract.observation_names, _quaternions(contract.observation_names)
    found: dict[Guess, list[tuple[str, np.ndarray, float, float]]] = {}
    apart = np.flatnonzero(~joined)
    drawn = np.sort(np.random.default_rng(0).choice(len(joined), min(SAMPLED, len(joined)), replace=False))
    for field in _fields(contract):
        step = np.diff(np.ascontiguousarray(observations[:, field]))
        step[apart] = 0.0
        largest = float(np.nanmax(np.abs(observations[drawn, field]), initial=0.0))
        rows, size, others = _field_jumps(step, drawn, DUST * largest)
        if not len(rows) or _is_switch(step[rows], rows):
            continue
        guess = _guess(step[rows], rows, observations, groups.get(field))
        found.setdefault(guess, []).append((names[field], rows, size, others))
    return [_together(guess, entries, steps, t_ns) for guess, entries in found.items() if not _is_chance(entries)]


def _is_chance(entries: Sequence[tuple[str, np.ndarray, float, float]]) -> bool:
    """A single jump of a single field that is not far beyond the rest, such as a knock."""
    (_, rows, size, others), *more = entries
    return not more and len(rows) == 1 and size < LONE_GAP * others


def _fields(contract: Contract) -> list[int]:
    """Fields of streams that age; what is latched is set anew at times."""
    ages = [stream.max_age_s for stream in contract.observation for _ in stream.names]
    return [field for field, age in enumerate(ages) if math.isfinite(age)]


def _field_jumps(step: np.ndarray, drawn: np.ndarray, dust: float) -> tuple[np.ndarray, float, float]:
    """(rows of the jumps, the smallest of them, the largest other step) of a field's steps (N - 1,).

    `drawn`: rows that are typical; steps up to `dust` are none.
    """
    nothing = np.zeros(0, np.int64), 0.0, 0.0
    size = np.abs(step)
    some = size[drawn]
    some = some[some > dust]
    if len(some) < FEW:
        return nothing
    median = float(np.median(some))
    if _alternates(step[:SAMPLED], median):
        return np.flatnonzero(size > 0.5 * median), median, 0.0
    large = size > USUAL * median
    if not large.any():
        return nothing
    rows = np.flatnonzero(large)
    spikes = _spikes(step, large)
    if len(spikes) >= 2 * SPIKES and _are_apart(rows):
        least = float(size[spikes].min())
        return np.flatnonzero(size >= least), least, float(size[size < least].max(initial=0.0))
    edges = np.concatenate([[max(float(size[~large].max(initial=0.0)), median)], np.sort(size[rows])])
    for place in np.flatnonzero(edges[1:] >= GAP * edges[:-1]).tolist():
        found = rows[size[rows] >= edges[place + 1]]
        if len(found) <= MOST * len(step) and _are_apart(found):
            return found, float(edges[place + 1]), float(edges[place])
    return nothing


def _alternates(step: np.ndarray, median: float) -> bool:
    """Whether every second value belongs to one signal, and those between to another."""
    twice = np.abs(step[1:] + step[:-1])
    return bool(np.median(twice) < median / USUAL and np.median(np.abs(step)) > 0.5 * median)


def _spikes(step: np.ndarray, large: np.ndarray) -> np.ndarray:
    """Rows of large steps to a single value and back to where the field was, with small ones around."""
    around = np.concatenate([[False], large, [False]])
    first = np.flatnonzero(large[:-1] & large[1:] & ~around[:-3] & ~around[3:])
    one, two = step[first], step[first + 1]
    away = first[np.abs(one + two) < BACK * np.minimum(np.abs(one), np.abs(two))]
    return np.unique(np.concatenate([away, away + 1]))


def _are_apart(rows: np.ndarray) -> bool:
    """Whether most jumps are single, or there and back."""
    lengths = np.diff(np.flatnonzero(np.concatenate([[True], np.diff(rows) > 1, [True]])))
    return bool(lengths[lengths > ROW].sum() <= 0.2 * len(rows))


def _is_switch(jumps: np.ndarray, rows: np.ndarray) -> bool:
    """Whether the field has two values, noise aside, and stays at each for a while."""
    turns = bool((np.sign(jumps[1:]) == -np.sign(jumps[:-1])).all()) and len(jumps) > 2
    return turns and _alike(jumps) and float(np.median(np.diff(rows))) > 2 * ROW


def _alike(jumps: np.ndarray) -> bool:
    return float(np.std(np.abs(jumps))) <= ALIKE * float(np.mean(np.abs(jumps)))


def _guess(jumps: np.ndarray, rows: np.ndarray, observations: np.ndarray, quaternion: list[int] | None) -> Guess:
    if quaternion is not None:
        before, after = observations[rows][:, quaternion], observations[rows + 1][:, quaternion]
        turned = np.linalg.norm(after + before, axis=1) < 0.5 * np.linalg.norm(after - before, axis=1)
        if turned.mean() > 0.5:
            return Guess.QUATERNION
    size = float(np.median(np.abs(jumps)))
    is_turn = any(abs(size - turn) < ALIKE * turn for turn in (2 * math.pi, 360.0))
    if is_turn or (len(jumps) > 3 and _alike(jumps) and abs(np.sign(jumps).sum()) == len(jumps)):
        return Guess.WRAP
    back = (np.diff(rows) <= ROW) & (np.sign(jumps[1:]) == -np.sign(jumps[:-1]))
    return Guess.PUBLISHER if back.sum() >= 2 and back.sum() >= 0.25 * len(jumps) else Guess.RESET


def _quaternions(names: Sequence[str]) -> dict[int, list[int]]:
    """The four fields of the quaternion that a field belongs to."""
    groups: dict[str, dict[str, int]] = {}
    for field, name in enumerate(names):
        groups.setdefault(name.rpartition(".")[0], {})[name.rpartition(".")[2]] = field
    whole = [list(parts.values()) for parts in groups.values() if {"x", "y", "z", "w"} == set(parts)]
    return {field: fields for fields in whole for field in fields}


def _together(
    guess: Guess, entries: Sequence[tuple[str, np.ndarray, float, float]], steps: int, t_ns: np.ndarray
) -> Jumps:
    rows = np.unique(np.concatenate([rows for _, rows, _, _ in entries]))
    at_s = (t_ns[rows[:PLACES] + 1] - t_ns[0]) / 1e9
    _, _, size, others = entries[0]
    return Jumps(guess, tuple(name for name, *_ in entries), len(rows), steps, size, others, tuple(at_s.tolist()))
