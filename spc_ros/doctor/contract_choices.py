# SPDX-License-Identifier: Apache-2.0
"""Choices of a proposed contract from the recorded messages: rates, limits and clocks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from spc_core.command_delay.correlogram import ABSURD
from spc_core.doctor.clock_checks import check_clock_domains, check_clock_jumps, offset_s
from spc_core.doctor.diagnosis import Thresholds, TopicLog
from spc_core.doctor.topic_stats import delays_ns, paced_ns

ROUND_HZ = (1, 2, 4, 5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 80, 90, 100, 120, 125, 150, 200, 240, 250, 400, 500, 1000)
ROUND_SHARE = 0.04  # a measured rate this close to a round one is taken for it
TINY = 1e-9  # numbers below it are zero to a robot
WIDEN = 1.1  # factor from the observed range to the limits
LATE_PERIODS = 0.5  # of the ticks; stamps that are received later than this do not go with receive times


def nominal(rate_hz: float) -> float:
    """The round rate nearby, if there is one."""
    near = min(ROUND_HZ, key=lambda known: abs(math.log(known / rate_hz)))
    return near if abs(near / rate_hz - 1) <= ROUND_SHARE else rate_hz


def round_rate(rate_hz: float) -> float:
    """The round rate nearby, else the nearest whole number."""
    found = nominal(rate_hz)
    return found if found in ROUND_HZ else max(1, round(rate_hz))


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


def max_rate(logs: Sequence[TopicLog], field: str, low: float, high: float) -> float:
    """The fastest observed change, widened; the whole range in a second where nothing changed."""
    fastest = 0.0
    for log in logs:
        step_s = np.diff(paced_ns(log)) / 1e9
        if field not in log.fields:
            continue
        with np.errstate(all="ignore"):
            rate = np.abs(np.diff(log.values[:, log.fields.index(field)])) / step_s
        rate = rate[(step_s > 1e-4) & (rate < ABSURD)]
        fastest = max(fastest, float(rate.max(initial=0.0)))
    return round_up(WIDEN * fastest) if fastest > 0 else round_up(high - low)


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
    if all(log.clock_ns is not None for log in logs if log.topic in bare):
        return Clocks("header", f"stamps are of simulated time, and {unstamped} counts by /clock")
    if stamped[0].simulated or max(abs(offset_s(log)) for log in stamped) > t.clocks_apart_s:
        return Clocks("receive", f"{unstamped}, and the stamps of the others are not wall time")
    late_s = max(float(np.median(delays_ns(log)[0])) for log in stamped) / 1e9
    if late_s * rate_hz > LATE_PERIODS:
        return Clocks("receive", f"{unstamped}, and the others are received {late_s * 1e3:.0f} ms after their stamps")
    return Clocks("header", "where there are stamps, they are wall time, as the receive times are", bare)


def clocks_of_all(bags: Sequence[Sequence[TopicLog]], rate_hz: float) -> Clocks:
    """The clock that suits all bags: stamps only if they do in each."""
    found = [choose_clocks(logs, rate_hz) for logs in bags if logs]
    received = [clocks for clocks in found if clocks.clock == "receive"]
    if received:
        return min(received, key=lambda clocks: clocks.why)
    return max(found, key=lambda clocks: (len(clocks.receive), clocks.why))
