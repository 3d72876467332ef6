# SPDX-License-Identifier: Apache-2.0
"""What a person gives wrong, or changes later, about tasks held out of training."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from spc_core.assessment.assess import assess
from spc_core.assessment.settings import Settings
from spc_core.data.dataset import DatasetWriter
from spc_core.data.reader import read_episodes
from spc_core.pages.assess_page import write_assessment
from spc_core.training.judging import Judging
from spc_core.training.train import train
from spc_ros.cli import main
from support.synthetic import POINT, tiny_config, write_dataset


@pytest.mark.parametrize("nothing", [["--hold-out"], ["--hold-out", "--updates", "2"], ["--hold-out="]])
def test_a_hold_out_of_nothing_is_not_taken_for_none(
    tmp_path: Path, nothing: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert main(["train", "dataset", "--out", str(tmp_path / "run"), "--preset", "tour", *nothing]) == 1
    assert "--hold-out is given nothing; say how many tasks" in capsys.readouterr().err


def test_damaged_metrics_of_the_earlier_run_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (file := tmp_path / "run/checkpoint/metrics.json").parent.mkdir(parents=True)
    file.write_text("")
    assert main(["train", "dataset", "--from", str(tmp_path / "run"), "--out", str(tmp_path / "no")]) == 1
    assert f"{file}: corrupt: Expecting value" in capsys.readouterr().err


def test_recordings_that_changed_are_told_and_no_answer_is_lost_on_a_full_disk(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", task_count=8, lengths=(12, 12))
    train(dataset, tmp_path / "run", tiny_config(updates=2), judging=Judging(hold_out=("4",)))
    assert not [note for note in assess(tmp_path / "run", settings=Settings(fits=2)).notes if "has changed" in note]
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Would I let it drive(.|\n)*file/sub: cannot be written .*; give another"):
        write_assessment(assess(tmp_path / "run", settings=Settings(fits=2)), tmp_path / "file/sub")
    dataset.rename(tmp_path / "before")
    with DatasetWriter(dataset, POINT) as writer:
        for entry, one in read_episodes(tmp_path / "before"):
            writer.add_episode(entry.task_id, entry.params, dataclasses.replace(one, rewards=one.rewards + 1))
    found = assess(tmp_path / "run", settings=Settings(fits=2)).text()
    assert f"note: {dataset} has changed, or was copied, since training: these may be other recordings" in found
    shutil.rmtree(dataset)
    (tmp_path / "before").rename(dataset)
    assert "has changed" not in assess(tmp_path / "run", settings=Settings(fits=2)).text()
