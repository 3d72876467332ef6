# SPDX-License-Identifier: Apache-2.0
"""Which task the world model thinks it is in: the heads' own likelihoods, added up and joined with the votes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spc_core.alignment.streaming import Transition
from spc_core.deploy.context_tracker import ContextTracker
from spc_core.deploy.task_belief import FILE, TAILS, TaskBelief, belief_is_for, load_task_belief, save_task_belief
from spc_core.method.agent import Agent
from spc_core.method.config import ConfigError
from spc_core.method.normalize import Stats
from spc_core.system.json_arrays import pack
from support.method_options import configured
from support.plain_votes import deployed, plain_model, transitions, votes_of, without_alarms
from support.random_checkpoint import TINY, random_task_belief


@pytest.fixture(scope="module")
def agent() -> Agent:
    torch.manual_seed(2)
    agent = Agent(4, 2, [{}, {}], dataclasses.replace(configured("spc"), model=TINY)).requires_grad_(False)
    for weights in agent.parameters():
        weights.normal_(0, 0.5)
    return agent


@pytest.fixture(scope="module")
def belief(agent: Agent) -> TaskBelief:
    """On statistics far from zero and one, in which a missing normalisation would show."""
    four = np.float32([1000, -2, 0.5, 30])
    two = np.float32([2, 5])
    return random_task_belief(agent, Stats(four, abs(four) / 3 + 0.1, abs(four) / 50, -3, 2.5, -two, two))


def seen(stats: Stats, count: int) -> list[Transition]:
    rng = np.random.default_rng(3)
    observations = stats.observation_mean + stats.observation_std * rng.normal(size=(count + 1, 4))
    actions, rewards = rng.uniform(-4, 4, (count, 2)), rng.normal(-3, 2, count)
    return [Transition(t, observations[t], actions[t], rewards[t], observations[t + 1]) for t in range(count)]


def test_likelihoods_are_those_of_students_t_around_the_heads(agent: Agent, belief: TaskBelief) -> None:
    """By torch's distribution, but for a constant: one transition at a time, and many at once to the bit."""
    heads, rows = agent.world_model.one_step, seen(belief.stats, 7)
    assert heads is not None
    for transition, ours in zip(rows, belief.log_likelihoods(rows), strict=True):
        known = [belief.stats.observation(transition.observation), belief.stats.action(transition.action)]
        inputs = np.array([np.concatenate([*known, z]) for z in belief.candidates], np.float32)
        mean, log_std = heads(torch.from_numpy(inputs))
        change = (transition.next_observation - transition.observation) / belief.stats.observation_std / 0.2
        target = torch.tensor([(transition.reward + 3) / 2.5, *change])
        expected = (
            torch.distributions.StudentT(TAILS, mean, log_std.exp()).log_prob(target).double().numpy() @ belief.trust
        )
        np.testing.assert_allclose(ours - ours[0], expected - expected[0], atol=1e-4)
        assert np.ptp(ours) > 1e-3, "heads that see no difference between candidates would agree with anything"
        np.testing.assert_array_equal(belief.log_likelihoods([transition])[0], ours)


def two_candidates(memory: float = 4.0, grain: float = 0.01) -> TaskBelief:
    """At -1 and 1 of a z of one number."""
    empty = np.zeros(0)
    return TaskBelief(
        np.array([[-1.0], [1.0]]), np.array([grain]), np.ones(2), memory, -1.0, 0.5, 1.0, 0.0,
        None, empty, empty, None, "",  # type: ignore[arg-type]
    )  # fmt: skip


def test_z_by_hand() -> None:
    """Odds of 1 to 3 after four transitions, which count as two: z is 0.5, with a variance of 0.75."""
    belief = two_candidates()
    evidence = np.array([0.0, 2 * np.log(3)])
    mean, variance = belief.place(evidence, 4)
    np.testing.assert_allclose([*mean, *variance], [0.5, 0.75 + 0.01])
    np.testing.assert_allclose(belief.place(evidence, 0)[0], 0.8)  # odds of 1 to 9
    np.testing.assert_allclose(belief.place(evidence + 1e5, 4)[0], 0.5)  # no overflow
    votes, error = np.array([-1.0]), np.sqrt([0.76])
    np.testing.assert_allclose(belief.joined(evidence, 4, votes, error), -0.25)  # both are worth the same
    np.testing.assert_allclose(belief.joined(evidence, 4, votes, np.array([0.0])), -1.0, atol=1e-5)
    np.testing.assert_allclose(belief.joined(evidence, 4, votes, np.array([1e6])), 0.5, atol=1e-5)


def test_what_no_candidate_explains_is_doubted_by_hand() -> None:
    """Four transitions usually have -4, with a standard deviation of 0.5 sqrt(4 (1 + 4/4)) = sqrt(2)."""
    belief, apart = two_candidates(), np.array([0.0, -2 * np.log(3)])
    for below, doubt in [(-9.0, 0.0), (0.0, 0.0), (1.0, 0.0), (2.0, 1.0), (5.0, 4.0)]:
        evidence = apart - 4 - below * np.sqrt(2)
        assert belief.doubt(evidence, 4) == pytest.approx(doubt)
        mean, variance = belief.place(evidence, 4)
        np.testing.assert_allclose([*mean, *variance], [-0.5, 0.75 + 0.01 * (1 + doubt**2)])
    votes, error = np.array([1.0]), np.sqrt([0.76])
    sure, doubting = (belief.joined(apart - low, 4, votes, error)[0] for low in (4, 4 + 21 * np.sqrt(2)))
    assert sure == pytest.approx(0.25) and doubting > 0.75, "the votes count for more"


class _ByReward:
    """A belief whose evidence is the reward of a transition, for and against its candidates at -1 and 1 of z[0]."""

    candidates = np.array([[-1.0, 0.0], [1.0, 0.0]])

    def log_likelihoods(self, rows: list[Transition]) -> np.ndarray:
        return np.array([[-row.reward, row.reward] for row in rows])

    def joined(self, evidence: np.ndarray, count: float, z: np.ndarray, error: np.ndarray) -> np.ndarray:
        return np.array([evidence[1], count])

    def doubt(self, evidence: np.ndarray, count: float) -> float:
        return float(evidence[1] / count - 1)


def rewarded(votes: np.ndarray, reward: float, start: int = 0) -> list[Transition]:
    rows = transitions(votes, start * 20_000_000)
    return [dataclasses.replace(row, reward=reward) for row in rows]


def test_evidence_is_kept_and_forgotten_as_votes_are() -> None:
    tracker = ContextTracker(
        SimpleNamespace(**{**vars(deployed(without_alarms(plain_model()))), "task_belief": _ByReward()})
    )
    assert tracker.judging == "on" and not tracker.shows_mean
    for row in rewarded(votes_of(0.0, 3), 2.0):
        tracker.update(row)
    np.testing.assert_array_equal(tracker.context, [6.0, 3.0])
    tracker.half_life = 1.0
    tracker.update(rewarded(votes_of(0.0, 1), 1.0)[0])
    np.testing.assert_array_equal(tracker.context, [4.0, 2.5])
    tracker.reset()
    np.testing.assert_array_equal(tracker.context, [0.0, 0.0])
    assert tracker.judging == "on"


def test_a_doubt_is_told_by_the_transitions_that_are_shown() -> None:
    tracker = ContextTracker(
        SimpleNamespace(**{**vars(deployed(without_alarms(plain_model()))), "task_belief": _ByReward()})
    )
    for row in rewarded(votes_of(0.0, 3), 2.9):
        tracker.update(row)
    assert tracker.judging == "on"
    tracker.update(rewarded(votes_of(0.0, 1), 4.5)[0])
    assert tracker.judging == (
        "on, in doubt: the task or the place is unlike the recordings, which the world model explains better by 3.3 "
        "standard deviations"
    )


def test_without_a_vote_model_votes_alone_count() -> None:
    """The error of two consecutive votes, which are alike, would say that they know the task."""
    tracker = ContextTracker(SimpleNamespace(**{**vars(deployed(None)), "task_belief": _ByReward()}))
    assert tracker.judging == "off: the error of the votes is not known: votes.json is missing"
    rows = rewarded(votes_of(0.3, 3), 2.0)
    for row in rows:
        tracker.update(row)
    np.testing.assert_allclose(tracker.context, np.mean([row.next_observation for row in rows], 0), rtol=1e-6)


def test_after_a_change_only_the_new_tasks_evidence_is_left() -> None:
    tracker = ContextTracker(SimpleNamespace(**{**vars(deployed(plain_model())), "task_belief": _ByReward()}))
    before, after = rewarded(votes_of(-1.0, 60), -1.0), rewarded(votes_of(1.0, 40, seed=1), 1.0, 60)
    shown = []
    for row in before + after:
        tracker.update(row)
        shown.append((tracker.suspicious, tracker.context))
    assert tracker.restarts == 1 and tracker.count <= 45
    np.testing.assert_array_equal(tracker.context, [2 * 40 - tracker.count, tracker.count])
    suspected = [z for doubt, z in shown if doubt]
    assert suspected and all(z[1] < 60 for z in suspected), "a suspected task is judged by its own transitions alone"


def test_a_stored_belief_is_the_same_and_a_wrong_one_says_why(belief: TaskBelief, tmp_path: Path) -> None:
    save_task_belief(tmp_path, dataclasses.replace(belief, weights="mine"))
    loaded, rows = load_task_belief(tmp_path, "mine"), seen(belief.stats, 5)
    assert isinstance(loaded, TaskBelief)
    np.testing.assert_allclose(loaded.log_likelihoods(rows), belief.log_likelihoods(rows), rtol=1e-5)
    assert belief_is_for(tmp_path, "mine") and not belief_is_for(tmp_path, "others")
    assert load_task_belief(tmp_path, "others") == "belief.json belongs to other weights: training went on after it"
    save_task_belief(tmp_path, dataclasses.replace(belief, weights="mine", trust=0 * belief.trust))
    assert load_task_belief(tmp_path, "mine") == (
        "the world model hardly tells the recorded tasks apart: 50% by rewards, 50% by changes"
    )
    values = json.loads((tmp_path / FILE).read_text())
    heads = [dict(vars(layer)) for layer in (*belief.heads.blocks, belief.heads.last)]
    heads[-1]["bias"] = np.full_like(heads[-1]["bias"], np.nan)
    damaged = [{name: pack(value) for name, value in layer.items()} for layer in heads]
    for broken, why in [
        ({"format": 9}, "belief.json: the task belief has format 9, this program reads 2"),
        ({"format": "2"}, "belief.json: the task belief has format '2', this program reads 2"),
        ({"memory": 0}, "belief.json: the task belief's memory is 0; it must be above 0"),
        ({"usual": float("nan")}, "belief.json: the task belief's usual is not finite"),
        ({"usual": None}, "belief.json: the task belief lacks or damages"),
        ({"heads": damaged}, "belief.json: the task belief's heads are not all finite"),
        ({"heads": [{}]}, "belief.json: the task belief lacks or damages"),
        ({"grain": {"shape": [3], "float32": ""}}, "belief.json: cannot reshape"),
        ({"grain": values["candidates"]}, r"belief.json: the task belief's grain has the shape \(6, 5\), .* \(5,\)"),
    ]:
        (tmp_path / FILE).write_text(json.dumps({**values, **broken}))
        with pytest.raises(ValueError, match=why):
            load_task_belief(tmp_path, "mine")
    (tmp_path / FILE).write_text(json.dumps({**values, "format": 1}))
    assert "has the older format 1 (the same `spc train` writes it anew)" in str(load_task_belief(tmp_path, "mine"))
    (tmp_path / FILE).write_text("[]")
    with pytest.raises(ValueError, match="belief.json: the task belief is list, not a table"):
        load_task_belief(tmp_path, "mine")
    (tmp_path / FILE).unlink()
    assert "is missing" in str(load_task_belief(tmp_path, "mine")) and not belief_is_for(tmp_path, "mine")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("spc_paper task_belief=true", "method.task_belief needs the one-step heads; set loss.one_step_weight"),
        ("spc latent=discrete consistency=cross_entropy", "or method.task_belief false"),
    ],
)
def test_a_belief_without_heads_that_it_can_ask_is_refused(options: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        configured(options)
