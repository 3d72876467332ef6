# SPDX-License-Identifier: Apache-2.0
"""Node `collect`: runs a number of episodes on every task, driven by `behaviour`, each recorded to a bag."""

from __future__ import annotations

import time

from spc_core.tasks import SPLITS, find_family, make_env
from spc_core.tasks.behaviour import behaviour_mix, episode_seed, kinds_of
from spc_ros.node_parts.episode_driver import DriverNode
from spc_ros.node_parts.plain_node import FAMILY, Param, run

PARAMS = [
    Param("family", "arm_reach", FAMILY, read_only=True),
    Param("split", "train", "tasks to collect", choices=SPLITS, read_only=True),
    Param("task_ids", [""], "tasks to collect instead of a split", read_only=True),
    Param("episodes", 20, "episodes of each task", 1, 100_000, read_only=True),
    Param("kinds", [""], "behaviours in turn: expert, noisy, random, snapshot; empty: the usual mix", read_only=True),
    Param("seed", 0, "base of the seeds of all episodes", 0, 2000, read_only=True),
    Param("record", True, "wait for a bag of each episode", read_only=True),
]


class CollectNode(DriverNode):
    """Runs one episode of every task in turn, so that an interrupted collection still covers all tasks."""

    def __init__(self) -> None:
        super().__init__("collect", PARAMS)

    def drive(self) -> None:
        p = self.params
        ids = [i for i in p.task_ids if i]
        family = find_family(p.family)
        chosen = [family.find(i) for i in ids] if ids else list(family.tasks[p.split])
        kinds = [k for k in p.kinds if k]
        known = kinds_of(make_env(p.family))
        unknown = [k for k in kinds if k not in known]
        if unknown:
            raise ValueError(f"kinds: {', '.join(unknown)} unknown to {family.name}; use {', '.join(known)}")
        total, done, began_s = len(chosen) * p.episodes, 0, time.monotonic()
        waiting: list[int] = []  # episodes whose bags are still being closed
        for number in range(p.episodes):
            kind = kinds[number % len(kinds)] if kinds else behaviour_mix(number, known)
            if p.record:
                self.set_on("recorder", {"behaviour": kind})
            for task in chosen:
                seed = episode_seed(p.seed, task.index, number)
                self.set_on("behaviour", {"kind": kind, "seed": seed})
                info = self.run_episode(task.task_id, seed)
                waiting.append(info.episode)
                while p.record and len(waiting) > 1:
                    self.wait_for_bag(waiting.pop(0))
                done += 1
                rate = done / (time.monotonic() - began_s)
                self.report(done, total, f"{task.task_id} {kind} {rate:.1f} episodes/s")
        for episode in waiting if p.record else []:
            self.wait_for_bag(episode)


def main() -> int:
    return run(CollectNode)


if __name__ == "__main__":
    raise SystemExit(main())
