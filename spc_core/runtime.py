# SPDX-License-Identifier: Apache-2.0
"""What runs on a robot: the context as a running aggregate, and the policy. No gradient, no history kept."""

from __future__ import annotations

import numpy as np
import torch

from spc_core.checkpoint import Checkpoint
from spc_core.frames import Transition
from spc_core.planner import Planner, PlannerConfig

MODES = ("online", "collect", "frozen")
NOTHING_KNOWN = 1.0  # uncertainty before two transitions: votes range over [-1, 1]
HYPOTHESIS_STEPS = 12  # transitions for which a collecting robot acts on one hypothesis


class ContextTracker:
    """The task vector z from the transitions seen so far; one transition costs the same whatever came before.

    Modes: `online` adds each transition and shows the result at once; `collect` adds, but shows the prior, as one
    hypothesis after the other, so that the robot moves and learns something; `frozen` adds nothing. At most `limit`
    transitions are added (None: no limit). Before the first transition, `online` and `frozen` show zeros.
    `uncertainty` tells how well the transitions agree about z, in every mode.
    An agent without a context encoder counts transitions and shows zeros, or what it was `told`.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._encoder = checkpoint.agent.context_encoder
        self._stats = checkpoint.stats
        self._device = checkpoint.device
        self._sum = np.zeros(checkpoint.agent.context_dim)  # of the votes
        self._squares = np.zeros_like(self._sum)  # of the votes' deviations from their mean
        self._hypotheses = far_apart(checkpoint.agent.task_means.cpu().numpy())
        self._mode = "online"
        self.limit: int | None = None
        self.told: np.ndarray | None = None  # the true task vector (Z,), for the oracle in a simulation
        self.count = 0

    @property
    def mode(self) -> str:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        if mode not in MODES:
            raise ValueError(f"context mode {mode!r} is unknown; use one of: {', '.join(MODES)}")
        self._mode = mode

    def reset(self) -> None:
        """Forget all transitions: back to the prior."""
        self._sum[:] = 0
        self._squares[:] = 0
        self.count = 0

    @torch.inference_mode()
    def update(self, transition: Transition) -> bool:
        """Add a transition unless frozen or full; returns whether it was added."""
        if self._mode == "frozen" or (self.limit is not None and self.count >= self.limit):
            return False
        if self._encoder is None:
            self.count += 1
            return True
        row = self._stats.transition(
            transition.observation, transition.action, transition.reward, transition.next_observation
        )
        self._add(self._encoder.embed(torch.from_numpy(row).to(self._device)).cpu().numpy())
        return True

    def _add(self, vote: np.ndarray) -> None:
        """One more vote (Z,). Welford's update of the squares: summing vote^2 would cancel where votes agree."""
        deviation = vote - self._sum / max(self.count, 1)
        self._squares += deviation**2 * (self.count / (self.count + 1))
        self._sum += vote
        self.count += 1

    @property
    def context(self) -> np.ndarray:
        """The task vector to act on now, (Z,) float32."""
        if self.told is not None:
            return self.told
        if self._mode == "collect":
            return self._hypotheses[self.count // HYPOTHESIS_STEPS % len(self._hypotheses)]
        if self.count == 0:
            return np.zeros(len(self._sum), np.float32)
        return (self._sum / self.count).astype(np.float32)

    @property
    def uncertainty(self) -> np.ndarray:
        """Standard error of the mean vote, (Z,) float32: sqrt(sample variance / count); ones before two votes.

        It takes votes for independent. Transitions in a row are alike, so it is rather too small than too large.
        """
        if self.count < 2 or self._encoder is None:
            return np.full(len(self._sum), NOTHING_KNOWN, np.float32)
        return np.sqrt(self._squares / (self.count - 1) / self.count).astype(np.float32)


def far_apart(points: np.ndarray) -> np.ndarray:
    """The rows of (K, D) reordered: the one farthest from the mean, then always the farthest from those before."""
    order = [int(np.linalg.norm(points - points.mean(0), axis=1).argmax())]
    while len(order) < len(points):
        nearest = np.linalg.norm(points[:, None] - points[order], axis=-1).min(1)
        nearest[order] = -1
        order.append(int(nearest.argmax()))
    return points[order]


class Policy:
    """Observation and task vector to an action in the contract's units: the actor's mean, or a plan's first step."""

    def __init__(self, checkpoint: Checkpoint, planning: PlannerConfig | None = None) -> None:
        """Raises ConfigError where `planning` cannot work, or the checkpoint's method has no model to plan with."""
        self._agent = checkpoint.agent
        self._stats = checkpoint.stats
        self._device = checkpoint.device
        self.planner = None if planning is None else Planner(checkpoint.agent, planning)

    def reset(self) -> None:
        """An episode begins: the last plan is of no use. Nothing to do for the actor, which has no memory."""
        if self.planner is not None:
            self.planner.reset()

    @torch.inference_mode()
    def act(self, observation: np.ndarray, context: np.ndarray) -> np.ndarray:
        """(O,) and (Z,) to the action (A,), float64."""
        row = torch.from_numpy(self._stats.observation(observation)).to(self._device)
        z = torch.from_numpy(np.asarray(context, np.float32)).to(self._device)
        action = self._agent.act(row, z) if self.planner is None else self.planner.plan(row[None], z[None])[0]
        return self._stats.action_units(action.cpu().numpy())
