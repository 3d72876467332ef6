# SPDX-License-Identifier: Apache-2.0
"""A node that drives a simulation: it sets parameters, starts episodes, and waits for their ends and bags.

A driver's script runs, and waits, on its own thread; callbacks only record messages.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import SetParameters
from rclpy.client import Client
from rclpy.parameter import Parameter
from std_msgs.msg import String
from std_srvs.srv import Trigger

from spc_core.alignment.episode import EpisodeInfo
from spc_ros.node_parts.plain_node import Param, PlainNode
from spc_ros.node_parts.topics import BAGS_TOPIC, EPISODE_TOPIC, latched_qos
from spc_ros.processes import progress_line

DRIVER_PARAMS = (
    Param("silence_timeout_s", 10.0, "give up after this time without a sign of life from the simulation", 1.0, 3600.0),
    Param("service_timeout_s", 20.0, "longest wait for a service or a bag", 1.0, 3600.0),
)
POLL_S = 0.02  # between checks of conditions without a callback, such as the appearance of a service


class DriverError(RuntimeError):
    """The reason why a driver must stop."""


class EpisodeBroken(DriverError):
    """An episode that was aborted instead of ending normally."""


class Twins:
    """Finds two living nodes of one name, by what they say on /diagnostics. A restarted node is none."""

    def __init__(self) -> None:
        self.found = ""  # what to do about it
        self._processes: dict[str, list[str]] = {}  # by name, in the order of their first word

    def spoke(self, name: str, process: str) -> None:
        """A node said something; one that another had followed must still be alive."""
        seen = self._processes.setdefault(name, [])
        if process not in seen:
            seen.append(process)
        elif process != seen[-1]:
            self.found = (
                f"two nodes named {name} run, as processes {process} and {seen[-1]}: stop the one that does not belong "
                "here, or use another ROS_DOMAIN_ID"
            )


class DriverNode(PlainNode):
    """Subclasses implement `drive`, which may call the methods below; the program ends with it."""

    def __init__(self, name: str, params: Sequence[Param]) -> None:
        super().__init__(name, [*DRIVER_PARAMS, *params])
        self._condition = threading.Condition()
        self._stopping = False
        self._episode: EpisodeInfo | None = None
        self._bags: dict[int, dict[str, Any]] = {}
        self._alive_s = time.monotonic()
        self._clients_by_name: dict[str, Client] = {}
        self._twins = Twins()
        self._sim_name = self.resolve_topic_name("sim")
        self.driven = f"the simulation {self._sim_name}"
        self._thread = threading.Thread(target=self._work, name=f"{name} script")
        self.create_subscription(String, EPISODE_TOPIC, self._on_episode, latched_qos(depth=10))
        self.create_subscription(String, BAGS_TOPIC, self._on_bag, latched_qos(depth=100))
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def drive(self) -> None:
        """The script. Raises DriverError to end the program with an error."""
        raise NotImplementedError

    def check(self) -> None:
        """Called while the script waits; raises DriverError to end it."""

    def report(self, done: int, total: int, text: str) -> None:
        """Print the script's progress for its parent process."""
        print(progress_line(done, total, text), flush=True)

    def begin(self) -> None:
        self._thread.start()

    def close(self) -> None:
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def call(self, name: str, kind: Any, request: Any) -> Any:
        """Call a service and wait for its response."""
        if name not in self._clients_by_name:
            self._clients_by_name[name] = self.create_client(kind, name)
        client = self._clients_by_name[name]
        timeout_s = self.params.service_timeout_s
        self.wait_for(client.service_is_ready, timeout_s, f"no service {client.srv_name}", polled=True)
        future = client.call_async(request)
        future.add_done_callback(lambda _: self._notify())
        self.wait_for(future.done, timeout_s, f"no response from {client.srv_name}")
        return future.result()

    def trigger(self, name: str) -> str:
        """Call a Trigger service and return its message. Raises DriverError on refusal."""
        answer = self.call(name, Trigger, Trigger.Request())
        if not answer.success:
            raise DriverError(f"{name} refused: {answer.message}")
        return answer.message

    def set_on(self, node: str, values: Mapping[str, Any]) -> None:
        """Set parameters of another node and wait until it has accepted them."""
        messages = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        answer = self.call(f"{node}/set_parameters", SetParameters, SetParameters.Request(parameters=messages))
        refused = [result.reason for result in answer.results if not result.successful]
        if refused:
            raise DriverError(f"{node} refused parameters: {'; '.join(refused)}")

    def run_episode(self, task_id: str, seed: int) -> EpisodeInfo:
        """Start an episode and wait for its end. Raises EpisodeBroken when it is aborted."""
        self.set_on("sim", {"task_id": task_id, "seed": seed})
        started = EpisodeInfo.from_json(self.trigger("sim/reset"))

        def ended() -> bool:
            now = self._episode
            return now is not None and now.episode == started.episode and now.state == "ended"

        self.wait_for(ended, None, "")
        info = self._episode
        assert info is not None
        if not (info.terminated or info.truncated):
            raise EpisodeBroken(f"episode {info.episode} ({info.task_id}) broke off: {info.reason}")
        return info

    def wait_for_bag(self, episode: int) -> str:
        """Wait for an episode's bag and return its path. Raises DriverError when messages are missing."""
        timeout_s = self.params.service_timeout_s
        self.wait_for(lambda: episode in self._bags, timeout_s, f"no bag of episode {episode} from the recorder")
        bag = self._bags.pop(episode)
        if bag["missing"] or not bag["path"]:
            raise DriverError(f"bag {bag['path']}: {bag['reason']}; missing messages: {bag['missing']}")
        return bag["path"]

    def wait_for(self, done: Callable[[], bool], timeout_s: float | None, failure: str, polled: bool = False) -> None:
        """Wait until `done()`, which is checked at each message or, with `polled`, at short intervals."""
        began_s = time.monotonic()
        with self._condition:
            while not done():
                now_s = time.monotonic()
                if self._stopping:
                    raise DriverError("stopped by a signal")
                self.check()
                if self._twins.found:
                    raise DriverError(self._twins.found)
                if timeout_s is not None and now_s - began_s > timeout_s:
                    raise DriverError(f"{failure} within {timeout_s:g} s")
                silence_s = now_s - max(self._alive_s, began_s)
                if silence_s > self.params.silence_timeout_s:
                    raise DriverError(f"{self.driven} has been silent for {silence_s:.0f} s")
                self._condition.wait(POLL_S if polled else 0.2)

    def _work(self) -> None:
        code = 1
        try:
            self.drive()
            code = 0
        except DriverError as error:
            self.get_logger().error(str(error))
            self.diagnostics.problem = str(error)
        except Exception as error:
            self.failed(error)
            raise
        finally:
            self.exit_code = code

    def _notify(self) -> None:
        with self._condition:
            self._condition.notify_all()

    def _on_episode(self, msg: String) -> None:
        self._episode = EpisodeInfo.from_json(msg.data)
        self._notify()

    def _on_bag(self, msg: String) -> None:
        bag = json.loads(msg.data)
        self._bags[bag["episode"]] = bag
        self._notify()

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        if any(status.name == self._sim_name for status in msg.status):
            self._alive_s = time.monotonic()
        for status in msg.status:
            self._twins.spoke(status.name, next((pair.value for pair in status.values if pair.key == "process"), ""))
