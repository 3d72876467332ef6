# SPDX-License-Identifier: Apache-2.0
"""What change detection is worth: steps after a change, alarms without one, reward without one, honest uncertainty."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from spc_core.alignment.streaming import Transition
from spc_core.deploy.checkpoint import Checkpoint
from spc_core.deploy.context_tracker import ContextTracker
from spc_core.deploy.deployable import Policy
from spc_core.deploy.safety import SafetyFilter
from spc_core.deploy.votes import VoteSums
from spc_core.tasks import Task, make_env

HOUR = 180_000  # transitions at 50 Hz
COUNTS = (25, 100, 400)  # transitions at which the uncertainty is judged
ERRORS = 2.0  # standard errors within which the true z should lie
STARTS = 5  # fresh contexts of each task for that
COVERED = 0.95  # share that lies within them, at calibration
TRUTH, LONGEST, CALIBRATION_SEED = 1_500, 256, 500_000
PAIRED = 2_000  # transitions of each task whose reward is compared with and without detection


@dataclasses.dataclass(frozen=True)
class QuietTask:
    """One held-out task without any change."""

    task_id: str
    transitions: int
    alarms: int  # restarts of the context
    suspected: int  # transitions at which the context was that of the suspected votes only
    reward: float  # mean of the first PAIRED transitions
    reward_without: float  # the same with detection off
    covered: tuple[tuple[int, float], ...]  # transitions in the context, share of z within ERRORS of the true one


class _Listener:
    """Networks that add up their votes."""

    def __init__(self, networks: Any) -> None:
        self._networks, self._sums = networks, VoteSums(np.zeros((4, networks.context_dim)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._networks, name)

    def embed(self, transition: Transition) -> np.ndarray:
        vote = self._networks.embed(transition)
        self._sums.add(vote)
        return vote

    def clear(self) -> None:
        self._sums.clear()

    @property
    def mean(self) -> np.ndarray:
        """z (Z,) of all votes since they were cleared."""
        return self._sums.mean


class QuietTest:
    """Runs a policy on one task for long, episode after episode, with a context of votes alone that is never reset."""

    def __init__(self, checkpoint: Checkpoint, family: str) -> None:
        self._env, self._policy, self._safety = make_env(family), Policy(checkpoint), SafetyFilter(checkpoint.contract)
        self._reward = checkpoint.contract.reward_function()
        self._votes = _Listener(checkpoint.networks())
        named = {name: getattr(checkpoint, name) for name in ("vote_model", "no_vote_model", "config", "contract")}
        named |= {"task_belief": None, "no_task_belief": "votes and their errors are measured alone"}
        deployed: Any = SimpleNamespace(networks=lambda: self._votes, **named)
        self.tracker = ContextTracker(deployed)

    def run(self, task: Task, transitions: int, seed: int) -> QuietTask:
        """`transitions` without a change, PAIRED of them also without detection, and STARTS fresh contexts."""
        self.tracker.detect_changes = False
        without = self.drive(task, PAIRED, seed)[0]
        self.tracker.detect_changes = True
        self._votes.clear()
        before = self.tracker.restarts
        reward, suspected, _ = self.drive(task, transitions, seed)
        alarms = self.tracker.restarts - before
        truth = self._votes.mean
        hits: dict[int, list[float]] = {}
        for start in range(STARTS):
            for count, (z, error) in self.drive(task, max(COUNTS), seed + 1_000 * (start + 1))[2].items():
                hits.setdefault(count, []).append(float(np.mean(np.abs(z - truth) <= ERRORS * error)))
        covered = tuple((count, float(np.mean(shares))) for count, shares in hits.items())
        return QuietTask(task.task_id, transitions, alarms, suspected, reward, without, covered)

    def true_context(self, task: Task, transitions: int, seed: int) -> np.ndarray:
        """z (Z,) of many transitions."""
        self._votes.clear()
        self.drive(task, transitions, seed)
        return self._votes.mean

    def drive(
        self, task: Task, steps: int, seed: int, counts: Sequence[int] = COUNTS
    ) -> tuple[float, int, dict[int, tuple[np.ndarray, np.ndarray]]]:
        """Mean reward of the first PAIRED steps, suspected steps, and context with uncertainty at `counts`."""
        tracker = self.tracker
        tracker.reset()
        rewards, suspected, shown, over, last = [], 0, {}, True, None
        observation = np.empty(0)
        for step in range(steps):
            if over:
                observation, _ = self._env.reset(seed=seed, options={"task": task})
                self._policy.reset()
                self._safety.reset()
                seed, last = seed + 1, None
            action = self._safety.apply(self._policy.act(observation, tracker.context))
            following, reward, _, over, _ = self._env.step(action)
            if self._reward is not None:
                reward = self._reward.paid(observation, action, following, last)
            tracker.update(Transition(step, observation, action, float(reward), following))
            observation, last = following, action
            suspected += tracker.suspicious
            if step < PAIRED:
                rewards.append(float(reward))
            if step + 1 in counts:
                shown[step + 1] = tracker.context, tracker.uncertainty
        return float(np.mean(rewards)), suspected, shown


def context_errors(
    checkpoint: Checkpoint, tasks: Sequence[Task], counts: Sequence[int], spread: np.ndarray
) -> np.ndarray:
    """Standard errors (len(counts), Z): within ERRORS of them lie 95 % of contexts of so many transitions.

    One factor for each count, on the `spread` (Z,) of votes. The true z of a task is the mean of TRUTH transitions.
    """
    test = QuietTest(checkpoint, checkpoint.contract.name)
    test.tracker.detect_changes = False
    last = max(count for count in counts if count <= LONGEST)
    shares: dict[int, list[np.ndarray]] = {count: [] for count in counts if count <= last}
    for task in tasks:
        truth = test.true_context(task, TRUTH, CALIBRATION_SEED)
        for start in range(STARTS):
            shown = test.drive(task, last, CALIBRATION_SEED + 1_000 * (start + 1), tuple(shares))[2]
            for count, (z, _) in shown.items():
                shares[count].append(np.abs(z - truth) / np.maximum(spread, 1e-9))
    factors = [float(np.quantile(np.concatenate(shares[min(count, last)]), COVERED)) for count in counts]
    return np.maximum.accumulate(factors[::-1])[::-1, None] / ERRORS * spread


def quiet_table(tasks: Sequence[QuietTask]) -> str:
    """The sums over tasks, as text for a terminal."""
    hours = sum(task.transitions for task in tasks) / HOUR
    alarms = sum(task.alarms for task in tasks)
    reward, without = (float(np.mean([getattr(t, name) for t in tasks])) for name in ("reward", "reward_without"))
    lines = [
        f"without a change: {alarms} alarms in {hours:.2f} h at 50 Hz ({alarms / hours:.2f} an hour, on "
        f"{sum(task.alarms > 0 for task in tasks)} of {len(tasks)} tasks), suspicion in "
        f"{sum(task.suspected for task in tasks) / sum(task.transitions for task in tasks):.2%} of transitions",
        f"reward of a step without a change: {reward:.4f}, without detection {without:.4f}",
    ]
    for place, count in enumerate(COUNTS):
        shares = [task.covered[place][1] for task in tasks]
        lines.append(f"z within {ERRORS:g} standard errors after {count} transitions: {np.mean(shares):.1%}")
    return "\n".join(lines)
