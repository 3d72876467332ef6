# SPDX-License-Identifier: Apache-2.0
"""Times of commands without a stamp in lock-step. No ROS."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

C = TypeVar("C")
MOST = 100  # states without a command, or commands without a state
EPISODE_GAP_NS = 500_000_000  # between states; a longer one, or a step back, starts an episode
EARLY_S = 0.5  # of real time, by which a command may be received before the first state of an episode


class AnswerTimes(Generic[C]):
    """Gives each command without a stamp the time right after the state that it answers.

    In lock-step each state gets one command before the next, but the two come from different nodes: a command may be
    received after later states, and before its own. So it answers the oldest state that has none, or waits for one.
    """

    def __init__(self) -> None:
        self._unanswered_ns: deque[int] = deque(maxlen=MOST)
        self._early: deque[tuple[float, C]] = deque(maxlen=MOST)  # when received, and the command
        self._last_ns: int | None = None

    def state(self, t_ns: int, now_s: float) -> list[tuple[int, C]]:
        """A state was received; returns (time, command) of those that waited for it."""
        if self._last_ns is not None and not 0 < t_ns - self._last_ns < EPISODE_GAP_NS:
            self._unanswered_ns.clear()
            while self._early and now_s - self._early[0][0] > EARLY_S:
                self._early.popleft()  # sent between the episodes
        self._last_ns = t_ns
        if not self._early:
            self._unanswered_ns.append(t_ns)
            return []
        return [(t_ns + 1, self._early.popleft()[1])]

    def time_ns(self, command: C, now_s: float) -> int | None:
        """One nanosecond after the oldest state without a command, which now has one; None if the command waits."""
        if self._unanswered_ns:
            return self._unanswered_ns.popleft() + 1
        self._early.append((now_s, command))
        return None
