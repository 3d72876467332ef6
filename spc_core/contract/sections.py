# SPDX-License-Identifier: Apache-2.0
"""The sections of a contract: an observed stream, the action, the reward, what an episode is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from spc_core.contract.safety import Loss
from spc_core.contract.transforms import Field, FieldTransforms


@dataclasses.dataclass(frozen=True)
class Stream:
    """One observed topic; its fields follow each other in the observation vector."""

    topic: str
    type: str
    observed: tuple[Field, ...]
    max_age_s: float
    clock: str  # header | receive
    on_loss: Loss = dataclasses.field(default=Loss(), compare=False)  # says nothing of the data

    @property
    def fields(self) -> tuple[str, ...]:
        """Paths of the numbers that are read from a message."""
        return tuple(path for field in self.observed for path in field.inputs)

    @property
    def names(self) -> tuple[str, ...]:
        """What each number of the stream's part of the observation vector is called."""
        return tuple(name for field in self.observed for name in field.outputs)

    @property
    def transforms(self) -> FieldTransforms:
        """What turns the numbers read into the numbers observed; a new one, which remembers nothing."""
        return FieldTransforms(self.observed, self.max_age_s)

    @property
    def max_age_ns(self) -> int | None:
        """The oldest a sample may be at a tick, in nanoseconds; None where any age will do."""
        return None if math.isinf(self.max_age_s) else round(self.max_age_s * 1e9)


@dataclasses.dataclass(frozen=True)
class Action:
    """The commanded topic, with limits in the unit of its fields and `max_rate` in that unit per second."""

    topic: str
    type: str
    fields: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    safe: tuple[float, ...]
    max_rate: tuple[float, ...]
    clock: str


@dataclasses.dataclass(frozen=True)
class Reward:
    """Either a field of a topic or a function of the registry with its weights."""

    topic: str | None = None
    type: str | None = None
    field: str | None = None
    clock: str = "header"
    function: str | None = None
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Segments:
    """What is one episode of a recording: all of it, what a marker topic says, or what lies between pauses."""

    by: str = "bag"  # bag | topic | gap
    topic: str = "episode"  # by topic: EpisodeInfo as JSON, or a marker, on while it is neither 0, false nor ''
    type: str = "std_msgs/msg/String"
    field: str = "data"
    gap_s: float = math.inf  # by gap: a pause of the first stream that ends an episode
    limit_s: float = math.inf  # an episode is truncated here and another one begins
