# SPDX-License-Identifier: Apache-2.0
"""What votes within one task look like: learnt after training, stored beside the weights, needs no torch.

A vote is the embedding of one transition; z is the mean of votes. Votes depend on where the robot is and what it does,
so a plain covariance would have to be as wide as their way through the workspace. The model is a Bayesian linear
regression of votes on features of observation and action, whose prior is learnt across tasks (ALPaCA, arXiv
1807.08912): before any transition it predicts the votes of an unknown task, after some those of the present one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spc_core.deploy.votes import parts
from spc_core.system.atomic_files import write_atomic
from spc_core.system.json_arrays import pack, unpack

FILE = "votes.json"
FORMAT = 1
MOST_INPUT = 5.0  # inputs beyond so many standard deviations count as so many
MOST_LOG_NOISE = 4.0
LEAST_WORTH = 1e-3  # of a vote: those that are worth less count as worth so much
COUNTS = tuple(2**i for i in range(11))  # transitions at which errors of z are known


@dataclasses.dataclass(frozen=True)
class VoteModel:
    """Features, prior and noise of the regression, the threshold of a change, and the errors of a mean of votes.

    H features, K directions of z in which tasks differ.
    """

    input_mean: np.ndarray  # (O + A,) of observation and action in the contract's units
    input_std: np.ndarray  # (O + A,)
    hidden_weight: np.ndarray  # (O + A, M)
    hidden_bias: np.ndarray  # (M,)
    feature_weight: np.ndarray  # (M, H + 1): the features, and the log of the noise
    feature_bias: np.ndarray  # (H + 1,)
    centre: np.ndarray  # (Z,)
    basis: np.ndarray  # (Z, K), scaled so that tasks have unit spread
    prior_mean: np.ndarray  # (H, K)
    prior_covariance: np.ndarray  # (H, H)
    noise: np.ndarray  # (K,) variance of a vote where the noise feature is 0
    errors: np.ndarray  # (len(COUNTS), Z): within two of these lie 95 % of means of so many consecutive votes
    spread: float  # factor on all variances, chosen with the threshold
    threshold: float  # of the sum of evidence
    hour_alarms: float  # alarms in 180,000 transitions without a change, expected from the data
    weights: str  # SHA-256 of the weights that cast the votes
    usual_weight: np.ndarray | None = None  # (Z,) of a vote; None: votes have no weights

    def features(self, observation: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(..., O) and (..., A) in the contract's units to features (..., H) and noise factors (...)."""
        inputs = (np.concatenate([observation, action], -1) - self.input_mean) / self.input_std
        hidden = np.clip(inputs, -MOST_INPUT, MOST_INPUT) @ self.hidden_weight + self.hidden_bias
        out = _mish(hidden) @ self.feature_weight + self.feature_bias
        return np.tanh(out[..., :-1]), np.exp(MOST_LOG_NOISE * np.tanh(out[..., -1] / MOST_LOG_NOISE))

    def place(self, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray | float]:
        """Embeddings (..., E) to votes along the directions (..., K), and their worth (...); see place()."""
        return place(embeddings, self.centre, self.basis, self.usual_weight)

    def error_of_mean(self, count: float) -> np.ndarray:
        """Standard error (Z,) of a mean of `count` consecutive votes; constant beyond the last of COUNTS."""
        place = min(max(np.log2(max(count, 1.0)), 0.0), len(COUNTS) - 1.0)
        below = int(place)
        above = min(below + 1, len(COUNTS) - 1)
        return self.errors[below] + (place - below) * (self.errors[above] - self.errors[below])

    def to_dict(self) -> dict[str, Any]:
        """For JSON: arrays as shape and base64 of little-endian float32."""
        return {"format": FORMAT} | {field.name: pack(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VoteModel:
        """Raises ValueError for another format, and for missing or damaged entries."""
        if values.get("format") != FORMAT:
            raise ValueError(f"the vote model has format {values.get('format')}, this program reads {FORMAT}")
        try:
            optional = {"usual_weight": None}  # not in files from before votes had weights
            return cls(**{f.name: unpack((optional | dict(values))[f.name]) for f in dataclasses.fields(cls)})
        except (KeyError, TypeError) as error:
            raise ValueError(f"the vote model lacks or damages {error}") from None


def place(
    embeddings: np.ndarray, centre: np.ndarray, basis: np.ndarray, usual: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | float]:
    """Embeddings (..., E) to votes along the directions (..., K) of `basis`, and what they are worth, (...) or 1.

    The worth of a vote is its weight in units of the usual one, mean over z, by which its variance is divided: a vote
    that is worth nothing is likely for every task, so no evidence of another one. Within a vote, parts count by weight.
    """
    votes, weights = parts(embeddings, len(centre))
    if weights is None:
        return (votes - centre) @ basis, 1.0
    ratio = weights if usual is None else weights / usual
    worth = np.maximum(ratio.mean(-1), LEAST_WORTH)
    return ((votes - centre) * ratio) @ basis / worth[..., None], worth


def save_vote_model(folder: Path, model: VoteModel) -> None:
    """Write it into a checkpoint's folder."""
    write_atomic(folder / FILE, json.dumps(model.to_dict()))


def load_vote_model(folder: Path, weights: str) -> VoteModel | str:
    """The vote model of a checkpoint, or why there is none; `weights` is the SHA-256 of its weights."""
    file = folder / FILE
    if not file.is_file():
        return (
            f"{FILE} is missing: too few transitions of a task in training, trained before it existed, or interrupted"
        )
    try:
        model = VoteModel.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        return f"{FILE} is damaged: {error}"
    return model if model.weights == weights else f"{FILE} belongs to other weights: training went on after it"


def _mish(x: np.ndarray) -> np.ndarray:
    return x * np.tanh(np.logaddexp(0.0, x))
