# SPDX-License-Identifier: Apache-2.0
"""Would-be commands next to those of the incumbent: pairing, differences by hand, interventions."""

from __future__ import annotations

import numpy as np
import pytest

from spc_core.deploy.shadow import SILENT_TICKS, ShadowComparison
from support.contracts import ARM_REACH, make_contract

PERIOD_NS = ARM_REACH.period_ns
SPAN = float(ARM_REACH.action.high[0] - ARM_REACH.action.low[0])


HOLDING = make_contract({"action.hold": True}, base=ARM_REACH)


def run(ours, theirs, lag_ns=1_000_000, kinds=lambda k: (), contract=ARM_REACH):
    """One tick a period; `theirs` may hold None, and each is stamped `lag_ns` after its tick."""
    found = ShadowComparison(contract)
    found.pairs = []
    for k, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        found.would(k * PERIOD_NS, np.array([mine, 0.0]), kinds(k))
        if other is not None:
            found.incumbent(k * PERIOD_NS + lag_ns, np.array([other, 0.0]))
    found.finish()
    return found


def test_differences_by_hand():
    """Nine ticks whose periods end; the tenth has no successor."""
    found = run([1.0] * 10, [1.0, 0.5, 1.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 9.0])
    first = found.fields()[0]
    assert (found.ticks, found.compared, found.own) == (9, 9, 9)
    assert first.bias == pytest.approx((0.5 - 0.5 + 1.0) / 9) and first.mean == pytest.approx(2.0 / 9)
    assert first.worst == 1.0 and first.span == SPAN and found.fields()[1].mean == 0.0
    assert first.p95 == pytest.approx(1.0, abs=SPAN / 1000), "the ninth of nine"


def test_the_command_in_the_period_after_the_tick_is_the_answer():
    """A command at the tick's own stamp answers the tick before, as in data."""
    found = run(list(range(6)), [k + 1 for k in range(6)], lag_ns=0)
    assert [(int(ours[0]), int(theirs[0])) for _, ours, theirs in found.pairs] == [(k, k + 2) for k in range(4)] + [
        (4, 6)
    ]


def test_only_the_first_command_of_a_period_counts():
    found = ShadowComparison(ARM_REACH)
    for k in range(4):
        found.would(k * PERIOD_NS, np.zeros(2))
        found.incumbent(k * PERIOD_NS + 1000, np.array([0.25, 0.0]))
        found.incumbent(k * PERIOD_NS + 2000, np.array([5.0, 0.0]))
    found.finish()
    assert found.compared == 3 and found.fields()[0].worst == 0.25


def test_a_period_without_a_command_is_not_compared_and_an_absent_incumbent_is_known():
    found = run([0.0] * 4, [1.0, None, 1.0, None])
    assert (found.ticks, found.compared, found.absent) == (3, 2, False)
    nobody = run([0.0] * (SILENT_TICKS + 2), [None] * (SILENT_TICKS + 2))
    assert nobody.absent and nobody.compared == 0 and nobody.fields() == []


def test_a_command_that_holds_is_compared_until_the_next_one():
    found = run([0.0] * 7, [None, 1.0, None, None, 2.0, None, None], contract=HOLDING)
    assert [int(theirs[0]) for _, _, theirs in found.pairs] == [1, 1, 1, 2, 2]
    assert (found.ticks, found.compared) == (6, 5)
    still = run([0.0] * (SILENT_TICKS + 5), [1.0] + [None] * (SILENT_TICKS + 4), contract=HOLDING)
    assert not still.absent and still.compared == SILENT_TICKS + 4


def test_nothing_holds_over_a_clock_that_jumps_back():
    found = ShadowComparison(HOLDING)
    for start_ns in (10**9, 0):
        for k in range(4):
            found.would(start_ns + k * PERIOD_NS, np.zeros(2))
            if start_ns and not k:
                found.incumbent(start_ns + 1, np.ones(2))
    found.finish()
    assert (found.ticks, found.compared) == (5, 2)


def test_interventions_are_counted_and_their_safe_actions_not_compared():
    def kinds(k):
        return {1: ("fault",), 2: ("limit",)}.get(k, ())

    found = run([1.0] * 5, [1.0] * 5, kinds=kinds)
    assert (found.ticks, found.own, found.clipped, found.compared) == (4, 3, 1, 3)
    assert dict(found.interventions) == {"fault": 1, "limit": 1}
    assert found.events == [(PERIOD_NS, "fault"), (2 * PERIOD_NS, "limit")]


def test_a_clock_that_jumps_back_starts_again():
    found = run([0.0] * 5, [1.0] * 5)
    found.would(0, np.zeros(2))
    found.would(PERIOD_NS, np.zeros(2))
    found.finish()
    assert found.ticks == 5
