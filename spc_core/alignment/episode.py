# SPDX-License-Identifier: Apache-2.0
"""Episodes: their published information, their spans in time, and the division of ticks into their segments."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import dropwhile

import numpy as np

from spc_core.alignment.batch.aligner import Ticks
from spc_core.alignment.faults import Fault, FaultKind
from spc_core.contract.contract import Contract

STATES = ("idle", "running", "ended")
OFF_WORDS = frozenset(
    ("", "0", "false", "off", "no", "none", "idle", "stop", "stopped", "end", "ended", "done", "finished", "pause",
     "paused", "reset", "resetting", "waiting", "ready", "inactive", "abort", "aborted")
)  # fmt: skip
"""Words of a marker that mean that no episode runs."""
END_PERIODS = 2.5  # an episode's last transition ends at most this many periods before the episode does


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


def tells_of_episode(text: str) -> bool:
    """Whether a text is meant as episode information, be it valid or not; topics of other programs may hold any."""
    return text.lstrip().startswith("{") and all(f'"{name}"' in text for name in ("state", "episode"))


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


@dataclasses.dataclass(frozen=True)
class EpisodeSpan:
    """The time of one episode, and how it ended: exactly one of terminated, truncated and cut."""

    begin_ns: float = -math.inf
    end_ns: float = math.inf
    terminated: bool = False
    truncated: bool = False
    cut: Fault | None = Fault(FaultKind.RECORDING_ENDED)
    task_id: str = ""
    params: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Segment:
    """Consecutive transitions: from tick `first` to tick `last`, within span number `span`."""

    first: int
    last: int
    span: int
    terminated: bool
    truncated: bool
    cut: Fault | None


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """Segments in order of time, cuts as (t_ns, fault), and counts of dropped ticks by fault summary."""

    segments: tuple[Segment, ...]
    cuts: tuple[tuple[int, Fault], ...]
    dropped: Mapping[str, int]
    outside: int = 0  # ticks in no span


def episode_span(info: EpisodeInfo, period_ns: int) -> EpisodeSpan:
    """The span of an episode, half a period wider on both sides, up to a change of task."""
    slack_ns = period_ns // 2
    begin_ns = info.start_ns - slack_ns
    if info.changes:  # the rest belongs to another task
        change = info.changes[0]
        cut = Fault(FaultKind.TASK_CHANGED, detail=change.task_id)
        return EpisodeSpan(begin_ns, change.t_ns + slack_ns, cut=cut, task_id=info.task_id, params=info.params)
    if info.state != "ended":
        cut = Fault(FaultKind.EPISODE_UNFINISHED)
        return EpisodeSpan(begin_ns, math.inf, cut=cut, task_id=info.task_id, params=info.params)
    end_ns = info.end_ns + slack_ns if info.end_ns else math.inf
    truncated = info.truncated and not info.terminated
    given_up = Fault(FaultKind.GIVEN_UP, detail=info.reason or "no reason given")
    cut = None if info.terminated or truncated else given_up
    return EpisodeSpan(begin_ns, end_ns, info.terminated, truncated, cut, info.task_id, info.params)


def told_spans(infos: Sequence[EpisodeInfo], period_ns: int) -> list[EpisodeSpan]:
    """The spans of episodes that follow each other: none reaches beyond the state at which the next one starts."""
    spans = [episode_span(info, period_ns) for info in infos]
    for i, (info, after) in enumerate(zip(infos, infos[1:], strict=False)):
        if not info.end_ns <= after.start_ns:
            continue
        middle_ns = (info.end_ns + after.start_ns) // 2 if info.end_ns else after.start_ns - 1
        spans[i] = dataclasses.replace(spans[i], end_ns=min(spans[i].end_ns, middle_ns))
        begin_ns = max(spans[i + 1].begin_ns, min(middle_ns + 1, after.start_ns))
        spans[i + 1] = dataclasses.replace(spans[i + 1], begin_ns=begin_ns)
    return spans


def marker_spans(
    begins_ns: Sequence[int], values: Sequence[float | str], ends_ns: Sequence[int] | None = None
) -> list[EpisodeSpan]:
    """A span for each stretch in which a marker stays at one value that means an episode (see _is_on).

    Of each mark, the first time after it, and, where that is not 1 ns less, the last time before it.
    """
    spans: list[EpisodeSpan] = []
    begin_ns: int | None = None
    current: float | str | None = None
    is_on = _is_on(values)
    for first_ns, value, last_ns in zip(begins_ns, values, ends_ns or [t - 1 for t in begins_ns], strict=True):
        if value == current or (current is None and not is_on(value)):
            continue
        if begin_ns is not None:
            spans.append(EpisodeSpan(begin_ns, last_ns, truncated=True, cut=None))
        begin_ns, current = (first_ns if is_on(value) else None), (value if is_on(value) else None)
    if begin_ns is not None:
        spans.append(EpisodeSpan(begin_ns, cut=Fault(FaultKind.EPISODE_UNFINISHED)))
    return spans


def _is_on(values: Sequence[float | str]) -> Callable[[float | str], bool]:
    """Which values of a marker mean an episode, as all its values tell.

    Of words those that do not say that something is off. Of numbers all but 0, false and NaN; in an index, which starts
    at 0 and does not come back to it, or is negative where there is no episode, 0 too.
    """
    numbers = [value for value in values if not isinstance(value, str)]
    if not numbers:
        return lambda value: str(value).strip().lower() not in OFF_WORDS
    begun = list(dropwhile(lambda value: value == 0, numbers))
    is_index = min(numbers) < 0 or (numbers[0] == 0 and 0 not in begun and len(set(begun)) > 1)
    return lambda value: not isinstance(value, str) and (value > 0 or (is_index and value == 0))


def split_ticks(ticks: Ticks, spans: Sequence[EpisodeSpan], contract: Contract) -> Segmentation:
    """Segments of all spans, without gaps; every transition inside a span is in one segment."""
    segments: list[Segment] = []
    cuts: list[tuple[int, Fault]] = []
    dropped: Counter[str] = Counter()
    outside = np.ones(len(ticks), bool)
    for number, span in enumerate(spans):
        inside = (ticks.t_ns >= span.begin_ns) & (ticks.t_ns <= span.end_ns)
        outside &= ~inside
        runs = _runs(ticks, inside)
        for index, (first, last) in enumerate(runs):
            if last + 1 < len(inside) and inside[last + 1]:
                next_first = runs[index + 1][0] if index + 1 < len(runs) else last
                pause_ns = int(ticks.t_ns[next_first] - ticks.t_ns[last])
                terminated, truncated, cut = _interrupted(ticks.fault(last + 1), pause_ns, contract)
                at_ns = int(ticks.t_ns[last + 1])
            else:
                at_ns = int(ticks.t_ns[last])
                terminated, truncated, cut = _end(span, at_ns, contract.period_ns)
            if cut is not None:
                cuts.append((at_ns, cut))
            segments += _limited(Segment(first, last, number, terminated, truncated, cut), contract)
        for code, count in enumerate(np.bincount(ticks.codes[inside & ~ticks.has_transition])):
            fault = ticks.faults[code]
            if count and fault is not None and fault.kind is not FaultKind.START:
                dropped[fault.summary] += int(count)
    return Segmentation(tuple(segments), tuple(cuts), dict(dropped), int(outside.sum()))


def _runs(ticks: Ticks, inside: np.ndarray) -> list[tuple[int, int]]:
    """(first tick, last tick) of each run of transitions that begin and end inside."""
    used = np.flatnonzero(ticks.has_transition & inside & np.concatenate([[False], inside[:-1]]))
    if not len(used):
        return []
    return [(int(run[0]) - 1, int(run[-1])) for run in np.split(used, np.flatnonzero(np.diff(used) > 1) + 1)]


def _interrupted(fault: Fault | None, pause_ns: int, contract: Contract) -> tuple[bool, bool, Fault | None]:
    """(terminated, truncated, cut) of a run ended by a tick without transition, or by a pause between episodes."""
    if contract.segments.by == "gap" and pause_ns >= contract.segments.gap_s * 1e9:
        return False, True, None
    return False, False, fault


def _end(span: EpisodeSpan, last_ns: int, period_ns: int) -> tuple[bool, bool, Fault | None]:
    """(terminated, truncated, cut) of a span's last run, which ends at `last_ns`."""
    missing_ns = span.end_ns - last_ns
    if math.isfinite(missing_ns) and missing_ns > END_PERIODS * period_ns:
        return False, False, Fault(FaultKind.NO_DATA_AT_END, amount_ns=round(missing_ns))
    return span.terminated, span.truncated, span.cut


def _limited(segment: Segment, contract: Contract) -> list[Segment]:
    """The segment in parts of at most the time limit, all but the last of them truncated."""
    if math.isinf(contract.segments.limit_s):
        return [segment]
    length = max(1, round(contract.segments.limit_s * contract.rate_hz))
    parts = []
    for first in range(segment.first, segment.last, length):
        if first + length >= segment.last:
            parts.append(dataclasses.replace(segment, first=first))
        else:
            parts.append(Segment(first, first + length, segment.span, False, True, None))
    return parts
