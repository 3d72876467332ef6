# SPDX-License-Identifier: Apache-2.0
"""Some beams of a laser scan, evenly spaced, in place of its constants: what a network can observe of it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from spc_core.doctor.diagnosis import TopicLog
from spc_ros.bags.reader import BagReader
from spc_ros.messages.columns import ColumnReader

LASER_SCAN = "sensor_msgs/msg/LaserScan"
BEAMS = 24


def with_beams(bag: BagReader, log: TopicLog) -> TopicLog:
    """The log of a scan with its constants and beams as fields; another log as it is."""
    if log.type != LASER_SCAN:
        return log
    first = next(iter(bag.messages([log.topic])))[2]
    fields = tuple(f"ranges.{i}" for i in beams(len(first.ranges)))
    reader = ColumnReader(bag.typestore_of(log.topic), log.type, fields, log.topic)
    parts = [reader.read_all(block[log.topic])[1] for block in bag.blocks([log.topic]) if log.topic in block]
    rest = [i for i, field in enumerate(log.fields) if not field.startswith(("ranges.", "intensities."))]
    values = np.concatenate([log.values[:, rest], *([np.concatenate(parts)] if fields else [])], axis=1)
    return dataclasses.replace(log, fields=(*(log.fields[i] for i in rest), *fields), values=values, absent=None)


def beams(count: int) -> list[int]:
    """Places of evenly spaced beams of `count`."""
    step = max(1, count // BEAMS)
    return list(range(step // 2, count, step))[:BEAMS]


def longest_range(log: TopicLog) -> float:
    """What a beam without a return is read as, in m: the sensor's range."""
    known = log.values[:, log.fields.index("range_max")] if "range_max" in log.fields else np.empty(0)
    known = known[np.isfinite(known) & (known > 0)]
    if len(known):
        return float(known.max())
    ranges = log.values[:, [i for i, field in enumerate(log.fields) if field.startswith("ranges.")]]
    return max(1.0, math.ceil(float(np.max(ranges, initial=1.0, where=np.isfinite(ranges)))))
