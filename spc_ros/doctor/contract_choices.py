# SPDX-License-Identifier: Apache-2.0
"""Choices of a proposed contract from the recorded messages: fields, rates, limits and clocks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from spc_core.command_delay.correlogram import ABSURD
from spc_core.doctor.clock_checks import check_clock_domains, check_clock_jumps, offset_s
from spc_core.doctor.diagnosis import Thresholds, TopicLog
from spc_core.doctor.topic_stats import delays_ns
from spc_core.doctor.value_checks import value_range
from spc_ros.messages.fields import JOINT_ARRAYS, JOINT_STATE

ROUND_HZ = (1, 2, 4, 5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 80, 90, 100, 120, 125, 150, 200, 240, 250, 400, 500, 1000)
ROUND_SHARE = 0.04  # a measured rate this close to a round one is taken for it
MIN_LENGTH = 1e-6  # of a quaternion, shorter ones are not rotations
TINY = 1e-9  # numbers below it are zero to a robot
WIDEN = 1.1  # factor from the observed range to the limits
LATE_PERIODS = 0.5  # of the ticks; stamps that are received later than this do not go with receive times


@dataclasses.dataclass(frozen=True)
class Choice:
    """The fields of a topic that go into the contract, and why the others do not."""

    log: TopicLog
    fields: tuple[str, ...]
    left_out: tuple[str, ...]  # "field (reason)"
    rotations: tuple[str, ...] = ()  # those of the fields that are quaternions


def choose(log: TopicLog) -> Choice:
    """The fields worth observing: always there, finite, changing; a quaternion as a whole."""
    plain = _choose(log)
    fields, left_out, rotations = list(plain.fields), list(plain.left_out), []
    for path in _quaternions(log):
        parts = [f"{path}.{axis}" for axis in "xyzw"]
        kept = [field for field in parts if field in fields]
        if not kept:
            continue
        fields[fields.index(kept[0])] = path
        fields = [field for field in fields if field not in parts]
        left_out = [entry for entry in left_out if entry.partition(" (")[0] not in parts]
        rotations.append(path)
    return Choice(log, tuple(fields), tuple(left_out), tuple(rotations))


def _quaternions(log: TopicLog) -> list[str]:
    """Paths of parts with finite x, y, z and w in every message, never all zero."""
    found = []
    for path in [field.removesuffix(".w") for field in log.fields if field.endswith(".w")]:
        parts = [f"{path}.{axis}" for axis in "xyzw"]
        if not all(part in log.fields for part in parts):
            continue
        columns = [log.fields.index(part) for part in parts]
        values = log.values[:, columns]
        if bool(np.isfinite(values).all()) and bool((np.abs(values).max(axis=1, initial=0) > MIN_LENGTH).all()):
            found.append(path)
    return found


def _choose(log: TopicLog) -> Choice:
    low, high = value_range(log)
    absent = _at_times_absent(log)
    finite = np.asarray(np.isfinite(log.values).all(axis=0))
    kept, left_out = [], []
    for i, field in enumerate(log.fields):
        if absent[i]:
            left_out.append(f"{field} (not in every message)")
        elif not finite[i]:
            left_out.append(f"{field} (NaN at times)")
        elif log.type == JOINT_STATE and field.startswith("effort."):
            left_out.append(f"{field} (measured effort is mostly noise)")
        elif low[i] == high[i]:
            left_out.append(f"{field} (never changes)")
        else:
            kept.append(field)
    return Choice(log, tuple(kept or log.fields), tuple(left_out if kept else ()))


def _at_times_absent(log: TopicLog) -> np.ndarray:
    """(F,) bool: fields that some messages lack."""
    return np.zeros(len(log.fields), bool) if log.absent is None else np.asarray(log.absent.any(axis=0))


def round_rate(rate_hz: float) -> float:
    """The round rate nearby, else the nearest whole number."""
    near = min(ROUND_HZ, key=lambda known: abs(math.log(known / rate_hz)))
    return near if abs(near / rate_hz - 1) <= ROUND_SHARE else max(1, round(rate_hz))


def limits(values: np.ndarray, stops: bool = False) -> tuple[float, float]:
    """The observed range, widened, rounded outwards to two digits.

    Symmetric where it goes through zero; from zero on where it begins near it, or where zero `stops` the robot.
    """
    values = values[np.abs(values) < ABSURD]  # nor NaN
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    if max(-low, high) < TINY:
        return -1.0, 1.0
    if low < 0 < high:
        reach = round_up(WIDEN * max(-low, high))
        return -reach, reach
    if stops or min(abs(low), abs(high)) < high - low:
        return (0.0, round_up(WIDEN * high)) if high > 0 else (-round_up(-WIDEN * low), 0.0)
    margin = (WIDEN - 1) * max(high - low, 0.1 * max(abs(low), abs(high)))
    return -round_up(-(low - margin)), round_up(high + margin)


def round_up(value: float) -> float:
    """Rounded up to two significant digits."""
    if value == 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    return float(f"{math.ceil(value / step - 1e-9) * step:.3g}")


def max_rate(log: TopicLog, column: int, low: float, high: float) -> float:
    """The fastest observed change, widened; the whole range in a second where nothing changed."""
    step_s = np.diff(log.time_ns) / 1e9
    with np.errstate(all="ignore"):
        rate = np.abs(np.diff(log.values[:, column])) / step_s
    rate = rate[(step_s > 1e-4) & (rate < ABSURD)]
    fastest = float(rate.max(initial=0.0))
    return round_up(WIDEN * fastest) if fastest > 0 else round_up(high - low)


def choose_command(log: TopicLog) -> Choice:
    """The command's fields: of joint arrays the ones that are filled and change, else as for states."""
    if log.type not in JOINT_ARRAYS:
        choice = _choose(log)
        return choice if choice.fields else dataclasses.replace(choice, fields=log.fields)
    low, high = value_range(log)
    always, moves = ~_at_times_absent(log), low < high
    of_array = [field.partition(".")[0] for field in log.fields]
    live = {name for i, name in enumerate(of_array) if always[i] and moves[i]}
    kept = tuple(f for i, f in enumerate(log.fields) if always[i] and (of_array[i] in live or not live))
    return Choice(log, kept or log.fields, tuple(f"{f} (never changes)" for f in log.fields if f not in kept))


def zero_stops(field: str) -> bool:
    """Does zero mean standing still, as for velocities and efforts, but not for positions?"""
    return not field.startswith(("position", "data", "pose"))


@dataclasses.dataclass(frozen=True)
class Clocks:
    """The contract's clock, and topics that are aligned by receive time in spite of it."""

    clock: str  # header | receive
    why: str
    receive: Mapping[str, str] = dataclasses.field(default_factory=dict)  # topic to reason


def choose_clocks(logs: Sequence[TopicLog], rate_hz: float) -> Clocks:
    """Stamps if topics have them, set and on one clock; receive times next to them if those share one clock, too."""
    bare = {log.topic: f"{log.type.rpartition('/')[2]} has no header" for log in logs if log.stamp_ns is None}
    for log in logs:
        if log.stamp_ns is not None and not log.stamp_ns.all():
            bare[log.topic] = "some stamps are unset" if log.stamp_ns.any() else "its stamps are never set"
    stamped = [log for log in logs if log.topic not in bare]
    unstamped = "; ".join(f"{topic} without stamps ({why})" for topic, why in bare.items())
    if not stamped:
        return Clocks("receive", unstamped)
    t = Thresholds()
    if any(finding.severity != "ok" for finding in check_clock_domains(stamped, t)):
        return Clocks("receive", "the stamps are in different clocks")
    if not bare:
        jumps = any(check_clock_jumps(log, t) for log in stamped)
        but = ", but it jumps: see spc doctor" if jumps else ""
        return Clocks(
            "header", f"all topics are stamped by one clock{but}" if but else "all topics carry stamps of one clock"
        )
    if stamped[0].simulated or max(abs(offset_s(log)) for log in stamped) > t.clocks_apart_s:
        return Clocks("receive", f"{unstamped}, and the stamps of the others are not wall time")
    late_s = max(float(np.median(delays_ns(log)[0])) for log in stamped) / 1e9
    if late_s * rate_hz > LATE_PERIODS:
        return Clocks("receive", f"{unstamped}, and the others are received {late_s * 1e3:.0f} ms after their stamps")
    return Clocks("header", "where there are stamps, they are wall time, as the receive times are", bare)
