# SPDX-License-Identifier: Apache-2.0
"""Tasks held out of training never reach it, and judge its checkpoints where nobody can simulate the robot."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from spc_core.assessment.assess import assess
from spc_core.assessment.settings import Settings
from spc_core.data.dataset import DatasetError, DatasetWriter, Episode, TaskEntry
from spc_core.data.held_out import trained_on
from spc_core.data.packed import load_dataset
from spc_core.data.reader import read_episodes
from spc_core.deploy.checkpoint import load_checkpoint, save_checkpoint
from spc_core.method.config import ConfigError, load_config, to_dict
from spc_core.training import train as training
from spc_core.training import vote_fit
from spc_core.training.judges import ByRecordings, open_data, pick_judge
from spc_core.training.judging import Judging
from spc_core.training.train import train
from spc_core.training.validation import Validator
from spc_ros.cli import main
from support.arm_dataset import write_arm_dataset
from support.contracts import action_section, make_contract, stream_section
from support.synthetic import POINT, episode, tiny_config, write_dataset

TASKS = [f"point/train/{task:02d}" for task in range(8)]
HELD = (TASKS[1], TASKS[3], TASKS[5], TASKS[7])
FOUR = Judging(hold_out=("4",))
BY_FOUR = Judging(hold_out=("4",), judge="recordings")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight tasks of a robot that no family simulates."""
    return write_dataset(tmp_path_factory.mktemp("data") / "point", task_count=8, lengths=(12, 12, 12))


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that held out four of them."""
    out = tmp_path_factory.mktemp("run") / "run"
    train(dataset, out, tiny_config(), judging=FOUR)
    return out


def changed(root: Path, out: Path, change: Callable[[TaskEntry, Episode], Episode]) -> Path:
    """A copy of a dataset with other episodes."""
    with DatasetWriter(out, load_dataset(root).contract) as writer:
        for entry, one in read_episodes(root):
            writer.add_episode(entry.task_id, entry.params, change(entry, one))
    return out


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def scores(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "validation.jsonl").read_text().splitlines()]


def test_numbers_of_held_out_tasks_do_not_reach_training(
    dataset: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, normalisation and vote model are the same to the bit when all held-out numbers are others."""
    assert [task.task_id for task in load_dataset(dataset, HELD).tasks] == TASKS[::2]

    def spoil(entry: TaskEntry, one: Episode) -> Episode:
        if entry.task_id not in HELD:
            return one
        return dataclasses.replace(
            one, observations=7 - one.observations, actions=-one.actions / 2, rewards=50 + 0 * one.rewards
        )

    other = changed(dataset, tmp_path / "other", spoil)
    train(other, tmp_path / "run", tiny_config(), judging=FOUR)
    for name, weight in safetensors.torch.load_file(run / "checkpoint/weights.safetensors").items():
        again = safetensors.torch.load_file(tmp_path / "run/checkpoint/weights.safetensors")[name]
        assert torch.equal(weight, again), name
    assert (run / "checkpoint/stats.json").read_bytes() == (tmp_path / "run/checkpoint/stats.json").read_bytes()
    assert metrics(run / "checkpoint")["losses"] == metrics(tmp_path / "run/checkpoint")["losses"]
    monkeypatch.setattr(vote_fit, "LEAST_STEPS", 30)  # transitions of a task
    votes = []
    for root in (dataset, other):
        data, agent = load_dataset(root, HELD), load_checkpoint(run).agent
        shutil.copytree(run / "checkpoint", folder := tmp_path / f"votes-{len(votes)}")
        vote_fit.write_vote_model(folder, agent, training.data_stats(data), data, 0, 3)
        votes.append((folder / "votes.json").read_bytes())
    assert votes[0] == votes[1]
    whole = [training.data_stats(load_dataset(root)).to_dict() for root in (dataset, other)]
    assert whole[0] != whole[1], "held in, they count"


def test_what_was_held_out_is_said_kept_and_the_same_when_resumed(
    dataset: Path, run: Path, capsys: pytest.CaptureFixture
) -> None:
    found = metrics(run / "checkpoint")
    assert found["held_out"]["tasks"] == list(HELD) and found["held_out"]["dataset"] == str(dataset)
    assert [task["task_id"] for task in found["tasks"]] == TASKS[::2]
    train(dataset, run, tiny_config(), judging=Judging(hold_out=HELD))  # the same tasks, by name
    said = capsys.readouterr().out
    assert f"held out, to assess by: 4 tasks, 12 episodes: {', '.join(HELD)}\n" in said
    assert "already trained" in said
    with pytest.raises(ConfigError, match=f"held out {HELD[0]}, .* and this one holds out no task; give the same"):
        train(dataset, run, tiny_config())
    with pytest.raises(ConfigError, match=f"held out {HELD[0]}, .* and this one holds out {TASKS[0]}, {TASKS[4]};"):
        train(dataset, run, tiny_config(), judging=Judging(hold_out=("1/4",)))


def test_an_unknown_robot_is_judged_by_its_held_out_recordings(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file, out = tmp_path / "config.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(to_dict(tiny_config())))
    command = ["train", str(dataset), "--out", str(out), "--preset", str(file), "--hold-out", "4"]
    assert main([*command, "--evaluate-every", "10"]) == 0
    said = capsys.readouterr().out
    assert "evaluations: by the held-out recordings" in said and "Would I let it drive? " in said
    found = json.loads((out / "assess/assess.json").read_text())
    assert found["value"]["tasks"] == list(HELD) and found["update"] == 20
    assert (out / "assess/assess.html").is_file()
    row = next(row for row in scores(out) if row["update"] == 20)
    assert row["gain_over_recordings"] == pytest.approx(found["value"]["better"]["mean"], rel=1e-4)
    assert row["outside_data"] == pytest.approx(found["actions"]["outside"])
    best = metrics(out / "best")["update"]
    assert best == max(scores(out), key=lambda row: (row["outside_data"] <= 0.3, row["gain_over_recordings"]))["update"]
    assert best == 20 or json.loads((out / "best/assess/assess.json").read_text())["update"] == best
    with (out / "log.csv").open() as stream:
        log = {int(row["update"]): row for row in csv.DictReader(stream)}
    assert float(log[20]["gain_over_recordings"]) == pytest.approx(row["gain_over_recordings"], rel=1e-4)
    assert log[15]["gain_over_recordings"] == "" and float(log[20]["actor"]) > -np.inf
    assert main(["assess", str(out), "--out", str(tmp_path / "again")]) == found["verdict"]["code"]
    assert json.loads((tmp_path / "again/assess.json").read_text()) == found


def test_the_best_survives_a_kill_and_is_compared_with_later_ones(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def offer(validator: Validator, update: int, save: Callable[[Path], None]) -> None:
        Validator_offer(validator, update, save)
        validator._wait([])
        if update == 10:
            raise Killed

    Validator_offer = Validator.offer
    monkeypatch.setattr(Validator, "offer", offer)
    config, out = tiny_config(evaluate_every=10), tmp_path / "run"
    with pytest.raises(Killed):
        train(dataset, out, config, judging=FOUR)
    assert [row["update"] for row in scores(out)] == [10] and metrics(out / "best")["update"] == 10
    monkeypatch.undo()
    train(dataset, out, config, judging=FOUR)
    ranked = {row["update"]: (row["outside_data"] <= 0.3, row["gain_over_recordings"]) for row in scores(out)}
    assert list(ranked) == [10, 20] and metrics(out / "best")["update"] == max(ranked, key=ranked.__getitem__)
    found = assess(out / "best", settings=Settings(fits=2))
    assert "the best of 2 checkpoints by these same recordings, so it looks a little better" in found.text()


@pytest.mark.parametrize(
    "best, next_one, kept",
    [
        ((0.1, 0.1), (0.2, 0.1), 20),
        ((0.2, 0.1), (0.1, 0.1), 10),
        ((0.1, 0.1), (0.9, 0.8), 10),  # a policy outside the data, whose gain is not to be believed
        ((0.9, 0.8), (-0.1, 0.3), 20),
    ],
)
def test_the_best_gains_most_within_the_data_and_other_judges_do_not_count(
    dataset: Path, run: Path, tmp_path: Path, best: tuple[float, float], next_one: tuple[float, float], kept: int
) -> None:
    held_out = open_data(dataset, FOUR)[1]
    judge = pick_judge("recordings", "point", held_out, "")
    lines = [{"update": 10, "zero_shot": 0.0, "few_shot": 99.0}]  # of a simulation
    for update, (gain, outside), folder in ((10, best, "best"), (20, next_one, ".snapshots/20")):
        shutil.copytree(run / "checkpoint", tmp_path / folder)
        (tmp_path / folder / "metrics.json").write_text(json.dumps(metrics(run / "checkpoint") | {"update": update}))
        lines.append({"update": update, "gain_over_recordings": gain, "outside_data": outside, "judge": judge.name})
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Validator(tmp_path, judge, lambda *_: None) as validator:
        assert metrics(tmp_path / "best")["update"] == kept
        assert validator.score(10) == lines[1]


def test_a_known_family_is_simulated_unless_recordings_are_asked_for(dataset: Path) -> None:
    held_out = open_data(dataset, FOUR)[1]
    assert pick_judge("auto", "arm_reach", held_out, "").name == "simulation"
    assert isinstance(pick_judge("recordings", "arm_reach", held_out, ""), ByRecordings)
    assert isinstance(pick_judge("auto", "point", held_out, ""), ByRecordings)
    with pytest.raises(ConfigError, match="--judge recordings needs .*--hold-out.*--recordings"):
        pick_judge("recordings", "arm_reach", None, "")
    with pytest.raises(ConfigError, match="a simulation of 'point'.*, leave out --judge simulation"):
        pick_judge("simulation", "point", held_out, "")


def test_too_few_held_out_tasks_train_with_a_word_but_score_nothing(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    three = Judging(hold_out=("3",))
    with pytest.raises(ConfigError, match="evaluate_every needs more held-out recordings: 3 tasks are fewer than 4;"):
        train(dataset, tmp_path / "no", tiny_config(evaluate_every=5), judging=three)
    assert not (tmp_path / "no").exists()
    with pytest.raises(ConfigError, match="--judge recordings says who scores checkpoints, but evaluate_every is 0"):
        train(dataset, tmp_path / "no", tiny_config(), judging=BY_FOUR)
    train(dataset, tmp_path / "run", tiny_config(updates=2), judging=three)
    assert "3 tasks are fewer than 4: too little to say what a policy is worth" in capsys.readouterr().out


def test_recordings_of_their_own_are_of_other_tasks_and_the_same_contract(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    small = write_dataset(tmp_path / "small", task_count=3, lengths=(12, 12))
    data, held_out = open_data(small, Judging(recordings=dataset))
    assert len(data.tasks) == 3 and held_out is not None
    assert (held_out.tasks, held_out.separate) == (tuple(TASKS[3:]), True)
    with pytest.raises(DatasetError, match="all 3 tasks are training tasks; give recordings of others"):
        open_data(dataset, Judging(recordings=small))
    with pytest.raises(ConfigError, match="--hold-out and --recordings both"):
        open_data(dataset, Judging(hold_out=("4",), recordings=small))
    other = make_contract(
        name="point", observation=[stream_section("joint_states", ["position.x", "position.y"])],
        action=action_section(["velocity.x", "velocity.y"], high=[1, 3], max_rate=[100, 200]),
    )  # fmt: skip
    with DatasetWriter(tmp_path / "foreign", other) as writer:
        writer.add_episode("t", {}, episode(np.random.default_rng(0), np.zeros(2), 9))
    with pytest.raises(DatasetError, match=r"another contract than(.|\n)*high"):
        open_data(small, Judging(recordings=tmp_path / "foreign"))


def test_a_run_without_held_out_tasks_or_whose_dataset_is_gone_says_how_to_assess_it(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    moved, out = tmp_path / "moved", tmp_path / "run"
    shutil.copytree(dataset, tmp_path / "here")
    train(tmp_path / "here", out, tiny_config(updates=2), judging=FOUR)
    (tmp_path / "here").rename(moved)
    assert main(["assess", str(out)]) == 1
    assert (
        "4 tasks were held out, but their dataset" in (said := capsys.readouterr().err) and "give --recordings" in said
    )
    train(moved, out, tiny_config(updates=2), judging=FOUR)  # the same command, from where it is now
    assert metrics(out / "checkpoint")["held_out"]["dataset"] == str(moved)
    shutil.rmtree(next(moved.glob("*/train-05-v0")))
    with pytest.raises(DatasetError, match=f"has no task {TASKS[5]} any more"):
        assess(out)
    train(dataset, tmp_path / "all", tiny_config(updates=2))
    assert main(["assess", str(tmp_path / "all")]) == 1
    assert "no task was held out of its training; give --recordings of" in capsys.readouterr().err


def test_a_run_that_goes_on_holds_out_the_same_and_nothing_that_was_learnt(
    dataset: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["train", str(dataset), "--from", str(run), "--updates", "2", "--out"]
    assert main([*command, str(tmp_path / "same")]) == 0
    assert metrics(tmp_path / "same/checkpoint")["held_out"]["tasks"] == list(HELD)
    assert main([*command, str(tmp_path / "no"), "--hold-out", TASKS[0]]) == 1
    assert f"the earlier run was trained on '{TASKS[0]}', which cannot be held out any more" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "no"), "--hold-out", "5"]) == 1
    assert "the dataset has 4 tasks that the earlier run was not trained on" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "fewer"), "--hold-out", "2"]) == 0
    now = metrics(tmp_path / "fewer/checkpoint")
    assert now["held_out"]["tasks"] == [HELD[1], HELD[3]] and set(trained_on(now)) == set(TASKS) - {HELD[1], HELD[3]}
    with DatasetWriter(tmp_path / "new", POINT) as writer:
        for task in range(2):
            writer.add_episode(f"new/{task}", {"goal": 0.0}, episode(np.random.default_rng(task), np.ones(2), 12))
    new = ["train", str(tmp_path / "new"), "--from", str(run), "--out", str(tmp_path / "no")]
    assert main(new) == 1
    assert "what --from's run held out, so convert old and new bags together, name" in capsys.readouterr().err
    train(tmp_path / "new", tmp_path / "later", tiny_config(updates=1), earlier=run)
    assert set(TASKS[::2]) <= set(trained_on(metrics(tmp_path / "later/checkpoint"))), "what was learnt stays known"


def test_a_trained_policy_is_worth_more_than_random_weights_which_may_not_drive(tmp_path: Path) -> None:
    small = {"continuous_dim": 32, "context_dim": 8, "encoder_hidden": [64], "dynamics_hidden": [64, 64],
             "context_hidden": [64, 64], "policy_hidden": [64, 64]}  # fmt: skip
    config = load_config(
        "quick", "dora", updates=300, tasks_per_batch=6, windows_per_task=8, contexts_per_task=2, horizon=3,
        device="cpu", threads=1, compile="off", model=small,
    )  # fmt: skip
    train(write_arm_dataset(tmp_path / "data", task_count=10, episodes=6), tmp_path / "run", config, judging=FOUR)
    broken = load_checkpoint(tmp_path / "run")
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in broken.agent.parameters():
            weights.normal_(0, 0.3)
    save_checkpoint(tmp_path / "random", broken)
    trained, random = (assess(tmp_path / name, settings=Settings(fits=2)) for name in ("run", "random"))
    assert trained.values is not None and random.values is not None
    assert trained.values.better.mean > random.values.better.mean + 0.1 and random.values.better.mean < 0
    assert trained.values.better.high > 0.1
    assert trained.values.gain().mean(0).min() > random.values.gain().mean(0).min()
    assert trained.actions.outside < 0.3 < random.actions.outside
    assert random.verdict.word == "no" != trained.verdict.word
