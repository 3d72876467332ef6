# SPDX-License-Identifier: Apache-2.0
"""Episodes on a real robot: an operator brings it to its start, and the trial sets start and end of the episode.

The policy is inactive between episodes, so that nothing moves the robot while somebody handles it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from spc_core.alignment.episode import EpisodeInfo
from spc_ros.node_parts.episode_driver import DriverError, DriverNode, EpisodeBroken
from spc_ros.node_parts.topics import EPISODE_TOPIC, latched_qos

SILENT_S = 1.0  # without a tick, after which no episode begins
START_S = 60.0  # longest wait for a policy with autostart
VERBS = {
    Transition.TRANSITION_CONFIGURE: "configure",
    Transition.TRANSITION_ACTIVATE: "activate",
    Transition.TRANSITION_DEACTIVATE: "deactivate",
}


class RobotEpisodes:
    """Announces episodes on the topic `episode`, as a sim would; service ~/stop ends the running one."""

    def __init__(self, node: DriverNode, newest_ns: Callable[[], int]) -> None:
        """`newest_ns`: the robot's newest stamp, or NO_TIME."""
        self._node, self._newest_ns = node, newest_ns
        self._info = EpisodeInfo("idle", "", {}, 0, 0, 0)
        self._received_s = time.monotonic()
        self._terminated = self._stopped = False
        self._publisher = node.create_publisher(String, EPISODE_TOPIC, latched_qos())
        node.create_service(Trigger, "~/stop", self._on_stop)
        if node.params.terminated_topic:
            node.create_subscription(Bool, node.params.terminated_topic, self._on_terminated, 10)
        self._publish_info()

    def received(self) -> None:
        """Call it when the robot has sent a message."""
        self._received_s = time.monotonic()

    @property
    def problem(self) -> str:
        """What the robot does or lacks, so that no episode can start on it now; empty: one can."""
        if self._newest_ns() <= 0 or self._silence_s() > SILENT_S:
            return "publishes no state; is it on?"
        return ""

    def prepare_policy(self) -> None:
        """Bring the policy, which may still be starting, to the inactive state."""
        deadline_s = time.monotonic() + START_S
        while (state := self._state()) != State.PRIMARY_STATE_INACTIVE:
            if state == State.PRIMARY_STATE_ACTIVE:
                self._change(Transition.TRANSITION_DEACTIVATE)
            elif state == State.PRIMARY_STATE_UNCONFIGURED:
                self._change(Transition.TRANSITION_CONFIGURE)
            elif time.monotonic() > deadline_s:
                raise DriverError(f"the policy is not ready after {START_S:g} s; see its log")
            else:
                retry_s = time.monotonic() + 0.2
                self._node.wait_for(lambda: time.monotonic() > retry_s, None, "", polled=True)  # noqa: B023

    def run(self, task_id: str, seed: int, spoiled: Callable[[], str], driven: bool = True) -> EpisodeInfo:
        """Run one episode from the robot's newest stamp; with `driven`, the policy drives. Raises EpisodeBroken."""
        limit_ns = round(self._node.params.time_limit_s * 1e9)
        self._await_recorder()
        start_ns = self._newest_ns()
        if problem := self.problem:
            raise EpisodeBroken(f"the robot {problem}")
        self._terminated = self._stopped = False
        self._info = EpisodeInfo("running", task_id, {}, self._info.episode + 1, seed, start_ns)
        self._publish_info()
        try:
            if driven:
                self._activate()
            self._node.wait_for(lambda: bool(self._end_reason(limit_ns, spoiled)), None, "", polled=True)
        finally:
            reason = self._end_reason(limit_ns, spoiled) or "the trial ended"
            terminated, truncated = reason == "task ended", reason in ("time limit", "operator")
            ended = {"state": "ended", "end_ns": self._newest_ns(), "reason": reason}
            self._info = dataclasses.replace(self._info, **ended, terminated=terminated, truncated=truncated)
            self._publish_info()
            if driven:
                self._try_deactivate()
        if not (terminated or truncated):
            raise EpisodeBroken(f"episode {self._info.episode} ({task_id}) broke off: {reason}")
        return self._info

    def _activate(self) -> None:
        """Raises EpisodeBroken where the policy refuses, as it does beside another publisher of commands."""
        try:
            self._change(Transition.TRANSITION_ACTIVATE)
        except DriverError as error:
            raise EpisodeBroken(str(error)) from None

    def _await_recorder(self) -> None:
        """A recorder that DDS has not connected yet would miss the start of the episode."""
        node = self._node
        if not node.params.record:
            return

        def listens() -> bool:
            known = node.get_subscriptions_info_by_topic(self._publisher.topic_name)
            matched = self._publisher.get_subscription_count() >= len(known)
            return matched and any(info.node_name == "recorder" for info in known)

        failure = f"no recorder on {self._publisher.topic_name}"
        node.wait_for(listens, node.params.service_timeout_s, failure, polled=True)

    def _end_reason(self, limit_ns: int, spoiled: Callable[[], str]) -> str:
        """Why the episode has ended; empty while it runs."""
        if reason := spoiled():
            return reason
        if self._terminated:
            return "task ended"
        if self._stopped:
            return "operator"
        if self._newest_ns() - self._info.start_ns >= limit_ns:
            return "time limit"
        silent = self._silence_s() > self._node.params.silence_timeout_s / 2
        return "the robot is silent" if silent else ""

    def _try_deactivate(self) -> None:
        """Deactivate the policy, but only log a failure: the trial may be shutting down."""
        try:
            self._change(Transition.TRANSITION_DEACTIVATE)
        except DriverError as error:
            self._node.get_logger().error(f"requested the policy to deactivate, without a confirmation: {error}")

    def _silence_s(self) -> float:
        return time.monotonic() - self._received_s

    def _state(self) -> int:
        return self._node.call("policy/get_state", GetState, GetState.Request()).current_state.id

    def _change(self, transition: int) -> None:
        """Raises DriverError where the policy refuses."""
        request = ChangeState.Request(transition=Transition(id=transition))
        if not self._node.call("policy/change_state", ChangeState, request).success:
            raise DriverError(f"the policy refused to {VERBS[transition]}; see its log")

    def _publish_info(self) -> None:
        self._publisher.publish(String(data=self._info.to_json()))

    def _on_terminated(self, msg: Bool) -> None:
        self._terminated = self._terminated or (msg.data and self._info.state == "running")

    def _on_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._info.state == "running"
        self._stopped = response.success
        response.message = "the episode is ended" if response.success else "no episode is running"
        return response
