# SPDX-License-Identifier: Apache-2.0
"""Stills from the bags of a trial whose camera was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spc_core.deploy.adaptation import EpisodeResult
from spc_core.pages.kit.html import number
from spc_core.pages.stills import MAX_TASKS, Stills
from spc_core.trials.trial_log import TrialLog
from spc_ros.bags.files import BagError
from spc_ros.bags.reader import BagReader

IMAGE = "sensor_msgs/msg/Image"
ENCODING = "rgb8"


def trial_stills(log: TrialLog, rows: Sequence[EpisodeResult]) -> list[Stills]:
    """Start, middle and end of each task's best informed episode; empty where no bag holds images."""
    chosen: dict[str, EpisodeResult] = {}
    for row in rows:
        if row.scored and row.bag and row.context_count >= getattr(chosen.get(row.task_id), "context_count", -1):
            chosen[row.task_id] = row
    found = []
    for row in list(chosen.values()):
        images = _images(log, row) if len(found) < MAX_TASKS + 1 else ()
        if not images and not found:
            return []  # no camera was recorded, so the other bags need not be read
        k = f"({row.k})" if row.k else ""
        found.append(Stills(f"{row.task_id}, {row.protocol}{k}, return {number(row.return_)}", images))
    return [still for still in found if still.images]


def _images(log: TrialLog, row: EpisodeResult) -> tuple[tuple[float, np.ndarray], ...]:
    path = log.bag_of(row)
    if path is None:
        return ()
    try:
        with BagReader(path) as bag:
            topics = [name for name, topic in bag.info.topics.items() if topic.type == IMAGE and topic.count]
            messages = [message for _, _, message in bag.messages(topics[:1])] if topics else []
    except BagError:
        return ()
    messages = [m for m in messages if m.encoding == ENCODING]
    places = sorted({0, len(messages) // 2, len(messages) - 1}) if messages else ()
    return tuple(((_stamp_ns(messages[i]) - _stamp_ns(messages[0])) / 1e9, _array(messages[i])) for i in places)


def _stamp_ns(message: Any) -> int:
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def _array(message: Any) -> np.ndarray:
    height, width, step = message.height, message.width, message.step
    flat = np.asarray(message.data, np.uint8).reshape(height, step)
    return flat[:, : 3 * width].reshape(height, width, 3)
