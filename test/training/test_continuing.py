# SPDX-License-Identifier: Apache-2.0
"""A run goes on from an earlier one with old and new recordings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spc_core.data.dataset import DatasetError, DatasetWriter
from spc_core.data.packed import load_dataset
from spc_core.deploy.checkpoint import CheckpointError, load_checkpoint
from spc_core.deploy.checkpoint_files import model_id
from spc_core.method.config import ConfigError
from spc_core.training.continuing import open_beginning
from spc_core.training.distributed import join_group
from spc_core.training.run_state import TrainingRun
from spc_core.training.train import train, train_seeds
from spc_ros.cli import main
from support.contracts import action_section, make_contract, stream_section
from support.synthetic import episode, tiny_config, write_dataset


@pytest.fixture(scope="module")
def yesterday(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three tasks."""
    folder = tmp_path_factory.mktemp("yesterday")
    train(write_dataset(folder / "data", task_count=3), folder / "run", tiny_config())
    return folder / "run"


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same three tasks and one more."""
    return write_dataset(tmp_path_factory.mktemp("today") / "data", task_count=4)


def begun(more: Path, yesterday: Path, out: Path, **settings: Any) -> TrainingRun:
    data, config = load_dataset(more), tiny_config(**settings)
    beginning = open_beginning(yesterday, data, config)
    with join_group("cpu") as group:
        return TrainingRun(data, beginning.stats, out, config, group, beginning)


def test_weights_and_old_tasks_stay_and_a_new_task_gets_the_mean_of_its_votes(
    more: Path, yesterday: Path, tmp_path: Path
) -> None:
    run, earlier = begun(more, yesterday, tmp_path, seed=7), load_checkpoint(yesterday)
    old, new = earlier.agent.state_dict(), run.agent.state_dict()
    assert all(torch.equal(new[name], value) for name, value in old.items() if name != "task_means")
    assert torch.equal(new["task_means"][:3], old["task_means"])
    data, stats = run.data, earlier.stats
    votes = []
    for number in np.flatnonzero(data.episode_task == 3):
        begin, end = data.episode_starts[number], data.episode_starts[number + 1]
        rows = data.observations[begin + number : end + number + 1]
        inputs = stats.transition(rows[:-1], data.actions[begin:end], data.rewards[begin:end], rows[1:])
        votes.append(earlier.agent.context_encoder.embed(torch.from_numpy(inputs)))
    torch.testing.assert_close(new["task_means"][3], torch.cat(votes).mean(0), rtol=1e-4, atol=1e-5)


def test_it_keeps_the_normalisation_says_what_is_new_and_resumes_with_the_same_command_alone(
    more: Path, yesterday: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, config = tmp_path / "run", tiny_config(updates=4)
    train(more, out, config, earlier=yesterday)
    assert "goes on from" in (said := capsys.readouterr().out) and "3 of its 3 tasks, 1 new" in said
    now = load_checkpoint(out)
    assert now.metrics["from"] == {"model": model_id(yesterday), "update": 20}
    assert (out / "checkpoint/stats.json").read_bytes() == (yesterday / "checkpoint/stats.json").read_bytes()
    train(more, out, config, earlier=yesterday)
    assert "already trained for 4 updates" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"a run from model \d+ after 20 updates, and this one is from scratch"):
        train(more, out, config)


def test_the_command_takes_the_settings_of_the_run_and_a_quarter_of_its_updates(
    more: Path, yesterday: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["train", str(more), "--out", str(tmp_path / "run"), "--from", str(yesterday)]) == 0
    assert json.loads((tmp_path / "run/checkpoint/metrics.json").read_text())["update"] == 5
    command = ["train", str(more), "--out", str(tmp_path / "no"), "--from"]
    assert main([*command, str(yesterday), "--preset", "quick"]) == 1
    assert "--from goes on with the settings of that run, so leave out --preset" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "nowhere")]) == 1
    assert "not a checkpoint, weights.safetensors, config.yaml" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_forgotten_tasks_and_fields_that_no_longer_fit_are_told(
    yesterday: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Only new tasks, in which x is three times as large, far from where it was."""
    contract, rng = load_dataset(write_dataset(tmp_path / "any", task_count=2)).contract, np.random.default_rng(1)
    with DatasetWriter(tmp_path / "data", contract) as writer:
        for task in (8, 9):
            one = episode(rng, np.zeros(2), 60)
            one.observations[:, 0] = 40 + 3 * rng.standard_normal(61)
            writer.add_episode(f"point/train/{task:02d}", {"goal": float(task)}, one)
    train(tmp_path / "data", tmp_path / "run", tiny_config(updates=2), earlier=yesterday)
    said = capsys.readouterr().out
    assert "0 of its 3 tasks, 2 new" in said
    assert "not in the dataset: point/train/00, point/train/01, point/train/02; what was learnt of them" in said
    assert "joint_states.position.x spreads" in said and "joint_states.position.y" not in said


MODEL = {"groups": 4, "continuous_dim": 8, "context_dim": 5, "encoder_init": 0.02, "policy_hidden": [16]} | {
    f"{name}_hidden": [8] for name in ("encoder", "dynamics", "context")
}


@pytest.mark.parametrize(
    "method, settings, message",
    [
        ("spc_continuous", {}, "method.latent was discrete, is continuous"),
        ("", {"model": MODEL}, r"model.policy_hidden was \[8\], is \[16\]"),
        ("", {"loss": {"one_step_weight": 1.0}}, "loss.one_step_weight above 0 was False, is True"),
    ],
)
def test_other_networks_are_refused_by_name(
    more: Path, yesterday: Path, method: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_beginning(yesterday, load_dataset(more), tiny_config(method, **settings))


def test_another_contract_is_refused_with_its_differences(yesterday: Path, tmp_path: Path) -> None:
    other = make_contract(
        name="point", observation=[stream_section("joint_states", ["position.x", "position.y"])],
        action=action_section(["velocity.x", "velocity.y"], high=[1, 3], max_rate=[100, 200]),
    )  # fmt: skip
    with DatasetWriter(tmp_path / "data", other) as writer:
        for task in range(2):
            writer.add_episode(f"t{task}", {}, episode(np.random.default_rng(0), np.zeros(2), 9))
    with pytest.raises(DatasetError, match=r"another contract than(.|\n)*high: \[1, 3\] here, \[1, 2\] there"):
        train(tmp_path / "data", tmp_path / "run", tiny_config(), earlier=yesterday)
    assert not (tmp_path / "run").exists()


def test_seeds_go_on_from_a_run_of_each_and_an_oracle_from_none(more: Path, yesterday: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no folder seed-0; --seeds goes on from a run of each seed"):
        train_seeds(more, tmp_path / "no", tiny_config(), [0, 1], earlier=yesterday)
    first, second = (tiny_config(updates=updates, compile="off") for updates in (2, 3))
    train_seeds(more, tmp_path / "a", first, [0, 1])
    runs = train_seeds(more, tmp_path / "b", second, [0, 1], earlier=tmp_path / "a")
    origins = [load_checkpoint(run).metrics["from"]["model"] for run in runs]
    assert origins == [model_id(tmp_path / "a" / f"seed-{seed}") for seed in (0, 1)]
    train(more, tmp_path / "oracle", tiny_config("oracle", updates=1))
    with pytest.raises(ConfigError, match="'oracle' scales parameters by its training tasks"):
        train(more, tmp_path / "no", tiny_config("oracle"), earlier=tmp_path / "oracle")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        train(more, tmp_path / "no", tiny_config(), earlier=tmp_path)
