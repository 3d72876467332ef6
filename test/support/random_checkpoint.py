# SPDX-License-Identifier: Apache-2.0
"""An untrained checkpoint of a shipped contract, for tests of what surrounds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from spc_core.contract.contract import Contract, load_contract
from spc_core.deploy.checkpoint import Checkpoint, save_checkpoint
from spc_core.method.agent import Agent
from spc_core.method.config import ModelConfig, TrainConfig
from spc_core.method.normalize import Stats
from spc_core.system.config_files import find_config
from spc_core.trials.options import TrialOptions

TINY = ModelConfig(groups=8, encoder_hidden=(16,), dynamics_hidden=(16,), context_hidden=(16,), policy_hidden=(16,))


def write_random_checkpoint(
    folder: Path, family: str, contract: Contract | None = None, model: ModelConfig = TINY
) -> Path:
    """A checkpoint with seeded random weights; its task vector and actions vary with their inputs."""
    contract = contract or load_contract(find_config("contracts", family))
    torch.manual_seed(0)
    config = TrainConfig(model=model)
    agent = Agent(contract.observation_dim, contract.action_dim, [{}, {}], config)
    with torch.no_grad():
        for weights in agent.parameters():  # biases and last layers too, which a fresh network may have at zero
            weights.normal_(0, 0.5)
    ones = np.ones(contract.observation_dim, np.float32)
    low, high = np.float32(contract.action.low), np.float32(contract.action.high)
    stats = Stats(0 * ones, ones, 0.1 * ones, -0.5, 0.3, low, high)
    metrics = {"tasks": [{"task_id": name, "params": {}} for name in "ab"], "update": 0}
    save_checkpoint(folder, Checkpoint(agent, config, contract, stats, metrics, torch.device("cpu")))
    return folder


def trial_options(checkpoint: Path, family: str, out: Path, **options: Any) -> TrialOptions:
    """A trial of a checkpoint in a folder."""
    return TrialOptions(checkpoint=str(checkpoint), family=family, out=str(out), **options)
