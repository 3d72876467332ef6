# SPDX-License-Identifier: Apache-2.0
"""The nodes, and their parameters in the files of config/."""

from __future__ import annotations

import runpy
from typing import Any

import yaml

from support.paths import ROOT

WRITER = runpy.run_path(str(ROOT / "tools" / "write_nodes_yaml.py"))
NODES = WRITER["NODES"]


def parameters(file: str) -> dict[str, dict[str, Any]]:
    """Node name to its parameters in a parameter file."""
    root = yaml.safe_load((ROOT / "config" / file).read_text())
    assert all(key.startswith("/**/") and set(value) == {"ros__parameters"} for key, value in root.items())
    return {key.removeprefix("/**/"): value["ros__parameters"] for key, value in root.items()}
