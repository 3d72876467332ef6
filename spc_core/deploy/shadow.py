# SPDX-License-Identifier: Apache-2.0
"""Shadow mode: a policy's would-be commands next to those of the controller that drives the robot.

The command of the incumbent that answers tick k is the first one in (t_k, t_{k+1}], or, where the contract says that
commands hold, the last one before it: as in the alignment of data.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from spc_core.contract.contract import Contract

BINS = 2000  # of the difference, from 0 to twice the range of a field
NEAR = 0.1  # of each field's range; commands that close are alike
SILENT_TICKS = 25  # in a row without a command of the incumbent, which is then absent
MAX_EVENTS = 200  # interventions kept with their times
LIMITS = ("limit", "rate")  # interventions that only clip


@dataclasses.dataclass(frozen=True)
class FieldDifference:
    """The policy's command minus the incumbent's, of one action field in its unit."""

    name: str
    bias: float  # mean difference
    mean: float  # mean absolute difference
    p95: float
    worst: float
    span: float  # high - low of the contract


@dataclasses.dataclass(frozen=True)
class _Tick:
    t_ns: int
    command: np.ndarray  # (A,), after the safety chain
    kinds: tuple[str, ...]  # of the interventions in it


class ShadowComparison:
    """Compares tick by tick, with constant memory."""

    def __init__(self, contract: Contract) -> None:
        self.contract, action = contract, contract.action
        self.names, self._longest_ns = action.fields, contract.tick_window_ns[1]
        self._span = np.asarray(action.high, float) - np.asarray(action.low, float)
        self._ticks: deque[_Tick] = deque(maxlen=3)
        self._commands = tuple(deque[tuple[int, np.ndarray]](maxlen=1000) for _ in action.parts)  # by topic
        self._held: list[np.ndarray | None] = [None] * len(action.parts)  # the last commands before the tick
        self._sum, self._absolute, self._worst = (np.zeros(len(self.names)) for _ in range(3))
        self._histogram = np.zeros((len(self.names), BINS + 1), np.int64)
        self.ticks = self.compared = self.near = self.own = self.clipped = self.silent = 0
        self.begin_ns = 0  # the first tick
        self.interventions: Counter[str] = Counter()  # ticks by kind
        self.events: list[tuple[int, str]] = []  # (t_ns, kind), the first MAX_EVENTS
        # (t_ns, ours, theirs) of each tick compared; kept where a list is put here
        self.pairs: list[tuple[int, np.ndarray, np.ndarray]] | None = None

    def would(self, t_ns: int, command: np.ndarray, kinds: Sequence[str] = ()) -> None:
        """The policy's command (A,) for the tick at `t_ns`, with the kinds of the interventions in it."""
        if self._ticks and t_ns <= self._ticks[-1].t_ns:
            if t_ns < self._ticks[-1].t_ns:
                self._held = [None] * len(self._held)  # a clock that jumped back
            self._ticks.clear()  # or an answer to no tick, such as an emergency stop
            for commands in self._commands:
                commands.clear()
        self._ticks.append(_Tick(t_ns, np.array(command, float), tuple(kinds)))
        if len(self._ticks) >= 3:
            self._settle(self._ticks.popleft(), self._ticks[0].t_ns)

    def incumbent(self, t_ns: int, command: np.ndarray, part: int = 0) -> None:
        """A command of the controller that drives the robot, on the action's topic number `part`."""
        self._commands[part].append((t_ns, np.array(command, float)))

    def finish(self) -> None:
        """Settle the ticks that still wait for a successor; the last one has none."""
        while len(self._ticks) > 1:
            self._settle(self._ticks.popleft(), self._ticks[0].t_ns)
        self._ticks.clear()

    def _settle(self, tick: _Tick, next_ns: int) -> None:
        """Compare a tick, now that its period is over."""
        self.begin_ns = self.begin_ns or tick.t_ns
        self.ticks += 1
        for kind in set(tick.kinds):
            self.interventions[kind] += 1
            if len(self.events) < MAX_EVENTS:
                self.events.append((tick.t_ns, kind))
        own = all(kind in LIMITS for kind in tick.kinds)
        self.own += own
        self.clipped += own and bool(tick.kinds)
        theirs = self._theirs(tick.t_ns, min(next_ns, tick.t_ns + self._longest_ns))
        if theirs is None or not np.isfinite(theirs).all():
            self.silent += 1
            return
        self.silent = 0
        if own:
            self._compare(tick, theirs)

    def _theirs(self, begin_ns: int, end_ns: int) -> np.ndarray | None:
        """The incumbent's command (A,) in a period; None where a topic has none."""
        parts = []
        for i, (commands, part) in enumerate(zip(self._commands, self.contract.action.parts, strict=True)):
            while commands and commands[0][0] <= begin_ns:
                self._held[i] = commands.popleft()[1]
            theirs = self._held[i] if part.hold else None
            if commands and commands[0][0] <= end_ns:
                theirs = commands[0][1]
            if theirs is not None:
                parts.append(theirs)
        return np.concatenate(parts) if len(parts) == len(self._commands) else None

    def _compare(self, tick: _Tick, theirs: np.ndarray) -> None:
        difference = tick.command - theirs
        size = np.abs(difference)
        self.compared += 1
        self.near += bool((size <= NEAR * self._span).all())
        self._sum += difference
        self._absolute += size
        self._worst = np.maximum(self._worst, size)
        bins = np.minimum(size / self._span * (BINS / 2), BINS).astype(int)
        self._histogram[np.arange(len(bins)), bins] += 1
        if self.pairs is not None:
            self.pairs.append((tick.t_ns, tick.command, theirs))

    def add(self, other: ShadowComparison) -> None:
        """Add the numbers of another recording under the same contract."""
        for name in ("ticks", "compared", "near", "own", "clipped", "_sum", "_absolute", "_histogram", "interventions"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._worst = np.maximum(self._worst, other._worst)

    @property
    def absent(self) -> bool:
        """Whether no incumbent has commanded for a while."""
        return self.silent >= SILENT_TICKS

    def fields(self) -> list[FieldDifference]:
        """By action field; empty before anything was compared."""
        if not self.compared:
            return []
        below = np.cumsum(self._histogram, axis=1) >= 0.95 * self.compared
        p95 = (np.argmax(below, axis=1) + 1) * 2 / BINS * self._span  # the upper edge of its bin
        p95 = np.minimum(p95, self._worst)
        return [
            FieldDifference(name, *(float(value) for value in values))
            for name, *values in zip(
                self.names, self._sum / self.compared, self._absolute / self.compared, p95, self._worst, self._span,
                strict=True,
            )
        ]  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        return {
            "ticks": self.ticks,
            "compared": self.compared,
            "near": self.near,
            "own": self.own,
            "clipped": self.clipped,
            "interventions": dict(self.interventions),
            "fields": [dataclasses.asdict(field) for field in self.fields()],
        }

    def values(self) -> dict[str, object]:
        """For `/diagnostics`."""
        if not self.ticks:
            return {"shadow": "no tick yet"}
        values: dict[str, object] = {
            "shadow ticks": self.ticks,
            "shadow compared": f"{self.compared / self.ticks:.1%}",
            "shadow alike": f"{self.near / max(self.compared, 1):.1%}",
            "shadow within limits": f"{(self.own - self.clipped) / self.ticks:.1%}",
            "shadow interventions": json.dumps(dict(self.interventions)),
        }
        for field in self.fields():
            values[f"shadow {field.name}"] = (
                f"bias {field.bias:+.3g}, mean {field.mean:.3g}, 95 % {field.p95:.3g}, worst {field.worst:.3g}, "
                f"of {field.span:g}"
            )
        return values


def merged(comparisons: Sequence[ShadowComparison]) -> ShadowComparison:
    """The sum of at least one; pairs and events stay with each."""
    whole = ShadowComparison(comparisons[0].contract)
    for comparison in comparisons:
        whole.add(comparison)
    return whole
