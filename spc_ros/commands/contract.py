# SPDX-License-Identifier: Apache-2.0
"""Propose a contract from bags (spc contract init BAG...)."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Literal

import tyro

from spc_core.system.atomic_files import write_atomic


@dataclasses.dataclass(frozen=True)
class ContractInit:
    """Propose a contract for a robot from its bags; what a recording cannot tell is left to fill in.

    examples:
      spc contract init bags/run_01
      spc contract init bags --urdf robot.urdf --out my_robot.yaml
      spc contract init bags --reward terms --out my_robot.yaml
    """

    what: tyro.conf.Positional[Literal["init"]]  # what to do
    bags: tyro.conf.Positional[tuple[Path, ...]]  # bags of normal operation, or folders that contain them
    urdf: Path | None = None  # limits of the joints; default: a description recorded on /robot_description
    reward: Literal["ask", "terms", "topic"] = "ask"  # ask: all ways in comments | terms: of its own | topic: recorded
    out: Path | None = None  # file to write; default: print it
    types: tuple[Path, ...] = ()  # .msg files, or packages with msg/, of types that the bag does not define


def run(options: ContractInit) -> int:
    from spc_ros.doctor.contract_init import propose
    from spc_ros.messages.message_types import read_definitions

    if not options.bags:
        raise ValueError("spc contract init: no bag given; give bags or folders that contain them")
    if options.out is not None and options.out.exists():
        raise ValueError(f"{options.out}: exists already and is not overwritten; choose another --out")
    text = propose(options.bags, options.urdf, read_definitions(options.types), options.reward)
    if options.out is None:
        print(text, end="")
        return 0
    write_atomic(options.out, text)
    then = shlex.join(["spc", "doctor", *map(str, options.bags), "--contract", str(options.out)])
    print(f"{options.out}: fill in what is marked TODO, then: {then}")
    return 0
