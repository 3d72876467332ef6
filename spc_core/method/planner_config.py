# SPDX-License-Identifier: Apache-2.0
"""How a robot plans: settings alone, without torch."""

from __future__ import annotations

import dataclasses
import math

from spc_core.method.config import ConfigError


@dataclasses.dataclass(frozen=True)
class PlannerConfig:
    """How far to look, how often and how widely. Actions are in [-1, 1] and rewards have spread one."""

    horizon: int = 3  # steps that are imagined; V stands for what follows
    iterations: int = 6  # rounds of drawing, judging and narrowing
    samples: int = 512  # sequences drawn in each round
    elites: int = 64  # best sequences that the next round is drawn around
    policy_samples: int = 24  # sequences of the actor: the first by its mean, the others drawn
    temperature: float = 0.5  # elites weigh exp(this * (return - best return))
    min_std: float = 0.05  # least spread of drawn actions
    max_std: float = 2.0  # largest spread of drawn actions, and that of the first round
    deadline_ms: float = 0.0  # no round begins that would end later than this; the first always runs. 0: none

    def check(self, source: str) -> None:
        """Raises ConfigError naming a value that cannot work."""
        least = {"horizon": 1, "iterations": 1, "samples": 0, "elites": 1, "policy_samples": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{source}: {name} is {getattr(self, name)}; it must be at least {low}")
        for name in ("temperature", "min_std", "max_std", "deadline_ms"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{source}: {name} is {value}; it must be finite and not negative")
        if self.elites > self.samples + self.policy_samples:
            raise ConfigError(
                f"{source}: elites is {self.elites}, more than the {self.samples + self.policy_samples} sequences "
                "there are; lower it, or raise samples or policy_samples"
            )
        if self.min_std > self.max_std:
            raise ConfigError(f"{source}: min_std {self.min_std} is above max_std {self.max_std}; lower it")
        if self.max_std == 0:
            raise ConfigError(f"{source}: max_std is 0, so that all drawn sequences are the same; raise it")
