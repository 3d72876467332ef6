# SPDX-License-Identifier: Apache-2.0
"""Requests to a running trial: pause, resume, abort, emergency stop, and the operator's start and verdict."""

from __future__ import annotations

from collections.abc import Callable

Answer = tuple[bool, str]  # whether the request was accepted, and the effect or the reason


class TrialControl:
    """A state machine between episodes. Phases: between -> episode -> (verdict) -> between.

    An emergency stop invalidates the running episode and blocks the next one until it is released. A pause lets the
    running episode end. An abort ends the trial at once in any phase. None of them discards a finished episode.
    """

    def __init__(self, operator: bool = False, problem: Callable[[], str] = lambda: "") -> None:
        """`operator`: each episode waits for ready() and ends with judge(); `problem`: what is wrong with the robot."""
        self.operator, self._problem = operator, problem
        self.phase = "between"  # between | episode | verdict
        self.paused = self.aborted = self.stopped = False
        self.invalid_reason = ""  # why the running episode does not count; empty: it counts
        self.success: bool | None = None  # the operator's verdict on the last episode
        self._ready = False

    @property
    def waits_for(self) -> str:
        """The event that the trial waits for; empty when it can proceed."""
        if self.phase == "verdict":
            return "the operator's verdict: call success with true or false"
        if self.phase == "between":
            if self.stopped:
                return "the release of the emergency stop"
            if self.paused:
                return "resume: the trial is paused"
            if self.operator and not self._ready:
                if problem := self._problem():
                    return f"the robot, which {problem}"
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
        return True, "the trial ends now; start it again with the same options to resume"

    def emergency_stop(self, pressed: bool) -> None:
        """Update the stop's state. The safety chain stops the robot; here only the episode is invalidated."""
        self.stopped = pressed
        if pressed:
            self._ready = False  # the robot may have been moved since
            if self.phase == "episode":
                self.invalid_reason = "emergency stop"

    def ready(self) -> Answer:
        """Note from the operator that the robot is at its start."""
        if not self.operator:
            return False, "this trial runs without an operator; set the parameter operator"
        if self.phase != "between" or self._ready:
            return False, "the trial is not waiting for this now"
        if self.stopped:
            return False, "the emergency stop is pressed; release it first"
        if problem := self._problem():
            return False, f"the robot {problem}"
        self._ready = True
        return True, self.waits_for or "the episode starts"

    def judge(self, success: bool) -> Answer:
        """Note the operator's verdict on the episode."""
        if self.phase != "verdict":
            return False, "no episode is waiting for a verdict"
        self.success, self.phase = success, "between"
        return True, "noted"

    def begin(self) -> None:
        """Start an episode. Raises RuntimeError if none may start now."""
        if self.phase != "between" or self.waits_for or self.aborted:
            raise RuntimeError(f"an episode cannot start now: {self.waits_for or self.phase}")
        self.phase, self.invalid_reason, self.success, self._ready = "episode", "", None, False

    def end(self, judged: bool) -> None:
        """End the episode; `judged`: ask the operator for a verdict, unless the episode is invalid."""
        self.phase = "verdict" if self.operator and judged and not self.invalid_reason else "between"
