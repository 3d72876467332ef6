# SPDX-License-Identifier: Apache-2.0
"""The programs in tools/, which tests do not run: what they take from the packages is there."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

TOOLS = sorted((Path(__file__).parents[2] / "tools").glob("*.py"))


@pytest.mark.parametrize("file", TOOLS, ids=lambda file: file.stem)
def test_a_tool_imports_what_exists(file: Path) -> None:
    taken = [
        (node.module, name.name)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("spc_")
        for name in node.names
    ]
    missing = [f"{module}.{name}" for module, name in taken if not _exists(module, name)]
    assert not missing


def _exists(module: str, name: str) -> bool:
    if hasattr(importlib.import_module(module), name):
        return True
    return importlib.util.find_spec(f"{module}.{name}") is not None
