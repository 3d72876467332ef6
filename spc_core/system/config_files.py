# SPDX-License-Identifier: Apache-2.0
"""The YAML files that come with the package: contracts, presets, methods."""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path
from typing import Any


class ConfigFileError(ValueError):
    """No such file comes with the package; the message names the kind, the name and those that exist."""


def suggest(word: str, known: Any) -> str:
    """' (did you mean ...?)' when a known word is near, else nothing."""
    near = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def find_config(kind: str, name: str) -> Path:
    """Path of a shipped file `config/<kind>/<name>.yaml`, or `name` itself when it is a path.

    Looks next to the source, then in the shared folder of a ROS install tree, then of the Python prefix.
    """
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        return Path(name)
    prefixes = [p for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    shared = [Path(prefix) / "share" / "spc_ros" for prefix in [*prefixes, sys.prefix]]
    folders = [root / "config" / kind for root in [Path(__file__).resolve().parents[2], *shared]]
    known: set[str] = set()
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
        known.update(file.stem for file in folder.glob("*.yaml"))
    raise ConfigFileError(f"no {kind} file is called '{name}'{suggest(name, known)}; known: {', '.join(sorted(known))}")
