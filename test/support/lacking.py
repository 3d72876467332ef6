# SPDX-License-Identifier: Apache-2.0
"""Processes on a machine that lacks some packages."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

SIMULATOR = ("mujoco", "gymnasium", "minari")  # Minari needs gymnasium
HIDE = """
    import sys

    class Hidden:
        def find_spec(self, name, path=None, target=None):
            if name in {names}:
                raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)

    sys.meta_path.insert(0, Hidden())
"""


def without_torch(folder: Path) -> dict[str, str]:
    """The environment of processes that find no torch."""
    return without(folder, "torch")


def without(folder: Path, *names: str) -> dict[str, str]:
    """The environment of processes without these packages; each Python reads sitecustomize.py in `folder` first."""
    (folder / "sitecustomize.py").write_text(textwrap.dedent(HIDE.format(names=names)))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}
