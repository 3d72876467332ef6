# SPDX-License-Identifier: Apache-2.0
"""Collects behaviour data of a task family as bags, through the nodes sim, behaviour and recorder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spc_core.tasks import contract_file, find_family
from spc_ros.bags.files import find_bags
from spc_ros.processes import NodeGroup, ProcessError, Progress

EPISODE_TIMEOUT_S = 60.0  # far longer than an episode; the nodes have tighter deadlines


def require_new(out: Path) -> None:
    """Raises ProcessError if `out` holds bags or episodes of an earlier call, which could get mixed up or lost."""
    if (out / "episodes.jsonl").exists() or (out / "bags").exists():
        raise ProcessError(f"{out}: holds an earlier recording or trial; choose another --out, or remove it first")


def collect(
    family: str,
    out: str | Path,
    episodes: int = 20,
    split: str = "train",
    task_ids: Sequence[str] = (),
    kinds: Sequence[str] = (),
    seed: int = 0,
    contract: str = "",
    storage: str = "mcap",
    environment: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Record `episodes` of each task as bags in `<out>/bags`; returns their paths. Raises ProcessError.

    Logs of the nodes are in `<out>/log`. `progress(done, total, text)` is called after each episode, from
    another thread. `environment` is added to that of the nodes, such as a separate ROS_DOMAIN_ID.
    """
    out = Path(out)
    require_new(out)
    contract, family = str(contract_file(contract, family).resolve()), find_family(family).reference
    bags = (out / "bags").resolve()
    plan: dict[str, Any] = {"family": family, "split": split, "episodes": episodes, "seed": seed}
    plan |= {"task_ids": list(task_ids)} if task_ids else {}
    plan |= {"kinds": list(kinds)} if kinds else {}

    with NodeGroup(out / "log", environment=environment) as nodes:
        recorder = {"contract": contract, "directory": str(bags), "storage": storage}
        nodes.start("recorder", {"use_sim_time": True, "lockstep": True, **recorder})
        nodes.start("behaviour", {"family": family, "contract": contract, "min_subscriptions": 2})
        nodes.start("sim", {"family": family, "contract": contract, "min_subscriptions": 2})
        nodes.wait_ready()
        nodes.drive("collect", plan, EPISODE_TIMEOUT_S, progress)
    return find_bags([bags])
