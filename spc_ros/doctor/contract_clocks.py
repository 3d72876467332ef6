# SPDX-License-Identifier: Apache-2.0
"""Which clock a proposed contract aligns its topics by, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from spc_core.doctor.clock_checks import check_clock_domains, check_clock_jumps, delays_ns, offset_s
from spc_core.doctor.diagnosis import Thresholds, TopicLog

LATE_PERIODS = 0.5  # of the ticks; stamps that are received later than this do not go with receive times


@dataclasses.dataclass(frozen=True)
class Clocks:
    """The contract's clock, and topics that are aligned by receive time all the same."""

    clock: str  # header | receive
    why: str
    receive: Mapping[str, str] = dataclasses.field(default_factory=dict)  # topic to reason


def choose_clocks(logs: Sequence[TopicLog], rate_hz: float) -> Clocks:
    """Stamps where topics have them, set and in one clock; receive times beside them where those are one clock, too."""
    bare = {log.topic: f"{_kind(log)} has no header" for log in logs if log.stamp_ns is None}
    for log in logs:
        if log.stamp_ns is not None and not log.stamp_ns.all():
            bare[log.topic] = "some stamps are unset" if log.stamp_ns.any() else "its stamps are never set"
    stamped = [log for log in logs if log.topic not in bare]
    told = "; ".join(f"{topic} without stamps ({why})" for topic, why in bare.items())
    if not stamped:
        return Clocks("receive", told)
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
        return Clocks("receive", f"{told}, and the stamps of the others are not wall time")
    late_s = max(float(np.median(delays_ns(log)[0])) for log in stamped) / 1e9
    if late_s * rate_hz > LATE_PERIODS:
        return Clocks("receive", f"{told}, and the others are received {late_s * 1e3:.0f} ms after their stamps")
    return Clocks("header", "where there are stamps, they are wall time, as the receive times are", bare)


def _kind(log: TopicLog) -> str:
    return log.type.rpartition("/")[2]
