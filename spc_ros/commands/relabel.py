# SPDX-License-Identifier: Apache-2.0
"""Recompute a dataset's rewards under a new contract, without the bags."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from spc_core.contract.contract import load_contract
from spc_ros.progress_bar import Bar


@dataclasses.dataclass(frozen=True)
class Relabel:
    """Recompute a dataset's rewards under a new contract, without its bags. Observations and actions stay.

    examples:
      spc relabel dataset --contract new_reward.yaml --out relabelled
      spc relabel dataset --contract new_reward.yaml --out relabelled --overwrite
    """

    dataset: tyro.conf.Positional[Path]  # folder that `spc convert` wrote
    contract: Path  # the new contract, whose reward is a function
    out: Path  # the new dataset's folder
    overwrite: bool = False  # replace an existing dataset


def run(options: Relabel) -> int:
    from spc_core.data.relabel import relabel

    with Bar(f"relabel {options.dataset}", "episode") as bar:
        done = relabel(options.dataset, load_contract(options.contract), options.out, options.overwrite, bar)
    print(done.summary())
    return 0
