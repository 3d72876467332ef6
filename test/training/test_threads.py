# SPDX-License-Identifier: Apache-2.0
"""CPU threads of a training: how many, and that a run keeps them."""

import pytest
import torch

from spc_core.method.config import load_config
from spc_core.training.run_log import LossWatch
from spc_core.training.threads import torch_threads, usual_threads
from spc_core.training.train import train
from support.synthetic import tiny_config, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "point")


@pytest.fixture
def used(monkeypatch):
    """The numbers of threads with which updates were made."""
    found: set[int] = set()
    add = LossWatch.add
    monkeypatch.setattr(LossWatch, "add", lambda *a: (found.add(torch.get_num_threads()), add(*a))[1])
    return found


def test_a_small_model_takes_one_thread_and_a_wide_one_what_torch_takes():
    with torch_threads(2):
        sizes = {size: usual_threads(load_config(size), "cpu") for size in ("quick", "small", "paper")}
        assert sizes == {"quick": 1, "small": 1, "paper": 2}
        assert usual_threads(load_config("small"), "cuda") == 2, "which the GPU's work does not need"


def test_a_run_says_its_threads_and_keeps_them_when_it_is_resumed(dataset, tmp_path, used, capsys):
    out = tmp_path / "run"
    with torch_threads(2):
        train(dataset, out, tiny_config(threads=0))
        assert used == {1} and "CPU threads: 1; --threads takes another number" in capsys.readouterr().out
        assert torch.get_num_threads() == 2, "as before"
    state = torch.load(out / "resume.pt", weights_only=True)
    assert state["threads"] == 1
    state["progress"]["update"] = 10
    torch.save(state | {"threads": 2}, out / "resume.pt")
    used.clear()
    with torch_threads(1):
        train(dataset, out, tiny_config(threads=0))
        assert used == {2} and torch.load(out / "resume.pt", weights_only=True)["threads"] == 2
    state["progress"]["update"] = 10
    torch.save(state | {"threads": 2}, out / "resume.pt")
    used.clear()
    train(dataset, out, tiny_config(threads=1))
    assert used == {1}, "what is asked for goes first"
