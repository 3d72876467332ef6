# SPDX-License-Identifier: Apache-2.0
"""Record behaviour data of a simulated task family as bags, over ROS 2, or as a dataset at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from spc_core.system.wording import plural
from spc_ros.progress_bar import Bar


@dataclasses.dataclass(frozen=True)
class Collect:
    """Record behaviour data of a simulated task family as bags, through the nodes sim, behaviour and recorder.

    With --direct the same episodes are played in this process, without ROS, and written as a dataset.

    examples:
      spc collect arm_reach --out data
      spc collect arm_payload --out data --episodes 5 --split val --storage sqlite3
      spc collect cheetah_vel --out dataset --episodes 100 --direct
    """

    family: tyro.conf.Positional[str]  # task family, or the path of a family.yaml
    out: Path  # folder for bags/ and log/, or of the dataset
    episodes: int = 30  # episodes of each task; expert, noisy and random drivers in turn, or states of a learnt agent
    direct: bool = False  # write a dataset at once, without ROS: minutes instead of hours
    split: str = "train"  # tasks to record: train, val, id or ood
    seed: int = 0  # seed from which every episode's seed is derived
    storage: str = "mcap"  # mcap or sqlite3


def run(options: Collect) -> int:
    with Bar(f"collect {options.family}", "episode") as bar:
        if options.direct:
            from spc_core.trials.direct_collection import collect_directly

            collect_directly(options.family, options.out, options.episodes, options.split, options.seed, progress=bar)
        else:
            from spc_ros.trials.collect import collect

            wanted = {name: value for name, value in vars(options).items() if name != "direct"}
            bags = collect(**wanted, progress=bar)
    if options.direct:
        print(f"dataset: {options.out}")
        return 0
    print(f"{plural(len(bags), 'bag')} in {options.out / 'bags'}")
    return 0
