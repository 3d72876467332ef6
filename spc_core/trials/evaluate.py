# SPDX-License-Identifier: Apache-2.0
"""Trials in this process, without ROS."""

from __future__ import annotations

from collections.abc import Callable

from spc_core.deploy.checkpoint import Checkpoint
from spc_core.deploy.context_tracker import ContextTracker
from spc_core.deploy.deployable import Policy
from spc_core.method.planner import PlannerConfig
from spc_core.trials.lanes import LANES, LaneDriver
from spc_core.trials.protocol import (
    BASELINE,
    EpisodeRequest,
    EpisodeResult,
    Outcome,
    Trial,
    TrialError,
)
from spc_core.trials.simulated_robot import Recordings, SimulatedRobot


class InProcessDriver:
    """Runs episodes in MuJoCo one after the other, with the same tracker, policy and safety filter as the nodes."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        family: str,
        planning: PlannerConfig | None = None,
        offline_transitions: Recordings | None = None,
    ) -> None:
        """`planning`: settings of the planner; None: act by the actor network.

        `offline_transitions`: recordings of a task by its id; default: simulated behaviour data.
        """
        self.policy, self.tracker = Policy(checkpoint, planning), ContextTracker(checkpoint)
        self.robot = SimulatedRobot(checkpoint, family, self.tracker, offline_transitions)

    def run(self, request: EpisodeRequest) -> Outcome:
        """Run one episode; the tracker carries the context from one request to the next."""
        robot = self.robot
        self.policy.reset()
        robot.begin(request)
        while not robot.ended:
            action = self.policy.act(robot.observation, self.tracker.context)
            self.tracker.update(robot.step(robot.safety.apply(action)))
        return robot.outcome()


def run_in_process(
    checkpoint: Checkpoint,
    trial: Trial,
    family: str,
    progress: Callable[[int, int, str], None] | None = None,
    planning: PlannerConfig | None = None,
    offline_transitions: Recordings | None = None,
    one_by_one: bool = False,
) -> list[EpisodeResult]:
    """Run a trial in this process; `progress` is called with scored episodes done, their total, and the latest.

    Many robots act side by side, with the same rows in the same order as one alone, which is used where planning, on a
    GPU, or with `one_by_one`.
    """
    if BASELINE in trial.protocols:
        raise TrialError("the protocol baseline needs a robot with a controller of its own: use `spc trial --no-sim`")
    done = 0

    def show(result: EpisodeResult) -> None:
        nonlocal done
        done += result.scored
        if progress is not None:
            progress(done, len(trial), f"{result.task_id} {result.protocol}")

    if planning is None and checkpoint.device.type == "cpu" and not one_by_one:
        lanes = max(1, min(LANES, len(trial.blocks())))
        before = len(trial.results)
        trial.results[before:] = LaneDriver(checkpoint, family, offline_transitions, lanes).run(trial, show)
        return trial.results
    driver = InProcessDriver(checkpoint, family, planning, offline_transitions)
    for request in trial.requests():
        show(trial.record(request, driver.run(request)))
    return trial.results
