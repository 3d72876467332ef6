# SPDX-License-Identifier: Apache-2.0
"""Methods with options of their own, in one string, for parametrised tests."""

from __future__ import annotations

import dataclasses

from spc_core.method.config import MethodConfig, TrainConfig, load_config


def configured(text: str, config: TrainConfig | None = None) -> TrainConfig:
    """The `paper` preset, or `config`, with a method and its options, as in "dora votes=precision"."""
    name, *options = text.split()
    config = config or load_config("paper", name)
    values = dict(option.split("=") for option in options)
    method: MethodConfig = dataclasses.replace(config.method, **values)  # type: ignore[arg-type]
    config = dataclasses.replace(config, method=method)
    config.check("test")
    return config
