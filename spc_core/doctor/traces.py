# SPDX-License-Identifier: Apache-2.0
"""Plot data of a topic: lines of a bounded number of points, however long the recording."""

from __future__ import annotations

import dataclasses

import numpy as np

from spc_core.doctor.diagnosis import TopicLog
from spc_core.doctor.topic_stats import delays_ns

MAX_POINTS = 1200  # of a line; each is the most extreme of its neighbours
MAX_LINES = 12  # commands of a topic


@dataclasses.dataclass(frozen=True)
class Line:
    """A line over time."""

    at_s: np.ndarray  # (n,) seconds since the bag began
    y: np.ndarray  # (n,)


@dataclasses.dataclass(frozen=True)
class Trace:
    """A topic's steps from message to message, its delay above the smallest one, and its values where it commands."""

    topic: str
    last_s: float
    step_ms: Line | None
    step_range_ms: tuple[float, float]  # worth showing: a few long gaps must not flatten all the rest
    delay_ms: Line | None
    commands: tuple[tuple[str, Line], ...] = ()  # (field, values)


def trace(log: TopicLog, is_command: bool) -> Trace:
    """The curves of a topic with at least one message."""
    delay_ns, index = delays_ns(log)
    delay = downsampled(log.seconds[index], (delay_ns - delay_ns.min()) / 1e6) if len(delay_ns) > 1 else None
    commands = ()
    if is_command and len(log) > 1:
        fields = list(enumerate(log.fields[:MAX_LINES]))
        commands = tuple((field, downsampled(log.seconds, log.values[:, i])) for i, field in fields)
    steps, shown = None, (0.0, 1.0)
    if len(log) > 1:
        step_ms = np.diff(log.time_ns) / 1e6
        steps, shown = downsampled(log.seconds[1:], step_ms), _worth_showing(step_ms)
    return Trace(log.topic, float(log.seconds.max()), steps, shown, delay, commands)


def _worth_showing(step_ms: np.ndarray) -> tuple[float, float]:
    highest, lowest = float(step_ms.max()), float(step_ms.min())
    top = min(max(float(np.percentile(step_ms, 99.9)) * 1.3, 1e-3), max(1e-3, highest * 1.1))
    low = min(0.0, lowest * 1.1) if lowest > -1000 else 0.0
    return low, max(top, 2.2 * float(np.median(step_ms)))


def downsampled(at_s: np.ndarray, y: np.ndarray) -> Line:
    """At most MAX_POINTS points, of neighbours the one that is furthest from the median: no peak is lost."""
    if len(at_s) <= MAX_POINTS:
        return Line(at_s, y)
    edges = np.linspace(0, len(at_s), MAX_POINTS + 1).astype(int)
    finite = np.isfinite(y)
    away = np.full(len(y), -1.0)
    away[finite] = np.abs(y[finite] - np.median(y[finite])) if finite.any() else 0.0
    best = [b + int(np.argmax(away[b:e])) for b, e in zip(edges[:-1], edges[1:], strict=True)]
    return Line(at_s[best], y[best])
