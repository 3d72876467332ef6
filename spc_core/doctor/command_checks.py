# SPDX-License-Identifier: Apache-2.0
"""Whether commands come only when they change, so that each holds until the next one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from spc_core.doctor.diagnosis import Finding, TopicLog
from spc_core.doctor.topic_stats import MIN_MESSAGES, paced_ns

SPARSE = 0.5  # commands for each state, fewer of which may be those that change
REPEATED = 0.05  # share of commands equal to the one before, more of which is no publisher of changes
NEAR = 0.25  # share of the median interval by which a steady publisher's intervals differ
STEADY, UNSTEADY = 0.8, 0.5  # shares of near intervals, above and below which a publisher is steady and is not
ON_TIME = 0.8  # share of the contract's rate at which a steady publisher commands each tick


@dataclasses.dataclass(frozen=True)
class CommandPattern:
    """Counts of a command topic next to the states; those of several bags add up."""

    commands: int = 0
    states: int = 0
    repeated: int = 0  # commands equal to the one before
    intervals: int = 0
    near: int = 0  # intervals near the median

    def __add__(self, other: CommandPattern) -> CommandPattern:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return CommandPattern(*(a + b for a, b in pairs))

    @property
    def on_change(self) -> bool:
        """Whether they look like those of a publisher that speaks only when something changes."""
        return self._few and self.near < UNSTEADY * self.intervals

    @property
    def _few(self) -> bool:
        enough = self.intervals >= MIN_MESSAGES - 1
        return enough and self.commands < SPARSE * self.states and self.repeated <= REPEATED * self.intervals

    @property
    def may_hold(self) -> bool:
        """Whether that cannot be excluded: few commands, hardly ever repeated, and no steady publisher."""
        return self._few and self.near < STEADY * self.intervals

    @property
    def steady(self) -> bool:
        return self.intervals >= MIN_MESSAGES - 1 and self.near >= STEADY * self.intervals

    def __str__(self) -> str:
        repeated = f"{self.repeated} equal to the one before" if self.repeated else "none equal to the one before"
        return f"{self.commands} commands for {self.states} states, irregular, {repeated}"


def command_pattern(command: TopicLog, states: TopicLog) -> CommandPattern:
    """Of one bag."""
    steps_s = np.diff(np.sort(paced_ns(command))) / 1e9
    steps_s = steps_s[steps_s > 0]
    repeated = int((command.values[1:] == command.values[:-1]).all(axis=1).sum())
    period_s = float(np.median(steps_s)) if len(steps_s) else 0.0
    near = int((np.abs(steps_s - period_s) <= NEAR * period_s).sum())
    return CommandPattern(len(command), len(states), repeated, len(steps_s), near)


def total(patterns: Iterable[CommandPattern]) -> CommandPattern:
    return sum(patterns, CommandPattern())


def check_hold(command: TopicLog, states: TopicLog, hold: bool, rate_hz: float) -> list[Finding]:
    """Commands that come only when they change under a contract without `hold`, and steady ones under one with it."""
    found = command_pattern(command, states)
    if not hold and found.may_hold:
        text = (
            f"{found}: they seem to come only when they change, and each period without one is cut; if the robot goes "
            "on executing the last one, say hold: true in the contract's action"
        )
        return [Finding("warn", command.topic, "hold", text, found.commands / max(1, found.states))]
    span_s = float(np.ptp(paced_ns(command))) / 1e9 if len(command) > 1 else 0.0
    if hold and found.steady and found.intervals >= ON_TIME * rate_hz * span_s:
        text = (
            f"commands come steadily, {found.intervals / span_s:.1f} times a second, but the contract says hold: true, "
            "so that the one before stands in for one that was lost; remove hold, and such periods are cut"
        )
        return [Finding("warn", command.topic, "hold", text)]
    return []
