# SPDX-License-Identifier: Apache-2.0
"""Every fault of the table, injected into a policy that runs in a process of its own: reaction, time, counters."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import pytest
from node_fault_table import FAULTS, Fault
from node_fault_world import SAFE, World

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("faults"))
    try:
        world.start()
        yield world
    finally:
        world.close()


def observe(world: World, fault: Fault) -> float | None:
    """Inject a fault and check what the table says of it; returns the time to the safe action.

    A busy machine can delay any process, so a time is taken again, twice at most, before it counts as too long.
    """
    tries = []
    for _ in range(3):
        safe_s, rose = inject(world, fault)
        tries.append(safe_s)
        unasked = fault.reaction == "none" and rose["silence"] > 0  # we ourselves were too slow to speak
        if not unasked and (safe_s is None or safe_s <= fault.limit_s):
            check(world, fault, safe_s, rose)
            return safe_s
    raise AssertionError(f"{tries} s to the safe action, allowed {fault.limit_s}")


def inject(world: World, fault: Fault) -> tuple[float | None, Counter[str]]:
    """(seconds to the safe action, what was counted), after all that the row says but the times was checked."""
    world.prepare(dict(fault.params))
    command, before = world.commands[-1][1], world.counts()
    world.run(4, world.tick)
    told, asked_s = len(world.told), time.monotonic()
    began_s = fault.inject(world)
    safe_s = world.safe_after(began_s)
    answers = [values for at_s, values in world.commands if at_s > asked_s]
    rose = world.counts() - before
    news = world.told[told:]
    if fault.acts_on or fault.reaction == "none":
        assert answers[-1] == command != SAFE, "the same answer to the same observation"
    if fault.said:
        assert any(fault.said in each["reason"] for each in news), news
    return safe_s, rose


def check(world: World, fault: Fault, safe_s: float | None, rose: Counter[str]) -> None:
    assert not [names for names in fault.counted if not any(rose[name] for name in names.split("|"))], rose
    assert (safe_s is None) == (fault.reaction == "none"), (safe_s, rose)
    assert world.lifecycle() == ("inactive" if fault.reaction == "inactive" else "active")
    if fault.reaction == "inactive":
        assert world.commands[-1][1] == SAFE


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault(world: World, fault: Fault) -> None:
    observe(world, fault)
