# SPDX-License-Identifier: Apache-2.0
"""An untrained checkpoint of a shipped contract, for tests of what surrounds it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spc_core.contract.contract import Contract, load_contract
from spc_core.contract.sections import ActionVector
from spc_core.deploy.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from spc_core.deploy.checkpoint_files import weights_sha256
from spc_core.deploy.networks.row_plan import mlp_of
from spc_core.deploy.task_belief import TaskBelief, save_task_belief
from spc_core.deploy.vote_model import COUNTS, VoteModel, save_vote_model
from spc_core.method.agent import Agent
from spc_core.method.config import ModelConfig
from spc_core.method.normalize import Stats
from spc_core.method.one_step import LOG_STD_FIRST, LOG_STD_MIDDLE, LOG_STD_RANGE
from spc_core.system.config_files import find_config
from spc_core.tasks import tasks
from spc_core.trials.options import TrialOptions
from support.method_options import configured

TINY = ModelConfig(groups=8, encoder_hidden=(16,), dynamics_hidden=(16,), context_hidden=(16,), policy_hidden=(16,))


def write_random_checkpoint(
    folder: Path, family: str, contract: Contract | None = None, model: ModelConfig = TINY, method: str = "spc_paper"
) -> Path:
    """A checkpoint with seeded random weights; its task vector and actions vary with their inputs.

    A method with a task belief has a random one, and a vote model that finds no change.
    """
    contract = contract or load_contract(find_config("contracts", family))
    torch.manual_seed(0)
    config = dataclasses.replace(configured(method), model=model)
    agent = Agent(contract.observation_dim, contract.action_dim, [{}, {}], config)
    with torch.no_grad():
        for weights in agent.parameters():  # biases and last layers too, which a fresh network may have at zero
            weights.normal_(0, 0.5)
    ones = np.ones(contract.observation_dim, np.float32)
    low, high = np.float32(contract.action.low), np.float32(contract.action.high)
    stats = Stats(0 * ones, ones, 0.1 * ones, -0.5, 0.3, low, high)
    metrics = {"tasks": [{"task_id": name, "params": {}} for name in "ab"], "update": 0}
    save_checkpoint(folder, Checkpoint(agent, config, contract, stats, metrics, torch.device("cpu")))
    if config.method.task_belief:
        belief, votes = random_task_belief(agent, stats), random_vote_model(len(ones) + len(low), agent.context_dim)
        weights = weights_sha256(folder)
        save_task_belief(folder, dataclasses.replace(belief, weights=weights))
        save_vote_model(folder, dataclasses.replace(votes, weights=weights, threshold=math.inf))
    return folder


def trial_options(checkpoint: Path, family: str, out: Path, **options: Any) -> TrialOptions:
    """A trial of a checkpoint in a folder."""
    return TrialOptions(checkpoint=str(checkpoint), family=family, out=str(out), **options)


def loaded_random_checkpoint(folder: Path, family: str, method: str = "spc_paper") -> Checkpoint:
    """As above, of any method, with slow actuators, and a vote model that finds a change of task now and then."""
    base = load_checkpoint(write_random_checkpoint(folder, family))
    config = dataclasses.replace(configured(method), model=TINY)
    torch.manual_seed(1)
    agent = Agent(base.agent.observation_dim, base.agent.action_dim, [t.params for t in tasks(family, "train")], config)
    agent.eval().requires_grad_(False)
    for weights in agent.parameters():
        weights.normal_(0, 0.5)
    if agent.task_scale is None:
        agent.task_means.uniform_(-1, 1)
    inputs = base.agent.observation_dim + base.agent.action_dim
    model = random_vote_model(inputs, agent.context_dim) if agent.context_encoder is not None else None
    (part,) = base.contract.action.parts
    slow = tuple(5 * (high - low) for low, high in zip(part.low, part.high, strict=True))
    action = ActionVector((dataclasses.replace(part, max_rate=slow),))
    contract = dataclasses.replace(base.contract, action=action)
    belief = random_task_belief(agent, base.stats) if config.method.task_belief else None
    return dataclasses.replace(
        base, agent=agent, config=config, contract=contract, vote_model=model, task_belief=belief
    )  # fmt: skip


def random_task_belief(agent: Agent, stats: Stats) -> TaskBelief:
    """Six seeded random candidates, which an agent's one-step heads are trusted to tell apart."""
    assert agent.world_model.one_step is not None
    rng, outputs = np.random.default_rng(5), 1 + agent.observation_dim
    candidates = rng.uniform(-1, 1, size=(6, agent.context_dim))
    return TaskBelief(
        candidates=candidates, grain=np.full(agent.context_dim, 0.02), trust=rng.uniform(0.01, 0.05, outputs),
        memory=5.0, usual=-1.0, usual_spread=0.5, rewards_tell=0.5, changes_tell=0.5,
        heads=mlp_of(agent.world_model.one_step.network),
        log_std=np.array([LOG_STD_MIDDLE, LOG_STD_RANGE, LOG_STD_FIRST]), change_scale=np.full(outputs - 1, 0.2),
        stats=stats, weights="",
    )  # fmt: skip


def random_vote_model(inputs: int, votes: int) -> VoteModel:
    """A vote model with seeded random weights: 8 features of 10 hidden units, 3 directions."""
    rng = np.random.default_rng(4)
    return VoteModel(
        input_mean=np.zeros(inputs), input_std=np.ones(inputs), hidden_weight=rng.normal(size=(inputs, 10)),
        hidden_bias=rng.normal(size=10), feature_weight=rng.normal(size=(10, 9)) / 3, feature_bias=rng.normal(size=9),
        centre=np.zeros(votes), basis=rng.normal(size=(votes, 3)), prior_mean=rng.normal(size=(8, 3)),
        prior_covariance=40 * np.eye(8), noise=np.array([0.03, 0.02, 0.01]), errors=np.full((len(COUNTS), votes), 0.01),
        spread=1.0, threshold=6.0, hour_alarms=0.0, weights="",
    )  # fmt: skip
