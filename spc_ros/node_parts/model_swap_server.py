# SPDX-License-Identifier: Apache-2.0
"""Service ~/swap of a node that runs a model, and the latched topic `model_swap` that tells how it went.

Set the parameter `checkpoint`, call ~/swap (std_srvs/Trigger). Its answer says only that loading has begun, since the
node goes on with its work; the outcome is a std_msgs/String with JSON on `model_swap`: node, state (loading | warm |
swapped | refused | rolled back), model (the id that acts, or would), reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from std_msgs.msg import String
from std_srvs.srv import Trigger

from spc_core.deploy.model_swap import BackgroundLoad, SwapError
from spc_ros.node_parts.lifecycle import ManagedNode
from spc_ros.node_parts.plain_node import steady_timer
from spc_ros.node_parts.topics import SWAP_TOPIC, latched_qos

POLL_S = 0.02

L = TypeVar("L", bound=tuple[Any, ...])


class ModelSwapServer(Generic[L]):
    """`load` runs on a worker thread and raises where a model is refused; `warm` gets its result between callbacks."""

    def __init__(self, node: ManagedNode, load: Callable[[], L], warm: Callable[[L], None]) -> None:
        """`load` returns a tuple whose second entry is the model's id."""
        self._node, self._load, self._warm = node, load, warm
        self._background: BackgroundLoad[L] = BackgroundLoad()
        self._publisher = node.create_publisher(String, SWAP_TOPIC, latched_qos(depth=10))
        node.create_service(Trigger, "~/swap", self._on_swap)
        self._timer = steady_timer(node, POLL_S, self._poll)
        self._timer.cancel()  # until something is being loaded

    def _poll(self) -> None:
        """Hand over what was loaded."""
        loaded = self._background.poll()
        if loaded is None:
            return
        self._timer.cancel()
        if loaded.model is None:
            self.tell("refused", 0, loaded.problem)
            return
        self.tell("warm", loaded.model[1])
        self._warm(loaded.model)

    def tell(self, state: str, model: int, reason: str = "") -> None:
        """Publish, count and log a stage of the swap."""
        node = self._node
        node.diagnostics.counts[f"swaps {state}"] += 1
        line = f"model swap: {state}, model {model}{': ' if reason else ''}{reason}"
        if state in ("refused", "rolled back"):  # rclpy ties a severity to each place that logs
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
        self.tell("loading", 0, self._node.params.checkpoint)
        response.success = True
        response.message = f"loading {self._node.params.checkpoint}; topic {SWAP_TOPIC} tells how it went"
        return response
