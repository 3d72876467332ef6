# SPDX-License-Identifier: Apache-2.0
"""The options of who judges a run, and by what."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Judging:
    """Which tasks a run is judged by, and by whom."""

    hold_out: tuple[str, ...] = ()  # tasks kept out of training, to assess by: how many, a fold as 1/5, or their ids
    recordings: Path | None = None  # dataset of other tasks to assess by, in place of --hold-out
    judge: Literal["auto", "simulation", "recordings"] = "auto"  # of --evaluate-every; auto: a simulation if known
