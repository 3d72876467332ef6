# SPDX-License-Identifier: Apache-2.0
"""Why no transition ends at a tick, in words: one wording for a live node, a bag and the doctor."""

from __future__ import annotations

from spc_core.contract_parts import Stream

START = "start"  # the first tick of a sequence: nothing is wrong


def no_message(topic: str) -> str:
    return f"{topic}: no message yet"


def stale(stream: Stream, age_ns: int) -> str:
    return f"{stream.topic}: stale, {age_ns / 1e6:.0f} ms old, allowed {stream.max_age_s * 1e3:.0f} ms"


def not_finite(topic: str, field: str | None = None) -> str:
    return f"{topic}: not finite" if field is None else f"{topic}: {field} is not finite"


def no_command(topic: str) -> str:
    return f"{topic}: no command in the period"


def no_reward(topic: str) -> str:
    return f"{topic}: no reward in the period"


def clock_jumped(topic: str, by_ns: int) -> str:
    return f"clock jumped back by {by_ns / 1e9:.3f} s on {topic}"
