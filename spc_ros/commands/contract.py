# SPDX-License-Identifier: Apache-2.0
"""Propose a contract from a bag (spc contract init BAG)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from spc_core.system.atomic_files import write_atomic


@dataclasses.dataclass(frozen=True)
class ContractInit:
    """Propose a contract for a robot from one of its bags; only the reward is left to fill in.

    examples:
      spc contract init bags/run_01
      spc contract init bags/run_01 --out my_robot.yaml
    """

    what: tyro.conf.Positional[Literal["init"]]  # what to do
    bag: tyro.conf.Positional[Path]  # a bag of normal operation
    out: Path | None = None  # file to write; default: print it
    types: tuple[Path, ...] = ()  # .msg files, or packages with msg/, of types that the bag does not define


def run(options: ContractInit) -> int:
    from spc_ros.doctor.contract_init import propose
    from spc_ros.messages.message_types import read_definitions

    text = propose(options.bag, read_definitions(options.types))
    if options.out is None:
        print(text, end="")
        return 0
    if options.out.exists():
        raise ValueError(f"{options.out}: exists already and is not overwritten; choose another --out")
    write_atomic(options.out, text)
    print(f"{options.out}: fill in the reward, then: spc doctor {options.bag} --contract {options.out}")
    return 0
