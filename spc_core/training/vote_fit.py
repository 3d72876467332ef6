# SPDX-License-Identifier: Apache-2.0
"""Learns the vote model of a trained agent from its dataset: spc_core/deploy/vote_model.py says what it is for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from spc_core.data.packed import PackedDataset
from spc_core.deploy.change_detector import ChangeDetector
from spc_core.deploy.checkpoint import load_checkpoint
from spc_core.deploy.checkpoint_files import weights_sha256
from spc_core.deploy.context_lanes import ChangeLanes
from spc_core.deploy.vote_model import COUNTS, MOST_INPUT, MOST_LOG_NOISE, VoteModel, place, save_vote_model
from spc_core.deploy.votes import LEAST_WEIGHT
from spc_core.deploy.votes import parts as split
from spc_core.method.agent import Agent
from spc_core.method.fused import Mish
from spc_core.method.normalize import Stats
from spc_core.training.judges import VALIDATION_SPLIT

MOST_STEPS = 6_000  # of a task
LEAST_STEPS = 120  # of a task, or there is no vote model
LEAST_UPDATES = 500  # of training, before which votes mean nothing yet
HIDDEN, FEATURES, DIRECTIONS = 64, 32, 4
SHARE = 0.99  # of the spread of tasks that the directions hold
UPDATES, BATCH, QUERIES = 2_500, 24, 16
LONGEST = 1_000  # votes of a task from which its next ones are predicted
LEARNING_RATE = 5e-3
PRIOR_WEIGHT = 0.3  # of the prediction for an unknown task
JITTER = 1e-3
HOUR = 180_000  # transitions at 50 Hz
# Chosen on the val tasks of the three families, for at most one alarm an hour of a policy that acts:
SPREAD = 3.0  # factor on the variances
THRESHOLD = 60.0  # of the evidence


@dataclasses.dataclass(frozen=True)
class TaskVotes:
    """Transitions of one task in the order of the recording, and their votes."""

    observations: np.ndarray  # (N, O) in the contract's units
    actions: np.ndarray  # (N, A)
    votes: np.ndarray  # (N, Z)
    weights: np.ndarray | None = None  # (N, Z) of the votes; None: all one

    @property
    def summands(self) -> tuple[np.ndarray, np.ndarray]:
        """Weighted votes and weights (N, Z)."""
        weights = np.ones_like(self.votes) if self.weights is None else self.weights
        return self.votes * weights, weights

    @property
    def mean(self) -> np.ndarray:
        """z (Z,)."""
        votes, weights = self.summands
        return votes.sum(0) / np.maximum(weights.sum(0), LEAST_WEIGHT)

    @property
    def embeddings(self) -> np.ndarray:
        """(N, E), as a robot sees them."""
        return self.votes if self.weights is None else np.concatenate([self.votes, self.weights], -1)


def write_vote_model(
    folder: Path, agent: Agent, stats: Stats, data: PackedDataset, seed: int, updates: int = UPDATES
) -> str:
    """Learn and store the vote model of the checkpoint in `folder`; returns what came of it, for a person."""
    if agent.context_encoder is None:
        return ""
    tasks = task_votes(agent, stats, data)
    if min(len(task.votes) for task in tasks) < LEAST_STEPS or len(tasks) < 2:
        return f"no change detection: each of two or more tasks needs {LEAST_STEPS} transitions"
    model = fit_vote_model(tasks, weights_sha256(folder), seed, min(updates, UPDATES))
    if (errors := simulated_errors(folder, data.contract.name, model.errors[0])) is not None:
        model = dataclasses.replace(model, errors=np.maximum(model.errors, errors))
    save_vote_model(folder, model)
    return f"votes: {model.basis.shape[1]} directions, {model.hour_alarms:.0f} alarms an hour on the recordings"


@torch.inference_mode()
def task_votes(agent: Agent, stats: Stats, data: PackedDataset, tasks: Iterable[int] | None = None) -> list[TaskVotes]:
    """The first MOST_STEPS transitions of each task of a dataset, or of those with these numbers, with their votes."""
    encoder = agent.context_encoder
    assert encoder is not None
    device = next(agent.parameters()).device
    found = []
    for number in range(len(data.tasks)) if tasks is None else tasks:
        runs: list[tuple[np.ndarray, ...]] = []
        for episode in np.flatnonzero(data.episode_task == number):
            begin, end = data.episode_starts[episode], data.episode_starts[episode + 1]
            rows = np.asarray(data.observations[begin + episode : end + episode + 1], np.float64)
            actions, rewards = np.asarray(data.actions[begin:end], np.float64), data.rewards[begin:end]
            inputs = torch.from_numpy(stats.transition(rows[:-1], actions, rewards, rows[1:])).to(device)
            runs.append((rows[:-1], actions, encoder.embed(inputs).cpu().numpy().astype(np.float64)))
            if sum(len(part[0]) for part in runs) >= MOST_STEPS:
                break
        observed, acted, embeddings = (np.concatenate(column)[:MOST_STEPS] for column in zip(*runs, strict=True))
        votes, weights = split(embeddings, agent.context_dim)
        found.append(TaskVotes(observed, acted, votes, weights))
    return found


def fit_vote_model(tasks: list[TaskVotes], weights: str, seed: int = 0, updates: int = UPDATES) -> VoteModel:
    """Learn features and prior, measure errors of z, and count alarms."""
    inputs = np.concatenate([np.concatenate([task.observations, task.actions], -1) for task in tasks])
    mean, std = inputs.mean(0), np.maximum(inputs.std(0), 1e-6)
    centre, basis, usual = frame_of(tasks)
    devices = torch.random.fork_rng(devices=[])
    with devices:
        torch.manual_seed(seed)
        learner = _Learner(inputs.shape[1], basis.shape[1])
        _teach(learner, tasks, (mean, std), (centre, basis, usual), np.random.default_rng(seed), updates)
    model = learner.vote_model(mean, std, centre, basis, mean_errors(tasks), weights)
    if tasks[0].weights is not None:
        model = dataclasses.replace(model, usual_weight=usual)
    return count_alarms(model, tasks)


def simulated_errors(folder: Path, family: str, spread: np.ndarray) -> np.ndarray | None:
    """Errors of z (COUNTS, Z) of the policy itself on validation tasks; None for a robot without a simulation.

    `spread` (Z,) is that of votes within a task. A policy rests and dithers where recordings move on, so that its votes
    average out later than theirs.
    """
    try:
        from spc_core.tasks import is_family, tasks
        from spc_core.trials.changes import context_errors
    except ImportError:
        return None
    if not is_family(family):
        return None
    return context_errors(load_checkpoint(folder), tasks(family, VALIDATION_SPLIT), COUNTS, spread)


def frame_of(tasks: list[TaskVotes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre (Z,) and directions (Z, K) of what the tasks' votes add to z, and the usual weight (Z,) of a vote."""
    centre = np.mean([task.mean for task in tasks], 0)
    usual = np.mean([task.summands[1].mean(0) for task in tasks], 0)
    added = np.array([(votes - centre * weights).mean(0) for votes, weights in (task.summands for task in tasks)])
    return centre, directions(centre + added / usual)[1], usual


def directions(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre (Z,) and directions (Z, K) of the tasks' mean votes (T, Z), each scaled to unit spread."""
    values, vectors = np.linalg.eigh(np.cov(means.T) + 1e-9 * np.eye(means.shape[1]))
    values, vectors = values[::-1], vectors[:, ::-1]
    count = min(DIRECTIONS, int(np.searchsorted(np.cumsum(values) / values.sum(), SHARE)) + 1)
    return means.mean(0), vectors[:, :count] / np.sqrt(values[:count])


def mean_errors(tasks: list[TaskVotes]) -> np.ndarray:
    """Half of what 95 % of the means of so many consecutive votes stay within of their task's mean, (COUNTS, Z)."""
    rows = []
    for count in COUNTS:
        deviations = []
        for task in tasks:
            sums = [np.concatenate([np.zeros((1, part.shape[1])), np.cumsum(part, 0)]) for part in task.summands]
            if len(task.votes) >= 2 * count:
                begins = np.arange(0, len(task.votes) - count + 1, max(1, count // 4))
                votes, weights = (total[begins + count] - total[begins] for total in sums)
                deviations.append(np.abs(votes / np.maximum(weights, LEAST_WEIGHT) - task.mean))
        rows.append(np.quantile(np.concatenate(deviations), 0.95, axis=0) / 2 if deviations else rows[-1])
    return np.array(rows)


class _Learner(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.hidden, self.mish, self.head = nn.Linear(inputs, HIDDEN), Mish(), nn.Linear(HIDDEN, FEATURES + 1)
        nn.init.zeros_(self.head.weight[-1:].data)
        self.prior_mean = nn.Parameter(torch.zeros(FEATURES, outputs))
        self.factor = nn.Parameter(torch.eye(FEATURES))  # of the prior precision
        self.log_noise = nn.Parameter(torch.full((outputs,), -2.0))

    def features(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(..., O + A) to features (..., H) and noise factors (..., 1)."""
        out = self.head(self.mish(self.hidden(inputs)))
        return torch.tanh(out[..., :-1]), torch.exp(MOST_LOG_NOISE * torch.tanh(out[..., -1:] / MOST_LOG_NOISE))

    @property
    def precision(self) -> Tensor:
        return self.factor @ self.factor.T + JITTER * torch.eye(FEATURES)

    def loss(
        self, seen: Tensor, votes: Tensor, worth: Tensor, asked: Tensor, answers: Tensor, answers_worth: Tensor
    ) -> Tensor:
        """Of the prediction of `answers` (B, Q, K) at `asked` after `votes` (B, N, K) at `seen`, and after none.

        The variance of a vote is divided by its worth (B, ..., 1).
        """
        (x, noise), prior = self.features(seen), self.precision
        noise = noise / worth
        weighted = (x / noise).mT
        covariance = torch.linalg.inv(prior + weighted @ x)
        mean = covariance @ (weighted @ votes + prior @ self.prior_mean)
        features, query_noise = self.features(asked)
        query = features, query_noise / answers_worth
        unknown = self._negative_log_likelihood(*query, answers, self.prior_mean, torch.linalg.inv(prior))
        return self._negative_log_likelihood(*query, answers, mean, covariance) + PRIOR_WEIGHT * unknown

    def _negative_log_likelihood(self, x: Tensor, noise: Tensor, votes: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
        variance = (noise + ((x @ cov) * x).sum(-1, keepdim=True)) * torch.exp(self.log_noise)
        return 0.5 * (torch.log(variance) + (votes - x @ mean) ** 2 / variance).sum(-1).mean()

    @torch.no_grad()
    def vote_model(
        self, mean: np.ndarray, std: np.ndarray, centre: np.ndarray, basis: np.ndarray, errors: np.ndarray, weights: str
    ) -> VoteModel:
        def numbers(tensor: Tensor) -> np.ndarray:
            return tensor.detach().double().numpy()

        return VoteModel(
            mean, std, numbers(self.hidden.weight.T), numbers(self.hidden.bias), numbers(self.head.weight.T),
            numbers(self.head.bias), centre, basis, numbers(self.prior_mean),
            np.linalg.inv(numbers(self.precision)), np.exp(numbers(self.log_noise)), errors,
            spread=SPREAD, threshold=THRESHOLD, hour_alarms=math.nan, weights=weights,
        )  # fmt: skip


def _teach(
    learner: _Learner,
    tasks: list[TaskVotes],
    scale: tuple[np.ndarray, np.ndarray],
    frame: tuple[np.ndarray, np.ndarray, np.ndarray],
    rng: np.random.Generator,
    updates: int,
) -> None:
    """Predict votes of a task from a run of its votes of any length: those that follow, or others."""
    length = min(len(task.votes) for task in tasks)
    raw = np.array([np.concatenate([t.observations[:length], t.actions[:length]], -1) for t in tasks])
    inputs = torch.from_numpy(np.clip((raw - scale[0]) / scale[1], -MOST_INPUT, MOST_INPUT).astype(np.float32))
    placed = [place(task.embeddings[:length], *frame) for task in tasks]
    targets = torch.from_numpy(np.array([places for places, _ in placed], np.float32))
    worths = [np.broadcast_to(worth, length) for _, worth in placed]
    worth = torch.from_numpy(np.array(worths, np.float32))[..., None]
    longest = min(LONGEST, length - QUERIES - 1)
    optimizer = torch.optim.Adam(learner.parameters(), LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        count = int(math.exp(rng.uniform(0, math.log(longest))))
        task = rng.integers(len(tasks), size=BATCH)[:, None]
        begin = rng.integers(length - count - QUERIES, size=BATCH)
        elsewhere = rng.integers(length - QUERIES, size=BATCH)
        query = np.where(rng.uniform(size=BATCH) < 0.5, elsewhere, begin + count)[:, None] + np.arange(QUERIES)
        context = begin[:, None] + np.arange(count)
        seen, asked = ((inputs[task, at], targets[task, at], worth[task, at]) for at in (context, query))
        loss = learner.loss(*seen, *asked)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 5.0)
        optimizer.step()
        schedule.step()


def count_alarms(model: VoteModel, tasks: list[TaskVotes]) -> VoteModel:
    """The model with its rate of alarms on the recordings: they jump between behaviours, which a policy does not."""
    detectors, found = ChangeLanes([ChangeDetector(model) for _ in tasks]), 0
    columns = [(task.observations, task.actions, task.embeddings) for task in tasks]
    for step in range(max(len(task.votes) for task in tasks)):
        lanes = [lane for lane, task in enumerate(tasks) if step < len(task.votes)]
        rows = ([column[step] for column in columns[lane]] for lane in lanes)
        found += np.count_nonzero(detectors.update(lanes, *map(np.array, zip(*rows, strict=True))))
    return dataclasses.replace(model, hour_alarms=found * HOUR / sum(len(task.votes) for task in tasks))
