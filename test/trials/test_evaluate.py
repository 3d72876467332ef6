# SPDX-License-Identifier: Apache-2.0
"""Scores by hand, and what runs on a robot: tracker, hypotheses, safety filter."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from spc_core.alignment.streaming import Transition
from spc_core.contract.sections import ActionVector
from spc_core.deploy.checkpoint import load_checkpoint
from spc_core.deploy.context_tracker import ContextTracker, Said
from spc_core.deploy.deployable import Policy
from spc_core.deploy.safety import InterventionKind, SafetyFilter, by_name
from spc_core.tasks import tasks
from spc_core.trials.evaluate import InProcessDriver, run_in_process
from spc_core.trials.protocol import EpisodeResult, Trial, TrialError
from spc_core.trials.scores import expert_returns, score, table
from spc_core.trials.simulated_robot import behaviour_transitions
from support.synthetic import POINT


def row(protocol, task, return_, k=0, seed=0, split="id"):
    return EpisodeResult(
        task_id=task, split=split, params={}, protocol=protocol, k=k, episode=0, seed=seed, return_=return_, steps=1,
        context=[], context_count=0, bag="", reason="", seconds=0.0, interventions={},
    )  # fmt: skip


def test_scores_by_hand():
    runs = {
        3: [row("no_context", "a", -10.0), row("no_context", "b", -20.0), row("few_shot", "a", -4.0, 50),
            row("few_shot", "b", -8.0, 50), row("collect", "a", 99.0)],
        4: [row("no_context", "a", -12.0), row("no_context", "b", -18.0), row("few_shot", "a", -6.0, 50),
            row("few_shot", "b", -9.0, 50)],
    }  # fmt: skip
    expert, floor, few = score(runs, {("a", 0): -1.0, ("b", 0): -3.0})
    assert (expert.protocol, expert.mean, expert.normalised) == ("expert", -2.0, 1.0)
    assert (floor.protocol, floor.mean, floor.normalised) == ("no_context", -15.0, 0.0)
    assert (few.protocol, few.k, few.mean) == ("few_shot", 50, -6.75)
    assert few.normalised == pytest.approx((-6.75 + 15) / 13)
    assert few.normalised_by_seed == pytest.approx(((-6 + 15) / 13, (-7.5 + 15) / 13))
    assert few.stderr == pytest.approx(np.std([-5.0, -8.5], ddof=1) / math.sqrt(2))
    assert (few.tasks, few.seeds, few.episodes) == (2, 2, 4)
    assert "few_shot(50)" in table([expert, floor, few])


def test_scores_need_the_floor_and_survive_a_useless_expert():
    with pytest.raises(ValueError, match="split 'id' lacks the protocol no_context"):
        score({0: [row("few_shot", "a", 1.0, 5)]}, {("a", 0): 0.0})
    assert math.isnan(score({0: [row("no_context", "a", 1.0)]}, {("a", 0): 1.0})[0].normalised)


def test_evaluation_repeats_exactly_and_contexts_follow_the_protocol(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint)
    chosen = tasks("arm_reach", "id")[:2]
    first, second = (
        run_in_process(checkpoint, Trial(chosen, episodes=2, few_shot_sizes=(30,)), "arm_reach") for _ in range(2)
    )
    assert first == second
    counts = {(r.protocol, r.episode): r.context_count for r in first if r.task_id == chosen[1].task_id}
    assert counts == {
        ("no_context", 0): 0, ("no_context", 1): 0, ("zero_shot", 0): 100, ("zero_shot", 1): 100, ("collect", 0): 30,
        ("few_shot", 0): 30, ("few_shot", 1): 30,
    }  # fmt: skip
    assert all(r.context == [0.0] * len(r.context) for r in first if r.protocol == "no_context")
    assert all(r.uncertainty == [1.0] * len(r.context) for r in first if r.protocol == "no_context")
    assert all(0 < max(r.uncertainty) < 0.2 for r in first if r.protocol != "no_context")


def test_an_offline_context_is_drawn_evenly_from_the_tasks_recordings(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint)
    first, second = tasks("arm_reach", "id")[:2]
    asked = []

    def recordings(task_id):
        asked.append(task_id)
        return behaviour_transitions(task_id, episodes=3 if task_id == first.task_id else 12)

    trial, driver = (
        Trial([first, second], ["offline"], episodes=2),
        InProcessDriver(checkpoint, "arm_reach", offline_transitions=recordings),
    )
    for request in trial.requests():
        trial.record(request, driver.run(request))
    assert asked == [first.task_id, second.task_id]
    assert [r.context_count for r in trial.results] == [300, 300, 600, 600], "all, where there are too few"
    assert trial.results[0].context == trial.results[1].context, "frozen"
    tracker = ContextTracker(checkpoint)
    every = list(behaviour_transitions(second.task_id, episodes=12))
    reward = checkpoint.contract.reward_function()
    for index in np.linspace(0, 1199, 600).round().astype(int):
        t = every[index]
        if reward is not None:
            t = dataclasses.replace(t, reward=reward(t.observation, t.action, t.next_observation))
        tracker.update(t)
    np.testing.assert_allclose(trial.results[-1].context, tracker.context, atol=1e-6)


def test_no_recordings_are_refused(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint)
    driver = InProcessDriver(checkpoint, "arm_reach", offline_transitions=lambda _: [])
    with pytest.raises(TrialError, match="arm_reach/id/00: no recorded transitions for the protocol offline"):
        driver.run(next(Trial(tasks("arm_reach", "id"), ["offline"]).requests()))


def test_behaviour_data_of_a_task_repeats_exactly():
    first, second = (list(behaviour_transitions("arm_payload/ood/02", episodes=2)) for _ in range(2))
    assert len(first) == 200 and all((a.observation == b.observation).all() for a, b in zip(first, second, strict=True))
    np.testing.assert_array_equal(first[0].next_observation, first[1].observation)


def test_the_expert_that_does_not_know_the_task_stays_below_the_one_that_does():
    for family in ("arm_reach", "arm_payload", "cheetah_vel"):  # by hand and learnt
        chosen = tasks(family, "ood")
        knowing, guessing = (sum(expert_returns(chosen, [0], informed=i).values()) for i in (True, False))
        assert guessing < knowing


def test_expert_returns_are_by_task_and_seed():
    chosen = tasks("arm_payload", "id")[:2]
    returns = expert_returns(chosen, [0, 1])
    assert set(returns) == {(task.task_id, seed) for task in chosen for seed in (0, 1)}
    assert all(-60 < value < 0 for value in returns.values())


def transitions(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Transition(k, rng.normal(size=4), rng.normal(size=2), rng.normal(), rng.normal(size=4)) for k in range(count)
    ]


def test_running_context_equals_the_encoder_on_the_whole_set(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint)
    tracker = ContextTracker(checkpoint)
    seen = transitions(200)
    for transition in seen:
        assert tracker.update(transition)
    rows = [checkpoint.stats.transition(t.observation, t.action, t.reward, t.next_observation) for t in seen]
    with torch.no_grad():
        _, z = checkpoint.agent.context_encoder(torch.from_numpy(np.stack(rows)), torch.ones(200))
    np.testing.assert_allclose(tracker.context, z, atol=1e-6)
    shuffled = ContextTracker(checkpoint)
    for transition in reversed(seen):
        shuffled.update(transition)
    np.testing.assert_allclose(shuffled.context, tracker.context, atol=1e-6)


def test_uncertainty_is_the_standard_error_of_the_votes(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint)
    tracker = ContextTracker(checkpoint)
    seen = transitions(200)
    rows = [checkpoint.stats.transition(t.observation, t.action, t.reward, t.next_observation) for t in seen]
    with torch.no_grad():
        votes = checkpoint.agent.context_encoder.embed(torch.from_numpy(np.stack(rows))).numpy().astype(np.float64)
    for n, transition in enumerate(seen):
        if n < 2:
            assert tracker.uncertainty.tolist() == [1.0] * votes.shape[1], "nothing known"
        else:
            np.testing.assert_allclose(tracker.uncertainty, votes[:n].std(0, ddof=1) / np.sqrt(n), rtol=1e-4, atol=1e-7)
        tracker.update(transition)
    assert tracker.uncertainty.dtype == np.float32
    before = tracker.uncertainty
    tracker.mode = "collect"
    np.testing.assert_array_equal(tracker.uncertainty, before)
    tracker.reset()
    assert tracker.uncertainty.tolist() == [1.0] * votes.shape[1]
    tracker.update(seen[0])
    tracker.update(seen[1])
    np.testing.assert_allclose(tracker.uncertainty, votes[:2].std(0, ddof=1) / np.sqrt(2), rtol=1e-4)


def test_uncertainty_survives_votes_that_almost_agree(tiny_checkpoint):
    """Their squares' plain sum would cancel: variance 1e-18 of votes near 0.9."""
    tracker = ContextTracker(load_checkpoint(tiny_checkpoint))
    votes = 0.9 + 1e-9 * np.random.default_rng(0).normal(size=(2000, 5))
    for vote in votes:
        tracker._add(Said(vote, np.zeros(0)))
    np.testing.assert_allclose(tracker.uncertainty, votes.std(0, ddof=1) / np.sqrt(2000), rtol=1e-3)
    tracker.reset()
    for _ in range(50):
        tracker._add(Said(votes[0], np.zeros(0)))
    assert (tracker.uncertainty < 1e-15).all() and np.isfinite(tracker.uncertainty).all()


def test_tracker_modes_and_limit(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint)
    checkpoint.agent.task_means.copy_(torch.eye(2, 5))
    tracker = ContextTracker(checkpoint)
    assert not tracker.context.any(), "nothing seen: the prior"
    tracker.mode, tracker.limit = "collect", 12 + 1
    shown = [tracker.context.tolist() for t in transitions(40) if tracker.update(t)]
    assert len(shown) == 12 + 1, "full at the limit"
    assert shown[0] != shown[-1], "one hypothesis after the other"
    tracker.mode = "frozen"
    inferred = tracker.context
    assert inferred.any() and inferred.tolist() not in shown
    assert not tracker.update(transitions(1)[0])
    tracker.reset()
    assert not tracker.context.any() and tracker.count == 0
    with pytest.raises(ValueError, match="mode 'onlin' is unknown; use one of: online, collect, frozen"):
        tracker.mode = "onlin"


def test_policy_gives_actions_in_the_contracts_units(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint)
    rng = np.random.default_rng(0)
    actions = np.array([Policy(checkpoint).act(rng.normal(size=4), rng.uniform(-1, 1, 5)) for _ in range(200)])
    assert (np.abs(actions) <= [3, 1.5]).all() and (np.abs(actions).max(0) > [2, 1]).all()


def test_safety_filter_limits_rates_and_refuses_what_is_not_finite():
    safety = SafetyFilter(POINT)  # limits 1 and 2; at 50 Hz at most 2 and 4 from tick to tick
    assert safety.apply(np.array([5.0, -0.5])).tolist() == [1.0, -0.5]
    assert by_name(safety.counts) == {"limit": 1}
    assert safety.interventions == [(InterventionKind.LIMIT, "limit: velocity.x 5 became 1")]
    assert safety.apply(np.array([np.nan, 0.0])).tolist() == [0.0, 0.0]
    assert safety.apply(np.array([0.5, 0.5]), fault="joint_states: stale").tolist() == [0.0, 0.0]
    assert safety.apply(None).tolist() == [0.0, 0.0]
    assert by_name(safety.counts) == {"limit": 1, "not_finite": 1, "fault": 2}


def test_safety_filter_changes_no_faster_than_allowed():
    part = dataclasses.replace(POINT.action.parts[0], max_rate=(5.0, 5.0))
    slow = dataclasses.replace(POINT, action=ActionVector((part,)))
    safety = SafetyFilter(slow)  # at most 0.1 a tick
    steps = [safety.apply(np.array([1.0, -1.0])).tolist() for _ in range(3)]
    np.testing.assert_allclose(steps, [[0.1, -0.1], [0.2, -0.2], [0.3, -0.3]])
    assert safety.counts[InterventionKind.RATE] == 3
    safety.reset()
    np.testing.assert_allclose(safety.apply(np.array([1.0, 0.0])), [0.1, 0.0])
