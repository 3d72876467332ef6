# SPDX-License-Identifier: Apache-2.0
"""A simulated robot that plays the episodes of a trial step by step, for whoever acts and embeds for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from spc_core.alignment.streaming import Transition
from spc_core.contract.rewards import MEND_REWARD
from spc_core.deploy.checkpoint import Checkpoint
from spc_core.deploy.context_tracker import ContextTracker
from spc_core.deploy.safety import SafetyFilter, by_name
from spc_core.tasks import find_task, make_env
from spc_core.trials.offline_data import behaviour_episodes
from spc_core.trials.protocol import TRAJECTORY_COUNTS, EpisodeRequest, Outcome, TrialError, arrange_context
from spc_core.trials.recordings import episode_transitions, spread

OFFLINE_EPISODES = 30  # behaviour episodes from which an offline context is drawn
OFFLINE_SEED = 1  # their seed; with 0 they would start like scored episodes

Recordings = Callable[[str], Iterable[Transition]]  # transitions of a task by its id


class SimulatedRobot:
    """A robot in MuJoCo with its context and its safety filter; the context goes on from one episode to the next.

    begin(), then step() with a command and add the transition to `tracker`, until `ended`; then outcome().
    """

    def __init__(
        self, checkpoint: Checkpoint, family: str, tracker: ContextTracker, recordings: Recordings | None = None
    ) -> None:
        """`recordings`: for offline contexts; default: simulated behaviour data."""
        self.tracker, self.safety = tracker, SafetyFilter(checkpoint.contract)
        self._agent, self._recordings = checkpoint.agent, recordings or behaviour_transitions
        self._actions = checkpoint.contract.action_dim
        self._env, self.reward_function = make_env(family), checkpoint.contract.reward_function()

    def begin(self, request: EpisodeRequest) -> None:
        """Arrange the context and start an episode."""
        if self._agent.task_scale is not None:
            self.tracker.oracle_context = self._agent.oracle_context(request.task.params).numpy()
        arrange_context(request, self)
        self.safety.reset()
        self.safety.counts.clear()
        task = find_task(request.task.task_id)
        self.observation, _ = self._env.reset(seed=request.seed, options={"task": task})
        self._task_id, self.last_action = task.task_id, np.full(self._actions, np.nan)
        self._return, self._steps, self.ended, self._reason, self._success = 0.0, 0, False, "", None
        self._trajectory: list[tuple[int, list[float]]] = []

    def step(self, action: np.ndarray) -> Transition:
        """Execute a command; returns the transition."""
        reward = self.move(action)
        if self.reward_function is not None:
            reward = float(self.reward_function(self.observation, action, self.next_observation, self.last_action))
        return self.arrive(action, reward)

    def move(self, action: np.ndarray) -> float:
        """The first half of a step, until `next_observation`; returns the simulation's reward."""
        self._record_context()
        self.next_observation, reward, self._terminated, self._truncated, notes = self._env.step(action)
        if "broken" in notes:
            raise TrialError(notes["broken"])
        return float(reward)

    def arrive(self, action: np.ndarray, reward: float) -> Transition:
        """The second half of a step, with its reward; returns the transition."""
        if self.reward_function is not None and not math.isfinite(reward):
            term = self.reward_function.culprit(self.observation, action, self.next_observation, self.last_action)
            where = f"{self._task_id}, step {self._steps}"
            raise TrialError(f"{where}: the reward's term '{term}' is not finite; {MEND_REWARD}")
        transition = Transition(self._steps, self.observation, action, reward, self.next_observation)
        if self._terminated or self._truncated:
            self.ended, self._reason = True, "terminated" if self._terminated else "time limit"
            self._success = self._env.success(self.observation, self.next_observation)
        self._return, self._steps = self._return + reward, self._steps + 1
        self.observation, self.last_action = self.next_observation, action
        return transition

    def outcome(self) -> Outcome:
        """Of the episode that has ended."""
        self._record_context()
        tracker = self.tracker
        return Outcome(
            return_=self._return, steps=self._steps, context=tracker.context.tolist(), context_count=tracker.count,
            reason=self._reason, interventions=by_name(self.safety.counts), uncertainty=tracker.uncertainty.tolist(),
            success=self._success, trajectory=self._trajectory,
        )  # fmt: skip

    def _record_context(self) -> None:
        """Add the growing context to the trajectory at a few counts."""
        tracker = self.tracker
        if tracker.mode == "online" and tracker.count in TRAJECTORY_COUNTS:
            self._trajectory.append((tracker.count, tracker.context.tolist()))

    def reset_context(self) -> None:
        self.tracker.reset()

    def set_context_mode(self, mode: str, limit: int | None) -> None:
        self.tracker.mode, self.tracker.limit = mode, limit

    def load_context(self, task_id: str) -> None:
        seen = list(self._recordings(task_id))
        if not seen:
            raise TrialError(f"{task_id}: no recorded transitions for the protocol offline; leave it out")
        mode, limit = self.tracker.mode, self.tracker.limit
        self.set_context_mode("online", None)
        for transition in spread(seen, self.reward_function):
            self.tracker.update(transition)
        self.set_context_mode(mode, limit)


def behaviour_transitions(task_id: str, episodes: int = OFFLINE_EPISODES) -> Iterator[Transition]:
    """Simulated behaviour data of a task: experts, noisy experts and random motion in turn."""
    for episode in behaviour_episodes(find_task(task_id), episodes, OFFLINE_SEED):
        yield from episode_transitions(episode)
