# SPDX-License-Identifier: Apache-2.0
"""Record behaviour data of a simulated task family as bags, over ROS 2."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from spc_core.system.wording import plural
from spc_ros.progress_bar import Bar


@dataclasses.dataclass(frozen=True)
class Collect:
    """Record behaviour data of a simulated task family as bags, through the nodes sim, behaviour and recorder.

    examples:
      spc collect arm_reach --out data
      spc collect arm_payload --out data --episodes 5 --split val --storage sqlite3
    """

    family: tyro.conf.Positional[str]  # task family: arm_reach, arm_payload or base_drive
    out: Path  # folder for bags/ and log/
    episodes: int = 30  # episodes of each task; expert, noisy and random drivers in turn
    split: str = "train"  # tasks to record: train, val, id or ood
    seed: int = 0  # seed from which every episode's seed is derived
    storage: str = "mcap"  # mcap or sqlite3


def run(options: Collect) -> int:
    from spc_ros.trials.collect import collect

    with Bar(f"collect {options.family}", "episode") as bar:
        bags = collect(**vars(options), progress=bar)
    print(f"{plural(len(bags), 'bag')} in {options.out / 'bags'}")
    return 0
