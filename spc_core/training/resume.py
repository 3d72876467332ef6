# SPDX-License-Identifier: Apache-2.0
"""resume.pt: everything a later process needs to continue a training run as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from spc_core.contract.contract import parse_contract
from spc_core.data.dataset import DatasetError
from spc_core.data.packed import PackedDataset
from spc_core.method.config import ConfigError, TrainConfig, to_dict

FORMAT = 2
FREE = ("device", "threads", "evaluate_every")  # settings that may change on the way: they do not touch the weights


class TrainingError(RuntimeError):
    """Training cannot continue; the message says where it stopped and why."""


def write_state(file: Path, state: dict[str, Any], config: TrainConfig, data: PackedDataset) -> None:
    """Write the complete file or nothing, with the identity of the run, so that no other run resumes from it."""
    identity = {
        "format": FORMAT,
        "config": json.dumps(to_dict(config)),
        "contract": data.contract.text,
        "dataset": data.sha256,
    }
    partial = file.with_name(f".{file.name}.partial")
    torch.save({**identity, **state}, partial)
    partial.replace(file)


def read_state(file: Path, device: torch.device, config: TrainConfig, data: PackedDataset) -> dict[str, Any]:
    """The state of an earlier run of the same settings and dataset.

    Raises TrainingError (damaged, other format), ConfigError (other settings) or DatasetError (other data).
    """
    try:
        state = torch.load(file, weights_only=True, map_location=device)
    except Exception as error:  # a damaged archive raises anything
        raise TrainingError(f"{file}: corrupt ({error}); start again with --overwrite") from error
    found = state.get("format", 1)
    if found != FORMAT:
        fix = "update the program" if found > FORMAT else "start again with --overwrite"
        raise TrainingError(f"{file}: has format {found}, this program reads {FORMAT}; {fix}")
    out = file.parent
    theirs, mine = json.loads(state["config"]), to_dict(config)
    changed = [key for key in mine if key not in FREE and mine[key] != theirs.get(key)]
    if changed:
        lines = "; ".join(f"{key} was {theirs.get(key)}, is {mine[key]}" for key in changed)
        raise ConfigError(f"{out}: holds a run with other settings ({lines}); choose another --out or --overwrite")
    fields = data.contract.differences(parse_contract(state["contract"], str(file)))
    if fields:
        raise DatasetError(
            f"{out}: holds a run with another contract than {data.root}; choose another --out or --overwrite. In the "
            "dataset (here) and the run (there):\n  " + "\n  ".join(fields)
        )
    if state["dataset"] != data.sha256:
        raise DatasetError(f"{out}: holds a run on another dataset; choose another --out or --overwrite")
    return state
