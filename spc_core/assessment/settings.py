# SPDX-License-Identifier: Apache-2.0
"""How to assess, and what the verdict asks for."""

from __future__ import annotations

import dataclasses

from spc_core.method.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to assess."""

    discount: float = 0.99  # of later rewards in the value; a run's own is for learning, and may see less far
    fits: int = 4  # of the value, each with other features; their spread is part of its uncertainty
    seed: int = 0  # of fits and bootstrap

    def check(self) -> None:
        """Raises ConfigError naming a setting that makes no sense."""
        if not 0 < self.discount <= 1:
            raise ConfigError(f"--settings.discount is {self.discount}; it must be above 0 and at most 1")
        if self.fits < 2:
            raise ConfigError(f"--settings.fits is {self.fits}; a spread needs at least 2")


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """What the verdict asks for."""

    sure: float = 0.9  # share of the bootstrap that must be on the good side; as much on the bad side is a no
    least_tasks: int = 4  # tasks below which nothing is said about value
    least_episodes: int = 2  # episodes of each task below which nothing is said about value
    told: float = 0.5  # accuracy of z above chance, as a share of what is possible, at its most transitions
    outside: float = 0.3  # share of ticks on which it may act unlike anything done in similar situations
    too_fast: float = 0.2  # share of ticks on which it may change faster than the contract's rates
    judge: float = 0.5  # error of the value on the recordings themselves, over the spread of what episodes earned
