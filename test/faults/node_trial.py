# SPDX-License-Identifier: Apache-2.0
"""One row of the fault table, injected and judged: what must hold at once, and what may be measured again."""

from __future__ import annotations

import dataclasses
import time

from lifecycle_msgs.msg import Transition

from faults.node_table import Fault
from faults.node_world import PERIOD_S, SAFE, World

TIMES = 3  # at most so often is the time of a row measured, and a run repeated that the machine spoiled
LATE_S = PERIOD_S / 4  # a robot or policy that the machine held up for so long suffered another fault than the row's


@dataclasses.dataclass(frozen=True)
class Measured:
    """What came of a row."""

    safe_s: float | None  # from the fault to the safe action
    slow: int = 0  # runs before it that were right but took longer than allowed
    spoiled: int = 0  # runs before it in which the machine itself held up the robot or the policy


def observe(world: World, fault: Fault) -> Measured:
    """Inject a fault and check all that the table says of it. Raises AssertionError.

    Outcome, counters and acting again must be right the first time. Only where the robot was late by its own
    schedule, or the policy was ready to run and had no CPU, is the run void: that was another fault. The time alone
    may be measured again.
    """
    slow = spoiled = 0
    while True:
        world.begin_watch()
        try:
            safe_s = inject(world, fault)
        except AssertionError as error:
            late_s = world.machine_late_s()
            spoiled += 1
            if late_s < LATE_S or spoiled == TIMES:
                raise AssertionError(f"{error}; the machine was late by {late_s * 1e3:.1f} ms") from error
            continue
        if safe_s is None or safe_s <= fault.limit_s:
            return Measured(safe_s, slow, spoiled)
        slow += 1
        assert slow < TIMES, f"safe action after {safe_s:.3f} s, allowed {fault.limit_s:.3f} s"


def inject(world: World, fault: Fault) -> float | None:
    """Once; returns the seconds to the safe action."""
    world.prepare(dict(fault.params))
    command, before = world.commands[-1][1], world.counts()
    world.run(3, world.tick)
    told, swaps, asked_s = len(world.told), len(world.swaps), time.monotonic()
    began_s = fault.inject(world)
    safe_s = world.safe_after(began_s)
    answers = [values for at_s, values in world.commands if at_s > asked_s]
    rose = world.counts() - before
    news = world.told[told:]
    if fault.acts_on or fault.reaction == "none":
        assert answers[-1] == command != SAFE, "not the same answer to the same observation"
    if fault.said:
        assert any(fault.said in each["reason"] for each in news), f"nobody said '{fault.said}': {news}"
    if fault.swap:
        assert any(fault.swap in each["reason"] for each in world.swaps[swaps:]), f"'{fault.swap}': {world.swaps}"
    lacking = [names for names in fault.counted if not any(rose[name] for name in names.split("|"))]
    assert not lacking, f"{lacking} not counted: {rose}"
    if fault.reaction != "either":
        assert (safe_s is None) == (fault.reaction == "none"), f"safe after {safe_s}: {rose}, {news}"
    acts_again(world, fault, command)
    return safe_s if fault.reaction != "either" else None


def acts_again(world: World, fault: Fault, command: list[float]) -> None:
    """The fault is over: the same answer as before, from an operator's activation on where it was deactivated."""
    assert world.lifecycle() == ("inactive" if fault.reaction == "inactive" else "active")
    if fault.reaction == "inactive":
        assert world.commands[-1][1] == SAFE
        world.change(Transition.TRANSITION_ACTIVATE)
    world.stop_beats = True
    world.context()
    world.until(lambda: world.answers() and world.commands[-1][1] == command, world.tick)
