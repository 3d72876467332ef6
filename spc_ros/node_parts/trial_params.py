# SPDX-License-Identifier: Apache-2.0
"""The parameters of the node `trial`."""

from __future__ import annotations

import dataclasses

from spc_core.deploy.adaptation import LIVE_PROTOCOLS, PROTOCOLS
from spc_core.tasks import SPLITS, families
from spc_ros.node_parts.plain_node import Param

_CHANGING = [
    Param("family", "arm_reach", "task family; empty: a robot of its own", choices=(*families(), "")),
    Param("contract", "", "contract file or name; empty: the family's"),
    Param("splits", ["id"], f"tasks to try, any of: {', '.join(SPLITS)}"),
    Param("task_ids", [""], "tasks to try instead of whole splits; without a sim, any names"),
    Param("tasks_per_split", 0, "try the first so many tasks of a split; 0: all", 0, 1000),
    Param("protocols", list(LIVE_PROTOCOLS), f"any of: {', '.join(PROTOCOLS)}; the last one needs recordings"),
    Param("few_shot_sizes", [100], "transitions of a few-shot context"),
    Param("recordings", "", "dataset with recordings of each task, for the protocol offline"),
    Param("episodes", 3, "scored episodes of each task and protocol", 1, 100_000),
    Param("seed", 0, "seed of the first scored episode", 0, 2**30),
    Param("shuffle", True, "blocks of task and protocol in an order drawn with the seed"),
    Param("drift_tasks", 0, "so many tried tasks change into one another at the end; 0: no drift test", 0, 1000),
    Param("operator", False, "wait for ~/continue before, and for ~/success after each episode"),
    Param("sim", True, "the node sim resets itself; off: a robot, which the operator brings to its start"),
    Param("time_limit_s", 10.0, "without sim: longest time of an episode, by the robot's stamps", 0.1, 86_400.0),
    Param("terminated_topic", "", "without sim: std_msgs/Bool, true when the robot ended its task; empty: none"),
    Param("checkpoint", "", "which checkpoint this is: its folder, or the SHA-256 of its weights"),
    Param("out", "trial", "folder for episodes.jsonl; one with this trial in it is gone on with"),
    Param("record", True, "wait for a bag of each episode"),
    Param("lockstep", True, "the simulation runs in lock-step: lose nothing; off: sensor data"),
]
PARAMS = [dataclasses.replace(param, read_only=True) for param in _CHANGING]  # all say what trial this is
