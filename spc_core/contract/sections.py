# SPDX-License-Identifier: Apache-2.0
"""The sections of a contract as values: observed streams, action, reward, episodes and safety."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence

from spc_core.contract.transforms import Field, FieldTransforms
from spc_core.system.config_files import suggest


@dataclasses.dataclass(frozen=True, slots=True)
class Role:
    """The use of a sample: one of the observation streams, the action, or the reward."""

    name: str  # observation | action | reward
    stream: int | None = None  # number of the observation stream
    part: int = 0  # number of the action's topic

    @property
    def is_action(self) -> bool:
        return self.name == "action"


ACTION, REWARD = Role("action"), Role("reward")


def commanded(part: int) -> Role:
    """The role of the action's topic number `part`."""
    return Role("action", part=part)


def observed(stream: int) -> Role:
    """The role of observation stream number `stream`."""
    return Role("observation", stream)


@dataclasses.dataclass(frozen=True)
class Loss:
    """The reaction to a stream without valid data; None where the contract leaves it open."""

    hold_ms: float | None = None  # how long the last command is held before the safe action
    deactivate_after_s: float | None = None  # after which the policy deactivates; 0: never

    def over(self, other: Loss) -> Loss:
        """These values, with `other` as the default for each that is None."""
        return Loss(
            other.hold_ms if self.hold_ms is None else self.hold_ms,
            other.deactivate_after_s if self.deactivate_after_s is None else self.deactivate_after_s,
        )


@dataclasses.dataclass(frozen=True)
class Safety:
    """The section `safety`; empty where the contract has none."""

    workspace: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)  # by observation field
    loss: Loss = Loss()  # the default of all streams


@dataclasses.dataclass(frozen=True)
class Qos:
    """The QoS of a stream's subscription; None where it follows the publishers."""

    durability: str | None = None  # transient_local | volatile
    reliability: str | None = None  # reliable | best_effort


def observed_column(names: Sequence[str], wanted: str) -> int:
    """Index of an observation field, named with or without its topic. Raises ValueError with the problem and a fix."""
    found = [i for i, name in enumerate(names) if name == wanted or name.endswith(f".{wanted}")]
    if len(found) != 1:
        problem = "is not observed" if not found else "is observed more than once; write the topic before it"
        near = suggest(wanted, names) or suggest(wanted, [_ending(name, wanted.count(".")) for name in names])
        raise ValueError(f"{problem}{near}; known: {', '.join(names)}")
    return found[0]


def _ending(name: str, dots: int) -> str:
    """The end of a name with so many dots."""
    return ".".join(name.split(".")[-dots - 1 :])


@dataclasses.dataclass(frozen=True)
class Stream:
    """One observed topic; its fields are adjacent in the observation vector."""

    topic: str
    type: str
    observed: tuple[Field, ...]
    max_age_s: float
    clock: str  # header | receive
    point: str | float | None = None  # of a JointTrajectory: first, last, at a time in s; None: the only one
    on_loss: Loss = dataclasses.field(default=Loss(), compare=False)  # does not affect the data
    qos: Qos = dataclasses.field(default=Qos(), compare=False)  # nor does this

    @property
    def fields(self) -> tuple[str, ...]:
        """Paths of the numbers read from a message."""
        return tuple(path for field in self.observed for path in field.inputs)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the stream's numbers in the observation vector."""
        return tuple(name for field in self.observed for name in field.outputs)

    @property
    def transforms(self) -> FieldTransforms:
        """A new transform, with no sample remembered, from the numbers read to the numbers observed."""
        return FieldTransforms(self.observed, self.max_age_s)

    @property
    def max_age_ns(self) -> int | None:
        """Maximum age of a sample at a tick, in nanoseconds; None for no limit."""
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
    point: str | float | None = None  # as in Stream
    hold: bool = False  # commands come only when they change: the last one holds until the next


@dataclasses.dataclass(frozen=True)
class ActionVector:
    """The action: the commands of one or more topics, one after the other."""

    parts: tuple[Action, ...]

    @functools.cached_property
    def fields(self) -> tuple[str, ...]:
        """Names of the numbers, with their topics where there are several."""
        if len(self.parts) == 1:
            return self.parts[0].fields
        return tuple(f"{part.topic}.{field}" for part in self.parts for field in part.fields)

    @functools.cached_property
    def low(self) -> tuple[float, ...]:
        return tuple(value for part in self.parts for value in part.low)

    @functools.cached_property
    def high(self) -> tuple[float, ...]:
        return tuple(value for part in self.parts for value in part.high)

    @functools.cached_property
    def safe(self) -> tuple[float, ...]:
        return tuple(value for part in self.parts for value in part.safe)

    @functools.cached_property
    def max_rate(self) -> tuple[float, ...]:
        return tuple(value for part in self.parts for value in part.max_rate)

    @property
    def holds(self) -> bool:
        """Whether the commands of a topic hold until its next."""
        return any(part.hold for part in self.parts)

    @functools.cached_property
    def slices(self) -> tuple[slice, ...]:
        """Where the numbers of each topic are."""
        ends = list(itertools.accumulate((len(part.fields) for part in self.parts), initial=0))
        return tuple(slice(begin, end) for begin, end in itertools.pairwise(ends))


@dataclasses.dataclass(frozen=True)
class TermSpec:
    """One term of a reward, as the contract writes it; what its kind has no use for is empty."""

    name: str
    kind: str
    path: str  # where in the file it is
    weight: float
    of: tuple[str, ...] = ()
    to: tuple[str | float, ...] = ()
    scales: tuple[float, ...] = (1.0,)  # for each of `of`
    shape: str = ""
    angle: bool = False  # differences wrap into [-pi, pi)
    near: float = 0.0  # of success with `to`: the distance that counts
    within: tuple[float, float] | None = None  # a band
    expression: str = ""


@dataclasses.dataclass(frozen=True)
class Reward:
    """A field of a topic, a registered function with its weights, or terms."""

    topic: str | None = None
    type: str | None = None
    field: str | None = None
    clock: str = "header"
    function: str | None = None
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    terms: tuple[TermSpec, ...] = ()

    def __str__(self) -> str:
        """In a few words, for reports."""
        if self.topic is not None:
            return f"{self.field} of the topic {self.topic}"
        if self.function is not None:
            weights = ", ".join(f"{name} {value:g}" for name, value in self.weights.items())
            return f"function {self.function} of observation and action, with {weights}"
        if [term.name for term in self.terms] == ["expression"]:
            return self.terms[0].expression
        return f"terms {', '.join(term.name for term in self.terms)}"


@dataclasses.dataclass(frozen=True)
class Segments:
    """How a recording divides into episodes: not at all, by a marker topic, or at pauses."""

    by: str = "bag"  # bag | topic | gap
    topic: str = "episode"  # by topic: EpisodeInfo as JSON, or a marker, on while it is neither 0, false nor ''
    type: str = "std_msgs/msg/String"
    field: str = "data"
    gap_s: float = math.inf  # by gap: a pause of the first stream that ends an episode
    limit_s: float = math.inf  # an episode is truncated after this time and the next one begins
