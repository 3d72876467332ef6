# SPDX-License-Identifier: Apache-2.0
"""Would an engineer let it drive? Checks against thresholds, and one word."""

from __future__ import annotations

import dataclasses

import numpy as np

from spc_core.assessment.actions import Actions
from spc_core.assessment.identify import Identification
from spc_core.assessment.recordings import Recordings
from spc_core.assessment.settings import Thresholds
from spc_core.assessment.value import Values

CODES = {"yes": 0, "too little data": 3, "no": 4}  # as of `spc doctor`: 3 a person should look, 4 failures
SAME = 1e-6  # of the reward: episodes that differ by less earned the same
PASSED, FAILED, UNSURE, NOT_ASKED = "passed", "failed", "unsure", "not asked"


@dataclasses.dataclass(frozen=True)
class Check:
    """One question, and its answer for a person."""

    name: str
    result: str  # passed | failed | unsure | not asked
    text: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The answer to whether the policy should drive."""

    word: str
    checks: tuple[Check, ...]

    @property
    def code(self) -> int:
        return CODES[self.word]


def too_few(recordings: Recordings, thresholds: Thresholds) -> str:
    """Why nothing can be said about value; empty where it can."""
    tasks = recordings.tasks
    fewest = min(tasks, key=lambda task: len(task.starts))
    if len(tasks) < thresholds.least_tasks:
        count = "1 task is" if len(tasks) == 1 else f"{len(tasks)} tasks are"
        return (
            f"{count} fewer than {thresholds.least_tasks}; record more, or lower spc assess's --thresholds.least-tasks"
        )
    if len(fewest.starts) < thresholds.least_episodes:
        return (
            f"task '{fewest.task_id}' has {_episodes(len(fewest.starts))}, fewer than {thresholds.least_episodes}; "
            "record more, or lower spc assess's --thresholds.least-episodes"
        )
    return ""


def _episodes(count: int) -> str:
    return "1 episode" if count == 1 else f"{count} episodes"


def judge(
    recordings: Recordings,
    values: Values | None,
    actions: Actions,
    identification: Identification | None,
    thresholds: Thresholds,
) -> Verdict:
    """All checks; `no` where one failed, `too little data` where one is unsure or nothing is known about value."""
    checks = []
    if values is None:
        checks.append(Check("better than the recordings", UNSURE, too_few(recordings, thresholds)))
    else:
        checks += _value_checks(values, thresholds)
    checks += [_told(identification, thresholds), *_action_checks(actions, recordings, thresholds)]
    if recordings.all_known:
        checks.append(Check("held-out tasks", UNSURE, "there is none: the policy was trained on all of them"))
    results = {check.result for check in checks}
    word = "no" if FAILED in results else "too little data" if UNSURE in results else "yes"
    return Verdict(word, tuple(checks))


def _value_checks(values: Values, thresholds: Thresholds) -> list[Check]:
    better = values.better
    on = int((values.gain().mean(0) > 0).sum())
    text = (
        f"by {better.mean:+.3g} a step (spread {better.low:+.3g} to {better.high:+.3g}), on {on} of "
        f"{len(values.task_ids)} tasks; sure to {better.above:.0%}"
    )
    checks = [Check("better than the recordings", _sure(better.above, thresholds), text)]
    checks.append(_judge_check(values, thresholds))
    fitted = float(values.fitted.mean())
    agrees = (fitted > 0) == (better.mean > 0)
    text = f"fitted Q evaluation says {fitted:+.3g} a step"
    checks.append(Check("second judge", PASSED if agrees else UNSURE, text))
    if (adapts := values.adapts) is not None:
        text = (
            f"its own z is worth {adapts.mean:+.3g} a step more than another task's (spread {adapts.low:+.3g} to "
            f"{adapts.high:+.3g}); sure to {adapts.above:.0%}"
        )
        checks.append(Check("adapts", _sure(adapts.above, thresholds), text))
    return checks


def _judge_check(values: Values, thresholds: Thresholds) -> Check:
    off = f"it is {values.judge_error:.3g} off for the recorded actions"
    if values.recorded_spread <= SAME * max(1.0, float(np.abs(values.recorded).max())):
        return Check("judge", UNSURE, f"{off}, and all episodes earned the same")
    share = values.judge_error / values.recorded_spread
    text = f"{off}, {share:.0%} of what episodes differ by"
    return Check("judge", PASSED if share <= thresholds.judge else UNSURE, text)


def _sure(above: float, thresholds: Thresholds) -> str:
    if above >= thresholds.sure:
        return PASSED
    return FAILED if above <= 1 - thresholds.sure else UNSURE


def _told(found: Identification | None, thresholds: Thresholds) -> Check:
    if found is None:
        return Check("tells tasks apart", NOT_ASKED, "no context encoder, or fewer than two tasks of two episodes")
    share = (found.last - found.chance) / (1 - found.chance)
    text = f"{found.last:.0%} of episodes by their first {found.counts[-1]} transitions; by chance {found.chance:.0%}"
    return Check("tells tasks apart", PASSED if share >= thresholds.told else FAILED, text)


def _action_checks(actions: Actions, recordings: Recordings, thresholds: Thresholds) -> list[Check]:
    within = PASSED if actions.outside <= thresholds.outside else FAILED
    outside = (
        f"{actions.outside:.0%} of the ticks are unlike what was done in similar situations; of recorded actions "
        f"{actions.outside_recorded:.0%}"
    )
    if sum(len(task.starts) for task in recordings.tasks) < 2:
        within, outside = UNSURE, "there is one episode alone, and no other to compare it with"
    fast = (
        f"{actions.too_fast:.0%} of the ticks change faster than the contract's rates; recorded ones "
        f"{actions.too_fast_recorded:.0%}"
    )
    return [
        Check("within the data", within, outside),
        Check("within the rates", PASSED if actions.too_fast <= thresholds.too_fast else FAILED, fast),
    ]
