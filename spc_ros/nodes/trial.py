# SPDX-License-Identifier: Apache-2.0
"""Node `trial`: runs a few-shot trial on sim, context_encoder, policy and recorder, and scores it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from std_msgs.msg import Float32MultiArray, Float64, String
from std_srvs.srv import SetBool, Trigger

from spc_core.alignment import PATIENCE_NS
from spc_core.alignment.episode import EpisodeInfo
from spc_core.alignment.faults import FaultKind
from spc_core.alignment.live import EpisodeEnd
from spc_core.alignment.streaming import Step, StreamingAligner, Transition
from spc_core.contract.contract import load_contract
from spc_core.deploy.latency_bins import latency_counts
from spc_core.deploy.safety import InterventionKind
from spc_core.tasks import contract_file, find_task, make_env
from spc_core.trials.control import Answer, TrialControl
from spc_core.trials.drift import DriftLog
from spc_core.trials.log import TrialLog
from spc_core.trials.options import TrialOptions, make_plan, make_trial
from spc_core.trials.protocol import (
    BASELINE,
    TRAJECTORY_COUNTS,
    EpisodeRequest,
    EpisodeResult,
    Outcome,
    TrialError,
    arrange_context,
)
from spc_ros.node_parts.context_message import ContextReading, decode_context
from spc_ros.node_parts.contract_topics import ContractTopics
from spc_ros.node_parts.drift_script import OFF as DRIFT_OFF
from spc_ros.node_parts.drift_script import PROTOCOL as DRIFT_PROTOCOL
from spc_ros.node_parts.drift_script import DriftScript, Played
from spc_ros.node_parts.episode_driver import DRIVER_PARAMS, DriverError, DriverNode, EpisodeBroken
from spc_ros.node_parts.plain_node import Param, params_of, run
from spc_ros.node_parts.robot_episodes import RobotEpisodes
from spc_ros.node_parts.stop_topics import StopTopics
from spc_ros.node_parts.topics import CONTEXT_TOPIC, LOCKSTEP_DEPTH, RECALLED_TOPIC, latched_qos
from spc_ros.processes import PROMPT

PARAMS = [
    *params_of(TrialOptions, exclude=DRIVER_PARAMS),
    Param(
        "lockstep", True, "simulated time waits for the commands: reliable QoS; false: sensor data QoS", read_only=True
    ),
]
COUNTED = (  # counters of policy/report to store in the results
    *(kind.value for kind in InterventionKind if kind not in (InterventionKind.ROLLBACK, InterventionKind.CLOSED)),
    *("context came too late", "silences"),  # counters of the controller other than interventions
)
ROBOT_SETTLE_S = 3.0  # longest wait for a robot's last messages; a tick without a command expires after 1 s
RETURN_TOPIC = "trial/return"  # return of the running episode so far
NO_TRANSITION_NS = 5_000_000_000  # after which a robot's episode breaks off
REMIND_S = 30.0  # between prompts, which also show that the trial is alive


class TrialNode(DriverNode):
    """Scores the transitions that it receives on the topics, through the same aligner as the other nodes.

    Services: ~/pause, ~/resume, ~/abort, for an operator ~/continue and ~/success; without a sim also ~/stop.
    """

    def __init__(self) -> None:
        super().__init__("trial", PARAMS)
        p = self.params
        contract = load_contract(contract_file(p.contract, p.family))
        self.log = TrialLog(p.out)
        self.control = TrialControl(p.operator, lambda: self._robot.problem if self._robot else "")
        try:
            options = TrialOptions.of(p)
            self.trial = make_trial(options)
            done = self.log.open(self.trial, make_plan(options, self.trial), p.record)
        except TrialError as error:
            raise ValueError(error) from None
        if done:
            self.get_logger().info(f"resuming in {p.out}: {done} episodes are done")
        self._env = make_env(p.family) if p.sim else None  # judges success
        self._aligner = StreamingAligner(contract, PATIENCE_NS)
        self._end = EpisodeEnd(self._aligner)
        self._seen: list[Transition] = []
        self._about = ""  # the episode that runs or comes next
        self._cut = ""  # the reason of the last tick without a transition
        self._return = 0.0  # for display; the score is computed from the transitions
        self._returns = self.create_publisher(Float64, RETURN_TOPIC, 10)
        self._tick_ns = 0
        self._reading = ContextReading(np.zeros(0, np.float32), None, 0, -1)
        self._trajectory: dict[int, list[float]] = {}
        self._contexts: dict[int, np.ndarray] = {}  # of the running episode, by tick
        self._recalled: dict[str, Any] = {}
        self._robot = None if p.sim else RobotEpisodes(self, self._newest_ns)
        self.driven = self.driven if p.sim else "the robot"
        self._drift = DriftScript(self._play_drift, DriftLog(p.out), contract.period_ns)
        self._serve()
        self.create_subscription(String, RECALLED_TOPIC, self._on_recalled, latched_qos(depth=10))
        deep = latched_qos(depth=LOCKSTEP_DEPTH)  # the sim does not wait for the trial, which needs every context
        self.create_subscription(Float32MultiArray, CONTEXT_TOPIC, self._on_context, deep)
        self._stops = StopTopics(self, self._on_stop)
        self._topics = ContractTopics(
            self, contract, self._aligner, self._on_steps, p.lockstep, self.diagnostics.warn_once
        )

    def drive(self) -> None:
        self.wait_for(lambda: self._episode is not None, self.params.service_timeout_s, "nothing on the topic episode")
        if self._robot is not None:
            self._robot.prepare_policy()
        try:
            for request in self.trial.requests():
                result = self.trial.record(request, self._run(request))
                self.log.append(result)
                self._report_row(result)
        except TrialError as error:
            raise DriverError(str(error)) from None
        drifting = self.trial.tasks[: self.params.drift_tasks]
        if len(drifting) > 1:
            for text in self._drift.run(drifting, self.params.seed):
                self.report(self._scored(), len(self.trial), text)
            self.set_on("sim", DRIFT_OFF)
            self.set_on("context_encoder", {"detect_changes": True})

    def check(self) -> None:
        if self.control.aborted:
            raise DriverError("aborted on request; run it again with the same options to resume")

    def diagnose(self) -> dict[str, object]:
        return {
            "phase": self.control.phase,
            "waits_for": self.control.waits_for,
            "episode": self._about,
            "episodes_done": self._scored(),
            "episodes": len(self.trial),
            "last_return": self.trial.results[-1].return_ if self.trial.results else "",
        }

    def _run(self, request: EpisodeRequest) -> Outcome:
        seen, info, bag, seconds, counts = self._play(request)
        reading, online = self._reading, request.mode == "online"
        return Outcome(
            sum(t.reward for t in seen), len(seen), reading.context.tolist(), reading.count, info.reason, bag, seconds,
            {kind: counts[kind] for kind in COUNTED if counts[kind] > 0},
            () if reading.uncertainty is None else reading.uncertainty.tolist(),
            self._success(request, info, seen), self.control.invalid_reason,
            sorted(self._trajectory.items()) if online else (),
            latency_counts(counts),
        )  # fmt: skip

    def _play(self, request: EpisodeRequest) -> tuple[list[Transition], EpisodeInfo, str, float, Counter[str]]:
        """Run one episode; return its transitions, end, bag, duration in seconds, and counters of the policy.

        The counters exclude the time spent waiting for an operator.
        """
        self._about = f"{request.task.task_id} {_who(request)} {request.episode}"
        self._wait_until_ready(request)
        arrange_context(request, self)
        before = Counter(json.loads(self.trigger("policy/report")))
        self._seen, self._cut, self._trajectory, self._contexts, self._return = [], "", {}, {}, 0.0
        self.control.begin()
        began_s = time.monotonic()
        try:
            info = self._run_episode(request)
        except EpisodeBroken as error:
            self.get_logger().error(f"{error}; the episode will be repeated")
            self.control.invalid_reason = self.control.invalid_reason or str(error)
            info = self._episode
            assert info is not None
        seconds = time.monotonic() - began_s
        self._settle(info)
        seen = [t for t in self._seen if t.t_ns >= info.start_ns]  # drop those of earlier episodes
        if not seen and not self.control.invalid_reason:
            self.control.invalid_reason = self._no_transition()
        counts = Counter(json.loads(self.trigger("policy/report")))
        counts.subtract(before)
        if counts[InterventionKind.EMERGENCY_STOP.value] and not self.control.invalid_reason:
            self.control.invalid_reason = "the policy was stopped by an emergency stop"
        bag = self.wait_for_bag(info.episode) if self.params.record and not self.control.invalid_reason else ""
        self.control.end(judged=request.mode != "collect" and request.protocol != DRIFT_PROTOCOL)
        return seen, info, bag, seconds, counts

    def _play_drift(self, request: EpisodeRequest, sim: Mapping[str, Any], detect: bool) -> Played:
        self.set_on("sim", sim)
        self.set_on("context_encoder", {"detect_changes": detect})
        seen, info, bag, *_ = self._play(request)
        return Played(seen, dict(self._contexts), info.end_ns, bag, self.control.invalid_reason)

    def reset_context(self) -> None:
        self.trigger("context_encoder/reset")

    def set_context_mode(self, mode: str, limit: int | None) -> None:
        self.set_on("context_encoder", {"mode": mode, "limit": limit or 0})

    def load_context(self, task_id: str) -> None:
        """Have the encoder compute its context from recordings, and wait for it."""
        self.set_on("context_encoder", {"recordings": self.params.recordings, "recordings_task": task_id})
        number = json.loads(self.trigger("context_encoder/recall"))["request"]
        timeout_s = self.params.service_timeout_s
        self.wait_for(lambda: self._recalled.get("request") == number, timeout_s, "no report on the recordings")
        if problem := self._recalled["problem"]:
            raise DriverError(f"context from recordings of {task_id}: {problem}")

    def _run_episode(self, request: EpisodeRequest) -> EpisodeInfo:
        task_id, seed = request.task.task_id, request.seed
        if self._robot is None:
            return self.run_episode(task_id, seed)
        return self._robot.run(task_id, seed, lambda: self.control.invalid_reason, request.protocol != BASELINE)

    def _no_transition(self) -> str:
        return f"no transition: {self._cut or self._topics.missing(time.monotonic()) or 'no tick'}"

    def _newest_ns(self) -> int:
        return self._aligner.observations.streams[0].newest_ns

    def _wait_until_ready(self, request: EpisodeRequest) -> None:
        """Wait until no episode is running and the operator permits the next one."""
        self.wait_for(lambda: self._episode is not None and self._episode.state != "running", None, "")
        self._wait_for_people("between", f"next: {self._about}")

    def _wait_for_people(self, phase: str, about: str) -> None:
        """Wait until the operator has done everything that this phase needs."""
        while (asked := self.control.waits_for) and self.control.phase == phase:
            print(f"{PROMPT}{asked} ({about})", flush=True)
            self.report(self._scored(), len(self.trial), f"{PROMPT}{asked} ({about})")
            remind_s = time.monotonic() + REMIND_S
            self.wait_for(lambda: self.control.waits_for != asked or time.monotonic() > remind_s, None, "")  # noqa: B023
            self._alive_s = (
                self._alive_s if self._robot is None else time.monotonic()
            )  # a robot may be switched off meanwhile

    def _settle(self, info: EpisodeInfo) -> None:
        """Wait for the messages of the last tick, which an aborted episode may lack."""
        if not (info.terminated or info.truncated):
            return
        timeout_s = self.params.service_timeout_s
        late_s = (
            float("inf") if self._robot is None else time.monotonic() + ROBOT_SETTLE_S
        )  # it may be switched off by now

        def reached(tick_ns: int) -> bool:
            return tick_ns >= info.end_ns or time.monotonic() > late_s

        self.wait_for(lambda: reached(self._tick_ns), timeout_s, "the episode's last state was not seen")
        self.wait_for(lambda: reached(self._reading.t_ns), timeout_s, "no context of the episode's last tick")

    def _success(self, request: EpisodeRequest, info: EpisodeInfo, seen: list[Transition]) -> bool | None:
        """Success as judged by the operator, or else by the task family."""
        self._wait_for_people("verdict", f"{info.task_id}: {info.reason}")
        if self.control.success is not None or self.control.invalid_reason or not seen or self._env is None:
            return self.control.success
        self._env.set_task(find_task(request.task.task_id))
        return self._env.success(seen[-1].observation, seen[-1].next_observation)

    def _report_row(self, result: EpisodeResult) -> None:
        name = f"{result.task_id} {result.protocol}" + (f" k={result.k}" if result.block[1] == "few_shot" else "")
        outcome = f"aborted: {result.aborted}" if result.aborted else f"return {result.return_:.2f}"
        self.report(self._scored(), len(self.trial), f"{name} {outcome}")

    def _scored(self) -> int:
        return sum(row.scored for row in self.trial.results)

    def _serve(self) -> None:
        plain = {
            "pause": self.control.pause,
            "resume": self.control.resume,
            "abort": self.control.abort,
            "continue": self.control.ready,
        }
        for name, act in plain.items():
            self.create_service(Trigger, f"~/{name}", lambda _, response, act=act: self._answer(response, act))
        self.create_service(SetBool, "~/success", self._on_success)

    def _on_success(self, asked: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        return self._answer(response, lambda: self.control.judge(asked.data))

    def _answer(self, response: Trigger.Response | SetBool.Response, act: Callable[[], Answer]) -> Any:
        with self._condition:
            response.success, response.message = act()
            self._condition.notify_all()
        return response

    def _on_stop(self, pressed: bool) -> None:
        with self._condition:
            self.control.emergency_stop(self._stops.stop.pressed)
            self._condition.notify_all()

    def _on_steps(self, steps: list[Step]) -> None:
        for step in steps:
            if step.cut is not None and step.cut.kind is not FaultKind.START:
                self._cut = step.cut.summary
            if step.transition is not None:
                self._seen.append(step.transition)
                self._return += step.transition.reward
                self._returns.publish(Float64(data=self._return))
        self._tick_ns = steps[-1].t_ns
        if self._robot is not None:
            self._alive_s = time.monotonic()
            self._robot.received()
            self._break_off_without_transitions()
        self._end.decided(self._tick_ns)
        self._notify_at_end()

    def _break_off_without_transitions(self) -> None:
        """An episode that cannot be scored must not wait for its time limit."""
        info = self._episode
        if self.control.phase != "episode" or info is None or info.state != "running" or self.control.invalid_reason:
            return
        seen = self._seen[-1].t_ns if self._seen else info.start_ns
        if self._tick_ns - max(seen, info.start_ns) > NO_TRANSITION_NS:
            self.control.invalid_reason = self._no_transition()

    def _on_context(self, msg: Float32MultiArray) -> None:
        self._reading = reading = decode_context(msg)
        if reading.count in TRAJECTORY_COUNTS:
            self._trajectory[reading.count] = reading.context.tolist()
        self._contexts[reading.t_ns] = reading.context
        self._notify_at_end()

    def _on_recalled(self, msg: String) -> None:
        self._recalled = json.loads(msg.data)
        self._notify()

    def _on_episode(self, msg: String) -> None:
        super()._on_episode(msg)
        if self._episode is not None and self._episode.state == "ended":
            self._end.ended(self._episode.end_ns)

    def _notify_at_end(self) -> None:
        """Wake the script if it may be waiting for the last tick."""
        if self._episode is not None and self._episode.state == "ended":
            self._notify()


def _who(request: EpisodeRequest) -> str:
    return "baseline, with the robot's own controller" if request.protocol == BASELINE else request.protocol


def main() -> int:
    return run(TrialNode)


if __name__ == "__main__":
    raise SystemExit(main())
