# SPDX-License-Identifier: Apache-2.0
"""Episode information, as on the latched topic `episode`, in a bag's custom_data, and in a dataset."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping

STATES = ("idle", "running", "ended")


@dataclasses.dataclass(frozen=True)
class TaskChange:
    """A change of task in mid-episode: transitions from `t_ns` on belong to the new task."""

    t_ns: int
    task_id: str
    params: Mapping[str, float]
    announced: bool  # when it happened; otherwise only at the end of the episode


@dataclasses.dataclass(frozen=True)
class EpisodeInfo:
    """One episode's task, state and end. Times are the sim's or robot's clock, in nanoseconds."""

    state: str  # idle | running | ended
    task_id: str  # at the start
    params: Mapping[str, float]  # the task's hidden parameters; known in simulation only
    episode: int  # number, from 1, incremented at each reset
    seed: int
    start_ns: int
    end_ns: int = 0
    terminated: bool = False  # the task itself ended
    truncated: bool = False  # time limit or operator
    reason: str = ""
    published: Mapping[str, int] = dataclasses.field(default_factory=dict)  # messages sent in this episode, by topic
    changes: tuple[TaskChange, ...] = ()  # of task, in mid-episode

    @property
    def task_now(self) -> str:
        """The task after all changes."""
        return self.changes[-1].task_id if self.changes else self.task_id

    def to_json(self) -> str:
        data = dataclasses.asdict(self)
        if not self.changes:
            del data["changes"]  # unknown to older readers
        return json.dumps(data, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> EpisodeInfo:
        """Parse JSON. Raises ValueError that names the topic and the problem."""
        try:
            data = json.loads(text)
            changes = tuple(TaskChange(**change) for change in data.pop("changes", ()))
            info = cls(**data, changes=changes)
        except (json.JSONDecodeError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"topic 'episode' has invalid episode information: {error}; got {text[:80]!r}") from None
        if info.state not in STATES:
            raise ValueError(f"topic 'episode' has the state {info.state!r}; known: {', '.join(STATES)}")
        for part in (info, *info.changes):
            _check_types(part)
        return info


def _check_types(part: EpisodeInfo | TaskChange) -> None:
    """Raises ValueError for a field of the wrong type: JSON from other programs can hold anything."""
    types = {"bool": bool, "str": str}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if field.name == "changes":
            continue
        if field.name in ("params", "published"):
            valid = isinstance(value, dict) and all(map(_is_number, value.values()))
        elif field.type == "int":
            valid = _is_number(value)  # also 5e9 for 5000000000
        else:
            valid = isinstance(value, types[str(field.type)])
        if not valid:
            raise ValueError(f"topic 'episode' has {field.name}: {value!r:.80}, expected {field.type}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
