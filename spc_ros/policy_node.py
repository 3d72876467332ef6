# SPDX-License-Identifier: Apache-2.0
"""Node `policy`: each observation, with the newest task vector, becomes one command, made safe."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
from rclpy.duration import Duration
from std_msgs.msg import Bool, Float32MultiArray, String
from std_srvs.srv import Trigger

from spc_core.contract import Contract
from spc_core.episode import EpisodeInfo
from spc_core.frames import Frame, ObservationAssembler
from spc_core.planner_config import PlannerConfig
from spc_core.runtime import Policy
from spc_core.safety import SafetyFilter
from spc_ros.context_encoder_node import CHECKPOINT_PARAMS, load_agent
from spc_ros.managed_node import ManagedNode, run
from spc_ros.plain_node import Param, steady_timer
from spc_ros.topic_bridge import (
    CONTEXT_TOPIC,
    EPISODE_TOPIC,
    CommandPublisher,
    EpisodeEnd,
    StreamClock,
    decode_context,
    latched_qos,
    subscribe_contract,
)

STOP_TOPIC = "emergency_stop"
PARAMS = [
    *CHECKPOINT_PARAMS,
    Param("context_wait_s", 0.0, "longest wait for the context of the same tick; 0: take the newest", 0.0, 60.0),
    Param(
        "silence_timeout_s",
        0.0,
        "safe action after so long without observation; 0: from the contract",
        0.0,
        60.0,
    ),
    Param("min_subscriptions", 1, "subscribers of the command topic to wait for at the start", 0, 100),
    Param("planning", False, "plan with the world model instead of asking the actor", read_only=True),
    Param(
        "planning_samples",
        PlannerConfig.samples,
        "sequences drawn in each round; fewer are faster",
        0,
        100_000,
        read_only=True,
    ),
    Param(
        "planning_deadline_ms",
        0.0,
        "longest time for a plan; 0: half of the control period, in lockstep none",
        0.0,
        60_000.0,
        read_only=True,
    ),
]
CHECK_S = 0.005
ACK_TIMEOUT = Duration(seconds=0.2)


class PolicyNode(ManagedNode):
    """Service ~/report gives the counts of the safety chain's interventions as JSON."""

    def __init__(self) -> None:
        super().__init__("policy", PARAMS)
        self._policy: Policy | None = None
        self._z_ns = 0
        self._frame: Frame | None = None  # waits for its context, or for the first connections
        self._frame_s = self._heard_s = 0.0
        self._last_ns = 0  # the last frame's time
        self._silent = True  # the safe action for this silence was sent
        self._connected = False
        self._stopped = False

    def setup(self) -> None:
        checkpoint = load_agent(self.params)
        contract, lockstep = checkpoint.contract, self.params.lockstep
        self._z = np.zeros(checkpoint.config.model.context_dim, np.float32)
        self._filter = SafetyFilter(contract)
        planning = planner_config(self.params, contract)
        Policy(checkpoint, planning).act(np.zeros(contract.observation_dim), self._z)  # warm up
        silence_s = contract.observation[0].max_age_s + 2 / contract.rate_hz
        self._silence_s = self.params.silence_timeout_s or silence_s
        self._gap_ns = 2 * contract.period_ns
        self._assembler = ObservationAssembler(contract, patience_ns=contract.period_ns // 4)
        self._clock_of_streams = None if lockstep else StreamClock(self._assembler)
        self._end = EpisodeEnd(self._assembler)
        self._commands = CommandPublisher(self, contract, lockstep)
        self.create_service(Trigger, "~/report", self._on_report)
        self.create_subscription(String, EPISODE_TOPIC, self._on_episode, latched_qos(depth=10))
        self.create_subscription(Float32MultiArray, CONTEXT_TOPIC, self._on_context, latched_qos(depth=10))
        self.create_subscription(Bool, STOP_TOPIC, self._on_stop, 10)
        subscribe_contract(self, contract, self._assembler, self._on_frames, lockstep, self.diagnostics.complain)
        steady_timer(self, CHECK_S, self._check)
        self._policy = Policy(checkpoint, planning)

    def teardown(self) -> None:
        self._policy = None

    def start(self) -> None:
        self._assembler.reset()
        self._begin_sequence()
        self._frame, self._silent = None, True

    def make_safe(self) -> None:
        self._frame = None
        self._send(None, "the policy is being closed", self._last_ns)
        self._commands.publisher.wait_for_all_acked(ACK_TIMEOUT)

    def diagnose(self) -> dict[str, Any]:
        if self._policy is None:
            return {}
        planner = self._policy.planner
        values = {**self._filter.counts, "last intervention": self._filter.last_reason}
        if planner is not None:
            values |= {"plans": planner.plans, "plans cut short": planner.cut_short, "plans too late": planner.late}
        return values

    def _begin_sequence(self) -> None:
        """What comes next does not follow from what was: an episode, or the end of a gap."""
        self._filter.reset()
        if self._policy is not None:
            self._policy.reset()

    def _on_frames(self, frames: list[Frame]) -> None:
        if not self.active:
            return
        self._heard_s, self._silent = time.monotonic(), False
        frame = frames[-1]
        if any(f.fault for f in frames) or frame.t_ns - self._last_ns > self._gap_ns:
            self._begin_sequence()
        self._last_ns = frame.t_ns
        if frame.observation is None:
            self._frame, self._silent = None, True
            self._send(None, frame.fault, frame.t_ns)
        else:
            self._frame, self._frame_s = frame, self._heard_s
            self._act()
        self._end.decided(frame.t_ns)

    def _act(self) -> None:
        """Answer the waiting frame, if nothing that it waits for is still to come."""
        frame, wait_s = self._frame, self.params.context_wait_s
        if frame is None or frame.observation is None or self._policy is None or not self._is_connected():
            return
        if self._z_ns < frame.t_ns and wait_s > 0:
            if time.monotonic() - self._frame_s < wait_s:
                return
            self.diagnostics.counts["context came too late"] += 1
        self._frame = None
        action = self._policy.act(frame.observation, self._z)
        self._send(action, "emergency stop" if self._stopped else None, frame.t_ns)
        self.diagnostics.counts["commands"] += 1

    def _send(self, action: np.ndarray | None, fault: str | None, t_ns: int) -> None:
        self._commands.send(self._filter.apply(action, fault), t_ns)

    def _is_connected(self) -> bool:
        """In lock-step, the first command waits until all who need it would get it."""
        if not self._connected:
            found = self._commands.publisher.get_subscription_count()
            self._connected = found >= self.params.min_subscriptions
            self._frame_s = time.monotonic()
        return self._connected

    def _check(self) -> None:
        """By a steady clock: waits that ended without news, and silence where observations should be."""
        if not self.active:
            return
        if self._clock_of_streams is not None and (frames := self._clock_of_streams.frames()):
            self._on_frames(frames)
        self._act()
        answered = self._frame is None
        if answered and not self._silent and time.monotonic() - self._heard_s > self._silence_s:
            self._silent = True
            self._begin_sequence()
            self._send(None, f"no observation for {self._silence_s:.3f} s", self._last_ns)
            self.diagnostics.counts["silences"] += 1

    def _on_context(self, msg: Float32MultiArray) -> None:
        try:
            reading = decode_context(msg)
            context = reading.context
            if context.shape != self._z.shape or not np.isfinite(context).all():
                raise ValueError(f"topic '{CONTEXT_TOPIC}': {context.size} numbers, not {self._z.size} finite ones")
        except ValueError as error:
            self.diagnostics.complain("unreadable", str(error))
            return
        self._z, self._z_ns = context, reading.t_ns
        if self.active:
            self._act()

    def _on_episode(self, msg: String) -> None:
        info = EpisodeInfo.from_json(msg.data)
        if info.state == "ended":
            self._end.ended(info.end_ns)

    def _on_stop(self, msg: Bool) -> None:
        self._stopped = msg.data
        if self._stopped and self.active:
            self._frame = None
            self._send(None, "emergency stop", self._last_ns)

    def _on_report(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = True
        response.message = json.dumps({**self._filter.counts, **self.diagnostics.counts})
        return response


def planner_config(params: Any, contract: Contract) -> PlannerConfig | None:
    """How the parameters ask to plan; None: not at all."""
    if not params.planning:
        return None
    in_time_ms = 0.0 if params.lockstep else 500 / contract.rate_hz
    samples = params.planning_samples
    return PlannerConfig(
        samples=samples,
        elites=max(1, samples * PlannerConfig.elites // PlannerConfig.samples),  # the same share of them
        deadline_ms=params.planning_deadline_ms or in_time_ms,
    )


def main() -> int:
    return run(PolicyNode)


if __name__ == "__main__":
    raise SystemExit(main())
