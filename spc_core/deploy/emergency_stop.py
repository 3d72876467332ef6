# SPDX-License-Identifier: Apache-2.0
"""The state of the emergency stop: presses, releases, silence, and publishers that disagree."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


class EmergencyStop:
    """Whether a person, or a device, wants the robot to stand still: the state of one or more stop topics.

    A press always counts. A release counts for its own topic, and only while that topic has at most one publisher:
    the release of one must not undo the press of another. A release that came while there were several is void, also
    when one of them is left, since it may be the one that pressed. Times are steady.
    """

    def __init__(self, topics: Sequence[str] = ("emergency_stop",)) -> None:
        """`topics`: the first one is the robot's, to which `configure` applies."""
        self._topics = {topic: _StopTopic() for topic in topics}
        self._first = topics[0]
        self.configure("ignore", 1.0, False)

    def configure(self, loss: str, timeout_s: float, required: bool) -> None:
        """`loss`: ignore | stop when the first topic is silent for `timeout_s`; `required`: nothing moves before it."""
        self._loss, self._timeout_s, self._required = loss, timeout_s, required

    def receive(self, pressed: bool, now_s: float, topic: str = "", channel: int = 0) -> None:
        """Take a message of a stop topic, by default of the first one.

        A message may come through several channels, each in the right order, and each may miss one.
        """
        self._topics[topic or self._first].receive(pressed, now_s, channel)

    def watch(self, topic: str, publishers: int, unreadable: str = "", deaf: Sequence[int] | None = None) -> bool:
        """Note a topic's publishers: their number, and why one cannot be read.

        `deaf`: channels that miss messages of these publishers, and so cannot hold up a release; None: as before.
        Returns whether one of several is left, whose own last word should now be asked for.
        """
        state = self._topics[topic]
        alone = publishers == 1 < state.publishers
        if alone:
            state.last.clear()
            state.asked = False
        state.publishers, state.unreadable = publishers, unreadable
        state.deaf = state.deaf if deaf is None else deaf
        state.release()
        return alone

    @property
    def pressed(self) -> bool:
        return any(state.pressed for state in self._topics.values())

    def reason(self, now_s: float) -> str | None:
        """Why the robot must stand still, or None."""
        for topic, state in self._topics.items():
            if state.pressed and state.void and state.publishers > 1:
                return (
                    f"emergency stop: pressed, and {topic} has {state.publishers} publishers, so one may not release "
                    "the other's; stop all but one of them"
                )
            if state.pressed and state.void:
                return f"emergency stop: {topic} had several publishers; the one that is left must release it"
            if state.pressed:
                return "emergency stop" if topic == self._first else f"emergency stop: {topic}"
            if state.unreadable:
                return f"emergency stop: {state.unreadable}"
        first = self._topics[self._first]
        if first.received_s is None:
            wanted = f"emergency stop: no message on {self._first} yet, and the policy waits for one that is false"
            return wanted if self._required else None
        if self._loss == "stop" and now_s - first.received_s > self._timeout_s:
            return f"emergency stop: {self._first} has been silent for more than {self._timeout_s:g} s"
        return None


@dataclasses.dataclass
class _StopTopic:
    pressed: bool = False
    last: dict[int, bool] = dataclasses.field(default_factory=dict)  # the newest message, by channel
    asked: bool = False  # the newest message is a release that has not taken effect
    void: bool = False  # a release came while there were several publishers
    received_s: float | None = None
    publishers: int = 0
    unreadable: str = ""
    deaf: Sequence[int] = ()

    def receive(self, pressed: bool, now_s: float, channel: int) -> None:
        """A press always counts."""
        self.received_s = now_s
        if self.pressed and not pressed and self.publishers > 1:
            self.void = True
            return
        self.last[channel] = pressed
        self.asked = self.pressed and not pressed
        self.void = self.void and not pressed
        self.pressed = self.pressed or pressed
        self.release()

    def release(self) -> None:
        """Release where that was asked for, nobody else may have pressed, and every channel that hears all agrees."""
        heard = [pressed for channel, pressed in self.last.items() if channel not in self.deaf]
        if self.asked and self.publishers <= 1 and not any(heard):
            self.pressed = self.asked = self.void = False
