# SPDX-License-Identifier: Apache-2.0
"""Find problems in bags before training does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import tyro

from spc_core.contract.contract import load_contract
from spc_core.doctor.diagnosis import Thresholds
from spc_core.system.atomic_files import write_atomic
from spc_ros.conversion.convert_options import BagOptions


@dataclasses.dataclass(frozen=True)
class Doctor(BagOptions):
    """Find problems in bags before training does: rates, gaps, clocks, values, delays, coverage, cuts.

    Exit codes: 0 ok or warnings, 3 warnings with --strict, 4 failures (1: could not run). See docs/doctor.md.

    examples:
      spc doctor bags/
      spc doctor bags/ --contract my_robot.yaml --html doctor.html --strict
    """

    bags: tyro.conf.Positional[tuple[Path, ...]]  # bags, or folders that hold bags at any depth
    contract: Path | None = None  # contract file; default: the bags' own; without any, only topics are checked
    json: Path | None = None  # also write all numbers and findings here
    html: Path | None = None  # also write a page here that shows when each problem occurs
    strict: bool = False  # warnings fail too, with exit code 3
    thresholds: Thresholds = dataclasses.field(default_factory=Thresholds)


def run(options: Doctor) -> int:
    from spc_ros.doctor.doctor import diagnose

    contract = None if options.contract is None else load_contract(options.contract)
    report = diagnose(
        options.bags,
        contract,
        options.thresholds,
        options.task,
        workers=options.workers,
        task_from=options.task_from,
        manifest=options.manifest,
        types=options.types,
        given=options.given,
    )
    print(report.text())
    if options.json is not None:
        write_atomic(options.json, json.dumps(report.as_dict(), indent=1, allow_nan=False) + "\n")
    if options.html is not None:
        from spc_ros.doctor.doctor_page import page

        write_atomic(options.html, page(report))
        print(f"page: {options.html}")
    return report.exit_code(options.strict)
