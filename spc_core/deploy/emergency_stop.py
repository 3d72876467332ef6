# SPDX-License-Identifier: Apache-2.0
"""The state of the emergency stop: presses, releases, silence, and publishers that disagree."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


class EmergencyStop:
    """Whether a person, or a device, wants the robot to stand still: the state of one or more stop topics.

    A press always counts. A release counts for its own topic, and only while that topic has at most one publisher:
    the release of one must not undo the press of another. Times are steady.
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

        A message may come through several channels, each in the right order; the topic is released when the newest
        message of every channel says so.
        """
        state = self._topics[topic or self._first]
        state.last[channel], state.received_s = pressed, now_s
        state.update()

    def watch(self, topic: str, publishers: int, unreadable: str = "", deaf: Sequence[int] = ()) -> None:
        """Note a topic's publishers: their number, why one cannot be read, and the channels that none reaches.

        What came through such a channel counts until there is a message from another one.
        """
        state = self._topics[topic]
        state.publishers, state.unreadable, state.deaf = publishers, unreadable, deaf
        state.update()

    @property
    def pressed(self) -> bool:
        return any(state.pressed for state in self._topics.values())

    def reason(self, now_s: float) -> str | None:
        """Why the robot must stand still, or None."""
        for topic, state in self._topics.items():
            if state.pressed and not any(state.last.values()):
                return (
                    f"emergency stop: pressed, and {topic} has {state.publishers} publishers, so one may not release "
                    "the other's; stop all but one of them"
                )
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
    received_s: float | None = None
    publishers: int = 0
    unreadable: str = ""
    deaf: Sequence[int] = ()

    def update(self) -> None:
        heard = {channel: pressed for channel, pressed in self.last.items() if channel not in self.deaf}
        self.last = heard or self.last
        self.pressed = any(self.last.values()) or (self.pressed and self.publishers > 1)
