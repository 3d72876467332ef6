# SPDX-License-Identifier: Apache-2.0
"""Services ~/swap and ~/recall, which load a model or recordings in the background while the node keeps working.

Each answers at once (std_srvs/Trigger) and reports the outcome as JSON in a std_msgs/String on a latched topic.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from std_msgs.msg import String
from std_srvs.srv import Trigger

from spc_core.alignment.streaming import Transition
from spc_core.contract.contract import Contract
from spc_core.deploy.model_swap import BackgroundLoad, SwapError
from spc_ros.node_parts.diagnostics import steady_timer
from spc_ros.node_parts.lifecycle import ManagedNode
from spc_ros.node_parts.topics import RECALLED_TOPIC, SWAP_TOPIC, latched_qos

POLL_S = 0.02
BATCH = 10  # recorded transitions between two callbacks, so that a tick does not wait long

L = TypeVar("L", bound=tuple[Any, ...])


class ModelSwapServer(Generic[L]):
    """Service ~/swap loads the model in the parameter `checkpoint`; topic `model_swap` reports the outcome.

    `load` runs on a worker thread and raises to refuse a model; `warm` gets its result between callbacks. JSON keys:
    node, state (loading | warm | swapped | refused | rolled back), model (the id that acts, or would), reason.
    """

    def __init__(self, node: ManagedNode, load: Callable[[], L], warm: Callable[[L], None]) -> None:
        """`load` returns a tuple whose second entry is the model's id."""
        self._node, self._load, self._warm = node, load, warm
        self._background: BackgroundLoad[L] = BackgroundLoad()
        self._publisher = node.create_publisher(String, SWAP_TOPIC, latched_qos(depth=10))
        node.create_service(Trigger, "~/swap", self._on_swap)
        self._timer = steady_timer(node, POLL_S, self._poll)
        self._timer.cancel()  # until something is being loaded

    def _poll(self) -> None:
        """Hand over a loaded model."""
        loaded = self._background.poll()
        if loaded is None:
            return
        self._timer.cancel()
        if loaded.model is None:
            self.report("refused", 0, loaded.problem)
            return
        self.report("warm", loaded.model[1])
        self._warm(loaded.model)

    def report(self, state: str, model: int, reason: str = "") -> None:
        """Publish, count and log a stage of the swap."""
        node = self._node
        node.diagnostics.counts[f"swaps {state}"] += 1
        line = f"model swap: {state}, model {model}{': ' if reason else ''}{reason}"
        if state in ("refused", "rolled back"):  # rclpy ties one severity to each line that logs
            node.get_logger().warning(line)
        else:
            node.get_logger().info(line)
        text = json.dumps({"node": node.get_name(), "state": state, "model": model, "reason": reason})
        self._publisher.publish(String(data=text))

    def _on_swap(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            self._background.begin(self._load)
        except SwapError as error:
            response.message = str(error)
            return response
        self._timer.reset()
        self.report("loading", 0, self._node.params.checkpoint)
        response.success = True
        response.message = f"loading {self._node.params.checkpoint}; topic {SWAP_TOPIC} reports the outcome"
        return response


class LoadContextServer:
    """Service ~/recall computes the context from recordings; the topic `recalled` reports the outcome.

    Set the parameters `recordings` and `recordings_task` first. A worker thread reads; `add` receives the transitions a
    few at a time, then `done` is called. The answer is {"request": n}; JSON keys of the outcome: request, task,
    transitions, problem (empty on success).
    """

    def __init__(
        self,
        node: ManagedNode,
        contract: Contract,
        add: Callable[[list[Transition]], None],
        done: Callable[[str], None],
    ) -> None:
        """`add` first gets an empty list, which clears the context. `done` gets the task id."""
        self._node, self._contract, self._add, self._done = node, contract, add, done
        self._background: BackgroundLoad[list[Transition]] = BackgroundLoad()
        self._request, self._task, self._count = 0, "", 0
        self._left: list[Transition] = []
        self._publisher = node.create_publisher(String, RECALLED_TOPIC, latched_qos(depth=10))
        node.create_service(Trigger, "~/recall", self._on_recall)

    def poll(self) -> None:
        """Pass on the next batch, if any; call it from a timer."""
        read = self._background.poll()
        if read is not None and read.model is None:
            self._report(0, read.problem)
        elif read is not None:
            self._left, self._count = list(read.model or ()), len(read.model or ())
            self._add([])
        elif self._left:
            batch, self._left = self._left[:BATCH], self._left[BATCH:]
            self._add(batch)
            if not self._left:
                self._done(self._task)
                self._report(self._count)

    def cancel(self) -> None:
        """Drop the transitions that were not added yet."""
        if self._left:
            self._left = []
            self._report(0, "the context was reset, or the model changed, while recordings were read")

    def _read(self) -> list[Transition]:
        from spc_core.trials.recordings import dataset_transitions, spread  # loads Minari, which a robot may lack

        p = self._node.params
        seen = dataset_transitions(p.recordings, p.recordings_task, self._contract)
        return spread(seen, self._contract.reward_function())

    def _report(self, transitions: int, problem: str = "") -> None:
        outcome = {"request": self._request, "task": self._task, "transitions": transitions, "problem": problem}
        self._publisher.publish(String(data=json.dumps(outcome)))
        if problem:
            self._node.diagnostics.warn_once("recordings not read", problem)

    def _on_recall(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        p = self._node.params
        if not p.recordings or not p.recordings_task:
            response.message = "set the parameters recordings (a dataset) and recordings_task first"
            return response
        try:
            self._background.begin(self._read)
        except SwapError:
            response.message = "recordings are already being read; ask again after topic 'recalled' has reported them"
            return response
        self._request, self._task, self._left = self._request + 1, p.recordings_task, []
        response.success, response.message = True, json.dumps({"request": self._request})
        return response
