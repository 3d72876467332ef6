# SPDX-License-Identifier: Apache-2.0
"""Checks that replace the policy's action by the safe one: emergency stop, workspace, heartbeats, silence, stalls."""

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
FROM_CONTRACT = -1.0  # value of hold_ms and deactivate_after_s: use the contract's


class GuardError(ValueError):
    """Invalid settings of a guard; the message names parameter, value and fix."""


class WorkspaceBox:
    """Bounds on observation fields, from the contract and from parameters; outside any, the safe action is sent."""

    def __init__(self, contract: Contract, fields: Sequence[str], low: Sequence[float], high: Sequence[float]) -> None:
        """`fields` are observation names of the contract; the topic may be left out where the rest is unique.

        A field that the contract bounds too must be within both bounds.
        """
        if not len(fields) == len(low) == len(high):
            raise GuardError(
                f"workspace_fields has {len(fields)} entries, workspace_low {len(low)} and workspace_high "
                f"{len(high)}; give one low and one high for each field"
            )
        for name, least, most in zip(fields, low, high, strict=True):
            if not least < most:
                raise GuardError(f"workspace of {name}: low {least:g} is not below high {most:g}")
        contract_limits = contract.safety.workspace
        self._names = (*contract_limits, *fields)
        self._columns = np.array([_column(contract.observation_names, name) for name in self._names], int)
        self._low = np.array([*(bounds[0] for bounds in contract_limits.values()), *low], float)
        self._high = np.array([*(bounds[1] for bounds in contract_limits.values()), *high], float)

    def reason(self, observation: np.ndarray) -> str | None:
        """The field of (O,) that is outside, as text, or None."""
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
    """A value that must keep changing, by a steady clock: the node's clock, or the context."""

    def __init__(self, name: str, timeout_s: float) -> None:
        self._name, self._timeout_s = name, timeout_s  # 0: no timeout
        self._value: object = None
        self._changed_s: float | None = None

    def update(self, value: object, now_s: float) -> None:
        if value != self._value:
            self._value, self._changed_s = value, now_s

    def reason(self, now_s: float) -> str | None:
        """Why the value counts as lost, or None; a value never seen is not lost."""
        if not self._timeout_s or self._changed_s is None or now_s - self._changed_s <= self._timeout_s:
            return None
        return f"{self._name} for more than {self._timeout_s:g} s"


class StallWatch:
    """Detects that this process itself stalled, so that its next messages may be old. Times are steady."""

    def __init__(self, longest_s: float, settle_s: float) -> None:
        """A stall is `longest_s` without a call; for `settle_s` after it, messages may come from a queue."""
        self._longest_s, self._settle_s = longest_s, settle_s
        self._called_s, self._until_s = float("inf"), -float("inf")

    def is_stalled(self, now_s: float, rest_s: float = 0.0) -> bool:
        """Whether messages may be old. Call it often; `rest_s` is the longest intended pause between calls."""
        if now_s - self._called_s > max(self._longest_s, 1.1 * rest_s):
            self._until_s = now_s + self._settle_s
        self._called_s = now_s
        return now_s < self._until_s


@dataclasses.dataclass(frozen=True)
class Mode:
    """Reaction to a stream without a valid observation: hold, then the safe action, then deactivate."""

    hold_s: float = 0.0  # time for which the last command stays in effect
    deactivate_s: float = 0.0  # time after which the node deactivates; 0: never


class ReactionKind(enum.IntEnum):
    """From the mildest to the strictest."""

    HOLD = 0
    SAFE = 1
    DEACTIVATE = 2


@dataclasses.dataclass(frozen=True)
class Reaction:
    """Reaction to a bad or missing observation, and its reason as text."""

    kind: ReactionKind
    reason: str


class ObservationWatch:
    """Decides how to react to bad or missing observations. Times are steady.

    Each stream has its own mode and its own start of trouble; of several reactions, the strictest counts.
    """

    def __init__(self, topics: Sequence[str], modes: Sequence[Mode], silence_s: float) -> None:
        """`modes` has one entry for each of the observation's topics."""
        self._topics, self._modes, self.silence_s = tuple(topics), tuple(modes), silence_s
        self.reset()

    def reset(self) -> None:
        """Start without an observation; silence counts from the first one."""
        self._received_s: float | None = None
        self._good()

    def _good(self) -> None:
        self._since_s: dict[int, float] = {}  # by stream: its first fault after the last complete observation
        self._troubles: dict[int, Fault] = {}  # by stream: its present fault
        self._last: ReactionKind | None = None
        self.silent = False

    @property
    def idle(self) -> bool:
        """Whether time alone can at most deactivate: nothing received yet, or silent and safe already."""
        return self._received_s is None or (self.silent and self._last is ReactionKind.SAFE)

    def good(self, now_s: float) -> None:
        """Take a complete observation, which ends all trouble."""
        self._received_s = now_s
        self._good()

    def bad(self, fault: Fault, now_s: float, fresh: bool = True, also: Sequence[Fault] = ()) -> Reaction:
        """Take an unusable observation; `fresh`: a message completed it; `also`: its further faults."""
        if fresh:
            self._received_s, self.silent = now_s, False
            self._troubles = {}  # a fresh tick reports on all streams
        for each in (fault, *also):
            number = _number(each)
            self._troubles[number] = each
            self._since_s.setdefault(number, now_s)  # alternating failures must not hold forever
        reaction = self._reaction(now_s)
        self._last = reaction.kind
        return reaction

    def worse(self, faults: Sequence[Fault], now_s: float) -> Reaction | None:
        """Take faults seen during silence; returns the reaction if it differs from the last."""
        last = self._last
        others = [fault for fault in faults if _number(fault) not in self._troubles]
        if not others:
            return None
        reaction = self.bad(others[0], now_s, fresh=False, also=others[1:])
        return reaction if reaction.kind is not last else None

    def check(self, now_s: float) -> Reaction | None:
        """The reaction that passing time requires, each kind once; else None."""
        if self._received_s is None:
            return None
        last = self._last
        if not self.silent and now_s - self._received_s > self.silence_s:
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
        """The strictest reaction over all streams in trouble."""
        found = []
        for number, fault in sorted(self._troubles.items()):
            mode, past_s = self._modes[number], now_s - self._since_s[number]
            if mode.deactivate_s and past_s >= mode.deactivate_s:
                found.append(Reaction(ReactionKind.DEACTIVATE, f"{fault}; so for {mode.deactivate_s:g} s"))
            else:
                found.append(Reaction(ReactionKind.HOLD if past_s < mode.hold_s else ReactionKind.SAFE, str(fault)))
        return max(found, key=lambda reaction: reaction.kind)


def _number(fault: Fault) -> int:
    """The stream whose mode applies to a fault; the first one if the fault names no stream."""
    return fault.stream or 0


def stricter_modes(losses: Sequence[Loss], hold_ms: Sequence[float], deactivate_after_s: Sequence[float]) -> list[Mode]:
    """One mode for each stream: the contract's, or a stricter one from the two parameters.

    FROM_CONTRACT uses the contract's value, or 0 if it has none. Raises GuardError for a parameter looser than the
    contract.
    """
    for name, values in (("hold_ms", hold_ms), ("deactivate_after_s", deactivate_after_s)):
        if len(values) not in (1, len(losses)):
            raise GuardError(
                f"{name} has {len(values)} entries; give one, or one for each of the {len(losses)} observation streams"
            )
    modes = []
    for number, loss in enumerate(losses):
        hold = _stricter("hold_ms", hold_ms[number % len(hold_ms)], loss.hold_ms, number)
        asked = deactivate_after_s[number % len(deactivate_after_s)]
        end = _stricter("deactivate_after_s", asked, loss.deactivate_after_s, number)
        if end and end < hold / 1e3:
            raise GuardError(f"deactivate_after_s is {end:g}, shorter than hold_ms {hold:g}; make it longer, or 0")
        modes.append(Mode(hold / 1e3, end))
    return modes


def _stricter(name: str, asked: float, limit: float | None, number: int) -> float:
    """The parameter's value for a stream, or the contract's limit where the parameter leaves it to the contract."""
    if asked == FROM_CONTRACT:
        return limit or 0.0
    if not 0 <= asked < 1e9:
        raise GuardError(
            f"{name} is {asked:g} for observation stream {number}; give a number of at least 0, or "
            f"{FROM_CONTRACT:g} for the contract's"
        )
    never = name == "deactivate_after_s"  # where 0 means never, which is the loosest
    if limit is not None and ((asked or math.inf) if never else asked) > ((limit or math.inf) if never else limit):
        raise GuardError(
            f"{name} is {asked:g} for observation stream {number}, looser than the contract's {limit:g}; a parameter "
            f"can only be stricter: lower it, use {FROM_CONTRACT:g} for the contract's, or change the contract"
        )
    return asked
