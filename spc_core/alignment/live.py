# SPDX-License-Identifier: Apache-2.0
"""Support for a live aligner: robot time between messages, and a reset at the end of each episode."""

from __future__ import annotations

import time

from spc_core.alignment import NO_TIME
from spc_core.alignment.faults import Fault
from spc_core.alignment.streaming import Frame, ObservationAligner, StreamingAligner


class StreamClock:
    """Advances an aligner between messages, so that no frame waits long for a slow stream.

    Robot time is the newest stamp plus the real time since its arrival; clocks need not agree. Not for lock-step,
    where time does not pass between messages.
    """

    def __init__(self, aligner: ObservationAligner) -> None:
        self._aligner = aligner
        self._newest_ns, self._arrival_s = NO_TIME, 0.0

    def frames(self) -> list[Frame]:
        """Frames decided by the passing of time alone; call it a few times per period."""
        now_ns = self._now_ns()
        return [] if now_ns is None else self._aligner.advance(now_ns)

    def faults(self) -> list[Fault]:
        """Current faults of the streams, at most one each."""
        now_ns = self._now_ns()
        return [] if now_ns is None else self._aligner.faults(now_ns)

    def _now_ns(self) -> int | None:
        """Robot time; None before any message."""
        newest_ns, now_s = max(stream.newest_ns for stream in self._aligner.streams), time.monotonic()
        if newest_ns != self._newest_ns:
            self._newest_ns, self._arrival_s = newest_ns, now_s
        return None if newest_ns == NO_TIME else newest_ns + round((now_s - self._arrival_s) * 1e9)


class EpisodeEnd:
    """Resets an aligner after an episode's last tick, so that no tick bridges two episodes.

    What is held without a maximum age, such as a latched goal, holds for the next episode too.
    """

    def __init__(self, aligner: ObservationAligner | StreamingAligner) -> None:
        self._aligner = aligner
        self._end_ns: int | None = None
        self._last_ns: int | None = None

    def ended(self, end_ns: int) -> None:
        """An episode was reported to have ended; ignored if there was no tick yet."""
        if self._last_ns is not None:
            self._end_ns = end_ns
            self.decided(self._last_ns)

    def decided(self, t_ns: int) -> None:
        """The tick at `t_ns` has been processed."""
        self._last_ns = t_ns
        if self._end_ns is not None and t_ns >= self._end_ns:
            self._end_ns = None
            self._aligner.reset(keep_held=True)
