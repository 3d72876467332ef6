# SPDX-License-Identifier: Apache-2.0
"""Measures how far a trained agent's one-step heads tell the recorded tasks apart: spc_core/deploy/task_belief.py.

The heads' log-likelihoods of short pieces of the recordings, under each training task's mean z, are the features of a
classifier of the task: one weight for each output, which is the trust in it. Rewards and changes are first judged
alone. What does not tell tasks apart in the recordings, or adds nothing to the other, is left out altogether: there the
heads differ between tasks only because each task was recorded elsewhere, and a robot elsewhere would be misled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spc_core.data.packed import PackedDataset
from spc_core.deploy.checkpoint_files import weights_sha256
from spc_core.deploy.networks.row_plan import mlp_of
from spc_core.deploy.task_belief import TAILS, TaskBelief, save_task_belief
from spc_core.method.agent import Agent
from spc_core.method.normalize import Stats
from spc_core.method.one_step import LOG_STD_FIRST, LOG_STD_MIDDLE, LOG_STD_RANGE

CANDIDATES, MOST_MEANS = 64, 32  # in all; so many training tasks' means, and points on lines through two of them
MOST_TASKS = 40  # that pieces are told apart of
BEYOND = 0.5  # a candidate lies at most so far from a mean, in distances to the other mean
PIECES, SHORTEST, LONGEST = 60, 2, 100  # of each task, and their transitions, which are of one episode
STEPS, LEARNING_RATE = 300, 0.05
# Of what there is to tell. With 20 tasks it was 0.51 or more where the task showed, and at most 0.19 where it did not:
LEAST_TOLD = 0.3
LEAST_ADDED = 0.1  # by changes beside rewards, or rewards beside changes; with few tasks both seem to tell them apart
LEAST_SPREAD = 1e-6  # of a log-likelihood; where nothing counts it is 0
CHUNK = 65_536  # rows of the heads at once


class Pieces(NamedTuple):
    """Pieces of recordings: summed log-likelihoods of each output under each task's mean, own task, and length."""

    likely: Tensor  # (C, T, D)
    own: Tensor  # (C,)
    length: Tensor  # (C,)


class Trust(NamedTuple):
    """What a classifier of the task has learnt."""

    weights: Tensor  # (D,)
    memory: float  # transitions
    told: float  # 1: every piece is told for sure, 0: no better than chance


def write_task_belief(folder: Path, agent: Agent, stats: Stats, data: PackedDataset, seed: int) -> str:
    """Measure and store the task belief of the checkpoint in `folder`; returns what came of it, for a person."""
    if not agent.config.method.task_belief or len(data.tasks) < 2:
        return ""
    belief = fit_task_belief(agent, stats, data, weights_sha256(folder), seed)
    save_task_belief(folder, belief)
    told = f"rewards tell {belief.rewards_tell:.0%} of which task it is, changes {belief.changes_tell:.0%}"
    if not belief.trust.any():
        return f"task belief: off, since {told}; {LEAST_TOLD:.0%} is the least"
    return f"task belief: {told}"


def fit_task_belief(agent: Agent, stats: Stats, data: PackedDataset, weights: str, seed: int = 0) -> TaskBelief:
    """Choose candidates, and learn how far to trust each output of the heads: not at all, if none tells enough."""
    heads, rng = agent.world_model.one_step, np.random.default_rng(seed)
    assert heads is not None
    pieces = recorded_pieces(agent, stats, data, rng)
    outputs = pieces.likely.shape[-1]
    groups = {"rewards": torch.arange(outputs) == 0, "changes": torch.arange(outputs) > 0}
    alone = {name: learn_trust(pieces, group) for name, group in groups.items()}
    trust = max(alone.values(), key=lambda one: one.told)
    if trust.told < LEAST_TOLD:
        trust = Trust(torch.zeros(outputs), 1.0, trust.told)
    elif min(one.told for one in alone.values()) >= LEAST_TOLD:
        both = learn_trust(pieces, torch.ones(outputs, dtype=torch.bool))
        trust = both if both.told >= trust.told + LEAST_ADDED else trust
    candidates = candidates_of(agent.task_means.numpy().astype(np.float64), rng)
    usual, spread = usual_of(pieces, trust)
    return TaskBelief(
        candidates=candidates, grain=grain_of(candidates), trust=trust.weights.double().numpy(), memory=trust.memory,
        usual=usual, usual_spread=spread, rewards_tell=alone["rewards"].told, changes_tell=alone["changes"].told,
        heads=mlp_of(heads.network),
        log_std=np.array([LOG_STD_MIDDLE, LOG_STD_RANGE, LOG_STD_FIRST]), change_scale=heads.scale.double().numpy(),
        stats=stats, weights=weights,
    )  # fmt: skip


def recorded_pieces(agent: Agent, stats: Stats, data: PackedDataset, rng: np.random.Generator) -> Pieces:
    """PIECES pieces of each of at most MOST_TASKS tasks, of SHORTEST to LONGEST transitions, short ones more often."""
    tasks = np.arange(len(data.tasks))
    if len(tasks) > MOST_TASKS:
        tasks = np.sort(rng.choice(tasks, MOST_TASKS, replace=False))
    means = agent.task_means[torch.from_numpy(tasks)]
    likely, own, lengths = [], [], []
    for number, task in enumerate(tasks.tolist()):
        pieces = task_pieces(stats, data, task, rng)
        likely += summed_likelihoods(agent, pieces, means)
        own += [number] * len(pieces)
        lengths += [len(piece) for piece in pieces]
    return Pieces(torch.stack(likely), torch.tensor(own), torch.tensor(lengths, dtype=torch.float32))


def task_pieces(stats: Stats, data: PackedDataset, task: int, rng: np.random.Generator) -> list[np.ndarray]:
    """PIECES pieces of a task's episodes, as the context encoder reads them (N, 2 O + A + 1)."""
    pieces = []
    for episode in rng.choice(np.flatnonzero(data.episode_task == task), PIECES):
        begin, end = data.episode_starts[episode], data.episode_starts[episode + 1]
        length = min(round(math.exp(rng.uniform(math.log(SHORTEST), math.log(LONGEST)))), int(end - begin))
        first = int(begin + rng.integers(end - begin - length + 1))
        steps, rows = slice(first, first + length), slice(first + episode, first + episode + length + 1)
        seen = np.asarray(data.observations[rows], np.float64)
        acted, rewards = np.asarray(data.actions[steps], np.float64), np.asarray(data.rewards[steps], np.float64)
        pieces.append(stats.transition(seen[:-1], acted, rewards, seen[1:]))
    return pieces


@torch.no_grad()
def summed_likelihoods(agent: Agent, pieces: Sequence[np.ndarray], means: Tensor) -> list[Tensor]:
    """Log-likelihoods (T, D) of each piece under each z of `means` (T, Z), summed over its transitions."""
    heads = agent.world_model.one_step
    assert heads is not None
    seen, acts, count = agent.observation_dim, agent.action_dim, len(means)
    found = []
    for rows in torch.from_numpy(np.concatenate(pieces)).split(max(1, CHUNK // count)):
        acted, target = rows[:, None, : seen + acts], rows[:, None, seen + acts :]  # a change is in the heads' units
        shape = (len(rows), count, -1)
        mean, log_std = heads(torch.cat([acted.expand(shape), means.expand(shape)], -1))
        errors = ((target - mean) * torch.exp(-log_std)).square()
        found.append(-(TAILS + 1) / 2 * torch.log1p(errors / TAILS) - log_std)
    return [part.sum(0) for part in torch.cat(found).split([len(piece) for piece in pieces])]


def learn_trust(pieces: Pieces, outputs: Tensor) -> Trust:
    """The weights, above 0, of the outputs (D,) that may count, by which pieces are best told apart."""
    likely, tasks = pieces.likely[..., outputs], pieces.likely.shape[1]
    raw = torch.full((likely.shape[-1],), -1.0, requires_grad=True)
    log_memory = torch.tensor(2.0, requires_grad=True)
    optimizer = torch.optim.Adam([raw, log_memory], LEARNING_RATE, fused=True)
    loss = torch.zeros(())
    for _ in range(STEPS):
        said = (likely * torch.nn.functional.softplus(raw)).sum(-1) / (1 + pieces.length / log_memory.exp())[:, None]
        loss = torch.nn.functional.cross_entropy(said, pieces.own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = torch.zeros(len(outputs))
    weights[outputs] = torch.nn.functional.softplus(raw).detach()
    return Trust(weights, float(log_memory.detach().exp()), max(0.0, 1 - float(loss.detach()) / math.log(tasks)))


def usual_of(pieces: Pieces, trust: Trust) -> tuple[float, float]:
    """Mean and standard deviation of a transition's log-likelihood under its own task, by whole pieces.

    A piece's deviation grows as its errors are alike: with n (1 + n / memory) in place of n.
    """
    own = (pieces.likely[torch.arange(len(pieces.own)), pieces.own] @ trust.weights).double()
    lengths = pieces.length.double()
    mean = own.sum() / lengths.sum()
    square = ((own - lengths * mean).square() / (lengths * (1 + lengths / trust.memory))).mean()
    return float(mean), max(float(square.sqrt()), LEAST_SPREAD)


def candidates_of(means: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """At most MOST_MEANS of the tasks' means (T, Z), and points between and beyond two of them, (CANDIDATES, Z)."""
    if len(means) > MOST_MEANS:
        means = means[rng.choice(len(means), MOST_MEANS, replace=False)]
    tasks, more = len(means), CANDIDATES - len(means)
    one = rng.integers(tasks, size=more)
    other = (one + 1 + rng.integers(tasks - 1, size=more)) % tasks
    far = rng.uniform(-BEYOND, BEYOND, size=(more, 1))
    return np.concatenate([means, means[one] + far * (means[other] - means[one])])


def grain_of(candidates: np.ndarray) -> np.ndarray:
    """(Z,) mean square of the way from a candidate (K, Z) to the nearest other one."""
    distances = np.linalg.norm(candidates[:, None] - candidates, axis=-1)
    np.fill_diagonal(distances, np.inf)
    return ((candidates - candidates[distances.argmin(1)]) ** 2).mean(0)
