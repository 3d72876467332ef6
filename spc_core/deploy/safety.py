# SPDX-License-Identifier: Apache-2.0
"""The last check before an actuator: commands are finite and within the limits of value and rate; and its log."""

from __future__ import annotations

import enum
import json
import math
from collections import Counter

import numpy as np

from spc_core.contract.contract import Contract

ONSET_S = 0.1  # a kind not seen for this long counts as a new onset
QUIET_S = 1.0  # time between two messages about a kind that persists


class InterventionKind(enum.Enum):
    """Why a command differs from the policy's action. The values are stored in messages and results."""

    LIMIT = "limit"
    RATE = "rate"
    NOT_FINITE = "not_finite"
    FAULT = "fault"
    HOLD = "hold"
    SILENCE = "silence"
    WORKSPACE = "workspace"
    EMERGENCY_STOP = "emergency stop"
    FOREIGN_MODEL = "foreign model"
    FROZEN_CLOCK = "frozen clock"
    CONTEXT_LOST = "context lost"
    ROLLBACK = "rollback"
    CLOSED = "closed"


def by_name(counts: Counter[InterventionKind]) -> dict[str, int]:
    """Counts as they are stored and published."""
    return {kind.value: count for kind, count in counts.items()}


class InterventionLog:
    """Counts interventions for `/diagnostics`, and decides which of them to publish."""

    def __init__(self) -> None:
        self.counts: Counter[InterventionKind] = Counter()
        self.last_reason = ""
        self.last_ns = 0  # the robot's time
        self._seen_s: dict[InterventionKind, float] = {}
        self._published_s: dict[InterventionKind, float] = {}

    def add(self, kind: InterventionKind, reason: str, t_ns: int, now_s: float) -> str | None:
        """Count one at `t_ns`, `now_s` on a steady clock; returns JSON at its onset and while it persists."""
        self.counts[kind] += 1
        self.last_reason, self.last_ns = reason, t_ns
        seen_s, published_s = self._seen_s.get(kind, -1e9), self._published_s.get(kind, -1e9)
        self._seen_s[kind] = now_s
        if now_s - seen_s < ONSET_S and now_s - published_s < QUIET_S:
            return None
        self._published_s[kind] = now_s
        return json.dumps({"kind": kind.value, "reason": reason, "t_ns": t_ns, "count": self.counts[kind]})

    def values(self) -> dict[str, object]:
        """For `/diagnostics`."""
        values: dict[str, object] = {f"interventions {kind}": n for kind, n in by_name(self.counts).items()}
        return values | {"last intervention": self.last_reason, "last intervention t_s": f"{self.last_ns / 1e9:.3f}"}


class SafetyFilter:
    """Checks each command against the contract's action; every intervention is counted."""

    def __init__(self, contract: Contract) -> None:
        action = contract.action
        self._names = action.fields
        self._low, self._high = list(map(float, action.low)), list(map(float, action.high))
        self._step = (np.asarray(action.max_rate) / contract.rate_hz).tolist()  # most change from one tick to the next
        self.safe = np.asarray(action.safe, float)
        self._previous = self._rest = self.safe.tolist()
        self.counts: Counter[InterventionKind] = Counter()
        self.interventions: list[tuple[InterventionKind, str]] = []  # (kind, reason) of the last command

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Least and most of each action, and its most change from one tick to the next, (A,) each."""
        return np.array(self._low), np.array(self._high), np.array(self._step)

    def reset(self) -> None:
        """Start again from the safe action: at activation and at the start of an episode."""
        self._previous = self._rest

    def continue_from(self, command: np.ndarray) -> None:
        """Count the next change from this command, which was sent without this filter."""
        self._previous = command.tolist()

    def apply(
        self, action: np.ndarray | None, fault: str | None = None, kind: InterventionKind = InterventionKind.FAULT
    ) -> np.ndarray:
        """The command to send (A,): `action` within limits, or the safe action for a fault, counted as `kind`."""
        self.interventions.clear()
        if fault is not None or action is None:
            return self._fall_back(kind, fault or "no action")
        values = action.tolist()  # a few numbers are faster without numpy
        for name, value in zip(self._names, values, strict=True):
            if not math.isfinite(value):
                return self._fall_back(InterventionKind.NOT_FINITE, f"{name} is not finite")
        allowed = self._count_clip(InterventionKind.LIMIT, values, self._low, self._high)
        least = [before - step for before, step in zip(self._previous, self._step, strict=True)]
        most = [before + step for before, step in zip(self._previous, self._step, strict=True)]
        self._previous = self._count_clip(InterventionKind.RATE, allowed, least, most)
        return np.array(self._previous, float)

    def _fall_back(self, kind: InterventionKind, reason: str) -> np.ndarray:
        self._note(kind, reason)
        self._previous = self._rest
        return self.safe.copy()

    def _count_clip(
        self, kind: InterventionKind, action: list[float], low: list[float], high: list[float]
    ) -> list[float]:
        bounds = zip(action, low, high, strict=True)
        clipped = [least if value < least else most if value > most else value for value, least, most in bounds]
        if clipped != action:
            i = next(i for i, value in enumerate(action) if value != clipped[i])
            self._note(kind, f"{kind.value}: {self._names[i]} {action[i]:.4g} became {clipped[i]:.4g}")
        return clipped

    def _note(self, kind: InterventionKind, reason: str) -> None:
        self.counts[kind] += 1
        self.interventions.append((kind, reason))
