# SPDX-License-Identifier: Apache-2.0
"""Checks over all bags: coverage of states and actions by task, and the delay from command to state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from spc_core.command_delay.correlogram import Correlogram, responses
from spc_core.doctor.diagnosis import Finding, Severity, Thresholds, at_most_warn

CELLS = 20  # in which the range of each field is divided
TRIM = 0.005  # share of the values at either end that are outliers and do not stretch the range


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Share of the cells of each field's range that a task's data visit.

    The range of a state is that of all tasks' data without outliers; the range of an action is the contract's.
    """

    tasks: tuple[str, ...]  # T of them
    samples: tuple[int, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    states: np.ndarray  # (T, O) share
    actions: np.ndarray  # (T, A) share


def measure(
    samples: Mapping[str, tuple[np.ndarray, np.ndarray]],
    state_names: Sequence[str],
    action_names: Sequence[str],
    low: Sequence[float],
    high: Sequence[float],
) -> Coverage:
    """Coverage of (n, O) states and (n, A) actions by task; `low` and `high` are the actions' limits."""
    everything = np.concatenate([states for states, _ in samples.values()])
    bottom, top = np.quantile(everything, (TRIM, 1 - TRIM), axis=0)
    limits = np.array(low, float), np.array(high, float)
    return Coverage(
        tasks=tuple(samples),
        samples=tuple(len(states) for states, _ in samples.values()),
        state_names=tuple(state_names),
        action_names=tuple(action_names),
        states=np.array([visited(states, bottom, top) for states, _ in samples.values()]),
        actions=np.array([visited(actions, *limits) for _, actions in samples.values()]),
    )


def visited(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(D,) share of CELLS cells between `low` and `high` that hold at least one of (n, D) values; 1 without a range."""
    width = high - low
    cell = np.floor((values - low) / np.where(width > 0, width, 1.0) * CELLS)
    cell = np.where(values == high, CELLS - 1, cell)
    share = [len(np.unique(c[(c >= 0) & (c < CELLS)])) / CELLS for c in cell.T]
    return np.where(width > 0, share, 1.0)


def check_coverage(coverage: Coverage, t: Thresholds) -> list[Finding]:
    """Tasks whose data stay in a corner of the state or action space."""
    findings = []
    for kind, names, shares in (
        ("states", coverage.state_names, coverage.states),
        ("actions", coverage.action_names, coverage.actions),
    ):
        mean = shares.mean(axis=1)  # over the fields; a single one may be constant, such as a target
        poor = np.flatnonzero(mean < t.coverage) if kind == "actions" or len(coverage.tasks) > 1 else np.empty(0)
        if not len(poor):
            continue
        task = int(np.argmin(mean))
        field = int(np.argmin(shares[task]))
        text = (
            f"{len(poor)} of {len(coverage.tasks)} tasks visit little of the {kind}, least '{coverage.tasks[task]}': "
            f"{mean[task]:.0%} of the range, {shares[task, field]:.0%} of that of {names[field]} (wanted "
            f"{t.coverage:.0%}); record more varied behaviour{', or narrow the limits' if kind == 'actions' else ''}"
        )
        findings.append(Finding("warn", "", f"coverage of {kind}", text, float(mean[task])))
    return findings


def check_command_delay(topic: str, found: Correlogram, period_s: float | None, t: Thresholds) -> list[Finding]:
    """The delay over all commands; `period_s` is the contract's, None without a contract."""
    per_command = responses(found)
    sure = [answer for answer in per_command if not answer.why_not]
    if not sure:
        text = (
            f"the delay from command to state is unknown: {per_command[0].why_not}; record livelier commands to know it"
        )
        return [Finding("ok", topic, "command delay", text)]
    delay_s = float(np.median([answer.delay_s for answer in sure]))
    best = max(sure, key=lambda answer: abs(answer.correlation))
    severity: Severity = "ok"
    if period_s is not None:
        severity = at_most_warn(t.grade(delay_s / period_s, t.command_delay_periods))  # it is so on the robot, too
    how = ("follows", "changes at the rate of", "accelerates with")[best.order]
    text = (
        f"{delay_s * 1e3:.1f} ms from command to state (from {len(sure)} of {len(per_command)} commands; best "
        f"{best.state}, which {how} {best.command}, correlation {best.correlation:+.2f})"
    )
    if period_s is not None:
        text += f"; that is {delay_s / period_s:.1f} periods, allowed {t.command_delay_periods:g}"
    if severity != "ok":
        text += (
            "; an observation does not show the commands of that time: shorten the chain, or observe the last commands"
        )
    return [Finding(severity, topic, "command delay", text, delay_s)]
