# SPDX-License-Identifier: Apache-2.0
"""Node `trial`: runs a few-shot trial on sim, context_encoder, policy and recorder, and keeps the score."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from std_msgs.msg import Bool, Float32MultiArray, Float64, String
from std_srvs.srv import SetBool, Trigger

from spc_core.alignment.episode import EpisodeInfo
from spc_core.alignment.frames import Step, Transition, TransitionAssembler
from spc_core.contract import find_config, load_contract
from spc_core.deploy.adaptation import (
    LIVE_PROTOCOLS,
    TRAJECTORY_COUNTS,
    EpisodeRequest,
    EpisodeResult,
    Outcome,
    Trial,
    TrialError,
)
from spc_core.tasks import SPLITS, families, find_task, make_env, tasks
from spc_core.trials.trial_control import Answer, TrialControl
from spc_core.trials.trial_log import TrialLog
from spc_ros.nodes.driver_node import DriverError, DriverNode, EpisodeBroken
from spc_ros.nodes.managed_node import run
from spc_ros.nodes.plain_node import Param, Parameters
from spc_ros.nodes.topic_bridge import (
    CONTEXT_TOPIC,
    PATIENCE_NS,
    ContextReading,
    EpisodeEnd,
    decode_context,
    latched_qos,
    subscribe_contract,
)

PARAMS = [
    Param("family", "arm_reach", "task family", choices=families(), read_only=True),
    Param("contract", "", "contract file or name; empty: the family's", read_only=True),
    Param("splits", ["id"], f"tasks to try, any of: {', '.join(SPLITS)}", read_only=True),
    Param("task_ids", [""], "tasks to try instead of whole splits", read_only=True),
    Param("tasks_per_split", 0, "try the first so many tasks of a split; 0: all", 0, 1000, read_only=True),
    Param("protocols", list(LIVE_PROTOCOLS), f"any of: {', '.join(LIVE_PROTOCOLS)}", read_only=True),
    Param("few_shot_sizes", [100], "transitions of a few-shot context", read_only=True),
    Param("episodes", 3, "scored episodes of each task and protocol", 1, 100_000, read_only=True),
    Param("seed", 0, "seed of the first scored episode", 0, 2**30, read_only=True),
    Param("shuffle", True, "blocks of task and protocol in an order drawn with the seed", read_only=True),
    Param("operator", False, "wait for ~/continue before, and for ~/success after each episode", read_only=True),
    Param(
        "checkpoint", "", "which checkpoint this is, for the record: a resumed trial must name the same", read_only=True
    ),
    Param("out", "trial", "folder for episodes.jsonl; one with this trial in it is gone on with", read_only=True),
    Param("record", True, "wait for a bag of each episode", read_only=True),
    Param("lockstep", True, "the simulation runs in lock-step: lose nothing; off: sensor data", read_only=True),
]


COUNTED = (  # of policy/report
    "limit", "rate", "fault", "not_finite", "context came too late", "silences", "silence", "hold", "workspace",
    "emergency stop", "foreign model", "frozen clock", "context lost",
)  # fmt: skip
STOP_TOPIC = "emergency_stop"
RETURN_TOPIC = "trial/return"  # of the running episode so far
REMIND_S = 30.0  # between two prompts, which also tell that the trial is alive


class TrialNode(DriverNode):
    """Scores by the transitions that it sees on the topics, through the same assembler as everybody else.

    Services: ~/pause, ~/resume, ~/abort, and for an operator ~/continue and ~/success.
    """

    def __init__(self) -> None:
        super().__init__("trial", PARAMS)
        p = self.params
        if "offline" in p.protocols:
            known = ", ".join(LIVE_PROTOCOLS)
            raise ValueError(f"protocol 'offline' is not offered over ROS; use `spc evaluate`, or any of: {known}")
        contract = load_contract(find_config("contracts", p.contract or p.family))
        self.trial = _trial(p)
        self.log = TrialLog(p.out)
        self.control = TrialControl(p.operator)
        try:
            kept = self.log.open(self.trial, _plan(p, self.trial, contract.sha256), p.record)
        except TrialError as error:
            raise ValueError(error) from None
        if kept:
            self.get_logger().info(f"going on in {p.out}: {kept} episodes are done")
        self._env = make_env(p.family)
        self._assembler = TransitionAssembler(contract, PATIENCE_NS)
        self._end = EpisodeEnd(self._assembler)
        self._seen: list[Transition] = []
        self._return = 0.0  # so far, for whoever watches; the score is summed from what was seen
        self._returns = self.create_publisher(Float64, RETURN_TOPIC, 10)
        self._tick_ns = 0
        self._reading = ContextReading(np.zeros(0, np.float32), None, 0, -1)
        self._trajectory: dict[int, list[float]] = {}
        self._serve()
        self.create_subscription(Float32MultiArray, CONTEXT_TOPIC, self._on_context, latched_qos(depth=10))
        self.create_subscription(Bool, STOP_TOPIC, self._on_stop, 10)
        subscribe_contract(self, contract, self._assembler, self._on_steps, p.lockstep, self.diagnostics.complain)

    def drive(self) -> None:
        self.wait_for(lambda: self._episode is not None, self.params.service_timeout_s, "nothing on the topic episode")
        try:
            for request in self.trial.requests():
                result = self.trial.record(request, self._run(request))
                self.log.append(result)
                self._print(result)
        except TrialError as error:
            raise DriverError(str(error)) from None

    def check(self) -> None:
        if self.control.aborted:
            raise DriverError("aborted on request; started again with the same options the trial goes on")

    def diagnose(self) -> dict[str, object]:
        done = sum(row.scored for row in self.trial.results)
        return {
            "phase": self.control.phase,
            "waits_for": self.control.waits_for,
            "episodes_done": done,
            "episodes": len(self.trial),
            "last_return": self.trial.results[-1].return_ if self.trial.results else "",
        }

    def _run(self, request: EpisodeRequest) -> Outcome:
        self._hold(request)
        if request.reset_context:
            self.trigger("context_encoder/reset")
        self.set_on("context_encoder", {"mode": request.mode, "limit": request.limit or 0})
        before = Counter(json.loads(self.trigger("policy/report")))
        self._seen, self._trajectory, self._return = [], {}, 0.0
        self.control.begin()
        began_s = time.monotonic()
        try:
            info = self.run_episode(request.task.task_id, request.seed)
        except EpisodeBroken as error:
            self.get_logger().error(f"{error}; the episode is done again")
            self.control.spoiled = self.control.spoiled or str(error)
            info = self._episode
            assert info is not None
        seconds = time.monotonic() - began_s
        self._settle(info)
        counts = Counter(json.loads(self.trigger("policy/report")))
        counts.subtract(before)
        bag = self.wait_for_bag(info.episode) if self.params.record and not self.control.spoiled else ""
        seen = [t for t in self._seen if t.t_ns >= info.start_ns]  # of no episode before
        self.control.end(judged=request.mode != "collect")
        reading, online = self._reading, request.mode == "online"
        return Outcome(
            sum(t.reward for t in seen), len(seen), reading.context.tolist(), reading.count, info.reason, bag, seconds,
            {kind: counts[kind] for kind in COUNTED if counts[kind] > 0},
            () if reading.uncertainty is None else reading.uncertainty.tolist(),
            self._success(request, info, seen), self.control.spoiled,
            sorted(self._trajectory.items()) if online else (),
        )  # fmt: skip

    def _hold(self, request: EpisodeRequest) -> None:
        """Wait until the robot rests and nobody objects to the next episode."""
        self.wait_for(lambda: self._episode is not None and self._episode.state != "running", None, "")
        self._wait_for_people("between", f"next: {request.task.task_id} {request.protocol} {request.episode}")

    def _wait_for_people(self, phase: str, about: str) -> None:
        """Until nothing is asked of them in this phase."""
        while (asked := self.control.waits_for) and self.control.phase == phase:
            print(f"waiting for {asked} ({about})", flush=True)
            again_s = time.monotonic() + REMIND_S
            self.wait_for(lambda: self.control.waits_for != asked or time.monotonic() > again_s, None, "")  # noqa: B023

    def _settle(self, info: EpisodeInfo) -> None:
        """Wait for what belongs to the episode's last tick; of a broken one it may never come."""
        if info.terminated or info.truncated:
            timeout_s = self.params.service_timeout_s
            self.wait_for(lambda: self._tick_ns >= info.end_ns, timeout_s, "the episode's last state was not seen")
            self.wait_for(lambda: self._reading.t_ns >= info.end_ns, timeout_s, "no context of the episode's last tick")

    def _success(self, request: EpisodeRequest, info: EpisodeInfo, seen: list[Transition]) -> bool | None:
        """The operator's word, or else the family's."""
        self._wait_for_people("verdict", f"{info.task_id}: {info.reason}")
        if self.control.success is not None or self.control.spoiled or not seen:
            return self.control.success
        self._env.set_task(find_task(request.task.task_id))
        return self._env.success(seen[-1].observation, seen[-1].next_observation)

    def _print(self, result: EpisodeResult) -> None:
        scored = sum(r.scored for r in self.trial.results)
        what = f"{result.task_id} {result.protocol}" + (f" k={result.k}" if result.k else "")
        how = f"broken off: {result.aborted}" if result.aborted else f"return {result.return_:.2f}"
        print(f"progress {scored}/{len(self.trial)} {what} {how}", flush=True)

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
        with self._news:
            response.success, response.message = act()
            self._news.notify_all()
        return response

    def _on_stop(self, msg: Bool) -> None:
        with self._news:
            self.control.emergency_stop(msg.data)
            self._news.notify_all()

    def _on_steps(self, steps: list[Step]) -> None:
        for step in steps:
            if step.transition is not None:
                self._seen.append(step.transition)
                self._return += step.transition.reward
                self._returns.publish(Float64(data=self._return))
        self._tick_ns = steps[-1].t_ns
        self._end.decided(self._tick_ns)
        self._notify_at_end()

    def _on_context(self, msg: Float32MultiArray) -> None:
        self._reading = reading = decode_context(msg)
        if reading.count in TRAJECTORY_COUNTS:
            self._trajectory[reading.count] = reading.context.tolist()
        self._notify_at_end()

    def _on_episode(self, msg: String) -> None:
        super()._on_episode(msg)
        if self._episode is not None and self._episode.state == "ended":
            self._end.ended(self._episode.end_ns)

    def _notify_at_end(self) -> None:
        """Wake the script only when it may be waiting for the last tick."""
        if self._episode is not None and self._episode.state == "ended":
            self._notify()


def _trial(p: Parameters) -> Trial:
    ids, limit = [i for i in p.task_ids if i], p.tasks_per_split or None
    chosen = [find_task(i) for i in ids] or [t for s in p.splits for t in tasks(p.family, s)[:limit]]
    return Trial(chosen, p.protocols, p.episodes, p.seed, p.few_shot_sizes, p.shuffle)


def _plan(p: Parameters, trial: Trial, contract_sha256: str) -> dict[str, object]:
    """What makes it this trial and no other."""
    same = ("family", "protocols", "few_shot_sizes", "episodes", "seed", "shuffle", "record", "operator", "checkpoint")
    return {
        **{name: getattr(p, name) for name in same},
        "tasks": [task.task_id for task in trial.tasks],
        "contract_sha256": contract_sha256,
    }


def main() -> int:
    return run(TrialNode)


if __name__ == "__main__":
    raise SystemExit(main())
