# SPDX-License-Identifier: Apache-2.0
"""Who may say what to a running trial, and what follows: pause, abort, emergency stop, and the operator's word."""

from __future__ import annotations

Answer = tuple[bool, str]  # whether the request was taken, and what happens now, or why not


class TrialControl:
    """A state machine between episodes. Phases: between -> episode -> (verdict) -> between.

    An emergency stop spoils the running episode and holds the next one until it is released. A pause lets the
    running episode end. An abort ends the trial at once, whatever the phase. None of these loses an episode that
    was done.
    """

    def __init__(self, operator: bool = False) -> None:
        """`operator`: each episode waits for ready(), and ends with judge()."""
        self.operator = operator
        self.phase = "between"  # between | episode | verdict
        self.paused = self.aborted = self.stopped = False
        self.spoiled = ""  # why the running episode does not count
        self.success: bool | None = None  # the operator's verdict on the last episode
        self._ready = False

    @property
    def waits_for(self) -> str:
        """What must happen before the next step; empty when nothing must."""
        if self.phase == "verdict":
            return "the operator's verdict: call success with true or false"
        if self.phase == "between":
            if self.stopped:
                return "the release of the emergency stop"
            if self.paused:
                return "resume: the trial is paused"
            if self.operator and not self._ready:
                return "the operator: bring the robot to its start, then call continue"
        return ""

    def pause(self) -> Answer:
        if self.aborted:
            return False, "the trial is being aborted"
        self.paused = True
        return True, "paused" if self.phase == "between" else "the trial pauses when this episode has ended"

    def resume(self) -> Answer:
        if not self.paused:
            return False, "the trial is not paused"
        self.paused = False
        return True, self.waits_for or "running"

    def abort(self) -> Answer:
        self.aborted = True
        return True, "the trial ends now; started again with the same options it goes on here"

    def emergency_stop(self, pressed: bool) -> None:
        """The stop's state now. The robot is brought to rest by others; this only keeps the books."""
        self.stopped = pressed
        if pressed:
            self._ready = False  # whoever pressed it may have moved the robot
            if self.phase == "episode":
                self.spoiled = "emergency stop"

    def ready(self) -> Answer:
        """The operator: the robot is at its start."""
        if not self.operator:
            return False, "this trial asks no operator; set the parameter operator"
        if self.phase != "between" or self._ready:
            return False, "not asked for now"
        if self.stopped:
            return False, "the emergency stop is pressed; release it first"
        self._ready = True
        return True, self.waits_for or "the episode starts"

    def judge(self, success: bool) -> Answer:
        """The operator: how the episode went."""
        if self.phase != "verdict":
            return False, "no episode waits for a verdict"
        self.success, self.phase = success, "between"
        return True, "noted"

    def begin(self) -> None:
        """An episode starts. Raises RuntimeError where it may not."""
        if self.phase != "between" or self.waits_for or self.aborted:
            raise RuntimeError(f"an episode may not start: {self.waits_for or self.phase}")
        self.phase, self.spoiled, self.success, self._ready = "episode", "", None, False

    def end(self, judged: bool) -> None:
        """The episode ended; `judged`: the operator is asked how it went, unless it does not count."""
        self.phase = "verdict" if self.operator and judged and not self.spoiled else "between"
