# SPDX-License-Identifier: Apache-2.0
"""What the doctor did not look at: the topics of a bag that no check saw, each with the reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Unchecked:
    """A recorded topic, or one that should be, which no check saw."""

    topic: str
    type: str
    count: int
    why: str
    bags: int = 1

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def merge_unchecked(bags: Iterable[Sequence[Unchecked]]) -> tuple[Unchecked, ...]:
    """One entry for each topic and reason, by topic."""
    merged: dict[tuple[str, str], Unchecked] = {}
    for topic in (topic for topics in bags for topic in topics):
        before = merged.get((topic.topic, topic.why))
        if before is not None:
            topic = dataclasses.replace(topic, count=before.count + topic.count, bags=before.bags + 1)
        merged[topic.topic, topic.why] = topic
    return tuple(sorted(merged.values(), key=lambda topic: (topic.topic, topic.why)))
