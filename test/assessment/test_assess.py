# SPDX-License-Identifier: Apache-2.0
"""Assessing a policy from recordings: values known by construction, what is told, and what is refused."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spc_core.alignment.streaming import Transition
from spc_core.assessment.assess import assess
from spc_core.assessment.fitted_q import Features, Horizon, evaluate
from spc_core.assessment.judged import Judged, load_judged
from spc_core.assessment.recordings import TaskRecording, load_recordings
from spc_core.assessment.rollouts import Known, Steps, TaskModels, earned
from spc_core.assessment.settings import Settings, Thresholds
from spc_core.assessment.value import interval, value
from spc_core.data.dataset import DatasetError, DatasetWriter, Episode
from spc_core.deploy.checkpoint import save_checkpoint
from spc_core.deploy.checkpoint_files import CheckpointError
from spc_core.deploy.context_tracker import ContextTracker
from spc_core.training.train import train
from spc_ros.cli import main
from support.random_checkpoint import loaded_random_checkpoint, write_random_checkpoint
from support.synthetic import POINT, episode, tiny_config, write_dataset

STEPS = 25
GOALS = {f"point/id/{n:02d}": 0.8 * np.array([math.cos(n), math.sin(n)]) for n in range(5)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of twenty updates on the tasks of the split train."""
    folder = tmp_path_factory.mktemp("run")
    train(write_dataset(folder / "dataset"), folder / "run", tiny_config())
    return folder / "run"


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """Random motion on five tasks of other goals."""
    root, rng = tmp_path_factory.mktemp("held_out") / "dataset", np.random.default_rng(1)
    with DatasetWriter(root, POINT) as writer:
        for task, goal in GOALS.items():
            for _ in range(12):
                writer.add_episode(task, {}, episode(rng, goal, STEPS))
    return root


class Walker(Judged):
    """Knows the goal, and walks towards it, or away from it."""

    sign: int

    def own_z(self, task):
        return GOALS[task.task_id]

    @property
    def no_z(self):
        return np.zeros(2)

    def act(self, observations, z):
        stats = self.checkpoint.stats
        away = z - observations
        return (
            stats.action(self.sign * 1.0 * away / np.maximum(np.linalg.norm(away, axis=-1, keepdims=True), 1.0)) * 1.0
        )


class Away(Walker):
    sign = -1


class Towards(Walker):
    sign = 1


def walked(judged, recordings, discount):
    """What the walker truly earns a step, from the recorded first observations."""
    found, weights = [], discount ** np.arange(STEPS)
    for task in recordings.tasks:
        place, rewards = task.observations[task.starts], []
        for _ in range(STEPS):
            action = judged.checkpoint.stats.action_units(judged.act(place, GOALS[task.task_id]))
            place = place + 0.1 * action
            rewards.append(-np.linalg.norm(place - GOALS[task.task_id], axis=-1))
        found.append((weights @ np.array(rewards)).mean() / weights.sum())
    return np.array(found)


def test_value_of_a_constant_reward_and_of_an_end_are_exact():
    known = Features.draw(1, 30, 1.0, torch.Generator().manual_seed(0))(torch.linspace(-1, 1, 40)[:, None])
    one, never = torch.ones(40), torch.zeros(40, dtype=torch.bool)
    always = evaluate(known, known[None], one, never, one, Horizon(30, 0.9))
    assert torch.allclose(known @ always[0], (1 - one * 0.9**30) / 0.1, atol=0.02)
    ended = evaluate(known, known[None], one, ~never, one, Horizon(30, 0.9, nothing=-2.0))
    assert torch.allclose(known @ ended[0], 1 - one * 0.9 * 2 * (1 - 0.9**29) / 0.1, atol=0.02)
    assert Horizon(5, 1.0).weight(3) == 3


def test_walking_to_the_goal_is_worth_more_than_the_recordings_and_away_from_it_less(run, held_out):
    checkpoint = load_judged(run).checkpoint
    recordings = load_recordings(held_out, checkpoint.contract, ())
    near, far = (value(kind(checkpoint, ()), recordings, Settings(discount=0.97)) for kind in (Towards, Away))
    assert near.horizon.steps == STEPS and near.task_ids == tuple(GOALS)
    truth = walked(Towards(checkpoint, ()), recordings, 0.97)
    better, worse = near.better, far.better
    assert better.above > 0.95 and worse.mean < 0 and worse.above < 0.1
    assert near.policy["own"].mean() > near.policy["none"].mean() > near.policy["other"].mean()
    gain = truth.mean() - near.recorded.mean()
    assert better.mean + near.in_doubt["own"].mean() / 2 == pytest.approx(gain, abs=0.1)  # by the model alone
    assert better.low < gain < better.high and 0 < near.in_doubt["own"].mean() < far.in_doubt["own"].mean()
    assert near.fitted.mean() > 0 > far.fitted.mean()
    assert near.behaviour.mean() == pytest.approx(near.recorded.mean(), abs=0.1)


def test_a_spread_has_both_ends_of_what_is_in_doubt():
    some = np.full((2, 5), 0.8)
    found = interval(some - 0.5, in_doubt=[some])
    assert (found.mean, found.low, found.high) == pytest.approx((0.3, -0.1, 0.7))
    assert found.above == pytest.approx(0.5, abs=0.02)
    of_two = interval(some - 0.5, in_doubt=[some, some])  # which may be wrong in opposite ways
    assert (of_two.low, of_two.high, of_two.above) == pytest.approx((-0.5, 1.1, 0.75), abs=0.02)
    assert interval(0 * some).above == 0.5, "a tie is no worse"


def steps(rows, rewards, lengths):
    """Recorded steps of one task that stay where they are, by observation and action (N, 2)."""
    rows, count = torch.tensor(rows), len(rewards)
    return Steps(
        rows[:, :1], rows[:, 1:], torch.zeros(count, 1), torch.tensor(rewards), torch.zeros(count),
        torch.tensor([0, *lengths[:-1]]), torch.tensor(lengths),
    )  # fmt: skip


def test_unlike_steps_may_earn_the_least_that_was_recorded_by_hand():
    """Rewards of -1 to 1, so at least -0.9; a step is unlike where none of another episode was as near as usual."""
    line = torch.linspace(-1, 1, 21).tolist()
    task = steps([[0.0, value] for value in line] * 2, line * 2, [21, 21])
    known = Known.of([task, task])
    assert known.edge == 0 and known.unlike(torch.tensor([[0.0, 0.5], [0.0, 0.55]])).tolist() == [False, True]
    known = dataclasses.replace(known, edge=0.2)
    features = Features.draw(2, 100, 1.0, torch.Generator().manual_seed(0))
    models = TaskModels.fit(features, [task, task], [torch.ones(42)] * 2, known)
    starts, horizon = [torch.zeros(2, 1)] * 2, Horizon(3, 0.5)

    def act(_, step):
        return [torch.tensor([[0.5], [0.5 if step != 1 else 1.5]])] * 2

    sure = earned(models, starts, act, horizon, doubts=False)
    assert all(not one.in_doubt.any() for one in sure)
    for found in earned(models, starts, act, horizon):
        assert found.said[0] == pytest.approx(0.5 * 1.75, abs=0.02) and found.in_doubt[0] == 0
        assert found.in_doubt[1] == pytest.approx(0.5 * (1 + 0.9), abs=0.2)  # of the second step, which says 1 at most


@pytest.mark.parametrize(
    ("reward", "nothing", "said", "in_doubt"),
    [(-1.0, 0.0, -1.0, 0.75), (-1.0, -2.0, -2.5, 0.0), (0.5, 0.0, 0.5, 0.5 + 0.9 * 1.75), (0.5, -1.0, -0.25, 1.4)],
)
def test_of_an_unlike_end_the_worse_of_ending_and_going_on_is_possible(reward, nothing, said, in_doubt):
    """Each of three steps earns `reward`, or -0.9 at least, and ends."""

    def step(seen, _):
        return [(one, torch.full((1,), reward), torch.ones(1)) for one in seen]

    unlike = SimpleNamespace(unlike=lambda rows: torch.ones(len(rows), dtype=torch.bool))
    models = SimpleNamespace(known=unlike, step=step, least=(-0.9,))
    (found,) = earned(models, [torch.zeros(1, 1)], lambda *_: [torch.zeros(1, 1)], Horizon(3, 0.5, nothing=nothing))
    assert (float(found.said), float(found.in_doubt)) == pytest.approx((said, in_doubt))


def test_where_all_is_one_episode_everything_is_unlike():
    line = torch.linspace(-1, 1, 21).tolist()
    task = steps([[0.0, value] for value in line], line, [21])
    assert Known.of([task]).unlike(task.rows).all()


def test_a_policy_with_a_task_belief_is_judged_with_the_z_that_a_robot_would_show(run, held_out, tmp_path):
    checkpoint = loaded_random_checkpoint(tmp_path / "random", "arm_reach", "spc")
    rng, count = np.random.default_rng(0), 250
    seen, acted = rng.normal(size=(count + 1, checkpoint.contract.observation_dim)), rng.uniform(-1, 1, (count, 2))
    of_one = TaskRecording(
        "one", {}, seen[:-1], acted, rng.normal(-0.5, 0.3, count), seen[1:], np.zeros(count, bool), np.zeros(count, int)
    )
    tracker = ContextTracker(checkpoint)
    tracker.detect_changes = False
    chosen = np.unique(np.linspace(0, count - 1, 200).round().astype(int))
    for step in chosen:
        tracker.update(Transition(0, seen[step], acted[step], float(of_one.rewards[step]), seen[step + 1]))
    shown, judged = tracker.context, Judged(checkpoint, ())
    np.testing.assert_allclose(judged.own_z(of_one), shown, rtol=1e-5, atol=1e-6)
    votes = Judged(dataclasses.replace(checkpoint, task_belief=None), ()).own_z(of_one)
    np.testing.assert_allclose(votes, judged.z(judged.embed(of_one, chosen)))
    assert np.abs(votes - shown).max() > 1e-3
    unknown = dataclasses.replace(checkpoint, vote_model=None)  # whose robot goes by votes alone
    np.testing.assert_array_equal(Judged(unknown, ()).own_z(of_one), votes)
    folder = write_random_checkpoint(tmp_path / "spc", "arm_reach", method="spc")
    assert not [note for note in load_judged(folder).notes if "votes alone" in note]
    (folder / "votes.json").unlink()
    assert any("z is of votes alone: the error of the votes is not known" in note for note in load_judged(folder).notes)


def test_a_run_is_assessed_with_a_page_and_numbers_without_nan(run, held_out, tmp_path, capsys):
    code = main(["assess", str(run), "--recordings", str(held_out), "--out", str(tmp_path), "--settings.fits", "2"])
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "assess.json").read_text(), parse_constant=pytest.fail)
    assert code == found["verdict"]["code"] and code in (0, 3, 4)
    assert f"Would I let it drive? {found['verdict']['word']}." in text and "nan" not in text.lower()
    assert found["identification"]["counts"] == [1, 2, 5, 10, 20]
    assert set(found["foresight"]["rewards"]) == {"own", "none", "other"}
    page = (tmp_path / "assess.html").read_text()
    assert f"<b>{found['verdict']['word']}</b>" in page and "What it is worth" in page and "in doubt" in page


def standing(root, tasks, lengths, reward=-1.0):
    """A dataset of a robot that does not move for most of the time."""
    with DatasetWriter(root, POINT) as writer:
        for task in range(tasks):
            for number, length in enumerate(lengths):
                places = np.zeros((length + 1, 2))
                places[-length // 8 :] = 0.1 * (1 + number + task)
                acted, times = np.zeros((length, 2)), 20_000_000 * np.arange(length + 1)
                earned_ = np.full(length, reward)
                writer.add_episode(
                    f"point/id/{task:02d}", {}, Episode(places, acted, earned_, times, False, True, None, "synthetic")
                )
    return root


def test_a_robot_that_mostly_stands_still_and_earns_the_same_is_judged_without_nan(run, tmp_path):
    found = assess(run, standing(tmp_path / "still", 4, (40, 40)), Settings(fits=2))
    json.loads(found.to_json(), parse_constant=pytest.fail)
    checks = {check.name: check for check in found.verdict.checks}
    assert checks["judge"].result == "unsure" and checks["judge"].text.endswith("and all episodes earned the same")
    assert "%" not in checks["judge"].text and "nan" not in found.text()


@pytest.mark.parametrize("length", [1, 9])
def test_one_episode_alone_is_too_little_data(run, tmp_path, length):
    found = assess(run, standing(tmp_path / "one", 1, (length,)), Settings(fits=2), Thresholds(too_fast=1))
    assert found.verdict.word == "too little data"
    assert "there is one episode alone, and no other to compare it with" in found.text()


def test_too_few_tasks_are_said_and_not_guessed(run, held_out):
    found = assess(run, held_out, Settings(fits=2), Thresholds(least_tasks=6, told=-1, outside=1, too_fast=1))
    assert (found.verdict.word, found.verdict.code, found.values) == ("too little data", 3, None)
    assert "5 tasks are fewer than 6; record more, or lower spc assess's --thresholds.least-tasks" in found.text()


def test_training_tasks_are_told_and_alone_never_enough(run):
    found = assess(run, run.parent / "dataset", Settings(fits=2), Thresholds(least_episodes=2))
    assert "was trained on all 4 tasks" in found.text()
    assert any(check.name == "held-out tasks" and check.result == "unsure" for check in found.verdict.checks)


def test_training_tasks_among_others_are_left_out(run, held_out):
    recordings = load_recordings(held_out, load_judged(run).checkpoint.contract, ["point/id/01"])
    assert [task.task_id for task in recordings.tasks] == [name for name in GOALS if name != "point/id/01"]
    assert recordings.notes == ("1 of the tasks are training tasks and are left out: point/id/01",)


def test_another_contract_is_refused_with_the_fields_that_differ(run, tmp_path):
    other = dataclasses.replace(POINT, text=POINT.text.replace("rate_hz: 50", "rate_hz: 40"))
    with pytest.raises(DatasetError, match=r"another contract(.|\n)*rate_hz: 40 here, 50"):
        load_recordings(run.parent / "dataset", other, ())


def test_weights_that_are_not_finite_are_refused(run, tmp_path):
    judged = load_judged(run)
    next(judged.checkpoint.agent.actor.parameters()).fill_(math.nan)
    save_checkpoint(tmp_path / "bad", judged.checkpoint)
    with pytest.raises(CheckpointError, match="actor.* are not all finite"):
        load_judged(tmp_path / "bad")


def test_a_reward_that_is_not_finite_is_named(run, tmp_path, monkeypatch, capsys):
    """The writer refuses it, but other programs write such datasets, too."""
    monkeypatch.setattr("spc_core.data.dataset.check_episode", lambda *_: None)
    with DatasetWriter(tmp_path / "nan", POINT) as writer:
        for task in range(4):
            for number in range(2):
                one = episode(np.random.default_rng(task), np.ones(2), 12)
                one.rewards[3] = np.nan if (task, number) == (2, 1) else one.rewards[3]
                writer.add_episode(f"t/{task}", {}, one)
    assert main(["assess", str(run), "--recordings", str(tmp_path / "nan")]) == 1
    assert "task 't/2', episode 1: reward is nan at step 3, which cannot be used" in capsys.readouterr().err
