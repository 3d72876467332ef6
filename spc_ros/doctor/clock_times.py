# SPDX-License-Identifier: Apache-2.0
"""When messages without a stamp count in a bag of which no contract says what sets the ticks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from spc_core.doctor.diagnosis import TopicLog
from spc_ros.conversion.clock_topic import APART_NS
from spc_ros.messages.simulated_time import SimulatedTime

Logs = dict[str, list[TopicLog]]  # by the bag's name of the topic


def by_clock(logs: Logs, places: Mapping[str, np.ndarray], clock: np.ndarray) -> Logs:
    """The logs, timed by `/clock` where they have no stamps, if others have stamps of its time and not of wall time.

    `places` in the bag's log of the messages of each; `clock` as ClockTopic.read.
    """
    ahead_ns = float(np.median(clock[:, 2] - clock[:, 1]))
    stamped = [(name, log) for name, group in logs.items() for log in group if _is_simulated(log, ahead_ns)]
    if abs(ahead_ns) <= APART_NS or not stamped:
        return logs
    log_index = np.concatenate([places[name] for name, _ in stamped])
    in_log = np.argsort(log_index, kind="stable")
    newest_ns = np.maximum.accumulate(np.concatenate([log.time_ns for _, log in stamped])[in_log])
    time = SimulatedTime()
    time.add_clock(clock[:, 0], clock[:, 1])
    time.add_states(log_index[in_log], newest_ns)
    bare = [name for name, group in logs.items() if not any(log.has_stamps for log in group)]
    return {**logs, **{name: _timed(logs[name], time, number, places[name]) for number, name in enumerate(bare)}}


def _is_simulated(log: TopicLog, ahead_ns: float) -> bool:
    if log.stamp_ns is None or not len(log) or not log.stamp_ns.all():
        return False
    return abs(float(np.median(log.receive_ns - log.stamp_ns)) - ahead_ns) <= APART_NS


def _timed(group: Sequence[TopicLog], time: SimulatedTime, number: int, places: np.ndarray) -> list[TopicLog]:
    t_ns = time.received_ns(number, places)
    return [dataclasses.replace(log, clock_ns=t_ns) for log in group]
