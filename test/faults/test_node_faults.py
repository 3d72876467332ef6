# SPDX-License-Identifier: Apache-2.0
"""Every fault of the table, injected into a policy that runs in a process of its own: reaction, time, counters.

At 25 Hz; another rate with SPC_FAULT_RATE_HZ. `tools/write_fault_pages.py --nodes` writes the page.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.model_table import FAULTS, SLOW_RATE_HZ, TOO_SLOW, changed, shifted
from faults.node_table import Fault
from faults.node_trial import observe
from faults.node_world import SAFE, World
from spc_core.deploy.checkpoint_files import model_id

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("faults"))
    try:
        world.start()
        yield world
    finally:
        world.close()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault(world: World, fault: Fault) -> None:
    observe(world, fault)


@pytest.mark.slow
def test_a_model_that_is_too_slow_is_rolled_back(tmp_path: Path) -> None:
    """At a rate of its own, so in a run of its own."""
    environment = {**os.environ, "SPC_FAULT_RATE_HZ": str(SLOW_RATE_HZ)}
    row = f"{__file__}::test_fault[{TOO_SLOW.name}]"
    command = [sys.executable, "-m", "pytest", "-q", "--basetemp", str(tmp_path / "run"), row]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout[-3000:]


def answer(world: World) -> list[float]:
    """What the policy says to the observation, once it does."""
    world.run(3, world.tick)
    world.until(world.answers, world.tick)
    return world.commands[-1][1]


def test_a_model_takes_over_with_the_first_context_of_its_own_encoder(world: World) -> None:
    world.prepare({})
    before, old = answer(world), model_id(world.checkpoint)
    moved = changed(world, "moved", "stats.json", shifted)
    world.context(model=old)
    told = world.swap(moved, "warm")
    assert told["model"] == model_id(moved) != old
    assert answer(world) == before, "z is of the old model still"
    counts = world.counts()
    world.context(model=told["model"])
    world.until(lambda: world.swaps[-1]["state"] == "swapped", world.tick)
    assert answer(world) not in (before, SAFE)
    assert not (world.counts() - counts)["foreign model"], "not one safe action in between"
    world.context(model=old)
    world.run(3, world.tick)
    assert (world.counts() - counts)["foreign model"] >= 2 and world.commands[-1][1] == SAFE
    world.context()
    world.swap(world.checkpoint, "swapped")
    assert answer(world) == before


def test_a_fixed_parameter_says_why_it_is_fixed(world: World) -> None:
    assert "autostart cannot change: it takes effect only when the node starts" in world.set(autostart=False)
