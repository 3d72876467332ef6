# SPDX-License-Identifier: Apache-2.0
"""Runs a few-shot trial of a checkpoint through the real chain: sim, context encoder, policy, recorder, trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spc_core.adaptation import PROTOCOLS, EpisodeResult
from spc_core.contract import find_config
from spc_ros.collect import progress_reader
from spc_ros.processes import NodeGroup, ProcessError

EPISODE_TIMEOUT_S = 60.0
LOCKSTEP_WAIT_S = 10.0  # the simulation waits for us, so a slow machine must not look like a silent robot


def trial_nodes(
    checkpoint: str | Path, family: str, contract: str, bags: Path | None
) -> dict[str, dict[str, Any]]:
    """The nodes of a trial in lock-step with their parameters, in the order of starting."""
    listeners = 3 + (bags is not None)  # of the first stream: context_encoder, policy, trial, recorder
    common: dict[str, Any] = {"use_sim_time": True, "contract": contract}
    agent = {**common, "checkpoint": str(checkpoint), "reliable": True}
    nodes: dict[str, dict[str, Any]] = {}
    if bags is not None:
        nodes["recorder"] = {**common, "directory": str(bags), "extra_topics": ["context"]}
    nodes["context_encoder"] = agent
    nodes["policy"] = {
        **agent,
        "context_wait_s": LOCKSTEP_WAIT_S,
        "silence_timeout_s": LOCKSTEP_WAIT_S,
        "min_subscriptions": listeners,  # of the commands: the same, with sim in the place of policy
    }
    nodes["sim"] = {
        "family": family,
        "contract": contract,
        "min_subscriptions": listeners,
        "command_timeout_s": 2 * LOCKSTEP_WAIT_S,
    }
    return nodes


def run_trial(
    checkpoint: str | Path,
    family: str,
    out: str | Path,
    splits: Sequence[str] = ("id",),
    task_ids: Sequence[str] = (),
    tasks_per_split: int = 0,
    protocols: Sequence[str] = PROTOCOLS,
    few_shot_sizes: Sequence[int] = (100,),
    episodes: int = 3,
    seed: int = 0,
    contract: str = "",
    record: bool = True,
    environment: Mapping[str, str] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[EpisodeResult]:
    """Rows of `<out>/episodes.jsonl`; bags are in `<out>/bags`, logs in `<out>/log`. Raises ProcessError."""
    out = Path(out).resolve()
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
        "out": str(out),
        "record": record,
    }
    plan |= {"task_ids": list(task_ids)} if task_ids else {}
    bags = out / "bags" if record else None
    with NodeGroup(out / "log", environment=environment) as nodes:
        for name, params in trial_nodes(Path(checkpoint).resolve(), family, contract, bags).items():
            nodes.start(name, params)
        nodes.wait_ready(120.0)
        driver = nodes.start("trial", plan, progress_reader(progress))
        driver.wait_while_printing(EPISODE_TIMEOUT_S)
        if driver.process.returncode != 0:
            raise ProcessError(f"the trial failed{driver.tail()}")
    lines = (out / "episodes.jsonl").read_text().splitlines()
    return [EpisodeResult.from_json(line) for line in lines]
