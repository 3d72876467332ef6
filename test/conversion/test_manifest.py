# SPDX-License-Identifier: Apache-2.0
"""Task, parameters and labels from a manifest and from a bag's custom_data."""

from __future__ import annotations

from pathlib import Path

import pytest

from spc_ros.conversion.manifest import BagMetadata, ManifestError, read_manifest, stored_metadata

BAGS = ("day/run_1", "day/run_2", "night/run_1")


def written(tmp_path: Path, text: str) -> tuple[Path, list[Path]]:
    file = tmp_path / "manifest.yaml"
    file.write_text(text)
    return file, [tmp_path / name for name in BAGS]


def test_later_entries_add_to_earlier_ones(tmp_path):
    text = """
bags:
  "*": {task: light, params: {mass: 0.5}}
  night/*: {task: heavy, params: {mass: 2}}
  night/run_1: {labels: {success: false, notes: gripper slipped}}
"""
    file, bags = written(tmp_path, text)
    said = read_manifest(file, bags)
    assert said[bags[0]] == said[bags[1]] == BagMetadata("light", {"mass": 0.5})
    assert said[bags[2]] == BagMetadata("heavy", {"mass": 2.0}, {"success": False, "notes": "gripper slipped"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bags: {run_9: {task: a}}", "bags.run_9 matches none of the bags, which are called day/run_1, "),
        ("bags: {day/*: {tsk: a}}", r"bags.day/*.tsk is not a known field (did you mean 'task'?)"),
        ("bags: {day/*: {params: {mass: heavy}}}", "bags.day/*.params.mass must be a finite number, got 'heavy'"),
        ("bags: {day/*: {labels: {success: [1]}}}", "bags.day/*.labels.success must be a text, a number, or true"),
        ("bags: [day/*]", "bags must be a mapping, got ['day/*']"),
        ("tasks: {}", "tasks is not a known field; known: bags"),
        ("bags: {", "not valid YAML"),
    ],
)
def test_a_bad_manifest_is_refused_with_its_place(tmp_path, text, message):
    file, bags = written(tmp_path, text)
    with pytest.raises(ManifestError) as error:
        read_manifest(file, bags)
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)


def test_a_missing_manifest_is_refused(tmp_path):
    with pytest.raises(ManifestError, match=r"none\.yaml: cannot be read \(No such file or directory\); give the path"):
        read_manifest(tmp_path / "none.yaml", [])


def test_what_the_user_says_goes_before_what_the_bag_says():
    bag = stored_metadata(
        {"spc.task_id": "a", "spc.task_params": '{"mass": 1}', "spc.labels": '{"success": true, "notes": "x"}'},
        "spc.task_id",
        "bag",
    )
    assert bag == BagMetadata("a", {"mass": 1.0}, {"success": True, "notes": "x"})
    merged = BagMetadata("b", {"mass": 1.0}, {"success": True, "notes": "y"})
    assert BagMetadata("b", None, {"notes": "y"}).over(bag) == merged
    assert bag.over(BagMetadata("c", {}, {"more": 1.0})).params == {"mass": 1.0}


@pytest.mark.parametrize(
    ("key", "text", "wanted"),
    [
        ("spc.task_params", "[1]", "a mapping of numbers"),
        ("spc.task_params", '{"a": "b"}', "a mapping of numbers"),
        ("spc.task_params", "{", "a mapping of numbers"),
        ("spc.labels", "{", "JSON"),
        ("spc.labels", '{"a": {}}', "a mapping of texts, numbers and truth values"),
    ],
)
def test_bad_custom_data_is_refused(key, text, wanted):
    with pytest.raises(ValueError, match=f"^bag: custom_data {key} is not {wanted} "):
        stored_metadata({key: text}, "spc.task_id", "bag")
