# SPDX-License-Identifier: Apache-2.0
"""Several seeds in one training: folders, resuming, seeds that are added or fail. The compiler is left out here."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spc_core.data.packed import load_dataset
from spc_core.data.sampler import Sampler
from spc_core.method.agent import Batch
from spc_core.method.config import ConfigError
from spc_core.method.fused import FusedLearner
from spc_core.method.stacked import StackedLearner, bytes_of_update
from spc_core.training import loop
from spc_core.training.bench_train import new_agent
from spc_core.training.distributed import Group
from spc_core.training.run_log import BadLoss, LossWatch
from spc_core.training.run_state import TrainingError, TrainingRun
from spc_core.training.train import data_stats, train, train_seeds
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


def test_a_stack_that_was_killed_goes_on_with_fewer_seeds_and_with_more(dataset, tmp_path, monkeypatch):
    """The seed that is left out is kept as it is; the one that is added catches up with the others first."""
    out, config, sizes = tmp_path / "out", tiny_config(compile="on"), []
    update = StackedLearner.update

    def watched(self, batches, number):
        sizes.append((number, len(batches)))
        if number == broken:
            raise RuntimeError("killed")
        return update(self, batches, number)

    broken = SAVED + 5
    monkeypatch.setattr(StackedLearner, "update", watched)
    with pytest.raises(RuntimeError, match="killed"):
        train_seeds(dataset, out, config, [0, 1])
    kept = (out / "seed-0" / "resume.pt").read_bytes()
    broken = -1
    sizes.clear()
    train_seeds(dataset, out, config, [1])
    assert sizes == [(number, 1) for number in range(SAVED, UPDATES)]
    assert (out / "seed-0" / "resume.pt").read_bytes() == kept
    sizes.clear()
    train_seeds(dataset, out, config, [0, 1, 2])
    assert sizes == [(n, 1) for n in range(SAVED)] + [(n, 2) for n in range(SAVED, UPDATES)]
    train_seeds(dataset, tmp_path / "alone", config, [2])
    torch.testing.assert_close(weights(out, 2), weights(tmp_path / "alone", 2), rtol=1e-3, atol=1e-5)


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


def test_what_seeds_take_is_said_before_and_too_many_are_refused(dataset, tmp_path, monkeypatch, capsys):
    config = tiny_config(compile="on")
    train_seeds(dataset, tmp_path / "two", config, [0, 1])
    said = re.search(r"2 seeds as one model take about (\d+) MiB", capsys.readouterr().out)
    assert said is not None
    monkeypatch.setattr(loop, "_free_bytes", lambda device: 300_000)
    with pytest.raises(
        ConfigError, match=r"\d+ seeds as one model take about .* MiB are free; train at most \d+ --seeds"
    ):
        train_seeds(dataset, tmp_path / "many", config, range(99))


def test_the_bytes_of_an_update_are_those_of_its_weights_and_of_what_the_backward_pass_needs(dataset):
    """Twice the batch keeps twice as much; of a model without a batch, the weights alone count four times."""
    config = tiny_config("no_context")
    data = load_dataset(dataset)
    torch.manual_seed(0)
    learner = FusedLearner(new_agent(data, config))
    batch = Sampler(data, data_stats(data), config, 0).batch()
    weights = 4 * sum(tensor.nbytes for tensor in learner.agent.state_dict().values())
    once = bytes_of_update(learner, batch) - weights
    twice = bytes_of_update(learner, doubled(batch)) - weights
    assert once > 0 and 1.5 * once < twice < 2.1 * once


def doubled(batch: Batch) -> Batch:
    """The same windows once more."""
    names = ("observations", "actions", "rewards", "terminated", "count")
    wide = {name: torch.cat([getattr(batch, name)] * 2, 1) for name in names}
    return dataclasses.replace(batch, **wide, context_of=torch.cat([batch.context_of] * 2))


def test_a_run_of_several_processes_is_no_stack(dataset, tmp_path):
    """Its gradients are averaged over the processes, which a stack does not do."""
    data, config = load_dataset(dataset), tiny_config(compile="on")
    run = TrainingRun(data, data_stats(data), tmp_path, config, Group(torch.device("cpu")))
    assert loop._stacked([run])
    run.group.world = 2
    assert not loop._stacked([run])
