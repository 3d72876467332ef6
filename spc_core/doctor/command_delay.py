# SPDX-License-Identifier: Apache-2.0
"""Check of the delay from command to state."""

from __future__ import annotations

import numpy as np

from spc_core.command_delay.correlogram import Correlogram, responses
from spc_core.doctor.diagnosis import Finding, Severity, Thresholds


def check_command_delay(topic: str, found: Correlogram, period_s: float | None, t: Thresholds) -> list[Finding]:
    """The delay over all commands; `period_s` is the contract's, None without a contract."""
    per_command = responses(found)
    sure = [answer for answer in per_command if not answer.why_not]
    if not sure:
        text = (
            f"the delay from command to state cannot be told: {per_command[0].why_not}; "
            "record livelier commands to know it"
        )
        return [Finding("ok", topic, "command delay", text)]
    delay_s = float(np.median([answer.delay_s for answer in sure]))
    best = max(sure, key=lambda answer: abs(answer.correlation))
    severity: Severity = "ok"
    if period_s is not None:
        severity = t.grade(delay_s / period_s, t.command_delay_periods)
    how = ("follows", "changes at the rate of", "accelerates with")[best.order]
    text = (
        f"{delay_s * 1e3:.1f} ms from command to state (told from {len(sure)} of {len(per_command)} commands; best "
        f"{best.state}, which {how} {best.command}, correlation {best.correlation:+.2f})"
    )
    if period_s is not None:
        text += f"; that is {delay_s / period_s:.1f} periods, allowed {t.command_delay_periods:g}"
    if severity != "ok":
        text += (
            "; an observation does not show the commands of that time: shorten the chain, or observe the last commands"
        )
    return [Finding(severity, topic, "command delay", text, delay_s)]
