# SPDX-License-Identifier: Apache-2.0
"""Several seeds in one training: folders, resuming, seeds that are added or fail. The compiler is left out here."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spc_core.method.config import ConfigError
from spc_core.method.stacked import StackedLearner
from spc_core.training.run_log import BadLoss, LossWatch
from spc_core.training.run_state import TrainingError
from spc_core.training.train import train, train_seeds
from support.synthetic import tiny_config, write_dataset

UPDATES, SAVED = 20, 10  # of tiny_config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "point")


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def weights(out: Path, seed: int) -> dict[str, torch.Tensor]:
    return load_file(out / f"seed-{seed}" / "checkpoint" / "weights.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_where_compiling_does_not_pay_each_seed_is_the_run_alone_bit_for_bit(dataset, tmp_path):
    folders = train_seeds(dataset, tmp_path / "both", tiny_config(), [0, 4])
    assert folders == [tmp_path / "both" / f"seed-{seed}" / "checkpoint" for seed in (0, 4)]
    train(dataset, tmp_path / "alone" / "seed-4", tiny_config(seed=4))
    assert same(weights(tmp_path / "both", 4), weights(tmp_path / "alone", 4))


def test_a_stack_that_was_killed_goes_on_to_the_same_bits(dataset, tmp_path, monkeypatch):
    config = tiny_config(compile="on")
    train_seeds(dataset, tmp_path / "whole", config, [0, 1])
    update = StackedLearner.update

    def killed(self, batches, number):
        if number == SAVED + 5:
            raise RuntimeError("killed")
        return update(self, batches, number)

    with monkeypatch.context() as patch:
        patch.setattr(StackedLearner, "update", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train_seeds(dataset, tmp_path / "killed", config, [0, 1])
    train_seeds(dataset, tmp_path / "killed", config, [0, 1])
    for seed in (0, 1):
        assert same(weights(tmp_path / "killed", seed), weights(tmp_path / "whole", seed))
        log = (tmp_path / "killed" / f"seed-{seed}" / "log.csv").read_text().splitlines()
        assert [line.split(",")[0] for line in log] == ["update", "5", "10", "15", "20"]


def test_seeds_are_added_and_left_out(dataset, tmp_path, capsys):
    out, config = tmp_path / "out", tiny_config(compile="on")
    train_seeds(dataset, out, config, [0])
    first = weights(out, 0)
    train_seeds(dataset, out, config, [0, 1, 2])
    assert "seed-0: already trained" not in capsys.readouterr().out, "nothing to say of it while others train"
    assert same(first, weights(out, 0)) and not same(weights(out, 1), weights(out, 2))
    train_seeds(dataset, out, config, [2])
    assert f"seed-2: already trained for {UPDATES} updates" in capsys.readouterr().out


def test_files_of_a_stack_are_as_large_as_those_of_a_run_alone(dataset, tmp_path):
    train(dataset, tmp_path / "alone", tiny_config())
    train_seeds(dataset, tmp_path / "both", tiny_config(compile="on"), [0, 1, 2])
    for name in ("resume.pt", "checkpoint/weights.safetensors"):
        alone, stacked = ((tmp_path / folder / name).stat().st_size for folder in ("alone", "both/seed-1"))
        assert abs(stacked - alone) < 0.05 * alone, name


def test_a_seed_that_fails_does_not_stop_the_others(dataset, tmp_path, monkeypatch):
    first_bad = LossWatch.first_bad

    def bad(self):
        found = first_bad(self)
        return BadLoss(7, "q", float("nan")) if self is broken.get("watch") and broken["at"] == 8 else found

    broken: dict = {"at": 0}
    add = LossWatch.add

    def watched(self, update, losses):
        broken.setdefault("watch", self)  # the first run's
        broken["at"] = update + 1
        add(self, update, losses)

    monkeypatch.setattr(LossWatch, "add", watched)
    monkeypatch.setattr(LossWatch, "first_bad", bad)
    with pytest.raises(TrainingError, match="seed-0: the q loss became nan at update 8") as failure:
        train_seeds(dataset, tmp_path / "out", tiny_config(compile="on"), [0, 1, 2])
    assert "seed-1" not in str(failure.value)
    assert weights(tmp_path / "out", 1) and weights(tmp_path / "out", 2)
    assert not (tmp_path / "out" / "seed-0" / "checkpoint").exists()


def test_a_seed_that_is_named_twice_is_refused(dataset, tmp_path):
    with pytest.raises(ConfigError, match="--seeds has '1' twice; name each once"):
        train_seeds(dataset, tmp_path / "out", tiny_config(), [1, 0, 1])
    assert not (tmp_path / "out").exists()
