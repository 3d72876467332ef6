# SPDX-License-Identifier: Apache-2.0
"""Reads a family.yaml: a robot of one's own with hidden parameters, as a task family. docs/families.md has the keys."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import yaml

from spc_core.contract.contract import Contract, load_contract
from spc_core.contract.yaml_section import Section
from spc_core.system.config_files import find_config, suggest
from spc_core.system.yaml_text import load_yaml

from .hidden import KINDS, Parameter, draw_tasks
from .mjcf_family import MjcfFamily, MjcfFamilyEnv
from .task import SPLITS, Family, FamilyError, Task, make_task

COUNTS: Mapping[str, int] = {"train": 20, "val": 10, "id": 10, "ood": 10}
MOST_TASKS = 10_000  # in a split
FOLDERS = ("meshdir", "texturedir", "assetdir")


def load_family(path: Path) -> Family:
    """The family in a file. Raises FamilyError, ContractError and ModelError with the file, the key and the fix."""
    try:
        root = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FamilyError(f"{path}: cannot be read ({error.strerror}); give the path of a family.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FamilyError(f"{path}: not valid YAML: {error}") from None
    top = Section(root, str(path), error=FamilyError)
    top.only("name", "model", "contract", "episode_s", "keyframe", "parameters", "tasks", "start", "terminate", "agent")
    contract_path = _contract_path(top, path)
    contract = load_contract(contract_path)
    for stream in contract.observation:
        if not stream.transforms.is_plain:
            raise top.fail("contract", f"transforms '{stream.topic}'; a family's contract has plain fields alone")
    name = top.text("name") if "name" in top.values else contract.name
    if "/" in name:
        raise top.fail("name", f"is '{name}'; use a name without '/'")
    parameters = tuple(_parameter(section) for section in _parts(top.section("parameters")))
    start = (top.section("start") if "start" in top.values else Section({}, str(path))).only("position", "velocity")
    told = MjcfFamily(
        source=str(path),
        name=name,
        model=_model_path(top, path),
        contract=contract,
        episode_steps=_steps(top, contract),
        keyframe=top.text("keyframe") if "keyframe" in top.values else "",
        start_position=start.number("position") if "position" in start.values else 0.0,
        start_velocity=start.number("velocity") if "velocity" in start.values else 0.0,
        bounds=_bounds(top, contract),
        parameters=parameters,
        agent=path.parent / top.text("agent") if "agent" in top.values else None,
    )
    tasks = _tasks(top, name, parameters)
    family = Family(name, functools.partial(_make, told, tasks), tasks, contract_path, path=path)
    family.make(None)  # finds what is not in the model
    return family


def _make(told: MjcfFamily, tasks: Mapping[str, tuple[Task, ...]], task: Task | None) -> MjcfFamilyEnv:
    return MjcfFamilyEnv(told, task or tasks["train"][0])


def _contract_path(top: Section, path: Path) -> Path:
    if "contract" not in top.values:
        raise top.fail("contract", "is missing; give the robot's contract, a path from this file or a shipped name")
    found = find_config("contracts", top.text("contract"))
    return found if found.is_absolute() else (path.parent / found).resolve()


def _model_path(top: Section, path: Path) -> Path:
    """The MJCF, which may name files of its own folder alone."""
    model = (path.parent / top.text("model")).resolve()
    _check_files(top, model, model.parent, set())
    return model


def _check_files(top: Section, file: Path, folder: Path, seen: set[Path]) -> None:
    """Raises FamilyError for a file outside `folder` that the MJCF, or what it includes, names."""
    seen.add(file)
    try:
        root = ElementTree.fromstring(file.read_bytes())
    except OSError as error:
        raise top.fail("model", f"is '{file}', which cannot be read ({error.strerror}); give an MJCF") from None
    except ElementTree.ParseError as error:
        raise top.fail("model", f"is '{file}', which is not XML: {error}") from None
    places = {folder / part.get(key, "") for part in root.iter("compiler") for key in FOLDERS} | {folder, file.parent}
    for part in root.iter():
        named = [value for key, value in part.attrib.items() if key.startswith("file")]  # fileright of a texture
        for place, value in itertools.product(places, named):
            target = (place / value).resolve()
            if not target.is_relative_to(folder):
                raise top.fail("model", f"is '{file}', which names '{value}', outside of {folder}; copy it there")
            if part.tag == "include" and target.is_file() and target not in seen:
                _check_files(top, target, folder, seen)


def _steps(top: Section, contract: Contract) -> int:
    """Control steps of an episode."""
    limit_s = top.positive("episode_s") if "episode_s" in top.values else contract.segments.limit_s
    if math.isinf(limit_s):
        raise top.fail("episode_s", "is missing; give the length of an episode in s")
    return max(1, round(limit_s * contract.rate_hz))


def _parts(section: Section) -> list[Section]:
    if not section.values:
        raise section.fail("", "is empty; name what is hidden, such as load: {mass: box, range: [1, 5]}")
    return [section.section(name) for name in section.values]


def _parameter(section: Section) -> Parameter:
    name = section.path.rstrip(".").rpartition(".")[2]
    section.only(*KINDS, "range", "beyond")
    kinds = [key for key in section.values if key in KINDS]
    if len(kinds) != 1:
        raise section.fail("", f"needs one of {', '.join(KINDS)}, and has {', '.join(kinds) or 'none'}")
    kind = KINDS[kinds[0]]
    given = section.values[kinds[0]]
    targets = section.texts(kinds[0]) if isinstance(given, list) else (section.text(kinds[0]),)
    if kind.set is None and kind.of == "commands" or kind.of == "down":
        section.choice(kinds[0], (kind.of,))
    low, high = _interval(section, "range")
    lowest, highest = _interval(section, "beyond") if "beyond" in section.values else (low, high)
    if not (lowest <= low and high <= highest) or "beyond" in section.values and (lowest, highest) == (low, high):
        raise section.fail("beyond", f"is [{lowest:g}, {highest:g}]; it must enclose the range [{low:g}, {high:g}]")
    if lowest < kind.least:
        key = "range" if lowest == low else "beyond"
        raise section.fail(key, f"begins at {lowest:g}; {kinds[0]} is at least {kind.least:g}")
    return Parameter(name, kinds[0], targets, low, high, lowest, highest)


def _interval(section: Section, key: str) -> tuple[float, float]:
    given = section.get(key)
    if not isinstance(given, list) or len(given) != 2:
        raise section.fail(key, f"must be two numbers [low, high], got {given!r}")
    low, high = section.numbers(key, 2)
    if low >= high:
        raise section.fail(key, f"is [{low:g}, {high:g}], upside down; write [low, high], low first")
    return low, high


def _bounds(top: Section, contract: Contract) -> dict[str, tuple[float, float]]:
    """Bounds by observed field."""
    if "terminate" not in top.values:
        return {}
    section = top.section("terminate")
    known = [f"{stream.topic}.{path}" for stream in contract.observation for path in stream.fields]
    found = {}
    for field, value in section.values.items():
        if field not in known:
            near = suggest(field, known)
            raise section.fail(field, f"is not an observed field{near}; observed are {', '.join(known)}")
        numbers = (
            [isinstance(v, int | float) and not isinstance(v, bool) and not math.isnan(v) for v in value]
            if isinstance(value, list)
            else []
        )
        if numbers != [True, True] or value[0] >= value[1]:
            raise section.fail(field, f"must be [low, high], low first (.inf for none), got {value!r}")
        found[field] = (float(value[0]), float(value[1]))
    return found


def _tasks(top: Section, name: str, parameters: tuple[Parameter, ...]) -> dict[str, tuple[Task, ...]]:
    """Tasks by split: drawn where the file gives a number or nothing, or else listed."""
    section = top.section("tasks") if "tasks" in top.values else Section({}, top.source, "tasks.", FamilyError)
    section.only(*SPLITS)
    reach = any(parameter.reaches_beyond for parameter in parameters)
    counts = {split: COUNTS[split] if split != "ood" or reach else 0 for split in SPLITS}
    listed: dict[str, list[dict[str, float]]] = {}
    for split, value in section.values.items():
        if isinstance(value, list):
            entries = section.sections(split) if value else []
            listed[split], counts[split] = [_listed(entry, parameters) for entry in entries], 0
        elif isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_TASKS:
            raise section.fail(split, f"must be a number of tasks or a list of them, got {value!r}")
        elif split == "ood" and value and not reach:
            raise section.fail(split, "needs a parameter with values beyond its range; give one `beyond: [low, high]`")
        else:
            counts[split] = value
    drawn = draw_tasks(parameters, counts) | listed
    return {
        split: tuple(make_task(name, split, index, **params) for index, params in enumerate(drawn[split]))
        for split in SPLITS
    }


def _listed(entry: Section, parameters: tuple[Parameter, ...]) -> dict[str, float]:
    entry.only(*(parameter.name for parameter in parameters))
    params = {parameter.name: entry.number(parameter.name) for parameter in parameters}
    for parameter in parameters:
        if params[parameter.name] < KINDS[parameter.kind].least:
            raise entry.fail(
                parameter.name,
                f"is {params[parameter.name]:g}; {parameter.kind} is at least {KINDS[parameter.kind].least:g}",
            )
    return params
