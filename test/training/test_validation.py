# SPDX-License-Identifier: Apache-2.0
"""Evaluation during training: the best checkpoint is kept, updates are unaffected, and no process is left behind."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from spc_core.data.dataset import DatasetWriter, Episode
from spc_core.deploy.checkpoint import load_checkpoint
from spc_core.method.config import ConfigError, to_dict
from spc_core.training import judges
from spc_core.training.judges import Simulation
from spc_core.training.train import train
from spc_core.training.validation import Validator
from support.contracts import ARM_REACH
from support.random_checkpoint import write_random_checkpoint
from support.synthetic import tiny_config, write_dataset

DEADLINE_S = 60.0
ARM = Simulation("arm_reach")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Random numbers under the contract of a simulated family."""
    root, rng = tmp_path_factory.mktemp("data") / "arm", np.random.default_rng(0)
    with DatasetWriter(root, ARM_REACH) as writer:
        for task in range(3):
            o, a = rng.normal(size=(31, ARM_REACH.observation_dim)), rng.normal(size=(30, ARM_REACH.action_dim))
            times = np.arange(31) * 20_000_000
            writer.add_episode(
                f"arm_reach/train/{task:02d}", {}, Episode(o, a, rng.normal(size=30), times, False, True, None, "x")
            )
    return root


def weights(folder):
    return safetensors.torch.load_file(folder / "weights.safetensors")


def rows(out):
    return [json.loads(line) for line in (out / "validation.jsonl").read_text().splitlines()]


def update_of(folder):
    return json.loads((folder / "metrics.json").read_text())["update"]


def test_the_best_and_the_last_are_kept_and_updates_are_untouched(dataset, tmp_path, capsys):
    plain, validated = tmp_path / "plain", tmp_path / "validated"
    train(dataset, plain, tiny_config(updates=40))
    train(dataset, validated, tiny_config(updates=40, evaluate_every=10))
    for name, value in weights(plain / "checkpoint").items():
        assert torch.equal(value, weights(validated / "checkpoint")[name]), name
    scores = rows(validated)
    assert [row["update"] for row in scores] == [10, 40], "40 updates take less time than one evaluation"
    assert capsys.readouterr().out.count("is not evaluated") == 1
    best = max(scores, key=lambda row: row["few_shot"])
    assert update_of(validated / "best") == best["update"] and best["tasks"] == 5
    assert load_checkpoint(validated).metrics["update"] == 40
    assert load_checkpoint(validated / "best").metrics["update"] == best["update"]
    assert not (validated / ".snapshots").exists()
    before = (validated / "validation.jsonl").read_bytes()
    train(dataset, validated, tiny_config(updates=40, evaluate_every=5))  # which may change, and has nothing to do
    assert (validated / "validation.jsonl").read_bytes() == before


def test_a_robot_without_simulation_is_refused_at_the_start(tmp_path):
    root = write_dataset(tmp_path / "point")
    with pytest.raises(ConfigError, match=r"simulation of 'point'.*families.md.*--hold-out 4"):
        train(root, tmp_path / "run", tiny_config(evaluate_every=5))
    assert not (tmp_path / "run").exists()


def write_row(out, update, score):
    with (out / "validation.jsonl").open("a") as stream:
        stream.write(json.dumps({"update": update, "zero_shot": 0.0, "few_shot": score}) + "\n")


def snapshot(folder, update):
    write_random_checkpoint(folder, "arm_reach")
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**metrics, "update": update}))


@pytest.mark.parametrize(
    ("best", "left", "kept"),
    [
        ({10: -5.0}, {20: -4.0}, 20),  # killed after the score was written, before it was promoted
        ({10: -5.0}, {20: -6.0}, 10),
        ({}, {10: -5.0, 20: -4.0}, 20),  # killed between moving the old best aside and the new one in
        ({10: -5.0}, {20: None}, 10),  # killed before the score was known
    ],
)
def test_a_killed_process_loses_no_best(tmp_path, best, left, kept):
    for update, score in (best | left).items():
        snapshot(tmp_path / "best" if update in best else tmp_path / ".snapshots" / str(update), update)
        if score is not None:
            write_row(tmp_path, update, score)
    (tmp_path / ".snapshots" / ".30.123").mkdir()
    reported = {}
    with Validator(tmp_path, ARM, reported.__setitem__):
        assert update_of(tmp_path / "best") == kept
        assert not list((tmp_path / ".snapshots").iterdir())
    assert reported == {u: {"zero_shot": 0.0, "few_shot": s} for u, s in left.items() if s is not None}


def test_a_failed_evaluation_is_reported_and_harmless(tmp_path, capsys):
    def save(folder):
        snapshot(folder, 10)
        (folder / "stats.json").unlink()

    with Validator(tmp_path, ARM, lambda *_: None) as validator:
        assert validator.finish(10, save, [])
        assert not validator.finish(10, save, [signal.SIGTERM]), "nothing starts after a stop"
    output = capsys.readouterr().out
    assert "update 10 could not be evaluated: " in output and "stats.json missing" in output
    assert not (tmp_path / "best").exists() and not (tmp_path / "validation.jsonl").exists()


def children(pid):
    found = subprocess.run(
        ["pgrep", "-P", str(pid), "-f", "spc_core.training.validation"], capture_output=True, text=True
    )
    return [int(line) for line in found.stdout.split()]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, what):
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {DEADLINE_S} s"
        time.sleep(0.02)  # between two looks at another process
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_behind(dataset, tmp_path, number):
    file, out = tmp_path / "config.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(to_dict(tiny_config(updates=100_000, evaluate_every=10, compile="off"))))
    command = [sys.executable, "-m", "spc_ros.cli", "train", str(dataset), "--preset", str(file), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        (child,) = wait_until(lambda: children(process.pid), "an evaluation began")
        process.send_signal(number)
        output = process.communicate(timeout=DEADLINE_S)[0]
    finally:
        process.kill()
    wait_until(lambda: not alive(child), "the evaluation ended")
    if number == signal.SIGTERM:
        assert process.returncode == 130 and "Traceback" not in output and not (out / ".snapshots").exists()


def test_validation_tasks_are_spread_over_the_split(tmp_path):
    assert judges.TASKS == 5
    folder = write_random_checkpoint(tmp_path / "random", "arm_reach")
    progress = []
    scores = ARM.score(folder, lambda done, total, _: progress.append((done, total)))
    assert set(scores) == {"zero_shot", "few_shot", "tasks"} and np.isfinite(list(scores.values())).all()
    assert progress[-1] == (10, 10)
