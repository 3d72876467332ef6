# SPDX-License-Identifier: Apache-2.0
"""Lookup of the YAML files shipped with the package: contracts, presets, methods."""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path
from typing import Any


class ConfigFileError(ValueError):
    """The package has no such file; the message names the kind, the name and the known names."""


def suggest(name: str, known: Any) -> str:
    """' (did you mean ...?)' for the closest known name, or '' if none is close."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def find_config(kind: str, name: str) -> Path:
    """Path of the shipped file `config/<kind>/<name>.yaml`, or `name` itself if it is a path.

    Searches next to the source, then the share folders of the ROS install trees, then that of the Python prefix.
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
