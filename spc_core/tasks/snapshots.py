# SPDX-License-Identifier: Apache-2.0
"""A learnt agent that is told its task, as it was while it learnt: who drives where no controller is known by hand."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from spc_core.system.atomic_files import write_atomic

from .task import FamilyError, Task

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Snapshots:
    """S states of one agent, from its worst to its best: ReLU networks from (s, task, whether told) to a Normal.

    Actions are the tanh of its draw, on [-1, 1] from the lower to the upper limit.
    """

    family: str
    observation_names: tuple[str, ...]
    params: tuple[str, ...]  # of a task, which the agent is told on unit scale
    params_mean: np.ndarray  # (P,)
    params_std: np.ndarray  # (P,)
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]  # weights (S, inputs, outputs) and biases (S, outputs), float32
    returns: tuple[float, ...]  # of each state, told its task, mean over tasks; ascending

    def __len__(self) -> int:
        return len(self.returns)

    def act(
        self, index: int, observation: np.ndarray, task: Task | None, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """What state `index` does (A,) in [-1, 1], told a task or nothing: its mean, or a draw by `rng`.

        within_limits() gives it in the robot's units.
        """
        told = np.zeros(len(self.params)) if task is None else self.told(task)
        x = np.concatenate([observation, told, [float(task is not None)]]).astype(np.float32)
        for number, (weight, bias) in enumerate(self.layers):
            x = (x if number == 0 else np.maximum(x, 0)) @ weight[index] + bias[index]
        mean, log_std = x[: len(x) // 2], x[len(x) // 2 :]
        if rng is not None:
            spread = np.exp(np.minimum(np.maximum(log_std, LOG_STD_MIN), LOG_STD_MAX))  # faster than clip
            mean = mean + spread * rng.standard_normal(len(mean))
        return np.tanh(mean)

    def told(self, task: Task) -> np.ndarray:
        """A task's parameters (P,) on unit scale."""
        return (np.array([task.params[name] for name in self.params]) - self.params_mean) / self.params_std

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        tensors = {
            f"{number}.{kind}": np.ascontiguousarray(array, np.float32)
            for number, layer in enumerate(self.layers)
            for kind, array in zip(("weight", "bias"), layer, strict=True)
        }
        described = {
            "format": FORMAT,
            "family": self.family,
            "observation_names": self.observation_names,
            "params": self.params,
            "params_mean": self.params_mean.tolist(),
            "params_std": self.params_std.tolist(),
            "returns": self.returns,
        }
        write_atomic(path, safetensors.numpy.save(tensors, {"snapshots": json.dumps(described)}))


def within_limits(action: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(..., A) in [-1, 1] to the range from `low` to `high`, (A,)."""
    return low + (action + 1) / 2 * (high - low)


def agent_file(family: str) -> Path:
    """Where the agent of a family of this package lies, if it has one."""
    return Path(__file__).parent / "agents" / f"{family}.safetensors"


@functools.cache
def load_snapshots(
    path: Path, family: str, observation_names: tuple[str, ...], params: tuple[str, ...], actions: int
) -> Snapshots:
    """The states in a file. Raises FamilyError: missing, damaged, of another family, or of other observations, hidden
    parameters or a number of actions."""
    if not path.is_file():
        raise FamilyError(f"{path}: no such file; write one with `spc behaviour {family}`")
    try:
        with safe_open(path, "numpy") as file:
            described: dict[str, Any] = json.loads((file.metadata() or {})["snapshots"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
        format_ = described.pop("format")
        count = len(tensors) // 2
        layers = tuple((tensors[f"{n}.weight"], tensors[f"{n}.bias"]) for n in range(count))
        arrays = {name: np.array(described.pop(name)) for name in ("params_mean", "params_std")}
        found = Snapshots(layers=layers, **arrays, **{name: _tuple(value) for name, value in described.items()})
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FamilyError(
            f"{path}: not a file of behaviour ({error}); write it anew: `spc behaviour {family}`"
        ) from None
    if format_ != FORMAT:
        raise FamilyError(f"{path}: has format {format_}, this program reads {FORMAT}")
    if found.family != family:
        raise FamilyError(f"{path}: is of family '{found.family}', not '{family}'; use that family's own file")
    anew = f"write it anew: `spc behaviour {family}`"
    if found.observation_names != observation_names:
        raise FamilyError(
            f"{path}: its agent observes {', '.join(found.observation_names)}, family '{family}' now has "
            f"{', '.join(observation_names)}; {anew}"
        )
    if set(found.params) != set(params):
        raise FamilyError(
            f"{path}: its agent is told {', '.join(found.params)}, tasks of family '{family}' now have "
            f"{', '.join(params)}; {anew}"
        )
    _check_sizes(found, actions, f"{path}: {{}}; {anew}")
    return found


def _check_sizes(agent: Snapshots, actions: int, error: str) -> None:
    """Raises FamilyError where layers do not follow each other, do not end in `actions`, or are not finite."""
    count, size = len(agent), len(agent.observation_names) + len(agent.params) + 1
    for number, (weight, bias) in enumerate(agent.layers):
        if weight.ndim != 3 or weight.shape[:2] != (count, size) or bias.shape != (count, weight.shape[2]):
            raise FamilyError(error.format(f"layer {number} has weights {weight.shape} and biases {bias.shape}, wanted "
                                           f"({count}, {size}, n) and ({count}, n)"))  # fmt: skip
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise FamilyError(error.format(f"layer {number} has weights that are not finite"))
        size = weight.shape[2]
    if size != 2 * actions:
        raise FamilyError(error.format(f"its agent has {size / 2:g} actions, the family has {actions}"))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
