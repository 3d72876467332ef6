# SPDX-License-Identifier: Apache-2.0
"""The file that learning a behaviour goes on from after it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from spc_core.method.config import ConfigError
from spc_core.tasks import SPLITS, find_family, make_env
from spc_core.training.run_state import TrainingError

FORMAT = 1
FREE = ("threads",)  # settings that may change in between


def family_of(family: str) -> dict[str, Any]:
    """What must be the same for a state to be of the same family."""
    found, env = find_family(family), make_env(family)
    tasks = {task.task_id: dict(task.params) for split in SPLITS for task in found.tasks[split]}
    return {
        "name": found.name,
        "observation": list(env.observation_names),
        "action": list(env.action_names),
        "steps": env.episode_steps,
        "tasks": tasks,
    }


def write_state(file: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """The whole file, or the one that was there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    try:
        torch.save({"format": FORMAT, "identity": json.dumps(identity), **state}, partial)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def read_state(file: Path) -> dict[str, Any]:
    """Raises TrainingError for a file that is damaged, or of another format."""
    try:
        state = torch.load(file, weights_only=True)
        found = state["format"]
    except Exception as error:  # a damaged archive raises anything
        raise TrainingError(f"{file}: corrupt ({error}); delete it to learn from scratch") from None
    if found != FORMAT:
        raise TrainingError(f"{file}: has format {found}, this program reads {FORMAT}; delete it to learn from scratch")
    return state


def check_state(file: Path, state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raises ConfigError where the state is of another family, or of other settings."""
    saved, fix = json.loads(state["identity"]), f"choose another --out, or delete {file} to learn from scratch"
    wanted = json.loads(json.dumps(identity))
    changed = [key for key, value in wanted["family"].items() if value != saved["family"].get(key)]
    if "name" in changed:
        raise ConfigError(f"{file}: learns family '{saved['family']['name']}', not '{wanted['family']['name']}'; {fix}")
    if changed:
        raise ConfigError(f"{file}: family '{saved['family']['name']}' had other {', '.join(changed)} then; {fix}")
    settings = [key for key, value in wanted["settings"].items() if saved["settings"].get(key) != value]
    if lines := [f"{key} was {saved['settings'].get(key)}, is {wanted['settings'][key]}"
                 for key in settings if key not in FREE]:  # fmt: skip
        raise ConfigError(f"{file}: learns with other settings ({'; '.join(lines)}); {fix}")
