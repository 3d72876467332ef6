# SPDX-License-Identifier: Apache-2.0
"""Observation and task vector to an action in the contract's units: the actor's mean, or the first step of a plan."""

from __future__ import annotations

import numpy as np

from spc_core.deploy.deployable import Deployable
from spc_core.method.planner_config import PlannerConfig


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
