# SPDX-License-Identifier: Apache-2.0
"""True task parameters as a task vector: the ceiling that learnt contexts are compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from spc_core.method.config import ConfigError


@dataclasses.dataclass(frozen=True)
class TaskScale:
    """The parameters that differ between training tasks, and their mean and spread."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, tasks: Sequence[Mapping[str, float]]) -> TaskScale:
        """Raises ConfigError where tasks do not all have the same parameters, or none of them varies."""
        names = tuple(sorted(tasks[0]))
        odd = [task for task in tasks if tuple(sorted(task)) != names]
        if odd:
            raise ConfigError(
                f"method.context 'oracle' needs the same parameters of every task, but one has {sorted(odd[0])} and "
                f"another {list(names)}; record `spc.task_params` with each bag"
            )
        values = np.array([[task[name] for name in names] for task in tasks], np.float64).reshape(len(tasks), -1)
        std = values.std(0)
        kept = [i for i, spread in enumerate(std) if spread > 0]
        if not kept:
            raise ConfigError(
                "method.context 'oracle' needs task parameters, but the dataset has none that differ between tasks; "
                "record `spc.task_params` with each bag, or choose another method"
            )
        return cls(
            names=tuple(names[i] for i in kept),
            mean=tuple(values.mean(0)[kept].tolist()),
            std=tuple(std[kept].tolist()),
        )

    def vector(self, params: Mapping[str, float]) -> np.ndarray:
        """The parameters of a task on unit scale (Z,). Raises ConfigError naming one that is missing."""
        missing = [name for name in self.names if name not in params]
        if missing:
            raise ConfigError(f"the task lacks the parameter '{missing[0]}' that the oracle was trained with")
        values = np.array([params[name] for name in self.names])
        return (values - np.array(self.mean)) / np.array(self.std)
