# SPDX-License-Identifier: Apache-2.0
"""A node of a running trial is killed: the trial ends with a reason, and run again it comes to the same result."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from spc_core.deploy.checkpoint import load_checkpoint
from spc_core.tasks import find_task
from spc_core.trials.evaluate import run_in_process
from spc_core.trials.log import read_rows
from spc_core.trials.protocol import EpisodeResult, Trial, in_order
from spc_ros.bags.reader import BagReader
from spc_ros.processes import NodeGroup, ProcessError
from spc_ros.trials import trial as trial_module
from spc_ros.trials.trial import run_trial
from support.node_probe import own_domain
from support.random_checkpoint import trial_options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
NODES = ["policy", "sim", "recorder", "context_encoder"]
NOTICED_S = 10.0  # and all of them stopped


@pytest.mark.parametrize("name", NODES)
def test_a_killed_node_ends_the_trial_and_nothing_is_lost(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    groups: list[NodeGroup] = []
    killed_s: list[float] = []

    class Watched(NodeGroup):
        def __enter__(self) -> Watched:
            groups.append(self)
            return self

    def kill(done: int, _total: int, _text: str) -> None:
        if done == 2:  # the next episode begins now
            killed_s.append(time.monotonic())
            groups[0].nodes[name].process.kill()

    monkeypatch.setattr(trial_module, "NodeGroup", Watched)
    out, task = tmp_path / "out", "arm_reach/id/02"
    environment = own_domain()
    asked = trial_options(tiny_checkpoint, "arm_reach", out, task_ids=[task], episodes=2, few_shot_sizes=(130,), seed=3)
    with pytest.raises(ProcessError, match=f"node '{name}' ended with code -9"):
        run_trial(asked, environment=environment, progress=kill)
    took_s = time.monotonic() - killed_s[0]
    print(f"{name}: ended after {took_s:.1f} s")
    assert took_s < NOTICED_S
    kept = read_rows(out / "episodes.jsonl")
    assert len(kept) >= 2
    results = run_trial(asked, environment=environment)
    trial = Trial([find_task(task)], episodes=2, few_shot_sizes=(130,), seed=3, shuffle=True)
    assert list(map(numbers, results)) == list(
        map(numbers, in_order(run_in_process(load_checkpoint(tiny_checkpoint), trial, "arm_reach")))
    )
    for row in results:
        with BagReader(row.bag) as bag:
            info = bag.last_episode()
        assert info is not None and info.truncated
    again = read_rows(out / "abandoned.jsonl") if (out / "abandoned.jsonl").exists() else []
    assert all(any(numbers(row) == numbers(other) for other in [*results, *again]) for row in kept if not row.aborted)


def numbers(row: EpisodeResult) -> tuple:
    return (row.protocol, row.k, row.episode, row.return_, row.context, row.context_count, row.success)
