# SPDX-License-Identifier: Apache-2.0
"""Every time that another command left than the policy gave: counted by kind, with the last reason and time."""

from __future__ import annotations

import enum
import json
from collections import Counter

ONSET_S = 0.1  # a kind that was not seen for so long begins anew
QUIET_S = 1.0  # a kind that goes on is told again after so long, not at each tick


class InterventionKind(enum.Enum):
    """Why another command left than the policy gave. The values are stored in messages and results."""

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
    """What `/diagnostics` shows of interventions, and which of them are news worth a message."""

    def __init__(self) -> None:
        self.counts: Counter[InterventionKind] = Counter()
        self.last_reason = ""
        self.last_ns = 0  # the robot's time
        self._noted_s: dict[InterventionKind, float] = {}
        self._told_s: dict[InterventionKind, float] = {}

    def note(self, kind: InterventionKind, reason: str, t_ns: int, now_s: float) -> str | None:
        """Count one at `t_ns`, `now_s` on a steady clock; returns JSON to publish when it is news."""
        self.counts[kind] += 1
        self.last_reason, self.last_ns = reason, t_ns
        noted_s, told_s = self._noted_s.get(kind, -1e9), self._told_s.get(kind, -1e9)
        self._noted_s[kind] = now_s
        if now_s - noted_s < ONSET_S and now_s - told_s < QUIET_S:
            return None
        self._told_s[kind] = now_s
        return json.dumps({"kind": kind.value, "reason": reason, "t_ns": t_ns, "count": self.counts[kind]})

    def values(self) -> dict[str, object]:
        """For `/diagnostics`."""
        values: dict[str, object] = {f"interventions {kind}": n for kind, n in by_name(self.counts).items()}
        return values | {"last intervention": self.last_reason, "last intervention t_s": f"{self.last_ns / 1e9:.3f}"}
