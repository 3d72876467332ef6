# SPDX-License-Identifier: Apache-2.0
"""Trials of many robots side by side equal those of one robot at a time, in every digit."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from spc_core.contract.contract import load_contract
from spc_core.deploy.checkpoint import Checkpoint, load_checkpoint
from spc_core.deploy.context_lanes import ContextLanes
from spc_core.deploy.context_tracker import ContextTracker
from spc_core.deploy.networks.numpy_lanes import NumpyLanes
from spc_core.deploy.networks.row_plan import row_plan
from spc_core.system.config_files import find_config
from spc_core.tasks import tasks
from spc_core.tasks.arm_reach import ArmReach
from spc_core.trials.evaluate import run_in_process
from spc_core.trials.lanes import LaneDriver
from spc_core.trials.protocol import SIM_PROTOCOLS, EpisodeResult, Trial, TrialError
from spc_core.trials.simulated_robot import behaviour_transitions
from support.contracts import make_contract
from support.families import WITH_EXPERT
from support.random_checkpoint import loaded_random_checkpoint, write_random_checkpoint


def few_recordings(task_id: str):
    return behaviour_transitions(task_id, episodes=2)


def both_ways(checkpoint: Checkpoint, family: str, trial: dict, lanes: int = 0) -> list[EpisodeResult]:
    """The rows of a trial, which are the same side by side, and if so many robots are at work, as one by one."""
    chosen = [*tasks(family, "id")[:2], tasks(family, "ood")[8]]
    alone = run_in_process(
        checkpoint, Trial(chosen, **trial), family, offline_transitions=few_recordings, one_by_one=True
    )
    together = run_in_process(checkpoint, Trial(chosen, **trial), family, offline_transitions=few_recordings)
    assert together == alone
    if lanes:
        driver = LaneDriver(checkpoint, family, few_recordings, lanes)
        assert driver.run(Trial(chosen, **trial), lambda row: None) == alone
    return alone


@pytest.mark.parametrize("family", WITH_EXPERT)
def test_all_protocols_give_the_same_rows_as_one_robot_at_a_time(family: str, tmp_path: Path) -> None:
    checkpoint = loaded_random_checkpoint(tmp_path / family, family)
    sizes = (5, 10) if family == "arm_payload" else (30, 130)  # changes are found there, and empty the context
    trial = {"protocols": SIM_PROTOCOLS, "episodes": 2, "few_shot_sizes": sizes, "shuffle": True, "seed": 3}
    rows = both_ways(checkpoint, family, trial, lanes=2)
    collected = [row for row in rows if row.protocol == "collect" and row.k == sizes[-1]]
    assert len(rows) >= 3 * 2 * 5 + 3 * 2 and (len(collected) >= 6 or sizes[-1] < 100), "130 take two episodes at least"
    assert len({row.return_ for row in rows}) > len(rows) / 2, "episodes that are all alike would agree anyway"
    assert any(row.interventions for row in rows), "safety filters that never act would agree anyway"
    if family == "arm_payload":
        assert any(row.context_count < 100 for row in rows if row.protocol == "zero_shot"), (
            "no change of task was found"
        )


@pytest.mark.parametrize(
    "method", ["oracle", "no_context", "spc_simnorm", "spc_paper votes=precision policy_sees=both", "spc"]
)
def test_other_methods_give_the_same_rows(method: str, tmp_path: Path) -> None:
    checkpoint = loaded_random_checkpoint(tmp_path / method, "arm_payload", method)
    trial = {"episodes": 1, "few_shot_sizes": (40,)}
    rows = both_ways(checkpoint, "arm_payload", trial, lanes=3)
    if method == "spc":  # changes are found, which take what was seen before out of the belief as well
        votes = both_ways(dataclasses.replace(checkpoint, task_belief=None), "arm_payload", trial)
        assert {row.return_ for row in rows} != {row.return_ for row in votes}, "a belief that is not asked agrees, too"
        assert any(row.context_count < 100 for row in rows if row.protocol == "zero_shot")
    if method == "oracle":
        by_task = {row.task_id: row.context for row in rows}
        assert len(set(map(tuple, by_task.values()))) == 3, "each robot acts on the parameters of its own task"
        assert all(row.context == by_task[row.task_id] for row in rows)


def test_terms_of_a_reward_give_the_same_rows_with_the_command_before(tmp_path: Path) -> None:
    joints = [f"joint_states.position.{joint}" for joint in ("shoulder", "elbow")]
    terms = {
        "near": {"kind": "distance", "of": joints, "to": [0.3, 0.4], "shape": "exponential"},
        "smooth": {"kind": "smoothness", "weight": 0.5},
    }
    contract = make_contract(base=load_contract(find_config("contracts", "arm_payload")), reward={"terms": terms})
    checkpoint = load_checkpoint(write_random_checkpoint(tmp_path / "terms", "arm_payload", contract))
    rows = both_ways(checkpoint, "arm_payload", {"episodes": 1, "few_shot_sizes": (5,)}, lanes=2)
    assert len({row.return_ for row in rows}) > len(rows) / 2
    terms["odd"] = {"kind": "expression", "value": "log(0 - abs(joint_states.velocity.elbow))"}
    contract = make_contract(base=contract, reward={"terms": terms})
    checkpoint = load_checkpoint(write_random_checkpoint(tmp_path / "odd", "arm_payload", contract))
    with pytest.raises(TrialError, match=r"^arm_payload/id/00, step 0: the reward's term 'odd' is not finite; guard"):
        run_in_process(checkpoint, Trial(tasks("arm_payload", "id")[:1], ["zero_shot"]), "arm_payload")


def test_without_a_vote_model_the_rows_are_the_same(tiny_checkpoint: Path) -> None:
    both_ways(load_checkpoint(tiny_checkpoint), "arm_reach", {"episodes": 2, "few_shot_sizes": (0, 30)}, lanes=4)


def test_episodes_that_end_early_give_way_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = ArmReach.step

    def until_some_position(self, action):
        observation, reward, _, truncated, info = step(self, action)
        return observation, reward, int(1e5 * abs(observation[0])) % 60 == 0, truncated, info

    monkeypatch.setattr(ArmReach, "step", until_some_position)
    checkpoint = loaded_random_checkpoint(tmp_path / "ends", "arm_reach")
    rows = both_ways(checkpoint, "arm_reach", {"episodes": 3, "few_shot_sizes": (120,)}, lanes=4)
    assert len({row.steps for row in rows}) > 5 and {row.reason for row in rows} == {"terminated", "time limit"}


def test_rows_come_in_the_trials_order_and_progress_counts_scored_episodes(tiny_checkpoint: Path) -> None:
    checkpoint, shown = load_checkpoint(tiny_checkpoint), []
    trial = Trial(tasks("arm_reach", "id")[:2], ["few_shot", "no_context"], 2, few_shot_sizes=(10,), shuffle=True)
    rows = run_in_process(checkpoint, trial, "arm_reach", lambda *arguments: shown.append(arguments))
    blocks = [block.key for block in trial.blocks() for _ in range(3 if block.protocol == "few_shot" else 2)]
    assert [row.block for row in rows] == blocks and trial.results is rows
    assert [done for done, _, _ in shown][-1] == len(trial) == 8 and len(shown) == 10
    assert Counter(text for _, _, text in shown)["arm_reach/id/00 no_context"] == 2


def test_a_trial_resumes_side_by_side(tiny_checkpoint: Path) -> None:
    checkpoint, chosen = load_checkpoint(tiny_checkpoint), tasks("arm_reach", "id")[:2]
    whole = run_in_process(checkpoint, Trial(chosen, ["zero_shot"], 2), "arm_reach")
    rest = Trial(chosen, ["zero_shot"], 2)
    rest.resume(whole[:1])
    assert run_in_process(checkpoint, rest, "arm_reach") == whole


def test_missing_recordings_are_named(tiny_checkpoint: Path) -> None:
    trial = Trial(tasks("arm_reach", "id")[:2], ["offline"], 1)
    with pytest.raises(TrialError, match="arm_reach/id/00: no recorded transitions for the protocol offline"):
        run_in_process(load_checkpoint(tiny_checkpoint), trial, "arm_reach", offline_transitions=lambda _: [])


@pytest.mark.parametrize("method", ["spc_paper", "spc"])
def test_trackers_fed_together_equal_those_fed_alone(method: str, tmp_path: Path) -> None:
    """With pauses, limits, resets, modes and changes of task, each at another time."""
    checkpoint, count = loaded_random_checkpoint(tmp_path / "arm", "arm_payload", method), 6
    lanes = ContextLanes(checkpoint, NumpyLanes(row_plan(checkpoint.agent, checkpoint.stats)), count)
    alone = [ContextTracker(checkpoint) for _ in range(count)]
    seen = [list(behaviour_transitions(task.task_id, episodes=3)) for task in tasks("arm_payload", "id")[:count]]
    rng = np.random.default_rng(0)
    for k in range(300):
        robots = [robot for robot in range(count) if rng.uniform() < 0.8]
        steps = [(robot, dataclasses.replace(seen[(robot + k // 90) % count][k], t_ns=k)) for robot in robots]
        shown = dict(lanes.update(steps))
        assert set(shown) == {robot for robot, step in steps if alone[robot].update(step)}
        change, robot = rng.integers(200), rng.integers(count)
        for tracker in (lanes.trackers[robot], alone[robot]):
            if change == 0:
                tracker.reset()
            if change < 4:
                tracker.mode, tracker.limit = ("online", "collect", "frozen", "online")[change], 150 if change else None
        for number, (one, other) in enumerate(zip(lanes.trackers, alone, strict=True)):
            assert one.context.tolist() == other.context.tolist() and one.count == other.count
            assert one.uncertainty.tolist() == other.uncertainty.tolist() and one.restarts == other.restarts
            if number in shown and number != robot:
                assert shown[number].tolist() == other.context.tolist()
    assert sum(tracker.restarts for tracker in alone) > 5
