# SPDX-License-Identifier: Apache-2.0
"""Describe a dataset, in text or as a page with plots."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from spc_core.system.atomic_files import write_atomic


@dataclasses.dataclass(frozen=True)
class Describe:
    """Describe a dataset: its tasks, episodes, ends and returns, and how much of its spaces it covers.

    examples:
      spc describe dataset
      spc describe dataset --html dataset.html
    """

    dataset: tyro.conf.Positional[Path]  # folder that `spc convert` wrote
    html: Path | None = None  # also write a self-contained page with plots here
    json: Path | None = None  # also write the numbers here


def run(options: Describe) -> int:
    from spc_core.data.describe import describe

    description = describe(options.dataset)
    print(description.text())
    if options.json is not None:
        write_atomic(options.json, description.to_json())
    if options.html is not None:
        from spc_core.pages.describe_page import describe_page

        write_atomic(options.html, describe_page(description))
        print(f"page: {options.html}")
    return 0
