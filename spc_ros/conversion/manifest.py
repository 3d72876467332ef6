# SPDX-License-Identifier: Apache-2.0
"""A bag's task, hidden parameters and labels, from the bag itself or a manifest.

A manifest is a YAML file; paths are relative to it, `*` matches anything, and later entries add to earlier ones:

    bags:
      night/*: {task: payload_2kg, params: {mass: 2.0}}
      night/run_07: {labels: {success: false, notes: gripper slipped}}
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from spc_core.contract.yaml_section import Section
from spc_core.system.yaml_text import load_yaml

Label = str | float | bool


class ManifestError(ValueError):
    """A manifest that cannot be used; the message names file, entry and fix."""


@dataclasses.dataclass(frozen=True)
class BagMetadata:
    """Task, parameters and labels of a bag; unknown ones are empty."""

    task_id: str = ""
    params: Mapping[str, float] | None = None
    labels: Mapping[str, Label] = dataclasses.field(default_factory=dict)

    def over(self, other: BagMetadata) -> BagMetadata:
        """This metadata, completed with the other one."""
        params = self.params if self.params is not None else other.params
        return BagMetadata(self.task_id or other.task_id, params, {**other.labels, **self.labels})


NO_METADATA = BagMetadata()


def read_manifest(file: Path, bags: Iterable[Path]) -> dict[Path, BagMetadata]:
    """The manifest's metadata of each bag. Raises ManifestError, also for an entry that matches no bag."""
    try:
        root = load_yaml(file.read_text())
    except OSError as error:
        raise ManifestError(f"{file}: cannot be read ({error.strerror}); give the path of a manifest YAML") from None
    except yaml.YAMLError as error:
        raise ManifestError(f"{file}: not valid YAML: {error}") from None
    entries = Section(root, str(file), error=ManifestError).only("bags").section("bags")
    found: dict[Path, BagMetadata] = {}
    names = {bag: _name(bag, file.resolve().parent) for bag in bags}
    for pattern in entries.values:
        metadata = _metadata(entries.section(str(pattern)))
        matches = [bag for bag, name in names.items() if fnmatch.fnmatchcase(name, str(pattern).rstrip("/"))]
        if not matches:
            some = ", ".join(list(names.values())[:3])
            raise entries.fail(str(pattern), f"matches none of the bags, which are called {some}, ...; correct it")
        for bag in matches:
            found[bag] = metadata.over(found.get(bag, NO_METADATA))
    return found


def stored_metadata(custom_data: Mapping[str, str], task_key: str, where: str) -> BagMetadata:
    """Metadata in custom_data: the contract's task key, spc.task_params and spc.labels as JSON. Raises ValueError."""
    params = _json(custom_data, "spc.task_params", where)
    if params is not None:
        try:
            params = {key: float(value) for key, value in params.items()}
        except (TypeError, ValueError) as error:
            raise _bad("spc.task_params", where, "a mapping of numbers", error) from None
    labels = _json(custom_data, "spc.labels", where) or {}
    if not all(isinstance(value, (str, bool, int, float)) for value in labels.values()):
        raise _bad("spc.labels", where, "a mapping of texts, numbers and truth values", labels)
    return BagMetadata(custom_data.get(task_key, ""), params, labels)


def _json(custom_data: Mapping[str, str], key: str, where: str) -> dict | None:
    if key not in custom_data:
        return None
    try:
        value = json.loads(custom_data[key])
    except ValueError as error:
        raise _bad(key, where, "a mapping of numbers" if key.endswith("params") else "JSON", error) from None
    if not isinstance(value, dict):
        raise _bad(key, where, "a mapping of numbers" if key.endswith("params") else "a mapping", value)
    return value


def _bad(key: str, where: str, wanted: str, found: object) -> ValueError:
    return ValueError(f"{where}: custom_data {key} is not {wanted} ({found})")


def _name(bag: Path, base: Path) -> str:
    bag = bag.resolve()
    return str(bag.relative_to(base)) if bag.is_relative_to(base) else str(bag)


def _metadata(section: Section) -> BagMetadata:
    section.only("task", "params", "labels")
    params = None
    if "params" in section.values:
        below = section.section("params")
        params = {str(key): below.number(key) for key in below.values}
    labels: dict[str, Label] = {}
    if "labels" in section.values:
        below = section.section("labels")
        for key, value in below.values.items():
            if not isinstance(value, (str, bool, int, float)) or (isinstance(value, float) and math.isnan(value)):
                raise below.fail(str(key), f"must be a text, a number, or true or false, got {value!r}")
            labels[str(key)] = value
    return BagMetadata(section.text("task") if "task" in section.values else "", params, labels)
