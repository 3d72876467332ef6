# SPDX-License-Identifier: Apache-2.0
"""Any number of tasks from two trains with any preset, and training says what its settings mean for the data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml

from spc_core.data.packed import load_dataset
from spc_core.method.config import load_config
from spc_core.training.fitting import batch_text, discount_text, fit_batches
from spc_core.training.train import train
from support.synthetic import tiny_config, write_dataset


@pytest.mark.parametrize("tasks, windows", [(20, 4), (25, 4), (19, 8), (7, 12), (3, 28), (2, 40)])
def test_fewer_tasks_give_as_many_windows_in_whole_shares_of_contexts(tasks: int, windows: int) -> None:
    """`small` asks for 4 windows of each of 20 tasks, one for each of a task's 4 contexts: 80 in all."""
    fitted = fit_batches(load_config("small"), tasks)
    assert (fitted.tasks_per_batch, fitted.windows_per_task) == (min(tasks, 20), windows)
    fitted.check("fitted")


def test_a_preset_for_twenty_tasks_trains_on_two_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = write_dataset(tmp_path / "data", task_count=2)
    config = tiny_config(updates=2, tasks_per_batch=20)
    for _ in range(2):  # the second time it is resumed
        train(root, tmp_path / "run", config)
    said = capsys.readouterr().out
    assert "batches: 40 windows of 5 transitions of each of 2 tasks; 2 updates draw each of 52 transitions" in said
    assert "(the settings ask for 4 of each of 20, the dataset has 2 tasks)" in said
    assert "already trained for 2 updates" in said
    stored = yaml.safe_load((tmp_path / "run/checkpoint/config.yaml").read_text())
    assert (stored["tasks_per_batch"], stored["windows_per_task"]) == (2, 40)


def test_how_often_data_is_drawn_and_how_far_a_discount_looks(tmp_path: Path) -> None:
    """52 transitions at 50 Hz in episodes of 5, 12 and 9; 100 updates of 2 x 40 windows of 5 are 40,000."""
    data = load_dataset(write_dataset(tmp_path / "data", task_count=2))
    config = tiny_config(updates=100, tasks_per_batch=2, windows_per_task=40)
    assert batch_text(config, config, data).endswith("100 updates draw each of 52 transitions 769.2 times")
    assert discount_text(0.75, data) == "discount 0.75: looks 4.0 steps (0.08 s) ahead, of episodes of 9 (0.18 s)"
    sparse = dataclasses.replace(data, rewards=np.where(np.arange(52) % 13, 0.0, 1.0))
    assert discount_text(0.75, sparse).endswith(
        ". 92% of transitions earn one and the same reward: where rewards are sparse, look as far as an episode, "
        "--loss.discount 0.889"
    )
    assert "sparse" not in discount_text(0.9, sparse)  # looks as far as an episode
    assert discount_text(1.0, data).startswith("discount 1: looks inf steps")
