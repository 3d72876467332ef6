# SPDX-License-Identifier: Apache-2.0
"""Which task the world model thinks it is in: how well its one-step heads explain what happened, for many candidates z.

Votes also read whose hand moved the robot, since each task was recorded with its own behaviour. The heads are given
state and action, and asked only how likely the reward and the change are. They are learnt; what is stored here is a
copy of them, the candidates, and how far the heads are to be trusted, beside the weights. Needs no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spc_core.alignment.streaming import Transition
from spc_core.deploy.networks.mlp import Block, Linear, Mlp, Rows, rows_of_ones, run_rows
from spc_core.method.normalize import Stats
from spc_core.system.atomic_files import write_atomic
from spc_core.system.json_arrays import pack, unpack

FILE = "belief.json"
FORMAT = 2  # 1 did not doubt
NO_BELIEF = "the method has none (method.task_belief)"
TAILS = 4.0  # degrees of freedom of Student's t: what the heads miss by far counts less than by a Normal
LEAST_VARIANCE = 1e-6  # of z by the votes


@dataclasses.dataclass(frozen=True)
class TaskBelief:
    """Candidates, heads and trust; K candidates, D = 1 + O outputs: the reward and the change of each field."""

    candidates: np.ndarray  # (K, Z)
    grain: np.ndarray  # (Z,) mean square from a candidate to the next: z is not known finer
    trust: np.ndarray  # (D,) factor on the log-likelihood of an output; 0: it says nothing of the task
    memory: float  # transitions from which on more of them say little more: their errors are alike
    usual: float  # log-likelihood of a transition of a recorded task under its own z, weighted by trust: the mean
    usual_spread: float  # and the standard deviation, of a single transition
    rewards_tell: float  # share of what tells the recorded tasks apart that rewards alone tell, 0 to 1
    changes_tell: float  # the same by the changes of the observation
    heads: Mlp  # (O + A + Z) to means and raw log-stds (2 D)
    log_std: np.ndarray  # middle, range and first of the bounded log-std
    change_scale: np.ndarray  # (O,) of the heads' changes, in units of the observation's spread
    stats: Stats
    weights: str  # SHA-256 of the checkpoint's weights

    def log_likelihoods(self, transitions: Sequence[Transition]) -> np.ndarray:
        """Of N transitions in the contract's units under each candidate, weighted by trust, (N, K) float64."""
        return self._evidence(self._inputs(transitions), self._targets(transitions))

    def place(self, evidence: np.ndarray, count: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance (Z,) of z by the sum of `count` transitions' log-likelihoods (K,)."""
        share = evidence / (1 + count / self.memory)
        share = np.exp(share - share.max())
        share /= share.sum()
        mean = share @ self.candidates
        return mean, share @ (self.candidates - mean) ** 2 + self.grain * (1 + self.doubt(evidence, count) ** 2)

    def doubt(self, evidence: np.ndarray, count: float) -> float:
        """How much worse the best candidate explains `count` transitions than the recorded tasks are explained.

        In standard deviations above one; 0 where it explains them as well. Then the task is none of the candidates, or
        the heads have not seen the like, and z is not known as finely as the grain says.
        """
        if count <= 0:
            return 0.0
        spread = self.usual_spread * np.sqrt(count * (1 + count / self.memory))
        return max(0.0, float(count * self.usual - evidence.max()) / float(spread) - 1.0)

    def joined(self, evidence: np.ndarray, count: float, z: np.ndarray, error: np.ndarray) -> np.ndarray:
        """z (Z,) of both: the votes' with its standard error, and the belief's, as of independent measurements."""
        mean, variance = self.place(evidence, count)
        own = np.maximum(np.float64(error) ** 2, LEAST_VARIANCE)
        return (mean * own + z * variance) / (own + variance)

    def _inputs(self, transitions: Sequence[Transition]) -> np.ndarray:
        """(N K, O + A + Z + 1) rows of the heads."""
        count, candidates = len(transitions), len(self.candidates)
        observed = self.stats.observation(np.array([t.observation for t in transitions]))
        acted = self.stats.action(np.array([t.action for t in transitions]))
        rows = rows_of_ones(self._rows, count * candidates)
        split = rows.reshape(count, candidates, -1)
        seen, both = observed.shape[1], observed.shape[1] + acted.shape[1]
        split[..., :seen], split[..., seen:both] = observed[:, None], acted[:, None]
        split[..., both:-1] = self.candidates
        return rows

    def _targets(self, transitions: Sequence[Transition]) -> np.ndarray:
        """(N, 1, D) what the heads should say."""
        before, after = (
            np.array([getattr(t, name) for t in transitions]) for name in ("observation", "next_observation")
        )
        change = (after - before) / (self.stats.observation_std * self.change_scale)
        reward = self.stats.reward(np.array([t.reward for t in transitions]))
        return np.concatenate([reward[:, None], change], 1)[:, None]

    def _evidence(self, rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        outputs = np.float64(run_rows(self._rows, rows)).reshape(len(targets), len(self.candidates), -1)
        means, raw = np.split(outputs, 2, axis=-1)
        middle, width, first = self.log_std
        log_std = middle + width * np.tanh(raw / width + first)
        errors = ((targets - means) * np.exp(-log_std)) ** 2
        likely = -(TAILS + 1) / 2 * np.log1p(errors / TAILS) - log_std
        return (likely * self.trust).sum(-1)

    @functools.cached_property
    def _rows(self) -> Rows:
        return Rows(self.heads)

    @classmethod
    def _plain(cls) -> list[str]:
        """The fields that are numbers, texts or arrays."""
        return [field.name for field in dataclasses.fields(cls) if field.name not in ("heads", "stats")]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = {name: pack(getattr(self, name)) for name in self._plain()}
        layers = [
            {name: pack(value) for name, value in vars(one).items()} for one in (*self.heads.blocks, self.heads.last)
        ]
        return {"format": FORMAT} | plain | {"heads": layers, "stats": self.stats.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TaskBelief:
        """Raises ValueError for another format, and for missing or damaged entries."""
        if not isinstance(values, Mapping):
            raise ValueError(f"the task belief is {type(values).__name__}, not a table of entries")
        if values.get("format") != FORMAT:
            raise ValueError(f"the task belief has format {values.get('format')!r}, this program reads {FORMAT}")
        try:
            made = {name: unpack(values[name]) for name in cls._plain()}
            *blocks, last = [{name: unpack(value) for name, value in layer.items()} for layer in values["heads"]]
            made["heads"] = Mlp(tuple(Block(**block) for block in blocks), Linear(**last))
            made["stats"] = Stats.from_dict(values["stats"])
            belief = cls(**made)
            shapes = belief._shapes()
            belief._check_numbers()
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the task belief lacks or damages {error}") from None
        for name, (found, wanted) in shapes.items():
            if found != wanted:
                raise ValueError(f"the task belief's {name} has the shape {found}, its other entries require {wanted}")
        return belief

    def _check_numbers(self) -> None:
        """Raises ValueError for what is not finite, or must be above 0 and is not."""
        for name in ("candidates", "grain", "trust", "log_std", "change_scale", "memory", "usual", "usual_spread"):
            if not np.isfinite(value := getattr(self, name)).all():
                raise ValueError(f"the task belief's {name} is not finite")
            if name in ("memory", "usual_spread") and value <= 0:
                raise ValueError(f"the task belief's {name} is {value}; it must be above 0")
        for layer in (*self.heads.blocks, self.heads.last):
            if not all(np.isfinite(part).all() for part in vars(layer).values() if isinstance(part, np.ndarray)):
                raise ValueError("the task belief's heads are not all finite")

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Of the arrays that must fit: the shape found, and that which the statistics and candidates require."""
        seen, acts, (count, width) = len(self.stats.observation_mean), len(self.stats.action_low), self.candidates.shape
        first = (*self.heads.blocks, self.heads.last)[0]
        return {
            "candidates": (self.candidates.shape, (max(count, 1), width)),
            "grain": (self.grain.shape, (width,)),
            "trust": (self.trust.shape, (1 + seen,)),
            "change_scale": (self.change_scale.shape, (seen,)),
            "log_std": (self.log_std.shape, (3,)),
            "heads": (first.weight.shape[1:], (seen + acts + width,)),
            "heads' outputs": (self.heads.last.weight.shape[:1], (2 * (1 + seen),)),
        }


def save_task_belief(folder: Path, belief: TaskBelief) -> None:
    """Write it into a checkpoint's folder."""
    write_atomic(folder / FILE, json.dumps(belief.to_dict()))


def load_task_belief(folder: Path, weights: str) -> TaskBelief | str:
    """The task belief of a checkpoint, or why there is none; `weights` is the SHA-256 of its weights.

    Raises ValueError for a damaged file.
    """
    file = folder / FILE
    if not file.is_file():
        return f"{FILE} is missing: trained for less than 500 updates, or interrupted (the same `spc train` adds it)"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(values, Mapping) and values.get("weights", weights) != weights:
            return f"{FILE} belongs to other weights: training went on after it"
        if isinstance(values, Mapping) and values.get("format") in range(1, FORMAT):
            return f"{FILE} has the older format {values['format']} (the same `spc train` writes it anew)"
        belief = TaskBelief.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{FILE}: {error}") from None
    if not belief.trust.any():
        return (
            f"the world model hardly tells the recorded tasks apart: {belief.rewards_tell:.0%} by rewards, "
            f"{belief.changes_tell:.0%} by changes"
        )
    return belief


def belief_is_for(folder: Path, weights: str) -> bool:
    """Whether a checkpoint's folder holds what was measured of these weights, whatever came of it."""
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return (values.get("format"), values.get("weights")) == (FORMAT, weights)
    except (OSError, ValueError, AttributeError):
        return False
