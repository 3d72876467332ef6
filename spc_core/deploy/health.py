# SPDX-License-Identifier: Apache-2.0
"""What a node says of itself: whether the robot is controlled, whether anything is learnt, and if not, why."""

from __future__ import annotations

import dataclasses
import enum

WARN_AFTER_S = 1.0
ERROR_AFTER_S = 3.0
LEARN_AFTER_S = 3.0  # without a transition, while an encoder should learn
RENEW_AFTER_S, RENEW_MOST_S = 10.0, 300.0
NOTABLE = 0.1  # share of safe actions that is worth a warning
WINDOW_S = 5.0


class Level(enum.IntEnum):
    """As in diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclasses.dataclass(frozen=True)
class Health:
    """A level and its reason; each change is logged, but for that of a number in it."""

    level: Level = Level.OK
    reason: str = ""


class ControlHealth:
    """Judges whether a policy controls its robot. Times are steady."""

    def __init__(self) -> None:
        self.start(None)

    def start(self, now_s: float | None) -> None:
        """The policy becomes active; None: inactive."""
        self.reason = ""  # why the last command was not the policy's own
        self._since_s = now_s  # of the last own command, or of the activation
        self._own = self._other = 0  # commands since the window began
        self._window_s = now_s or 0.0
        self._share, self._share_reason = 0.0, ""

    def stop(self) -> None:
        self._since_s = None

    def own(self, now_s: float) -> None:
        """A command of the policy's own was sent."""
        self._since_s = now_s
        self._own += 1
        self.reason = ""

    def other(self, reason: str) -> None:
        """The safe action was sent, or the last command held, for this reason."""
        self._other += 1
        self.reason = self._share_reason = reason

    def judge(self, now_s: float, waits_for: str) -> Health:
        """`waits_for`: why there is no command, where none was due; empty if unknown."""
        if self._since_s is None:
            return Health(Level.WARN, "inactive: no commands are sent")
        if now_s - self._window_s > WINDOW_S:
            total = self._own + self._other
            self._share = self._other / total if total else 0.0
            self._window_s, self._own, self._other = now_s, 0, 0
        lasted_s = now_s - self._since_s
        if lasted_s > WARN_AFTER_S:
            level = Level.ERROR if lasted_s > ERROR_AFTER_S else Level.WARN
            return Health(
                level, f"the policy does not control the robot: {self.reason or waits_for or 'no observation'}"
            )
        if self._share > NOTABLE:
            text = f"more than {NOTABLE:.0%} of the commands are not the policy's: {self._share_reason}"
            return Health(Level.WARN, text)
        return Health()


class Renewal:
    """When a node that gets no transitions should start its alignment and subscriptions again, ever more rarely."""

    def __init__(self) -> None:
        self._wait_s, self._at_s = RENEW_AFTER_S, 0.0

    def due(self, now_s: float, without_s: float) -> bool:
        """Whether now is the time, after `without_s` without a transition."""
        if without_s < RENEW_AFTER_S:
            self._wait_s, self._at_s = RENEW_AFTER_S, now_s - without_s
            return False
        if now_s - self._at_s < self._wait_s:
            return False
        self._wait_s, self._at_s = min(2 * self._wait_s, RENEW_MOST_S), now_s
        return True


class LearnHealth:
    """Judges whether a context encoder gets transitions. Times are steady."""

    def __init__(self) -> None:
        self.cut = ""  # the reason of the last cut
        self._since_s: float | None = None
        self._ticked_s = 0.0

    def start(self, now_s: float) -> None:
        """It should learn from now on."""
        self._since_s = self._ticked_s = now_s

    def learned(self, now_s: float) -> None:
        """A transition arrived."""
        self._since_s = self._ticked_s = now_s

    def was_cut(self, reason: str, now_s: float) -> None:
        """A tick without a transition."""
        self.cut, self._ticked_s = reason, now_s

    def without_s(self, now_s: float) -> float:
        """Time without a transition."""
        return 0.0 if self._since_s is None else now_s - self._since_s

    def judge(self, now_s: float, waits_for: str) -> Health:
        """`waits_for`: the topics from which nothing has come; empty if unknown."""
        if self._since_s is None or now_s - self._since_s <= LEARN_AFTER_S:
            return Health()
        ticks = now_s - self._ticked_s <= WARN_AFTER_S
        return Health(Level.WARN, f"no transitions: {waits_for or (self.cut if ticks else 'no observation')}")
