# SPDX-License-Identifier: Apache-2.0
"""How long a comparison still takes, worked out by hand for a clock that is set."""

import dataclasses
from pathlib import Path

import pytest

from spc_core.comparison.plan import Method, Plan, Work
from spc_core.comparison.progress import Estimate
from support.synthetic import tiny_config

UPDATES = 1000


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def plan(tmp_path):
    methods = [Method(name, name, tiny_config(name, updates=UPDATES)) for name in ("spc", "oracle")]
    return Plan(Path("data"), tmp_path, tuple(methods), (0, 1), "tiny", "arm_reach", "", ("id",),
                ("no_context", "zero_shot"), (), 1)  # fmt: skip


def test_start_updates_end_and_evaluations_are_counted_as_they_are_seen(plan):
    clock = Clock()
    estimate = Estimate(1, clock)
    spc, oracle = (Work("train", tuple(run for run in plan.runs() if run.method == m)) for m in plan.methods)
    estimate.see(spc, 0)
    assert estimate.left_s([oracle]) is None and estimate.text([oracle]) == "time left not known yet"
    clock.now = 70.0  # 60 s of start and compiling, and 100 updates at 0.1 s
    estimate.see(spc, 100)
    assert estimate.left_s([oracle]) is None, "not yet known, as of one glance"
    clock.now = 80.0
    estimate.see(spc, 200)
    # spc has 1,800 updates left, and oracle all 2,000 with a start like that of spc
    assert estimate.left_s([oracle]) == (pytest.approx(180 + 60 + 200), False)
    assert estimate.text([oracle]) == "about 7 min left, and the evaluations"
    clock.now = 85.0
    assert estimate.left_s([oracle]) == (pytest.approx(175 + 60 + 200), False)
    clock.now = 260.0
    estimate.see(spc, 2000)
    clock.now = 264.0  # 2 s after training for each run
    assert estimate.end(spc) == 264.0
    evaluations = [Work("evaluate", (run,)) for run in spc.runs]
    estimate.see(evaluations[0], UPDATES)
    clock.now = 274.0
    estimate.end(evaluations[0])  # 5 s for each of two protocols
    # spc seed 1: 10 s; oracle: start 60, updates 200, ends 4, and two evaluations of one protocol
    assert estimate.left_s([evaluations[1], oracle]) == (pytest.approx(10 + 264 + 2 * 5), True)
    assert estimate.text([evaluations[1]]) == "about 10 s left"


def test_processes_side_by_side_share_what_is_left_but_not_the_longest(plan):
    clock = Clock()
    estimate = Estimate(2, clock)
    first, second, *rest = (Work("evaluate", (run,)) for run in plan.runs() if run.method.name == "spc")
    assert not rest
    estimate.see(first, UPDATES)
    clock.now = 12.0
    estimate.end(first)
    assert estimate.left_s([second]) == (12.0, True), "one process cannot be shared"
    both = dataclasses.replace(second, runs=first.runs)
    assert estimate.left_s([second, both]) == (12.0, True)
    oracle = [Work("evaluate", (run,)) for run in plan.runs() if run.method.name == "oracle"]
    assert estimate.left_s([second, both, *oracle]) == (18.0, True), "36 s of processor time, two at a time"
