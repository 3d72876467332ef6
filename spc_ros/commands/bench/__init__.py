# SPDX-License-Identifier: Apache-2.0
"""Measure training updates, evaluation, conversion or the nodes' latency on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spc_core.system.atomic_files import write_atomic


def show(text: str, numbers: Any, file: Path | None) -> int:
    """Print a measurement's report and write its numbers as JSON where a file is given; returns exit code 0."""
    print(text)
    if file is not None:
        write_atomic(file, json.dumps(numbers, indent=1) + "\n")
    return 0
