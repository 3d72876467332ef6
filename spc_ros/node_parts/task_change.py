# SPDX-License-Identifier: Apache-2.0
"""The task of the node `sim` changes in mid-episode, without a reset: after so many steps, or on ~/change.

The robot's state stays, only the hidden parameters change. Announced, the topic `episode` says so at once, and whoever
hears it can begin anew; unannounced, only the episode's end, and so its bag, tells of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from std_srvs.srv import Trigger

from spc_core.tasks import find_task
from spc_ros.node_parts.plain_node import Param, PlainNode
from spc_ros.sim.simulation import Simulation

CHANGE_PARAMS = [
    Param("change_task_id", "", "task that a running episode changes into; empty: none"),
    Param("change_after_steps", 0, "change after so many steps of each episode; 0: only on ~/change", 0, 10_000_000),
    Param("change_announced", True, "tell of the change on the topic episode at once; false: at the episode's end"),
    Param("episode_steps", 0, "a family's time limit in steps, from the next episode on; 0: its own", 0, 10_000_000),
]


class TaskChange:
    """Service ~/change of the node, and the change after so many steps."""

    def __init__(self, node: PlainNode, sim: Simulation, announce: Callable[[], None]) -> None:
        self._params: Any = node.params
        self._sim, self._announce = sim, announce
        node.create_service(Trigger, "~/change", self._on_change)

    def begin(self) -> None:
        """An episode is about to start: how long it may be. Raises ValueError."""
        if self._params.model:
            if self._params.change_task_id or self._params.episode_steps:
                raise ValueError("a model has one task; change_task_id and episode_steps are for task families")
            return
        env = self._sim.env
        env.episode_steps = self._params.episode_steps or type(env).episode_steps

    def step(self) -> bool:
        """A step was done: change the task if it is due. Returns whether that was announced."""
        p = self._params
        due = self._sim.running and p.change_task_id and self._sim.steps == p.change_after_steps > 0
        if due:
            self._change()
        return bool(due) and p.change_announced

    def _change(self) -> None:
        self._sim.change(find_task(self._params.change_task_id), self._params.change_announced)
        if self._params.change_announced:
            self._announce()

    def _on_change(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if not self._sim.running:
            response.message = "no episode is running"
        elif self._params.model or not self._params.change_task_id:
            response.message = "set the parameter change_task_id first, to a task of the family"
        else:
            self._change()
            response.success, response.message = True, self._sim.info.to_json()
        return response
