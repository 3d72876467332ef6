# SPDX-License-Identifier: Apache-2.0
"""The interface of a deployed model, a checkpoint or its export to ONNX, and the policy that acts with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from spc_core.alignment.streaming import Transition
from spc_core.contract.contract import Contract
from spc_core.deploy.checkpoint_files import ONNX_CARD, CheckpointError
from spc_core.deploy.task_belief import TaskBelief
from spc_core.deploy.vote_model import VoteModel
from spc_core.method.config import PlannerConfig, TrainConfig

if TYPE_CHECKING:
    from spc_core.deploy.networks.torch_rows import RowPlanner


class Networks(Protocol):
    """Acting and adapting, one row at a time."""

    context_dim: int  # Z
    task_means: np.ndarray  # (K, Z), z of each training task
    has_encoder: bool  # without one, `embed` is never called

    def act(self, observation: np.ndarray, context: np.ndarray) -> np.ndarray:
        """(O,) in the contract's units and (Z,) to the actor's mean action (A,) in the contract's units, float64."""
        ...

    def embed(self, transition: Transition) -> np.ndarray:
        """A transition in the contract's units to its embedding, float32.

        That is a vote (Z,), of which z is the mean; or a vote and its weights (2 Z,), for the weighted mean.
        """
        ...


class Deployable(Protocol):
    """A trained policy with its robot's contract: Checkpoint or OnnxCheckpoint."""

    @property
    def contract(self) -> Contract: ...
    @property
    def config(self) -> TrainConfig: ...
    @property
    def metrics(self) -> dict[str, Any]: ...
    @property
    def vote_model(self) -> VoteModel | None: ...
    @property
    def no_vote_model(self) -> str:
        """Why there is none."""
        ...

    @property
    def task_belief(self) -> TaskBelief | None: ...
    @property
    def no_task_belief(self) -> str:
        """Why there is none."""
        ...

    def networks(self) -> Networks: ...

    def planner(self, config: PlannerConfig) -> RowPlanner:
        """Raises ConfigError if the settings are invalid or there is no model to plan with."""
        ...


class Policy:
    """Acts by the actor or, given `planning`, by a planner."""

    def __init__(self, deployed: Deployable, planning: PlannerConfig | None = None) -> None:
        """Raises ConfigError if the settings of `planning` are invalid or there is no model to plan with."""
        self.planner = None if planning is None else deployed.planner(planning)
        self._actor = self.planner or deployed.networks()

    def reset(self) -> None:
        """Start an episode without the last plan. The actor has no memory to reset."""
        if self.planner is not None:
            self.planner.reset()

    def act(self, observation: np.ndarray, context: np.ndarray) -> np.ndarray:
        """(O,) in the contract's units and (Z,) to the action (A,) in the contract's units, float64."""
        return self._actor.act(observation, context)


def load_deployed(folder: str | Path, device: str = "cpu", threads: int = 1) -> Deployable:
    """Load a checkpoint or an export, ready to act on `threads` CPU threads. Raises CheckpointError."""
    if (Path(folder) / ONNX_CARD).is_file():
        from spc_core.deploy.onnx_checkpoint import load_onnx

        return load_onnx(folder, device, threads)
    try:
        import torch

        from spc_core.deploy.checkpoint import load_checkpoint
    except ImportError as error:
        raise CheckpointError(
            f"{folder}: a checkpoint needs {error.name}, which is not installed here; install it, or run "
            "`spc export RUN --format onnx --out FOLDER` where it is, and pass FOLDER"
        ) from None
    torch.set_num_threads(threads)
    return load_checkpoint(folder, device)
