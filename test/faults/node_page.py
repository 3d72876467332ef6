# SPDX-License-Identifier: Apache-2.0
"""docs/node_faults.md: what a live policy does, measured now.

Each rate is a run of its own on this machine, which should have nothing else to do.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from faults.model_table import FAULTS, SLOW_RATE_HZ, TOO_SLOW
from faults.node_trial import observe
from faults.node_world import World
from support.paths import TEST_FOLDER

INTRODUCTION = """# Fault table of the live policy

Each row is a test (`test/faults/test_node_faults.py`): a policy node runs in its own process, a robot publishes joint
states and a force, and the fault is injected between the two. The time runs from the last good observation, or from the
message that asks for a stop, to the arrival of the safe action at the robot, by a steady clock. Allowed are two control
periods, plus the time that a parameter grants. All counters are on `/diagnostics` and in the answer of `~/report`;
each intervention is published on `interventions`, at its onset and once a second while it lasts. After each row the
policy gives the same answer to the same observation as before. Robot and policy run at real-time priority.

Outcome, counters and recovery must be right at the first attempt; only a time may be measured again, at most three
times. The column "Again" shows how often that was needed and, after the slash, how often a run was void because the
machine itself delayed robot or policy by more than a quarter of a period. `python
tools/write_fault_pages.py --nodes` writes this page.
"""

PROCESSES = (Path(__file__).parent / "process_fault_rows.md").read_text()


def measure() -> dict[str, dict]:
    """Every row of this process's rate."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        try:
            world.start()
            for fault in FAULTS:
                rows[fault.name] = {**dataclasses.asdict(observe(world, fault)), "limit_s": fault.limit_s}
        finally:
            world.close()
    return rows


def measure_at(rate_hz: int) -> dict[str, dict]:
    """In a process of its own."""
    environment = {**os.environ, "SPC_FAULT_RATE_HZ": str(rate_hz)}
    command = [sys.executable, "-m", "faults.node_page"]
    return json.loads(subprocess.check_output(command, cwd=TEST_FOLDER, env=environment))


def page(rates: list[int]) -> str:
    measured = {rate: measure_at(rate) for rate in [*rates, SLOW_RATE_HZ]}
    names = " | ".join(f"Safe at {rate} Hz (allowed)" for rate in rates)
    lines = [
        INTRODUCTION,
        f"| Fault | Injected | Outcome | {names} | Counted as | Again |",
        "|---" * (5 + len(rates)) + "|",
    ]
    for fault in (*FAULTS, TOO_SLOW):
        own_rates = rates if fault is not TOO_SLOW else [SLOW_RATE_HZ] * len(rates)
        rows = [measured[rate][fault.name] for rate in own_rates]
        times = " | ".join("-" if r["safe_s"] is None else _ms(r["safe_s"], r["limit_s"]) for r in rows)
        counted = ", ".join(name.replace("|", " or ") for name in fault.counted)
        again = f"{sum(r['slow'] for r in rows)} / {sum(r['spoiled'] for r in rows)}"
        lines.append(f"| {fault.name} | {fault.injected} | {fault.outcome} | {times} | {counted} | {again} |")
    return "\n".join([*lines, "", PROCESSES])


def _ms(safe_s: float, limit_s: float) -> str:
    return f"{safe_s * 1e3:.0f} ms ({limit_s * 1e3:.0f})"


if __name__ == "__main__":  # one rate, that of SPC_FAULT_RATE_HZ
    print(json.dumps(measure()))
