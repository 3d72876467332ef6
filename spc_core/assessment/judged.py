# SPDX-License-Identifier: Apache-2.0
"""The policy that is judged: its z from transitions, and its actions, of many rows at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from spc_core.alignment.streaming import Transition
from spc_core.assessment.recordings import TaskRecording
from spc_core.deploy.checkpoint import Checkpoint, load_checkpoint
from spc_core.deploy.checkpoint_files import CheckpointError
from spc_core.deploy.context_tracker import NOTHING_KNOWN, belief_of
from spc_core.deploy.votes import sums_of, weighted_mean

CONTEXT = 200  # transitions of a task that its z is learnt from, evenly spaced


@dataclasses.dataclass(frozen=True)
class Judged:
    """A checkpoint, and what a person must know about it."""

    checkpoint: Checkpoint
    notes: tuple[str, ...]

    @property
    def context(self) -> str:
        """How it knows its task: learnt | none | oracle."""
        return self.checkpoint.config.method.context

    @property
    def context_dim(self) -> int:
        return self.checkpoint.agent.context_dim

    @torch.no_grad()
    def embed(self, task: TaskRecording, steps: np.ndarray) -> np.ndarray:
        """Embeddings (N, E) of some of a task's transitions."""
        encoder = self.checkpoint.agent.context_encoder
        assert encoder is not None
        seen, acted, then = task.observations[steps], task.actions[steps], task.next_observations[steps]
        inputs = self.checkpoint.stats.transition(seen, acted, task.rewards[steps], then)
        return encoder.embed(torch.from_numpy(inputs)).numpy().astype(np.float64)

    def error(self, embeddings: np.ndarray) -> np.ndarray:
        """The standard error (Z,) of z that a robot would state after at least two embeddings (N, E)."""
        sums = sums_of(embeddings, self.context_dim)
        count = float(len(embeddings))
        error = np.where(sums.known, sums.error(count), NOTHING_KNOWN)
        model = self.checkpoint.vote_model
        return error if model is None else np.maximum(error, model.error_of_mean(count))

    def z(self, embeddings: np.ndarray) -> np.ndarray:
        """z (Z,) of embeddings (N, E)."""
        return weighted_mean(embeddings, self.context_dim)

    def own_z(self, task: TaskRecording) -> np.ndarray:
        """z (Z,) of a task as the policy would have it: from recordings, from its true parameters, or always 0.

        From recordings it is what a robot would show after them, with the task belief if the checkpoint has one.
        """
        if self.context == "none":
            return self.no_z
        if self.context == "oracle":
            return self.checkpoint.agent.oracle_context(task.params).numpy().astype(np.float64)
        steps = evenly(len(task.rewards), CONTEXT)
        votes, (belief, _) = self.embed(task, steps), belief_of(self.checkpoint, has_encoder=True)
        if belief is None:
            return self.z(votes)
        seen, acted, then = task.observations, task.actions, task.next_observations
        rows = [Transition(0, seen[step], acted[step], float(task.rewards[step]), then[step]) for step in steps]
        return belief.joined(belief.log_likelihoods(rows).sum(0), len(rows), self.z(votes), self.error(votes))

    @property
    def no_z(self) -> np.ndarray:
        """z (Z,) before the first transition."""
        return np.zeros(self.context_dim)

    @torch.no_grad()
    def act(self, observations: np.ndarray, z: np.ndarray) -> np.ndarray:
        """(N, O) in the contract's units and z (Z,) or (N, Z) to actions (N, A) in [-1, 1], float64."""
        seen = torch.from_numpy(self.checkpoint.stats.observation(observations))
        rows = torch.from_numpy(np.asarray(z, np.float32)).expand(len(seen), -1)
        return self.checkpoint.agent.act(seen, rows).numpy().astype(np.float64)


def load_judged(run: str | Path) -> Judged:
    """Load a run's checkpoint. Raises CheckpointError, also for a weight that is not finite."""
    checkpoint = load_checkpoint(run)
    bad = [name for name, weight in checkpoint.agent.state_dict().items() if not bool(torch.isfinite(weight).all())]
    if bad:
        raise CheckpointError(
            f"{run}: the weights {bad[0]} are not all finite ({len(bad)} such); its training failed, train again"
        )
    done, wanted, notes = int(checkpoint.metrics.get("update", 0)), checkpoint.config.updates, []
    if done < wanted:
        notes.append(f"the checkpoint is of update {done:,} of {wanted:,}: training is not over, or this one was best")
    if checkpoint.config.method.context == "none":
        notes.append(f"the method '{checkpoint.config.method.name}' has no context encoder: z is always 0")
    belief, why = belief_of(checkpoint, has_encoder=True)
    if checkpoint.config.method.task_belief and belief is None:
        notes.append(f"z is of votes alone: {why}")
    return Judged(checkpoint, tuple(notes))


def evenly(total: int, most: int) -> np.ndarray:
    """At most `most` evenly spaced numbers below `total`."""
    return np.unique(np.linspace(0, total - 1, min(total, most)).round().astype(np.int64))
