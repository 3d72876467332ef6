# SPDX-License-Identifier: Apache-2.0
"""Times of commands without a stamp in lock-step. No ROS."""

from __future__ import annotations

from collections import deque

MOST = 100  # states without a command
EPISODE_GAP_NS = 500_000_000  # between states; a longer one, or a step back, starts an episode


class AnswerTimes:
    """Gives each command without a stamp the time right after the state that it answers.

    In lock-step each state gets one command before the next, but the two come from different nodes, and the command
    may be received after later states. So it answers the oldest state that has none.
    """

    def __init__(self) -> None:
        self._unanswered_ns: deque[int] = deque(maxlen=MOST)

    def state(self, t_ns: int) -> None:
        if self._unanswered_ns and not 0 < t_ns - self._unanswered_ns[-1] < EPISODE_GAP_NS:
            self._unanswered_ns.clear()
        self._unanswered_ns.append(t_ns)

    def answer_ns(self) -> int | None:
        """One nanosecond after the oldest state without a command, which now has one; None if each has."""
        return self._unanswered_ns.popleft() + 1 if self._unanswered_ns else None
