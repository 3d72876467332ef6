# SPDX-License-Identifier: Apache-2.0
"""Samples of a topic and decided ticks as arrays: what goes into alignment in bulk, and what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from spc_core.alignment.faults import Fault
from spc_core.alignment.frames import Step
from spc_core.contract.contract import Contract


@dataclasses.dataclass(frozen=True)
class Samples:
    """N samples of one topic in log order."""

    order: np.ndarray  # (N,) int64, place in the log among the messages of all topics, increasing
    t_ns: np.ndarray  # (N,) int64, stamps as they came: they may repeat or go back
    values: np.ndarray  # (N, F) float64

    def __len__(self) -> int:
        return len(self.t_ns)

    def part(self, begin: int, end: int | None = None) -> Samples:
        return Samples(self.order[begin:end], self.t_ns[begin:end], self.values[begin:end])

    @classmethod
    def none(cls, width: int) -> Samples:
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, width)))


@dataclasses.dataclass(frozen=True)
class Ticks:
    """N decided ticks in order. A transition that ends at tick i began at tick i - 1."""

    t_ns: np.ndarray  # (N,) int64
    observations: np.ndarray  # (N, O) float64, NaN where the tick has none
    actions: np.ndarray  # (N, A) float64, of the transition that ends at the tick, NaN where none does
    rewards: np.ndarray  # (N,) float64, likewise
    codes: np.ndarray  # (N,) int32, place in `faults` of why no transition ends at the tick; 0 where one does
    faults: tuple[Fault | None, ...] = (None,)

    def __len__(self) -> int:
        return len(self.t_ns)

    @property
    def whole(self) -> np.ndarray:
        """(N,) bool: a transition ends at the tick."""
        return self.codes == 0

    def fault(self, index: int) -> Fault | None:
        """Why no transition ends at the tick, as in Step.cut; None where one does."""
        return self.faults[self.codes[index]]

    @classmethod
    def of(cls, steps: Sequence[Step], contract: Contract) -> Ticks:
        """The same from what a TransitionAssembler returned."""
        nowhere = np.full(contract.observation_dim, np.nan), np.full(contract.action_dim, np.nan)
        places: dict[Fault | None, int] = {None: 0}
        codes = [places.setdefault(step.cut, len(places)) for step in steps]
        observations = [nowhere[0] if step.observation is None else step.observation for step in steps]
        actions = [nowhere[1] if step.transition is None else step.transition.action for step in steps]
        return cls(
            t_ns=np.array([step.t_ns for step in steps], np.int64),
            observations=np.array(observations, np.float64).reshape(len(steps), len(nowhere[0])),
            actions=np.array(actions, np.float64).reshape(len(steps), len(nowhere[1])),
            rewards=np.array([np.nan if s.transition is None else s.transition.reward for s in steps], np.float64),
            codes=np.array(codes, np.int32),
            faults=tuple(places),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Ticks]) -> Ticks:
        """Ticks of blocks that follow each other, at least one."""
        if len(parts) == 1:
            return parts[0]
        places: dict[Fault | None, int] = {None: 0}
        codes = []
        for part in parts:
            own = np.array([places.setdefault(fault, len(places)) for fault in part.faults], np.int32)
            codes.append(own[part.codes])
        return cls(
            t_ns=np.concatenate([part.t_ns for part in parts]),
            observations=np.concatenate([part.observations for part in parts]),
            actions=np.concatenate([part.actions for part in parts]),
            rewards=np.concatenate([part.rewards for part in parts]),
            codes=np.concatenate(codes),
            faults=tuple(places),
        )
