# SPDX-License-Identifier: Apache-2.0
"""Processes on a machine without torch."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

HIDE = """
    import sys

    class Hidden:
        def find_spec(self, name, path=None, target=None):
            if name == "torch":
                raise ModuleNotFoundError("No module named 'torch'", name="torch")

    sys.meta_path.insert(0, Hidden())
"""


def without_torch(folder: Path) -> dict[str, str]:
    """The environment of processes that find no torch; every Python reads sitecustomize.py in `folder` first."""
    (folder / "sitecustomize.py").write_text(textwrap.dedent(HIDE))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}
