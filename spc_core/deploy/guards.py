# SPDX-License-Identifier: Apache-2.0
"""Reasons to send the safe action although the policy has an answer: emergency stop, workspace box, watched times."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Sequence

import numpy as np

from spc_core.alignment.faults import Fault, FaultKind
from spc_core.contract.contract import Contract
from spc_core.contract.sections import Loss, observed_column

LOSSES = ("ignore", "stop")
FROM_CONTRACT = -1.0  # of hold_ms and deactivate_after_s: as the contract says


class GuardError(ValueError):
    """Settings of a guard that cannot work; the message names parameter, value and fix."""


class EmergencyStop:
    """The stop topic's last word, and what its silence means once it has been heard."""

    def __init__(self, loss: str, timeout_s: float) -> None:
        self._loss, self._timeout_s = loss, timeout_s
        self._pressed = False
        self._heard_s: float | None = None  # steady clock

    def heard(self, pressed: bool, now_s: float) -> None:
        self._pressed, self._heard_s = pressed, now_s

    def reason(self, now_s: float) -> str | None:
        """Why the robot must stand still, or None."""
        if self._pressed:
            return "emergency stop"
        if self._loss == "stop" and self._heard_s is not None and now_s - self._heard_s > self._timeout_s:
            return f"emergency stop: its topic was heard and is silent for more than {self._timeout_s:g} s"
        return None


class WorkspaceBox:
    """Bounds of chosen observation fields, the contract's and further ones; outside any the robot is made safe."""

    def __init__(self, contract: Contract, fields: Sequence[str], low: Sequence[float], high: Sequence[float]) -> None:
        """`fields` are names of the contract's observation, whole or without the topic where that is clear.

        They add to the box in the contract: a field that is in both must be within both.
        """
        if not len(fields) == len(low) == len(high):
            raise GuardError(
                f"workspace_fields has {len(fields)} entries, workspace_low {len(low)} and workspace_high "
                f"{len(high)}; give one low and one high for each field"
            )
        for name, least, most in zip(fields, low, high, strict=True):
            if not least < most:
                raise GuardError(f"workspace of {name}: low {least:g} is not below high {most:g}")
        written = contract.safety.workspace
        self._names = (*written, *fields)
        self._columns = np.array([_column(contract.observation_names, name) for name in self._names], int)
        self._low = np.array([*(bounds[0] for bounds in written.values()), *low], float)
        self._high = np.array([*(bounds[1] for bounds in written.values()), *high], float)

    def reason(self, observation: np.ndarray) -> str | None:
        """Which field of (O,) is outside, or None."""
        if not len(self._columns):
            return None
        values = observation[self._columns]
        outside = (values < self._low) | (values > self._high)
        if not outside.any():
            return None
        i = int(np.argmax(outside))
        return f"workspace: {self._names[i]} is {values[i]:.4g}, allowed [{self._low[i]:g}, {self._high[i]:g}]"


def _column(names: Sequence[str], wanted: str) -> int:
    try:
        return observed_column(names, wanted)
    except ValueError as error:
        raise GuardError(f"workspace_fields: {wanted} {error}") from None


class Heartbeat:
    """Something that must change again and again, by a steady clock: the node's clock, or the context."""

    def __init__(self, what: str, timeout_s: float) -> None:
        self._what, self._timeout_s = what, timeout_s  # 0: never late
        self._value: object = None
        self._changed_s: float | None = None

    def look(self, value: object, now_s: float) -> None:
        if value != self._value:
            self._value, self._changed_s = value, now_s

    def reason(self, now_s: float) -> str | None:
        """Why it counts as lost, or None; what was never seen is not lost."""
        if not self._timeout_s or self._changed_s is None or now_s - self._changed_s <= self._timeout_s:
            return None
        return f"{self._what} for more than {self._timeout_s:g} s"


class StallWatch:
    """Notices that this process itself was held up, so that what it hears next may have waited. Times are steady."""

    def __init__(self, longest_s: float, settle_s: float) -> None:
        """Held up is: not asked for `longest_s`. For `settle_s` from then on, what comes is from a queue."""
        self._longest_s, self._settle_s = longest_s, settle_s
        self._asked_s, self._until_s = float("inf"), -float("inf")

    def held_up(self, now_s: float, rest_s: float = 0.0) -> bool:
        """True while what comes may be old. Ask often, and say how long the asker may have rested meanwhile."""
        if now_s - self._asked_s > max(self._longest_s, 1.1 * rest_s):
            self._until_s = now_s + self._settle_s
        self._asked_s = now_s
        return now_s < self._until_s


@dataclasses.dataclass(frozen=True)
class Mode:
    """What to do when a stream gives no good observation: wait, then the safe action, then close the gate."""

    hold_s: float = 0.0  # the last command stands for so long
    deactivate_s: float = 0.0  # after so long the node deactivates; 0: never


class ReactionKind(enum.IntEnum):
    """From the mildest to the strictest."""

    HOLD = 0
    SAFE = 1
    DEACTIVATE = 2


@dataclasses.dataclass(frozen=True)
class Reaction:
    """What the missing or bad observation calls for now, and why, in words."""

    kind: ReactionKind
    reason: str


class ObservationWatch:
    """Decides how long the last command may stand when observations are bad or fail to come. Times are steady.

    Each stream has its own mode and its own onset of trouble; where several are in trouble, the strictest word counts.
    """

    def __init__(self, topics: Sequence[str], modes: Sequence[Mode], silence_s: float) -> None:
        """`modes` are one for each of the observation's topics, or one for all."""
        if len(modes) not in (1, len(topics)):
            raise GuardError(
                f"hold_ms and deactivate_after_s need one entry, or one for each of the {len(topics)} observation "
                f"streams ({', '.join(topics)}), got {len(modes)}"
            )
        self._topics = tuple(topics)
        self._modes = tuple(modes) if len(modes) == len(topics) else (modes[0],) * len(topics)
        self.silence_s = silence_s
        self.reset()

    def reset(self) -> None:
        """Nothing was heard yet; silence counts from the first observation."""
        self._heard_s: float | None = None
        self._good()

    def _good(self) -> None:
        self._since_s: dict[int, float] = {}  # by stream: its first trouble after the last whole observation
        self._troubles: dict[int, Fault] = {}  # by stream: what is wrong now
        self._last: ReactionKind | None = None
        self.silent = False

    @property
    def idle(self) -> bool:
        """Whether time calls for nothing but, at most, to deactivate: nothing heard yet, or safe and still silent."""
        return self._heard_s is None or (self.silent and self._last is ReactionKind.SAFE)

    def good(self, now_s: float) -> None:
        """A whole observation came: trouble is over."""
        self._heard_s = now_s
        self._good()

    def bad(self, fault: Fault, now_s: float, fresh: bool = True, also: Sequence[Fault] = ()) -> Reaction:
        """An observation that cannot be used; `fresh` tells that a message brought it, `also` is wrong besides."""
        if fresh:
            self._heard_s, self.silent = now_s, False
            self._troubles = {}  # a fresh tick tells of all streams
        for each in (fault, *also):
            number = _number(each)
            self._troubles[number] = each
            self._since_s.setdefault(number, now_s)  # streams that fail by turns must not hold for ever
        reaction = self._reaction(now_s)
        self._last = reaction.kind
        return reaction

    def worse(self, faults: Sequence[Fault], now_s: float) -> Reaction | None:
        """Faults seen while no observation comes; what they call for, where that is something else than before."""
        last = self._last
        others = [fault for fault in faults if _number(fault) not in self._troubles]
        if not others:
            return None
        reaction = self.bad(others[0], now_s, fresh=False, also=others[1:])
        return reaction if reaction.kind is not last else None

    def check(self, now_s: float) -> Reaction | None:
        """What time alone calls for, each kind told once."""
        if self._heard_s is None:
            return None
        last = self._last
        if not self.silent and now_s - self._heard_s > self.silence_s:
            self.silent = True
            silence = Fault(FaultKind.SILENCE, self._topics[0], 0, amount_ns=round(self.silence_s * 1e9))
            reaction = self.bad(silence, now_s, fresh=False)
        elif self._troubles:
            reaction = self._reaction(now_s)
        else:
            return None
        self._last = reaction.kind
        return reaction if reaction.kind is not last else None

    def _reaction(self, now_s: float) -> Reaction:
        """The strictest of what the streams in trouble call for."""
        found = []
        for number, fault in sorted(self._troubles.items()):
            mode, past_s = self._modes[number], now_s - self._since_s[number]
            if mode.deactivate_s and past_s >= mode.deactivate_s:
                found.append(Reaction(ReactionKind.DEACTIVATE, f"{fault}; so for {mode.deactivate_s:g} s"))
            else:
                found.append(Reaction(ReactionKind.HOLD if past_s < mode.hold_s else ReactionKind.SAFE, str(fault)))
        return max(found, key=lambda reaction: reaction.kind)


def _number(fault: Fault) -> int:
    """The stream whose mode holds for a fault: the first one for a fault of none."""
    return fault.stream or 0


def modes(hold_ms: Sequence[float], deactivate_after_s: Sequence[float]) -> list[Mode]:
    """Modes from two parameters, each with one entry or one for each stream. Raises GuardError."""
    for name, values in (("hold_ms", hold_ms), ("deactivate_after_s", deactivate_after_s)):
        if not len(values) or any(not 0 <= value < 1e9 for value in values):
            raise GuardError(f"{name} is {list(values)}; give one number of at least 0, or one for each stream")
    count = max(len(hold_ms), len(deactivate_after_s))
    holds = list(hold_ms) * (count if len(hold_ms) == 1 else 1)
    ends = list(deactivate_after_s) * (count if len(deactivate_after_s) == 1 else 1)
    if len(holds) != len(ends):
        raise GuardError(f"hold_ms has {len(holds)} entries, deactivate_after_s {len(ends)}; give one for each stream")
    for hold, end in zip(holds, ends, strict=True):
        if end and end < hold / 1e3:
            raise GuardError(f"deactivate_after_s is {end:g}, shorter than hold_ms {hold:g}; make it longer, or 0")
    return [Mode(hold / 1e3, end) for hold, end in zip(holds, ends, strict=True)]


def stricter_modes(losses: Sequence[Loss], hold_ms: Sequence[float], deactivate_after_s: Sequence[float]) -> list[Mode]:
    """One mode for each stream: the contract's, made stricter where the two parameters say so.

    FROM_CONTRACT leaves a stream to the contract; what the contract leaves open is the parameter's, or 0. Raises
    GuardError where a parameter would loosen what the contract says.
    """
    asked = {"hold_ms": list(hold_ms), "deactivate_after_s": list(deactivate_after_s)}
    for name, values in asked.items():
        if len(values) not in (1, len(losses)):
            raise GuardError(
                f"{name} has {len(values)} entries; give one, or one for each of the {len(losses)} observation streams"
            )
        asked[name] = values * (len(losses) if len(values) == 1 else 1)
    found = []
    for number, loss in enumerate(losses):
        hold = _settle("hold_ms", asked["hold_ms"][number], loss.hold_ms, number)
        end = _settle("deactivate_after_s", asked["deactivate_after_s"][number], loss.deactivate_after_s, number)
        found += modes([hold], [end])
    return found


def _settle(name: str, asked: float, written: float | None, number: int) -> float:
    """What holds of a parameter and the contract's own word for a stream."""
    if asked == FROM_CONTRACT:
        return written or 0.0
    limit = written
    if name == "deactivate_after_s":  # its 0 means never, which is the loosest
        asked_s, limit = asked or math.inf, math.inf if written == 0 else written
    else:
        asked_s = asked
    if limit is not None and asked_s > limit:
        raise GuardError(
            f"{name} is {asked:g} for observation stream {number}, looser than the contract's {limit:g}; a parameter "
            f"can only be stricter: give less, or {FROM_CONTRACT:g} for the contract's, or change the contract"
        )
    return asked
