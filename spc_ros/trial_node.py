# SPDX-License-Identifier: Apache-2.0
"""Node `trial`: runs a few-shot trial on sim, context_encoder, policy and recorder, and keeps the score."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
from std_msgs.msg import Float32MultiArray, String

from spc_core.adaptation import PROTOCOLS, EpisodeRequest, EpisodeResult, Outcome, Trial, TrialError
from spc_core.contract import find_config, load_contract
from spc_core.frames import Step, TransitionAssembler
from spc_core.tasks import SPLITS, families, find_task, tasks
from spc_ros.driver_node import DriverError, DriverNode
from spc_ros.managed_node import run
from spc_ros.plain_node import Param
from spc_ros.topic_bridge import (
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
    Param("protocols", list(PROTOCOLS), f"any of: {', '.join(PROTOCOLS)}", read_only=True),
    Param("few_shot_sizes", [100], "transitions of a few-shot context", read_only=True),
    Param("episodes", 3, "scored episodes of each task and protocol", 1, 100_000, read_only=True),
    Param("seed", 0, "seed of the first scored episode", 0, 2**30, read_only=True),
    Param("out", "trial", "folder for episodes.jsonl", read_only=True),
    Param("record", True, "wait for a bag of each episode", read_only=True),
    Param("lockstep", True, "the simulation runs in lock-step: lose nothing; off: sensor data", read_only=True),
]


class TrialNode(DriverNode):
    """Scores by the transitions that it sees on the topics, through the same assembler as everybody else."""

    def __init__(self) -> None:
        super().__init__("trial", PARAMS)
        p = self.params
        ids = [i for i in p.task_ids if i]
        limit = p.tasks_per_split or None
        chosen = [find_task(i) for i in ids] or [t for s in p.splits for t in tasks(p.family, s)[:limit]]
        self.trial = Trial(chosen, p.protocols, p.episodes, p.seed, p.few_shot_sizes)
        contract = load_contract(find_config("contracts", p.contract or p.family))
        self._assembler = TransitionAssembler(contract, PATIENCE_NS)
        self._end = EpisodeEnd(self._assembler)
        self._return, self._steps, self._tick_ns = 0.0, 0, 0
        self._reading = ContextReading(np.zeros(0, np.float32), None, 0, -1)
        self.create_subscription(Float32MultiArray, CONTEXT_TOPIC, self._on_context, latched_qos(depth=10))
        subscribe_contract(self, contract, self._assembler, self._on_steps, p.lockstep, self.diagnostics.complain)

    def drive(self) -> None:
        out = Path(self.params.out)
        out.mkdir(parents=True, exist_ok=True)
        with (out / "episodes.jsonl").open("w") as file:
            try:
                for request in self.trial.requests():
                    result = self.trial.record(request, self._run(request))
                    file.write(result.to_json() + "\n")
                    file.flush()
                    self._print(result)
            except TrialError as error:
                raise DriverError(str(error)) from None

    def _run(self, request: EpisodeRequest) -> Outcome:
        if request.reset_context:
            self.trigger("context_encoder/reset")
        self.set_on("context_encoder", {"mode": request.mode, "limit": request.limit or 0})
        before = Counter(json.loads(self.trigger("policy/report")))
        self._return, self._steps = 0.0, 0
        began_s = time.monotonic()
        info = self.run_episode(request.task.task_id, request.seed)
        seconds = time.monotonic() - began_s
        timeout_s = self.params.service_timeout_s
        self.wait_for(lambda: self._tick_ns >= info.end_ns, timeout_s, "the episode's last state was not seen")
        self.wait_for(lambda: self._reading.t_ns >= info.end_ns, timeout_s, "no context of the episode's last tick")
        after = Counter(json.loads(self.trigger("policy/report")))
        bag = self.wait_for_bag(info.episode) if self.params.record else ""
        reading = self._reading
        kinds = ("limit", "rate", "fault", "not_finite", "context came too late", "silences")
        interventions = {kind: after[kind] - before[kind] for kind in kinds if after[kind] > before[kind]}
        return Outcome(
            self._return, self._steps, reading.context.tolist(), reading.count, info.reason, bag, seconds,
            interventions, uncertainty=() if reading.uncertainty is None else reading.uncertainty.tolist(),
        )  # fmt: skip

    def _print(self, result: EpisodeResult) -> None:
        scored = sum(r.scored for r in self.trial.results)
        what = f"{result.task_id} {result.protocol}" + (f" k={result.k}" if result.k else "")
        print(f"progress {scored}/{len(self.trial)} {what} return {result.return_:.2f}", flush=True)

    def _on_steps(self, steps: list[Step]) -> None:
        for step in steps:
            if step.transition is not None:
                self._return += step.transition.reward
                self._steps += 1
        self._tick_ns = steps[-1].t_ns
        self._end.decided(self._tick_ns)
        self._notify_at_end()

    def _on_context(self, msg: Float32MultiArray) -> None:
        self._reading = decode_context(msg)
        self._notify_at_end()

    def _on_episode(self, msg: String) -> None:
        super()._on_episode(msg)
        if self._episode is not None and self._episode.state == "ended":
            self._end.ended(self._episode.end_ns)

    def _notify_at_end(self) -> None:
        """Wake the script only when it may be waiting for the last tick."""
        if self._episode is not None and self._episode.state == "ended":
            self._notify()


def main() -> int:
    return run(TrialNode)


if __name__ == "__main__":
    raise SystemExit(main())
