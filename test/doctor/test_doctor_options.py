# SPDX-License-Identifier: Apache-2.0
"""Whatever a conversion can be told, the doctor can be told, with the same result."""

from __future__ import annotations

import dataclasses
import json
import shlex

import pytest

from faults.bag_world import WORLD, events, recorder
from spc_ros.cli import main
from spc_ros.commands.convert import Convert
from spc_ros.commands.doctor import Doctor
from spc_ros.conversion.convert import convert
from spc_ros.conversion.convert_options import BagOptions, ConvertOptions
from spc_ros.doctor.doctor import diagnose
from support.contracts import make_contract

CONTRACT = make_contract(**WORLD)


def unnamed(path):
    """A bag that names no task."""
    return recorder()(path, [event.sample() for event in events()])


@pytest.mark.parametrize("way", ["folder", "manifest"])
def test_tasks_are_named_as_in_a_conversion(tmp_path, way):
    bag = unnamed(tmp_path / "heavy" / "run_1")
    manifest = tmp_path / "tasks.yaml"
    manifest.write_text("bags:\n  heavy/*: {task: heavy}\n")
    told = {"task_from": "folder"} if way == "folder" else {"manifest": manifest}
    report = diagnose([bag], CONTRACT, progress=False, workers=1, **told)
    converted = convert(ConvertOptions((bag,), tmp_path / "out", workers=1, **told), CONTRACT, progress=False)
    assert report.tasks == converted.bags[0].tasks == ("heavy",)
    assert report.transitions == converted.transitions


def test_every_option_of_a_conversion_about_bags_is_one_of_the_doctor():
    shared = {field.name for field in dataclasses.fields(BagOptions)}
    assert shared <= {field.name for field in dataclasses.fields(Doctor)}
    assert shared == {field.name for field in dataclasses.fields(Convert)} - {"out", "overwrite", "skip_bad", "engine"}


def test_the_command_line_passes_them_on(tmp_path):
    bag = unnamed(tmp_path / "heavy" / "run_1")
    contract = tmp_path / "arm.yaml"
    contract.write_text(CONTRACT.text)
    out = tmp_path / "doctor.json"
    command = ["doctor", str(bag), "--contract", str(contract), "--task-from", "folder", "--json", str(out)]
    main([*command, "--workers", "1"])
    assert json.loads(out.read_text())["bags"][0]["task_id"] == "heavy"


def test_what_to_type_next_has_the_options_that_were_typed(tmp_path, monkeypatch):
    bag = unnamed(tmp_path / "heavy loads" / "run 1")
    contract, out = tmp_path / "my arm.yaml", tmp_path / "doctor.json"
    contract.write_text(CONTRACT.text)
    assert main(["doctor", str(bag), "--contract", str(contract), "--json", str(out), "--workers", "1"]) == 4
    (found,) = [entry for entry in json.loads(out.read_text())["findings"] if entry["check"] == "task"]
    words = shlex.split(found["next"], comments=True)
    assert words[:5] == ["spc", "convert", str(bag), "--contract", str(contract)]
    monkeypatch.chdir(tmp_path)
    assert main([*words[1:], "--workers", "1"]) == 0 and (tmp_path / "dataset").exists()
    options = Doctor((bag,), task="a b", types=(tmp_path, bag))
    assert shlex.split(options.given) == ["--task", "a b", "--types", str(tmp_path), str(bag)]
    assert Doctor((bag,)).given == ""
