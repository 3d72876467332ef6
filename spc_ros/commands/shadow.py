# SPDX-License-Identifier: Apache-2.0
"""Compare a policy's would-be commands with those of recordings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import tyro

from spc_core.system.atomic_files import write_atomic
from spc_ros.progress_bar import Bar


@dataclasses.dataclass(frozen=True)
class Shadow:
    """Compare, tick by tick, what a policy would have commanded with what the controller of recordings did.

    The policy has its safety chain and learns its context from each recording. See docs/deployment.md.

    examples:
      spc shadow run bags/
      spc shadow run bags/ --html shadow.html --json shadow.json
    """

    run: tyro.conf.Positional[Path]  # training run, checkpoint, or its export to ONNX
    bags: tyro.conf.Positional[tuple[Path, ...]]  # bags, or folders that hold bags at any depth
    types: tuple[Path, ...] = ()  # .msg files, or packages with msg/, of types that the bags do not define
    learn: bool = True  # learn the context from each recording; else act on the prior
    html: Path | None = None  # also write a self-contained page with plots here
    json: Path | None = None  # also write the numbers here


def run(options: Shadow) -> int:
    from spc_core.pages.shadow_page import shadow_page, shadow_text
    from spc_ros.messages.message_types import read_definitions
    from spc_ros.trials.shadow_bags import shadow_bags

    types = read_definitions(options.types)
    with Bar(f"shadow {options.run}", "bag") as bar:
        contract, found = shadow_bags(options.run, options.bags, bar, options.learn, types)
    recordings = [(bag.path.name, bag.comparison, bag.transitions) for bag in found]
    print(shadow_text(recordings))
    if options.json is not None:
        bags = {name: {**comparison.as_dict(), "transitions": count} for name, comparison, count in recordings}
        write_atomic(options.json, json.dumps({"run": str(options.run), "bags": bags}, indent=1) + "\n")
    if options.html is not None:
        write_atomic(options.html, shadow_page(str(options.run), contract, recordings))
        print(f"page: {options.html}")
    return 0
