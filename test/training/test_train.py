# SPDX-License-Identifier: Apache-2.0
"""Training that is interrupted, killed or fed with bad input; checkpoints that load or are refused."""

import csv
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from spc_core.alignment.streaming import Transition
from spc_core.data.dataset import DatasetError
from spc_core.data.packed import load_dataset
from spc_core.data.sampler import Sampler
from spc_core.deploy.checkpoint import CheckpointError, load_checkpoint, pick_device
from spc_core.deploy.context_tracker import ContextTracker
from spc_core.deploy.deployable import Policy
from spc_core.method.config import ConfigError, load_config, to_dict
from spc_core.training.run_state import TrainingError
from spc_core.training.train import train
from support.contracts import contract_text
from support.method_options import configured
from support.synthetic import POINT, tiny_config, write_dataset

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "point")


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "complete"
    train(dataset, out, tiny_config())
    return out


def weights(run):
    return safetensors.torch.load_file(run / "checkpoint" / "weights.safetensors")


def assert_same_run(a, b):
    for name, value in weights(a).items():
        assert torch.equal(value, weights(b)[name]), name
    logs = [[{**row, "seconds": ""} for row in read_log(run)] for run in (a, b)]
    assert logs[0] == logs[1], "the logs agree in all but the seconds"


def read_log(run):
    return list(csv.DictReader((run / "log.csv").read_text().splitlines()))


def start_training(dataset, out, tmp_path, updates):
    """A training in its own process, with the configuration of tiny_config."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(to_dict(tiny_config(updates=updates))))
    command = [
        sys.executable,
        "-m",
        "spc_ros.cli",
        "train",
        str(dataset),
        "--preset",
        str(file),
        "--out",
        str(out),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_update(out, update):
    """Return once the run's log holds the update."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        log = out / "log.csv"
        rows = log.read_text().splitlines() if log.exists() else []
        if len(rows) > 1 and rows[-1].endswith(tuple("0123456789")) and int(rows[-1].split(",")[0]) >= update:
            return
        time.sleep(0.01)  # between two looks at a file that another process writes
    pytest.fail(f"update {update} not reached within {DEADLINE_S} s")


def test_a_run_writes_all_its_files(run):
    folder = run / "checkpoint"
    names = {"weights.safetensors", "config.yaml", "contract.yaml", "stats.json", "metrics.json"}
    assert {file.name for file in folder.iterdir()} == names
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["update"] == 20 and [t["task_id"] for t in metrics["tasks"]][:2] == [
        "point/train/00",
        "point/train/01",
    ]
    rows = read_log(run)
    assert [row["update"] for row in rows] == ["5", "10", "15", "20"]
    assert all(np.isfinite(float(row[name])) for row in rows for name in ("consistency", "v", "actor"))
    assert any((run / "tensorboard").iterdir())
    assert "task_means" in weights(run) and weights(run)["task_means"].any()


@pytest.fixture(scope="module")
def long_run(dataset, tmp_path_factory):
    """A run that nothing interrupted, and long enough to be interrupted."""
    out = tmp_path_factory.mktemp("runs") / "long"
    train(dataset, out, tiny_config(updates=400))
    return out


def test_training_killed_repeatedly_resumes_to_the_same_weights_bit_for_bit(dataset, long_run, tmp_path):
    killed = tmp_path / "killed"
    for update in np.random.default_rng(0).integers([20, 100, 180], [80, 160, 240]):
        process = start_training(dataset, killed, tmp_path, updates=400)
        wait_for_update(killed, update)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        reached = torch.load(killed / "resume.pt", weights_only=True)["progress"]["update"]
        assert 0 < reached < 400
    train(dataset, killed, tiny_config(updates=400))
    assert_same_run(long_run, killed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_training_saves_reports_and_resumes(dataset, long_run, tmp_path, number):
    interrupted = tmp_path / "interrupted"
    process = start_training(dataset, interrupted, tmp_path, updates=400)
    wait_for_update(interrupted, 25)
    process.send_signal(number)
    output = process.communicate(timeout=DEADLINE_S)[0]
    assert process.returncode == 130
    assert "the same command resumes" in output and "Traceback" not in output
    update = json.loads((interrupted / "checkpoint" / "metrics.json").read_text())["update"]
    assert 25 <= update < 400
    load_checkpoint(interrupted)
    assert torch.load(interrupted / "resume.pt", weights_only=True)["progress"]["update"] == update
    train(dataset, interrupted, tiny_config(updates=400))
    assert_same_run(long_run, interrupted)


def test_a_finished_run_is_not_trained_again(dataset, run, capsys):
    before = os.stat(run / "checkpoint" / "weights.safetensors").st_mtime_ns
    train(dataset, run, tiny_config())
    assert "already trained for 20 updates" in capsys.readouterr().out
    assert os.stat(run / "checkpoint" / "weights.safetensors").st_mtime_ns == before


def test_the_task_belief_is_written_and_mended(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("spc_core.training.train.LEAST_UPDATES", 10)
    config, out = tiny_config("spc", updates=12, log_every=4), tmp_path / "run"
    train(dataset, out, config)
    assert "task belief: " in capsys.readouterr().out
    file = out / "checkpoint" / "belief.json"
    written = file.read_text()
    others = [('"weights": "', '"weights": "of others'), ('"format": 2', '"format": 1')]
    for damaged in ("{", "[]", *(written.replace(*pair) for pair in others)):
        file.write_text(damaged)
        train(dataset, out, config)
        assert file.read_text() == written
    train(dataset, tmp_path / "short", dataclasses.replace(config, updates=9))
    assert not (tmp_path / "short" / "checkpoint" / "belief.json").exists()


def test_another_configuration_or_dataset_in_the_same_folder_is_refused(dataset, run, tmp_path):
    with pytest.raises(ConfigError, match=r"other settings \(seed was 0, is 1\).*--overwrite"):
        train(dataset, run, tiny_config(seed=1))
    other = write_dataset(tmp_path / "other", seed=5)
    with pytest.raises(DatasetError, match="a different dataset"):
        train(other, run, tiny_config())


def test_seeds_differ_and_repeat(dataset, run, tmp_path):
    train(dataset, tmp_path / "same", tiny_config())
    train(dataset, tmp_path / "other", tiny_config(seed=1))
    assert_same_run(run, tmp_path / "same")
    assert not torch.equal(
        weights(run)["actor.network.0.weight"], weights(tmp_path / "other")["actor.network.0.weight"]
    )


def test_one_task_is_refused(tmp_path):
    root = write_dataset(tmp_path / "single", task_count=1)
    with pytest.raises(DatasetError, match="holds 1 task; .* record at least two"):
        train(root, tmp_path / "run", tiny_config())
    assert not (tmp_path / "run").exists()


def test_diverging_loss_stops_by_name_and_saves_nothing_broken(dataset, tmp_path):
    with pytest.raises(
        TrainingError, match=r"the \w+ loss became (nan|inf|-inf) at update 2; lower the learning rates"
    ):
        train(dataset, tmp_path / "seen", tiny_config(policy_lr=1e30, updates=40))
    with pytest.raises(TrainingError, match=r"is not finite after update 1; lower the learning rates"):
        train(dataset, tmp_path / "unseen", tiny_config(policy_lr=1e38, updates=40, checkpoint_every=1, log_every=30))
    assert not list(tmp_path.glob("*/checkpoint")) and not list(tmp_path.glob("*/resume.pt"))


def poison(root, episode, value):
    """Put a value among the packed rewards: as the first of an episode, which the windows of few batches hold."""
    data = load_dataset(root)
    rewards = np.array(data.rewards)
    rewards[data.episode_starts[episode]] = value
    np.save(next(root.glob(".packed/*/rewards.npy")), rewards)
    return int(data.episode_starts[episode])


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e30])
def test_an_outlier_found_before_training_is_refused(tmp_path, value):
    root = write_dataset(tmp_path / "point")
    poison(root, 7, value)  # the second episode of the third task
    with pytest.raises(DatasetError, match=rf"the reward is {re.escape(f'{value:g}')} at step 0 of episode 1 of task"):
        train(root, tmp_path / "run", tiny_config())


@pytest.mark.parametrize("value", [np.nan, 1e30])
def test_an_outlier_found_in_training_stops_it_early_and_is_named(tmp_path, monkeypatch, value):
    root = write_dataset(tmp_path / "point", lengths=(40,) * 10)
    step = poison(root, 21, value)
    monkeypatch.setattr(
        "spc_core.training.train.STATS_STEPS", 50
    )  # of 1600: as in a large dataset, most are not looked at
    assert step not in np.linspace(0, 1599, 50).astype(int)
    out = tmp_path / "run"
    with pytest.raises(TrainingError) as caught:
        train(root, out, tiny_config(updates=500, log_every=100, checkpoint_every=1))
    message = str(caught.value)
    update = int(re.search(r"the \w+ loss became (?:nan|inf) at update (\d+);", message)[1])
    odd = {"nan": r" up to \S+ on unit scale, \d+ of \d+ not finite", "1e+30": r" up to \S+e\+30 on unit scale"}
    assert re.search(r"\b(rewards|context)" + odd[f"{value:g}"] + r" \(point/train/02\)", message), message
    assert update % 100, "found before the log line"
    kept = torch.load(out / "resume.pt", weights_only=True)
    assert kept["progress"]["update"] == update - 1 and str(out / "resume.pt") in message
    assert all(weight.isfinite().all() for weight in weights(out).values())


def test_overwrite_spares_a_folder_that_is_not_a_run(dataset, run, tmp_path):
    precious = tmp_path / "home" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(ConfigError, match="is not a training run, so it is not overwritten"):
        train(dataset, precious.parent, tiny_config(), overwrite=True)
    assert precious.read_text() == "years of work"


def _with_constant_field(tmp_path):
    """A dataset whose second field is always 3."""
    root = write_dataset(tmp_path / "point")
    data = load_dataset(root)
    files = list(root.glob(".packed/*/observations.npy"))
    frozen = np.array(data.observations)
    frozen[:, 1] = 3.0
    np.save(files[0], frozen)
    return root


def test_a_constant_observation_is_told_and_ignored(tmp_path, capsys):
    """Training goes on without it, and the robot does the same whatever it reads there."""
    folder = train(_with_constant_field(tmp_path), tmp_path / "run", tiny_config())
    assert "joint_states.position.y never changes in the data, so it is ignored" in capsys.readouterr().out
    checkpoint = load_checkpoint(folder)
    stats = checkpoint.stats
    assert stats.ignored.tolist() == [False, True]
    seen, other = np.array([[0.1, 3.0], [0.2, 3.0]]), np.array([[0.1, -8.0], [0.2, 900.0]])
    np.testing.assert_allclose(stats.observation(seen), stats.observation(other), atol=1e-20)
    votes = [stats.transition(rows[0], np.zeros(2), 0.0, rows[1]) for rows in (seen, other)]
    np.testing.assert_allclose(votes[0], votes[1], atol=1e-20)


def test_nothing_but_constant_observations_is_refused(tmp_path):
    root = _with_constant_field(tmp_path)
    file = next(root.glob(".packed/*/observations.npy"))
    np.save(file, np.full_like(np.load(file), 2.0))
    with pytest.raises(DatasetError, match="no observation ever changes in the data: joint_states.position.x"):
        train(root, tmp_path / "run", tiny_config())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"updtes": 5}, r"updtes is not a setting \(did you mean 'updates'\?\)"),
        ({"model": {"group": 3}}, r"model.group is not a setting \(did you mean 'groups'\?\)"),
        ({"updates": "many"}, "updates must be of type int, got 'many'"),
        ({"updates": 0}, "updates is 0; it must be at least 1"),
        ({"policy_lr": -1.0}, "policy_lr is -1.0; it must be above 0"),
        ({"context_empty_share": 1.5}, "context_empty_share is 1.5; it must be from 0 to 1"),
        ({"model": {"levels": [4, 3]}}, "model.levels is .* odd"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        load_config("small", **change)


def test_missing_devices_are_refused():
    with pytest.raises(ConfigError, match="device is 'cuda:7', but this machine shows"):
        pick_device("cuda:7")
    with pytest.raises(ConfigError, match="use auto, cpu"):
        pick_device("gpu")
    with pytest.raises(ConfigError, match="device is 'cuda:one'; the part after the colon must be a number"):
        pick_device("cuda:one")


def copy_checkpoint(run, folder):
    folder.mkdir()
    for file in (run / "checkpoint").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_checkpoint_runs_by_itself(run, tmp_path):
    """A copied folder acts exactly as the run it came from, without the dataset."""
    outputs = []
    for folder in (run, copy_checkpoint(run, tmp_path / "copy")):
        checkpoint = load_checkpoint(folder)
        tracker, policy = ContextTracker(checkpoint), Policy(checkpoint)
        tracker.update(Transition(0, np.array([0.1, 0.2]), np.array([0.5, -1.0]), -0.3, np.array([0.15, 0.1])))
        outputs.append((tracker.context, policy.act(np.array([0.3, 0.4]), tracker.context)))
    assert outputs[0][0].any()
    np.testing.assert_array_equal(outputs[0][0], outputs[1][0])
    np.testing.assert_array_equal(outputs[0][1], outputs[1][1])
    assert (np.abs(outputs[0][1]) <= [1, 2]).all(), "actions are in the contract's units"


def test_bad_checkpoints_are_refused_with_the_cause(run, tmp_path):
    with pytest.raises(CheckpointError, match="not a checkpoint, weights.safetensors, .* missing; pass the folder"):
        load_checkpoint(tmp_path)
    (tmp_path / "seeds/seed-3").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="runs of several seeds, so pass one of them, such as .*/seeds/seed-3"):
        load_checkpoint(tmp_path / "seeds")
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported/export.json").write_text("{}")
    with pytest.raises(CheckpointError, match="an export to ONNX, so pass the run that it was made of"):
        load_checkpoint(tmp_path / "exported")
    missing = copy_checkpoint(run, tmp_path / "missing")
    (missing / "stats.json").unlink()
    with pytest.raises(CheckpointError, match="stats.json missing"):
        load_checkpoint(missing)
    corrupt = copy_checkpoint(run, tmp_path / "corrupt")
    data = (corrupt / "weights.safetensors").read_bytes()
    (corrupt / "weights.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="weights.safetensors: corrupt"):
        load_checkpoint(corrupt)
    newer = copy_checkpoint(run, tmp_path / "newer")
    metrics = json.loads((newer / "metrics.json").read_text())
    (newer / "metrics.json").write_text(json.dumps({**metrics, "format": 99}))
    (newer / "config.yaml").write_text("setting_of_tomorrow: 1")
    with pytest.raises(CheckpointError, match="format 99.*update the program"):
        load_checkpoint(newer)
    lacking = copy_checkpoint(run, tmp_path / "lacking")
    (lacking / "stats.json").write_text('{"reward_mean": 0}')
    with pytest.raises(CheckpointError, match="statistics lack .*observation_mean"):
        load_checkpoint(lacking)


def test_mixed_parts_of_two_checkpoints_are_refused(run, tmp_path):
    resized = copy_checkpoint(run, tmp_path / "resized")
    config = yaml.safe_load((resized / "config.yaml").read_text())
    config["model"]["policy_hidden"] = [16]
    (resized / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(CheckpointError, match=r"different model: actor\.\S+ is \[8, \d+\], but .* require \[16, \d+\]"):
        load_checkpoint(resized)
    other = copy_checkpoint(run, tmp_path / "other")
    (other / "contract.yaml").write_text(
        contract_text({"observation.0.fields": ["position.x", "position.y", "position.z"]}, base=POINT)
    )
    with pytest.raises(CheckpointError, match="stats.json has 2 observations and 2 actions, contract.yaml has 3 and 2"):
        load_checkpoint(other)


def test_networks_outside_the_agent_are_resumed_too(dataset, tmp_path):
    loss = {"actor_average_rate": 0.3, "one_step_weight": 1.0, "imagined_share": 0.5, "late_from": 0.0}
    train(dataset, tmp_path / "run", tiny_config(method="csro", updates=2, loss=loss))
    modules = torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["modules"]
    assert set(modules) == {"agent", "club"} and "average_actor.network.0.weight" in modules["agent"]
    stats = load_checkpoint(tmp_path / "run").stats
    change = torch.from_numpy(stats.change_std / stats.observation_std)
    torch.testing.assert_close(modules["agent"]["world_model.one_step.scale"], change)


def test_averages_noise_of_their_own_and_late_parts_resume_bit_for_bit(dataset, tmp_path, monkeypatch):
    loss = {"actor_average_rate": 0.3, "one_step_weight": 1.0, "imagined_share": 0.5, "action_gradient": 1.0}
    config = configured("spc_paper votes=precision policy_sees=both", tiny_config(updates=12, log_every=4, loss=loss))
    train(dataset, tmp_path / "whole", config)
    drawn, batch = [], Sampler.batch

    def stopped(sampler):
        drawn.append(1)
        if len(drawn) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(sampler)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="stopped at update 6 of 12"):
        patch.setattr(Sampler, "batch", stopped)
        train(dataset, tmp_path / "stopped", config)
    train(dataset, tmp_path / "stopped", config)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_run_from_before_a_setting_existed_goes_on_with_its_default(dataset, tmp_path, capsys):
    config = tiny_config(updates=2)
    train(dataset, tmp_path / "run", config)
    older = to_dict(config)
    del older["loss"]["actor_average_rate"]
    change_state(tmp_path / "run", config=json.dumps(older))
    train(dataset, tmp_path / "run", config)
    with pytest.raises(ConfigError, match="holds a run with other settings .loss was"):
        train(dataset, tmp_path / "run", tiny_config(updates=2, loss={"actor_average_rate": 0.1}))


def change_state(out, **changes):
    state = torch.load(out / "resume.pt", weights_only=True)
    torch.save({**state, **changes}, out / "resume.pt")


def test_a_different_run_is_not_resumed(dataset, tmp_path):
    out = tmp_path / "run"
    train(dataset, out, tiny_config(updates=2))
    change_state(out, contract=contract_text(base=POINT, rate_hz=20))
    with pytest.raises(DatasetError, match=r"a different contract than .*--overwrite.*\n  rate_hz: 50 here, 20 there"):
        train(dataset, out, tiny_config(updates=2))
    for number, fix in ((99, "update the program"), (1, "start again with --overwrite")):
        change_state(out, format=number)
        with pytest.raises(TrainingError, match=rf"resume.pt: has format {number}, this program reads \d; {fix}"):
            train(dataset, out, tiny_config(updates=2))
    (out / "resume.pt").write_bytes(b"half")
    with pytest.raises(TrainingError, match=r"resume.pt: corrupt .*; start again with --overwrite"):
        train(dataset, out, tiny_config(updates=2))
    train(dataset, out, tiny_config(updates=2), overwrite=True)
