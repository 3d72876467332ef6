# SPDX-License-Identifier: Apache-2.0
"""Runs a few-shot trial of a checkpoint through the real chain of nodes, in lock-step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spc_core.contract import find_config
from spc_core.deploy.adaptation import LIVE_PROTOCOLS, EpisodeResult, TrialError, in_order
from spc_core.deploy.checkpoint import weights_sha256
from spc_core.trials.trial_log import PLAN, TrialLog, read_rows
from spc_ros.nodes.processes import NodeGroup, ProcessError
from spc_ros.trials.collect import progress_reader, require_new

EPISODE_TIMEOUT_S = 120.0  # far above what an episode takes; the nodes have tighter deadlines of their own


def run_trial(
    checkpoint: str | Path,
    family: str,
    out: str | Path,
    splits: Sequence[str] = ("id",),
    task_ids: Sequence[str] = (),
    tasks_per_split: int = 0,
    protocols: Sequence[str] = LIVE_PROTOCOLS,
    few_shot_sizes: Sequence[int] = (100,),
    episodes: int = 3,
    seed: int = 0,
    contract: str = "",
    device: str = "cpu",
    record: bool = True,
    shuffle: bool = True,
    operator: bool = False,
    silence_timeout_s: float = 10.0,
    environment: Mapping[str, str] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[EpisodeResult]:
    """Rows of `<out>/episodes.jsonl`, in order; bags are in `<out>/bags`, logs in `<out>/log`.

    Called again with the same `out` it goes on where it was. Raises ProcessError.
    """
    out = Path(out).resolve()
    log = TrialLog(out)
    if not (out / PLAN).exists():
        require_new(out)
    try:
        log.put_aside_loose_bags(read_rows(log.path))
    except TrialError as error:
        raise ProcessError(str(error)) from None
    contract = str(find_config("contracts", contract or family).resolve())
    plan: dict[str, Any] = {
        "family": family,
        "contract": contract,
        "splits": list(splits),
        "tasks_per_split": tasks_per_split,
        "protocols": list(protocols),
        "few_shot_sizes": list(few_shot_sizes),
        "episodes": episodes,
        "seed": seed,
        "shuffle": shuffle,
        "operator": operator,
        "checkpoint": weights_sha256(checkpoint),
        "out": str(out),
        "record": record,
        "silence_timeout_s": silence_timeout_s,
    }
    plan |= {"task_ids": list(task_ids)} if task_ids else {}
    agent = {"contract": contract, "checkpoint": str(Path(checkpoint).resolve()), "device": device}
    fewer = {} if record else {"min_subscriptions": 3}  # no recorder to wait for
    with NodeGroup(out / "log", environment=environment, params_file=find_config(".", "lockstep")) as nodes:
        if record:
            nodes.start("recorder", {"use_sim_time": True, "contract": contract, "directory": str(out / "bags")})
        nodes.start("context_encoder", agent)
        nodes.start("policy", {**agent, **fewer})
        nodes.start("sim", {"family": family, "contract": contract, **fewer})
        nodes.wait_ready(120.0)
        driver = nodes.start("trial", plan, progress_reader(progress))
        driver.wait_while_printing(EPISODE_TIMEOUT_S)
        if driver.process.returncode != 0:
            raise ProcessError(f"the trial failed{driver.tail()}")
    return in_order(read_rows(log.path))
