# SPDX-License-Identifier: Apache-2.0
"""Bags given as --recordings: what a command says that has few of the options of a conversion."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from spc_core.data.reader import stored_tasks
from spc_ros.cli import main
from support.contracts import ARM_REACH
from support.recorded_bags import arm_samples, custom_data, episode_info, record_arm, said_nothing, write_bag

COMMANDS = {"assess": [], "trial": ["--protocols", "offline", "no_context", "--tasks", "arm_reach/id/00"]}


def unnamed(folder: Path, number: int, contract: bool = True) -> Path:
    """A bag that names no task."""
    custom = custom_data(ARM_REACH, episode_info(20)) if contract else {}
    custom = {key: text for key, text in custom.items() if key not in ("spc.task_id", "spc.episode")}
    return write_bag(folder / str(number), said_nothing(arm_samples(20, number)), custom)


@pytest.mark.parametrize("contract", [True, False], ids=["contract in the bags", "none"])
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_suggested_can_be_typed(
    tiny_checkpoint: Path, tmp_path: Path, capsys, name: str, contract: bool
) -> None:
    bags, dataset = tmp_path / "some bags", tmp_path / "dataset"
    for number in range(2):
        unnamed(bags, number, contract)
    typed = [name, str(tiny_checkpoint), "--out", str(tmp_path / "out"), *COMMANDS[name]]
    assert main([*typed, "--recordings", str(bags)]) == 1
    said = capsys.readouterr().err
    assert said.count("names no task") == 2 and "give --recordings DATASET" in said
    (suggested,) = re.findall(r"options of `spc (convert .*?)`", said)
    words = [str(dataset) if word == "DATASET" else word for word in shlex.split(suggested)]
    assert main([*words, "--task", "night shift"]) == 0
    assert [task.entry.task_id for task in stored_tasks(dataset)] == ["night shift"]
    main([*typed, "--recordings", str(dataset)])
    assert "cannot be used" not in capsys.readouterr().err


def test_only_the_bags_that_are_refused_are_named(tiny_checkpoint: Path, tmp_path: Path, capsys) -> None:
    bags = tmp_path / "bags"
    record_arm(bags / "0")
    unnamed(bags, 1)
    assert main(["assess", str(tiny_checkpoint), "--recordings", str(bags)]) == 1
    said = capsys.readouterr().err
    assert f"{bags / '1'}: names no task" in said and f"{bags / '0'}:" not in said
    assert "wait in" not in said, "what was converted is gone"


def test_shadow_takes_types_that_the_bags_lack(tiny_checkpoint: Path, tmp_path: Path, capsys) -> None:
    assert main(["shadow", str(tiny_checkpoint), str(tmp_path), "--types", str(tmp_path / "none")]) == 1
    assert "no such package folder or .msg file" in capsys.readouterr().err
