# SPDX-License-Identifier: Apache-2.0
"""One action from the commands of its topics, as a simulated robot receives them. Without ROS."""

from __future__ import annotations

import math

import numpy as np

from spc_core.contract.contract import Contract


class JoinedAction:
    """Joins the commands of the action's topics.

    In lock-step an action is whole when each topic has had its command. In real time each command counts at once, next
    to the newest ones of the other topics; the safe command stands for one that is missing or too old.
    """

    def __init__(self, contract: Contract, lockstep: bool, max_age_s: float) -> None:
        self._slices, self._lockstep, self._max_age_s = contract.action.slices, lockstep, max_age_s
        self._safe = np.asarray(contract.action.safe, float)
        self.begin()

    def begin(self) -> None:
        """Forget all commands."""
        self._action = self._safe.copy()
        self._at_s = [-math.inf] * len(self._slices)

    def add(self, part: int, values: np.ndarray, now_s: float) -> np.ndarray | None:
        """Add a command of topic number `part`; returns the action (A,), or None while it is not whole."""
        self._action[self._slices[part]], self._at_s[part] = values, now_s
        if self._lockstep:
            if -math.inf in self._at_s:
                return None
            whole = self._action.copy()
            self.begin()
            return whole
        for at_s, columns in zip(self._at_s, self._slices, strict=True):
            if now_s - at_s > self._max_age_s:
                self._action[columns] = self._safe[columns]
        return self._action.copy()
