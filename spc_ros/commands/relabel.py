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
      spc relabel dataset --contract new_reward.yaml --preview
      spc relabel dataset --contract new_reward.yaml --out relabelled
      spc relabel dataset --contract new_reward.yaml --out relabelled --overwrite
    """

    dataset: tyro.conf.Positional[Path]  # folder that `spc convert` wrote
    contract: Path  # the new contract, whose reward is not a topic's
    out: Path | None = None  # the new dataset's folder
    preview: bool = False  # only print what each term of the reward earns in each task, and write nothing
    overwrite: bool = False  # replace an existing dataset


def run(options: Relabel) -> int:
    from spc_core.data.relabel import preview, relabel

    if options.preview and options.out is not None:
        raise ValueError("spc relabel: --preview writes nothing; leave out --out, or --preview")
    if options.preview:
        with Bar(f"preview {options.dataset}", "episode") as bar:
            found = preview(options.dataset, load_contract(options.contract), bar)
        print(found.text())
        return 0
    if options.out is None:
        raise ValueError("spc relabel: give --out, the new dataset's folder, or --preview to see the terms only")
    with Bar(f"relabel {options.dataset}", "episode") as bar:
        done = relabel(options.dataset, load_contract(options.contract), options.out, options.overwrite, bar)
    print(done.summary())
    return 0
