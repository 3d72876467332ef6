# SPDX-License-Identifier: Apache-2.0
"""Node `sim`: simulates a task family or any model on the contract's topics, in lock-step or in real time."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import numpy as np
from rcl_interfaces.msg import SetParametersResult
from rclpy.duration import Duration
from rclpy.parameter import Parameter
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from spc_ros.messages.fields import FieldReader, message_class, stamp_ns
from spc_ros.node_parts.contract_topics import StatePublishers
from spc_ros.node_parts.diagnostics import steady_timer
from spc_ros.node_parts.plain_node import PlainNode, run
from spc_ros.node_parts.sim_parts import (
    PARAMS,
    SimCamera,
    TaskChange,
    check_value,
    disturbance_config,
    next_task,
    offer_simulation_interfaces,
)
from spc_ros.node_parts.topics import EPISODE_TOPIC, latched_qos, stream_qos
from spc_ros.sim.control import PlayState, Steps
from spc_ros.sim.joined_action import JoinedAction
from spc_ros.sim.simulation import RealTimeFactor, State, make_simulation

ACK_SLICE = Duration(seconds=0.02)  # blocks the executor
ACK_TIMEOUT_S = 4.0  # longer than the 3 s after which Fast DDS resends to a new subscriber
HOUSEKEEPING_S = 0.02
STALE_PERIODS = 2


class SimNode(PlainNode):
    """Services: ~/reset starts an episode, ~/pause pauses it, ~/step advances a paused one by one step.

    ~/change changes the task within an episode.
    """

    def __init__(self) -> None:
        super().__init__("sim", PARAMS)
        self.sim = make_simulation(self.params)
        contract = self.sim.contract
        for name in ("noise", "task_id", "change_task_id"):  # the initial values
            check_value(self.params, self.sim.fields, name, getattr(self.params, name))
        self.add_on_set_parameters_callback(self._check_parameters)
        self.lockstep = self.params.mode == "lockstep"
        self.out = StatePublishers(self, contract, self.lockstep, self.sim.env.latched_topics)
        self.episode = self.create_publisher(String, EPISODE_TOPIC, latched_qos())
        parts = contract.action.parts
        self._readers = [FieldReader(part.type, part.fields, part.topic, part.point) for part in parts]
        self._joined = JoinedAction(contract, self.lockstep, STALE_PERIODS * contract.period_ns / 1e9)
        self._commands = [
            self.create_subscription(
                message_class(part.type), part.topic, functools.partial(self._on_command, i), stream_qos(self.lockstep)
            )
            for i, part in enumerate(parts)
        ]
        self._safe = np.asarray(contract.action.safe)
        self._last_action = self._safe  # the last command that arrived
        self._factor = RealTimeFactor(contract.period_ns / 1e9, time.monotonic())
        self._command: np.ndarray | None = None  # lock-step: held while paused; real time: the last one
        self._command_at_s = self._since_s = time.monotonic()
        self._first: State | None = None  # the first state, until all nodes know of the episode
        self._announced = True
        self._paused = False
        self._stopped = False  # on request: no automatic episodes
        self._steps: Steps | None = None  # in progress while paused
        self._camera = SimCamera(self, self.params, self.sim, self.diagnostics)
        self._change = TaskChange(self, self.sim, self._announce)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_service(SetBool, "~/pause", self._on_pause)
        self.create_service(Trigger, "~/step", self._on_step)
        self._interfaces = offer_simulation_interfaces(self, self)
        steady_timer(self, HOUSEKEEPING_S, self._housekeeping)
        if not self.lockstep:
            steady_timer(self, contract.period_ns / 1e9, self._on_period)
        self._announce()

    def diagnose(self) -> dict[str, Any]:
        info = self.sim.info
        return {
            "state": info.state,
            "episode": info.episode,
            "task": info.task_id,
            "sim_time_s": self.sim.t_ns / 1e9,
            "real_time_factor": round(self._factor.value(time.monotonic()), 3),
            **self.sim.disturbances.counts,
        }

    def close(self) -> None:
        self._end("the simulation was stopped", truncated=True)
        self._camera.close()
        self.episode.wait_for_all_acked(ACK_SLICE)

    def reset(self, seed: int) -> None:
        """End a running episode as truncated and start the next one."""
        self._end("reset", truncated=True)
        self._change.begin()
        task = next_task(self.params, self.sim.env)
        self._first, self._command = self.sim.reset(task, seed, disturbance_config(self.params)), None
        self.out.counts.clear()
        self._joined.begin()
        self._last_action = self._safe
        self._since_s, self._announced, self._stopped = time.monotonic(), False, False
        self._camera.start()
        self._release_first()

    def _release_first(self) -> None:
        """Announce the episode, then publish its first state, or give up at a deadline."""
        if self._first is None:
            return
        waited_s = time.monotonic() - self._since_s
        if not self._announced:
            missing = self._missing()
            if missing:
                if waited_s > self.params.connect_timeout_s:
                    self._first = None
                    self._end(f"no {' and no '.join(missing)} within {self.params.connect_timeout_s:g} s")
                return
            self._announce()
            self._since_s, self._announced, waited_s = time.monotonic(), True, 0.0
        if self.episode.wait_for_all_acked(ACK_SLICE) or waited_s > ACK_TIMEOUT_S:
            state, self._first = self._first, None
            self._since_s = time.monotonic()
            self._camera.publish_image(state.t_ns)
            self.out.publish(state.t_ns, state.observation, state.reward, (), state.resting)

    def _missing(self) -> list[str]:
        """Nodes that would miss the start because they are not connected yet; none in real time."""
        if not self.lockstep:
            return []
        missing = []
        missing += [f"publisher of {each.topic_name}" for each in self._commands if not each.get_publisher_count()]
        found, wanted = self.out.first_stream.get_subscription_count(), self.params.min_subscriptions
        if found < wanted:
            missing.append(f"{wanted} subscribers of {self.out.first_stream.topic_name} (only {found})")
        return missing

    def _advance(self, action: np.ndarray) -> None:
        """Step, publish the state, and announce the end of the episode if it was reached."""
        if self.lockstep:
            self._command = None
            self.out.counts.update(each.topic_name for each in self._commands)  # answered, so a recording must hold it
        self._last_action = action
        while self._step(action) and self.lockstep:  # a lost state gets no command, so step again
            pass
        self._since_s = time.monotonic()
        if self._steps is not None and self._steps.step():
            self._steps = None
        if not self.sim.running:
            self._announce()

    def _step(self, action: np.ndarray) -> bool:
        """Step and publish the state; return whether all of it was lost. The last one of an episode never is."""
        state = self.sim.step(action)
        if self._change.step() and self.lockstep:  # all nodes must know of it before they get the state
            self._first, self._since_s = state, time.monotonic()
            self._release_first()
            return False
        messages = self.out.streams
        lost: list[int] = []
        if self.sim.running and self.lockstep:
            lost = self.sim.disturbances.states_lost(1) and list(range(messages))
        elif self.sim.running:
            lost = self.sim.disturbances.states_lost(messages)
        self._camera.publish_image(state.t_ns)
        self.out.publish(state.t_ns, state.observation, state.reward, lost, state.resting)
        self._factor.step(time.monotonic())
        return len(lost) == messages

    def _end(self, reason: str, truncated: bool = False) -> None:
        if self.sim.running:
            self.sim.end(reason, truncated=truncated)
            self._announce()

    def _announce(self) -> None:
        info = self.sim.info
        if info.state == "ended":
            self._give_up_steps(f"the episode ended: {info.reason}")
            info = dataclasses.replace(info, published=dict(self.out.counts))
            if not (info.terminated or info.truncated):
                self.get_logger().error(f"episode {info.episode} ended: {info.reason}; {dict(self.diagnostics.counts)}")
            self._camera.save_film()
        self.episode.publish(String(data=info.to_json()))

    def _on_command(self, part: int, msg: Any) -> None:
        values = self._readers[part].read(msg)
        refusal = self.sim.refusal(stamp_ns(msg) if self.lockstep else None, values)
        if refusal or self._first is not None:
            self.diagnostics.counts[refusal or "command before the first state"] += 1
            return
        action = self._joined.add(part, values, time.monotonic())
        if action is None:
            return
        if self.sim.disturbances.command_lost():
            if not self.lockstep:
                return
            action = self._last_action
        if self.lockstep and self._may_advance:
            self._advance(action)
        else:
            self._command, self._command_at_s = action, time.monotonic()

    def _on_period(self) -> None:
        """Real time: hold the last command for at most two periods."""
        if not self.sim.running or self._first is not None or not self._may_advance:
            return
        age_s = time.monotonic() - self._command_at_s
        if self._command is None or age_s > STALE_PERIODS * self.sim.contract.period_ns / 1e9:
            self.diagnostics.counts["no fresh command"] += 1
            self._advance(self._safe)
        else:
            self._advance(self._command)

    def _housekeeping(self) -> None:
        if self.sim.running:
            self._release_first()
            timeout_s = self.params.command_timeout_s
            waiting = self.lockstep and self._first is None and self._may_advance
            if waiting and time.monotonic() - self._since_s > timeout_s:
                reason = f"no command within {timeout_s:g} s"
                if self._paused:
                    self._give_up_steps(reason)
                else:
                    self._end(reason)
        elif self.params.auto_reset and not self._stopped:
            self.reset(self.params.seed + self.sim.info.episode)

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            self.reset(self.params.seed)
        except ValueError as error:
            response.success, response.message = False, str(error)
        else:
            response.success, response.message = True, self.sim.info.to_json()
        return response

    @property
    def _may_advance(self) -> bool:
        """Whether simulated time may advance."""
        return not self._paused or self._steps is not None

    @property
    def play_state(self) -> PlayState:
        """See Player, also for the next five methods."""
        if self.sim.running:
            return PlayState.PAUSED if self._paused else PlayState.PLAYING
        return PlayState.PLAYING if self.params.auto_reset and not self._stopped else PlayState.STOPPED

    def play_episode(self, paused: bool | None) -> None:
        self.reset(self.params.seed)
        self._paused = self._paused if paused is None else paused

    def pause(self, paused: bool) -> None:
        self._give_up_steps("play and pause were changed")
        self._paused, self._since_s = paused, time.monotonic()
        if not paused and self.lockstep and self._command is not None:
            self._advance(self._command)

    def stop(self) -> None:
        self._end("stopped", truncated=True)
        self._paused, self._first, self._stopped = False, None, True

    def quit(self) -> None:
        self.exit_code = 0

    def step_paused(self, steps: Steps) -> None:
        if self._steps is not None:
            raise ValueError("steps are under way already; wait for their end")
        self._steps, self._since_s = steps, time.monotonic()
        if self.lockstep and self._command is not None:
            self._advance(self._command)

    def _give_up_steps(self, reason: str) -> None:
        steps, self._steps = self._steps, None
        if steps is not None:
            steps.give_up(reason)

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self.pause(request.data)
        response.success, response.message = True, "paused" if self._paused else "running"
        return response

    def _on_step(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        ready = self._paused and self.sim.running and self._first is None and self._steps is None
        if not ready or (self.lockstep and self._command is None):
            why = "no command for this state yet" if ready else "pause a running episode first"
            response.success, response.message = False, why
        else:
            self._advance(self._safe if self._command is None else self._command)
            response.success, response.message = True, self.sim.info.to_json()
        return response

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        try:
            for parameter in parameters:
                check_value(self.params, self.sim.fields, parameter.name, parameter.value)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)


def main() -> int:
    return run(SimNode)


if __name__ == "__main__":
    raise SystemExit(main())
