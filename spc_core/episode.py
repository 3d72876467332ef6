# SPDX-License-Identifier: Apache-2.0
"""What is said about an episode: on the latched topic `episode`, in a bag's custom_data, and in a dataset."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

STATES = ("idle", "running", "ended")


@dataclasses.dataclass(frozen=True)
class EpisodeInfo:
    """One episode's task, state and end. Times are the sim's or robot's clock, in nanoseconds."""

    state: str  # idle | running | ended
    task_id: str
    params: Mapping[str, float]  # the task's hidden parameters; known in simulation only
    episode: int  # counts up from 1 at each reset
    seed: int
    start_ns: int
    end_ns: int = 0
    terminated: bool = False  # the task itself ended
    truncated: bool = False  # time limit or operator
    reason: str = ""
    published: Mapping[str, int] = dataclasses.field(default_factory=dict)  # messages sent in this episode, by topic

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> EpisodeInfo:
        """Raises ValueError that names the topic and what is wrong with its text."""
        try:
            info = cls(**json.loads(text))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"topic 'episode' does not hold episode information: {error}; got {text[:80]!r}") from None
        if info.state not in STATES:
            raise ValueError(f"topic 'episode' has the state {info.state!r}; known: {', '.join(STATES)}")
        return info
