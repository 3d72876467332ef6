# SPDX-License-Identifier: Apache-2.0
"""The last word before an actuator: what leaves is finite, inside the limits, and changes no faster than allowed."""

from __future__ import annotations

from collections import Counter

import numpy as np

from spc_core.contract import Contract


class SafetyFilter:
    """Checks each command against the contract's action; every intervention is counted with its last reason."""

    def __init__(self, contract: Contract) -> None:
        action = contract.action
        self._names = action.fields
        self._low, self._high = np.asarray(action.low), np.asarray(action.high)
        self._step = np.asarray(action.max_rate) / contract.rate_hz  # most change from one tick to the next
        self.safe = np.asarray(action.safe)
        self._previous = self.safe
        self.counts: Counter[str] = Counter()
        self.last_reason = ""
        self.happened: list[tuple[str, str]] = []  # (kind, reason) of the interventions in the last command

    def reset(self) -> None:
        """Start anew from the safe action, as at activation and at the start of an episode."""
        self._previous = self.safe

    def apply(self, action: np.ndarray | None, fault: str | None = None, kind: str = "fault") -> np.ndarray:
        """The command to send (A,): `action` made safe, or the safe action when there is a fault or no action.

        `kind` is what the fault is counted as.
        """
        self.happened.clear()
        if fault is not None or action is None:
            return self._give_up(kind, fault or "no action")
        finite = np.isfinite(action)
        if not finite.all():
            return self._give_up("not_finite", f"{self._names[int(np.argmin(finite))]} is not finite")
        allowed = self._count_clip("limit", action, self._low, self._high)
        allowed = self._count_clip("rate", allowed, self._previous - self._step, self._previous + self._step)
        self._previous = allowed
        return allowed

    def _give_up(self, kind: str, reason: str) -> np.ndarray:
        self._note(kind, reason)
        self._previous = self.safe
        return self.safe.copy()

    def _count_clip(self, kind: str, action: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        clipped = np.clip(action, low, high)
        changed = clipped != action
        if changed.any():
            i = int(np.argmax(changed))
            self._note(kind, f"{kind}: {self._names[i]} {action[i]:.4g} became {clipped[i]:.4g}")
        return clipped

    def _note(self, kind: str, reason: str) -> None:
        self.counts[kind] += 1
        self.last_reason = reason
        self.happened.append((kind, reason))
