# SPDX-License-Identifier: Apache-2.0
"""When a message without a stamp counts where the robot's stamps are of simulated time. No ROS.

A node reads the time of its arrival from `/clock`; a bag has the arrival in wall time, and `/clock` beside it.
"""

from __future__ import annotations

import numpy as np

from spc_core.alignment import NO_TIME
from spc_core.contract.transforms import JUMP_NS

CLOCK = "rosgraph_msgs/msg/Clock"


def simulated_ns(clock_ns: int, state_ns: int, before_ns: int) -> int:
    """The time of a message from that on `/clock`, of the newest state, and of the topic's message before it.

    Simulated time stands still from a state to its command, and `/clock` may come late or rarely: so the message is
    after both, unless the clock has jumped back since the one before it. NO_TIME stands for none.
    """
    at_ns = max(clock_ns, state_ns + 1)
    return at_ns if before_ns > at_ns + JUMP_NS else max(at_ns, before_ns + 1)


class _Newest:
    """The newest time of a topic at each place in the log."""

    def __init__(self, before_all_ns: int) -> None:
        self._log_index, self._t_ns = np.array([-1]), np.array([before_all_ns])

    def add(self, log_index: np.ndarray, t_ns: np.ndarray) -> None:
        """The next messages; those before the last one of earlier calls are forgotten."""
        self._log_index = np.append(self._log_index[-1:], log_index)
        self._t_ns = np.append(self._t_ns[-1:], t_ns)

    def at(self, log_index: np.ndarray) -> np.ndarray:
        return self._t_ns[np.searchsorted(self._log_index, log_index) - 1]


class SimulatedTime:
    """simulated_ns of many messages, block by block in log order: first `/clock`, then states, then all others."""

    def __init__(self) -> None:
        self._clock, self._states = _Newest(0), _Newest(NO_TIME)  # a node's clock is 0 before the first message
        self._before: dict[int, int] = {}  # by source

    def add_clock(self, log_index: np.ndarray, t_ns: np.ndarray) -> None:
        self._clock.add(log_index, t_ns)

    def add_states(self, log_index: np.ndarray, t_ns: np.ndarray) -> None:
        """Of the first stream."""
        self._states.add(log_index, t_ns)

    def received_ns(self, source: int, log_index: np.ndarray) -> np.ndarray:
        """(N,) of messages at these places in the log; `source` tells apart those that do not follow each other."""
        if not len(log_index):
            return np.empty(0, np.int64)
        clock_ns, state_ns = self._clock.at(log_index), self._states.at(log_index)
        before_ns, found = self._before.get(source, NO_TIME), np.maximum(clock_ns, state_ns + 1)
        if found[0] <= before_ns or (np.diff(found) <= 0).any():
            for i, pair in enumerate(zip(clock_ns.tolist(), state_ns.tolist(), strict=True)):
                found[i] = before_ns = simulated_ns(*pair, before_ns)
        self._before[source] = int(found[-1])
        return found

    def states_ns(self, log_index: np.ndarray, stamps: np.ndarray) -> np.ndarray:
        """(N,) of messages of the first stream itself: their stamps, or where these are 0 by `/clock`."""
        clock_ns, t_ns = self._clock.at(log_index), stamps.copy()
        for i in np.flatnonzero(stamps == 0).tolist():
            before_ns = int(t_ns[i - 1]) if i else int(self._states.at(log_index[:1])[0])
            t_ns[i] = simulated_ns(int(clock_ns[i]), before_ns, NO_TIME)
        return t_ns
