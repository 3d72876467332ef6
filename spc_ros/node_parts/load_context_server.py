# SPDX-License-Identifier: Apache-2.0
"""Service ~/recall of the context encoder: the context of recordings of a task, before the robot moves.

Set the parameters `recordings` and `recordings_task`, call ~/recall (std_srvs/Trigger). Its answer says only that
reading has begun, as {"request": n}; the outcome is a std_msgs/String with JSON on the latched topic `recalled`:
request, task, transitions, problem (empty when all went well).
"""

from __future__ import annotations

import json
from collections.abc import Callable

from std_msgs.msg import String
from std_srvs.srv import Trigger

from spc_core.alignment.streaming import Transition
from spc_core.contract.contract import Contract
from spc_core.deploy.model_swap import BackgroundLoad, SwapError
from spc_core.trials.recordings import dataset_transitions, spread
from spc_ros.node_parts.lifecycle import ManagedNode
from spc_ros.node_parts.topics import RECALLED_TOPIC, latched_qos

AT_A_TIME = 50  # transitions between two callbacks, so that a tick does not wait long


class RecallServer:
    """Reads on a worker thread, and gives the transitions to `add` a few at a time, then calls `done`."""

    def __init__(
        self,
        node: ManagedNode,
        contract: Contract,
        add: Callable[[list[Transition]], None],
        done: Callable[[str], None],
    ) -> None:
        """`add` gets an empty list first: begin anew. `done` gets the task's id."""
        self._node, self._contract, self._add, self._done = node, contract, add, done
        self._background: BackgroundLoad[list[Transition]] = BackgroundLoad()
        self._request, self._task, self._count = 0, "", 0
        self._left: list[Transition] = []
        self._publisher = node.create_publisher(String, RECALLED_TOPIC, latched_qos(depth=10))
        node.create_service(Trigger, "~/recall", self._on_recall)

    def poll(self) -> None:
        """Call it often."""
        read = self._background.poll()
        if read is not None and read.model is None:
            self._tell(0, read.problem)
        elif read is not None:
            self._left, self._count = list(read.model or ()), len(read.model or ())
            self._add([])
        elif self._left:
            now, self._left = self._left[:AT_A_TIME], self._left[AT_A_TIME:]
            self._add(now)
            if not self._left:
                self._done(self._task)
                self._tell(self._count)

    def cancel(self) -> None:
        """What was not added yet is of no use any more."""
        if self._left:
            self._left = []
            self._tell(0, "the context was reset, or the model changed, while recordings were read")

    def _read(self) -> list[Transition]:
        p = self._node.params
        seen = dataset_transitions(p.recordings, p.recordings_task, self._contract)
        return spread(seen, self._contract.reward_function())

    def _tell(self, transitions: int, problem: str = "") -> None:
        said = {"request": self._request, "task": self._task, "transitions": transitions, "problem": problem}
        self._publisher.publish(String(data=json.dumps(said)))
        if problem:
            self._node.diagnostics.complain("recordings not read", problem)

    def _on_recall(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        p = self._node.params
        if not p.recordings or not p.recordings_task:
            response.message = "set the parameters recordings (a dataset) and recordings_task first"
            return response
        try:
            self._background.begin(self._read)
        except SwapError:
            response.message = "recordings are being read already; ask again when topic 'recalled' told of them"
            return response
        self._request, self._task, self._left = self._request + 1, p.recordings_task, []
        response.success, response.message = True, json.dumps({"request": self._request})
        return response
