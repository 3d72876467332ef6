# SPDX-License-Identifier: Apache-2.0
"""Faults as values: why a tick has no observation, why no transition ends at it, or why an episode was cut.

Code decides by `Fault.kind` and `Fault.stream`. The text is made where a fault is printed or stored, and `Fault.parse`
reads it back from datasets and reports.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
import string

from spc_core.contract.sections import Stream


class FaultKind(enum.Enum):
    """The text of each kind in two parts: a summary, by which faults are counted, and details."""

    START = ("start", "")  # the first tick of a sequence, not an error
    NO_MESSAGE = ("{topic}: no message yet", "")
    STALE = ("{topic}: stale", ", {ms:.0f} ms old, allowed {limit_ms:.0f} ms")
    NOT_FINITE = ("{topic}: {detail} is not finite", "")
    SAMPLE_NOT_FINITE = ("{topic}: not finite", "")  # of a command or reward
    NO_COMMAND = ("{topic}: no command in the period", "")
    REWARD_NOT_FINITE = ("the reward's term '{detail}' is not finite", "")
    NO_REWARD = ("{topic}: no reward in the period", "")
    CLOCK_JUMP = ("clock jumped", " back by {s:.3f} s on {topic}")
    SILENCE = ("{topic}: no observation", " for {s:.3f} s")
    NO_OBSERVATION = ("no observation", "")
    HELD_UP = ("the policy was held up: this observation may be old", "")
    RECORDING_ENDED = ("the recording ended", "")
    EPISODE_UNFINISHED = ("the recording ended while the episode ran", "")
    TASK_CHANGED = ("the task changed to {detail} in mid-episode", "")
    GIVEN_UP = ("episode given up", ", {detail}")
    NO_DATA_AT_END = ("no data at the end of the episode", ", {s:.2f} s of it")
    OTHER = ("{detail}", "")  # any other stored text

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches the complete text, with a group for each number or name in it."""
        parts = []
        for literal, name, _, _ in string.Formatter().parse("".join(self.value)):
            parts.append(re.escape(literal))
            if name is not None:
                parts.append(f"(?P<{name}>{_GROUPS.get(name, '-?[0-9.]+')})")
        return re.compile("".join(parts), re.DOTALL)


_GROUPS = {"topic": r"[^\s,:]+", "detail": ".*"}


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """One fault, with the values in its text."""

    kind: FaultKind
    topic: str = ""
    stream: int | None = None  # number of the observation stream, if any
    detail: str = ""  # the non-finite field or term, the new task, or the reason for giving up an episode
    amount_ns: int = 0  # age, backward jump, or missing time
    limit_s: float = 0.0  # maximum age

    def __str__(self) -> str:
        return self._format("".join(self.kind.value))

    @property
    def summary(self) -> str:
        """The text without its details, for counting."""
        return self._format(self.kind.value[0])

    @property
    def is_end_of_recording(self) -> bool:
        return self.kind in (FaultKind.RECORDING_ENDED, FaultKind.EPISODE_UNFINISHED)

    @classmethod
    def parse(cls, text: str) -> Fault:
        """The fault with this stored text, so that str() of it is the text; the stream number is not stored."""
        kind, match = next((kind, match) for kind in FaultKind if (match := kind.pattern.fullmatch(text)))
        found = match.groupdict()
        amount_ns = round(float(found.get("ms", 0)) * 1e6) + round(float(found.get("s", 0)) * 1e9)
        limit_s = float(found.get("limit_ms", 0)) / 1e3
        return cls(kind, found.get("topic", ""), None, found.get("detail", ""), amount_ns, limit_s)

    def _format(self, template: str) -> str:
        numbers = {"ms": self.amount_ns / 1e6, "s": self.amount_ns / 1e9, "limit_ms": self.limit_s * 1e3}
        return template.format(topic=self.topic, detail=self.detail, **numbers)


def stale(index: int, stream: Stream, age_ns: int) -> Fault:
    """The fault of an outdated observation stream; the age is rounded to milliseconds, as in the text."""
    age_ns = round(age_ns / 1e6) * 1_000_000
    return Fault(FaultKind.STALE, stream.topic, index, amount_ns=age_ns, limit_s=stream.max_age_s)
