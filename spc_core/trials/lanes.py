# SPDX-License-Identifier: Apache-2.0
"""A trial in this process with many simulated robots side by side, for which policy and context encoder act at once.

Each block of a trial is played by one robot, episode after episode, as InProcessDriver plays it; blocks know nothing
of each other. Networks and trackers give each robot what they would give it alone, to the bit, so the rows are equal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from spc_core.deploy.checkpoint import Checkpoint
from spc_core.deploy.context_lanes import ContextLanes
from spc_core.deploy.networks.numpy_lanes import NumpyLanes
from spc_core.deploy.networks.row_plan import row_plan
from spc_core.deploy.safety import SafetyFilter
from spc_core.trials.protocol import EpisodeRequest, EpisodeResult, Trial
from spc_core.trials.simulated_robot import Recordings, SimulatedRobot

LANES = 64  # robots at once: more save little, and need more memory


class _Lane:
    """A robot, and what is left of the block that it plays."""

    def __init__(self, robot: SimulatedRobot) -> None:
        self.robot = robot
        self.requests: Iterator[EpisodeRequest] = iter(())
        self.request: EpisodeRequest | None = None
        self.rows: list[EpisodeResult] = []


class LaneDriver:
    """Runs trials of one checkpoint on a CPU, acting by the actor network."""

    def __init__(
        self, checkpoint: Checkpoint, family: str, recordings: Recordings | None = None, lanes: int = LANES
    ) -> None:
        """`recordings`: of a task by its id, for offline contexts; default: simulated behaviour data."""
        self._networks = NumpyLanes(row_plan(checkpoint.agent, checkpoint.stats))
        self._contexts = ContextLanes(checkpoint, self._networks, lanes)
        robots = [SimulatedRobot(checkpoint, family, tracker, recordings) for tracker in self._contexts.trackers]
        self._lanes = [_Lane(robot) for robot in robots]
        self._reward = checkpoint.contract.reward_function()
        self._safety = _Safety([robot.safety for robot in robots])
        self._shown = np.array([tracker.context for tracker in self._contexts.trackers])  # (N, Z), to act on

    def run(self, trial: Trial, on_row: Callable[[EpisodeResult], None]) -> list[EpisodeResult]:
        """The rows of all unfinished blocks, in the order of one episode after the other."""
        blocks = [[] for _ in trial.blocks()]
        waiting = deque(zip(trial.blocks(), blocks, strict=True))

        def next_episode(number: int) -> bool:
            """Begin the next episode of a lane's block or of the next block; returns whether there is one."""
            lane = self._lanes[number]
            while (request := next(lane.requests, None)) is None:
                if not waiting:
                    return False
                block, lane.rows = waiting.popleft()
                lane.requests = trial.block_requests(block)
            lane.request = request
            lane.robot.begin(request)
            self._safety.reset(number)
            self._shown[number] = lane.robot.tracker.context
            return True

        active = [number for number in range(len(self._lanes)) if next_episode(number)]
        while active:
            self._step(active)
            for number in [number for number in active if self._lanes[number].robot.ended]:
                lane = self._lanes[number]
                assert lane.request is not None
                lane.rows.append(trial.record(lane.request, lane.robot.outcome()))
                on_row(lane.rows[-1])
                if not next_episode(number):
                    active.remove(number)
        return [row for rows in blocks for row in rows]

    def _step(self, active: Sequence[int]) -> None:
        """One step of the robots `active`."""
        robots = [self._lanes[number].robot for number in active]
        observations = np.array([robot.observation for robot in robots])
        commands = self._safety.apply(active, self._networks.act(observations, self._shown[active]))
        rewards = [robot.move(command) for robot, command in zip(robots, commands, strict=True)]
        if self._reward is not None:  # the same to the bit, row by row or in bulk
            after = np.array([robot.next_observation for robot in robots])
            rewards = self._reward(observations, commands, after, np.array([r.last_action for r in robots])).tolist()
        moved = zip(robots, commands, rewards, strict=True)
        seen = [robot.arrive(command, reward) for robot, command, reward in moved]
        for number, context in self._contexts.update(list(zip(active, seen, strict=True))):
            self._shown[number] = context


class _Safety:
    """The safety filters of all robots; each is asked only about an action that it may have to change."""

    def __init__(self, filters: Sequence[SafetyFilter]) -> None:
        self._filters = filters
        self._low, self._high, self._change = filters[0].bounds
        self._before = np.array([one.safe for one in filters])  # (N, A)

    def reset(self, lane: int) -> None:
        """After the reset of a robot's filter."""
        self._before[lane] = self._filters[lane].safe

    def apply(self, lanes: Sequence[int], actions: np.ndarray) -> np.ndarray:
        """Actions of the robots `lanes` (M, A) to commands (M, A)."""
        before = self._before[lanes]
        least, most = np.maximum(self._low, before - self._change), np.minimum(self._high, before + self._change)
        commands = actions.copy()
        for row in np.flatnonzero(~((actions >= least) & (actions <= most)).all(1)).tolist():  # NaN is not within
            one = self._filters[lanes[row]]
            one.continue_from(before[row])
            commands[row] = one.apply(actions[row])
        self._before[lanes] = commands
        return commands
