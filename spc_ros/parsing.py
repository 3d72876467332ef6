# SPDX-License-Identifier: Apache-2.0
"""The command line of a stage becomes its options. Nothing is run here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tyro

from spc_core.method.config import load_config
from spc_ros.options import OPTIONS, Train


def parse(stage: str, arguments: Sequence[str]) -> Any:
    """The stage's options; preset and method of `train` give the defaults of its settings."""
    kind = OPTIONS[stage]
    options: dict[str, Any] = {}
    if kind is Train:
        preset, method = _given(arguments, "--preset", "small"), _given(arguments, "--method", "")
        config = load_config(preset, method)
        options["default"] = Train(tyro.MISSING, tyro.MISSING, preset=preset, method=method, config=config)
    return tyro.cli(
        kind, prog=f"spc {stage}", args=list(arguments), description=getattr(kind, "__doc__", None), **options
    )


def _given(arguments: Sequence[str], flag: str, default: str) -> str:
    """The last value given to a flag, as `--flag value` or `--flag=value`."""
    values = [default]
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == flag:
            values.append(value if equals else following)
    return values[-1]
