# SPDX-License-Identifier: Apache-2.0
"""What runs on a robot: the context as a running aggregate, and the policy. No gradient, no history kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from spc_core.alignment.streaming import Transition
from spc_core.method.config import ConfigError
from spc_core.method.planner_config import PlannerConfig

if TYPE_CHECKING:
    from spc_core.deploy.checkpoint import Checkpoint
    from spc_core.deploy.onnx_networks import OnnxCheckpoint

MODES = ("online", "collect", "frozen")
NOTHING_KNOWN = 1.0  # uncertainty before two transitions: votes range over [-1, 1]
HYPOTHESIS_STEPS = 12  # transitions for which a collecting robot acts on one hypothesis


class Networks(Protocol):
    """What acting and adapting ask of an agent, whatever computes it."""

    context_dim: int  # Z
    task_means: np.ndarray  # (K, Z), z of each training task
    has_encoder: bool  # without: `vote` is never asked

    def act(self, observation: np.ndarray, context: np.ndarray) -> np.ndarray:
        """(O,) and (Z,) to the action (A,) in the contract's units, float64."""
        ...

    def vote(self, transition: Transition) -> np.ndarray:
        """A transition to its vote for z, (Z,) float32."""
        ...


def networks_of(deployed: Checkpoint | OnnxCheckpoint) -> Networks:
    """The networks of what load_deployed gave."""
    if hasattr(deployed, "networks"):
        return deployed.networks  # type: ignore[union-attr]
    if deployed.device.type == "cpu":  # type: ignore[union-attr]
        from spc_core.deploy.numpy_networks import NumpyNetworks as Kind  # not at the top: a robot may have no torch
    else:
        from spc_core.deploy.torch_networks import TorchNetworks as Kind
    return Kind(deployed)  # type: ignore[arg-type]


class ContextTracker:
    """The task vector z from the transitions seen so far; one transition costs the same whatever came before.

    Modes: `online` adds each transition and shows the result at once; `collect` adds, but shows the prior, as one
    hypothesis after the other, so that the robot moves and learns something; `frozen` adds nothing. At most `limit`
    transitions are added (None: no limit). Before the first transition, `online` and `frozen` show zeros.
    `uncertainty` tells how well the transitions agree about z, in every mode.
    With a `half_life` older transitions count less: half as much after so many newer ones. None: all count alike.
    An agent without a context encoder counts transitions and shows zeros, or what it was `told`.
    """

    def __init__(self, checkpoint: Checkpoint | OnnxCheckpoint) -> None:
        self._networks = networks_of(checkpoint)
        self._sum = np.zeros(self._networks.context_dim)  # of the votes
        self._squares = np.zeros_like(self._sum)  # of the votes' deviations from their mean
        self._weight = self._square_weight = 0.0  # sums of the votes' weights, and of their squares
        self.half_life: float | None = None
        self._hypotheses = far_apart(self._networks.task_means)
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
        self._weight = self._square_weight = 0.0
        self.count = 0

    def update(self, transition: Transition) -> bool:
        """Add a transition unless frozen or full; returns whether it was added."""
        if self._mode == "frozen" or (self.limit is not None and self.count >= self.limit):
            return False
        if self._networks.has_encoder:
            self._add(self._networks.vote(transition))
        else:
            self.count += 1
        return True

    def _add(self, vote: np.ndarray) -> None:
        """One more vote (Z,). Welford's update of the squares: summing vote^2 would cancel where votes agree."""
        keep = 1.0 if self.half_life is None else 0.5 ** (1 / self.half_life)
        deviation = vote - self._sum / (self._weight or 1.0)
        old = keep * self._weight
        self._weight, self._square_weight = old + 1, keep**2 * self._square_weight + 1
        if keep < 1:
            self._squares *= keep
            self._sum *= keep
        self._squares += deviation**2 * (old / self._weight)
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
        return (self._sum / (self._weight or 1.0)).astype(np.float32)

    @property
    def uncertainty(self) -> np.ndarray:
        """Standard error of the mean vote, (Z,) float32: sqrt(sample variance / count); ones before two votes.

        With weights w: sample variance squares / (sum w - sum w^2 / sum w), and count (sum w)^2 / sum w^2.
        It takes votes for independent. Transitions in a row are alike, so it is rather too small than too large.
        """
        if self.count < 2 or not self._networks.has_encoder:
            return np.full(len(self._sum), NOTHING_KNOWN, np.float32)
        share = self._square_weight / self._weight
        return np.sqrt(self._squares / (self._weight - share) * (share / self._weight)).astype(np.float32)


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

    def __init__(self, checkpoint: Checkpoint | OnnxCheckpoint, planning: PlannerConfig | None = None) -> None:
        """Raises ConfigError where `planning` cannot work, or there is no model to plan with."""
        self._networks = networks_of(checkpoint)
        self.planner = None
        if planning is not None:
            if not hasattr(checkpoint, "agent"):
                raise ConfigError("planning needs the world model, which an export lacks; give the checkpoint instead")
            from spc_core.method.planner import Planner

            self.planner = Planner(checkpoint.agent, planning)  # type: ignore[union-attr]

    def reset(self) -> None:
        """An episode begins: the last plan is of no use. Nothing to do for the actor, which has no memory."""
        if self.planner is not None:
            self.planner.reset()

    def act(self, observation: np.ndarray, context: np.ndarray) -> np.ndarray:
        """(O,) and (Z,) to the action (A,), float64."""
        if self.planner is not None:
            return self._networks.plan(self.planner, observation, context)  # type: ignore[attr-defined]
        return self._networks.act(observation, context)
