# SPDX-License-Identifier: Apache-2.0
"""A self-contained checkpoint folder: weights, config, contract, statistics, metrics. Nothing is pickled."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml

from spc_core.contract.contract import Contract, ContractError, load_contract
from spc_core.deploy.checkpoint_files import CheckpointError, checkpoint_folder, no_checkpoint, weights_sha256
from spc_core.deploy.networks.numpy_rows import NumpyNetworks
from spc_core.deploy.networks.row_plan import row_plan
from spc_core.deploy.networks.torch_rows import RowPlanner, TorchNetworks
from spc_core.deploy.task_belief import NO_BELIEF, TaskBelief, load_task_belief
from spc_core.deploy.vote_model import VoteModel, load_vote_model
from spc_core.method.agent import Agent
from spc_core.method.config import ConfigError, PlannerConfig, TrainConfig, build, to_dict
from spc_core.method.fused import fuse_
from spc_core.method.normalize import Stats

FORMAT = 1
FILES = ("weights.safetensors", "config.yaml", "contract.yaml", "stats.json", "metrics.json")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A trained agent with everything it needs to run; see Deployable."""

    agent: Agent
    config: TrainConfig
    contract: Contract
    stats: Stats
    metrics: dict[str, Any]  # format, update, seed, tasks, losses
    device: torch.device
    vote_model: VoteModel | None = None
    no_vote_model: str = "the checkpoint was not loaded from files"
    task_belief: TaskBelief | None = None
    no_task_belief: str = "the checkpoint was not loaded from files"

    def networks(self) -> NumpyNetworks | TorchNetworks:
        """NumPy on a CPU, torch on a GPU."""
        if self.device.type == "cpu":
            return NumpyNetworks(row_plan(self.agent, self.stats))
        return TorchNetworks(self.agent, self.stats, self.device)

    def planner(self, config: PlannerConfig) -> RowPlanner:
        """Raises ConfigError if the settings are invalid or the agent's method has no model to plan with."""
        return RowPlanner(self.agent, self.stats, self.device, config)


def pick_device(name: str) -> torch.device:
    """`auto` takes a GPU if there is one. Raises ConfigError if a named device does not exist."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda") and not name.startswith("cuda:"):
        raise ConfigError(f"device is '{name}'; use auto, cpu, cuda or cuda:<number>")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device is '{name}'; the part after the colon must be a number, as in cuda:0") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device is '{name}', but this machine shows {torch.cuda.device_count()} CUDA devices; "
            "use cpu, or a lower number if there are any"
        )
    return device


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically. An existing one of the same run is updated file by file."""
    hidden = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    weights = {key: value.contiguous() for key, value in checkpoint.agent.state_dict().items()}
    safetensors.torch.save_file(weights, hidden / "weights.safetensors")
    (hidden / "config.yaml").write_text(yaml.safe_dump(to_dict(checkpoint.config), sort_keys=False))
    (hidden / "contract.yaml").write_text(checkpoint.contract.text)
    (hidden / "stats.json").write_text(json.dumps(checkpoint.stats.to_dict()))
    (hidden / "metrics.json").write_text(json.dumps({**checkpoint.metrics, "format": FORMAT}, indent=1))
    if not folder.exists():
        hidden.rename(folder)
        return
    for name in FILES:  # each file is replaced at once; config, contract and statistics do not change during a run
        (hidden / name).replace(folder / name)
    hidden.rmdir()


def load_checkpoint(folder: str | Path, device: str = "cpu") -> Checkpoint:
    """Load a checkpoint, given its folder or its training run's, ready to act. Raises CheckpointError."""
    folder = checkpoint_folder(Path(folder))
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise no_checkpoint(folder, missing)
    picked = pick_device(device)
    try:
        metrics = json.loads((folder / "metrics.json").read_text())
        if metrics.get("format", 0) > FORMAT:  # checked first: a newer format may differ in everything else
            raise CheckpointError(
                f"{folder}: has format {metrics['format']}, this program reads up to {FORMAT}; update the program"
            )
        stats = Stats.from_dict(json.loads((folder / "stats.json").read_text()))
        config = build(TrainConfig, yaml.safe_load((folder / "config.yaml").read_text()), str(folder / "config.yaml"))
        contract = load_contract(folder / "contract.yaml")
    except CheckpointError:
        raise
    except (ValueError, yaml.YAMLError, ContractError) as error:
        raise CheckpointError(f"{folder}: corrupt: {error}; copy it again or train again") from None
    if len(stats.observation_mean) != contract.observation_dim or len(stats.action_low) != contract.action_dim:
        raise CheckpointError(
            f"{folder}: stats.json has {len(stats.observation_mean)} observations and {len(stats.action_low)} actions, "
            f"contract.yaml has {contract.observation_dim} and {contract.action_dim}; copy the complete folder again"
        )
    agent = Agent(contract.observation_dim, contract.action_dim, [task["params"] for task in metrics["tasks"]], config)
    _load_weights(agent, folder / "weights.safetensors")
    fuse_(agent)
    agent.to(picked).eval().requires_grad_(False)
    weights = weights_sha256(folder)
    votes = load_vote_model(folder, weights)
    try:
        belief = load_task_belief(folder, weights) if config.method.task_belief else NO_BELIEF
    except ValueError as error:
        raise CheckpointError(f"{folder}: corrupt: {error}; copy it again or train again") from None
    return Checkpoint(
        agent, config, contract, stats, metrics, picked,
        *((None, votes) if isinstance(votes, str) else (votes, "")),
        *((None, belief) if isinstance(belief, str) else (belief, "")),
    )  # fmt: skip


def _load_weights(agent: Agent, file: Path) -> None:
    """Raises CheckpointError for a damaged file, or for weights of a different model, naming the first."""
    try:
        weights = safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{file}: corrupt ({error}); copy it again") from None
    wanted = {name: list(value.shape) for name, value in agent.state_dict().items()}
    found = {name: list(value.shape) for name, value in weights.items()}
    differing = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"{file}: of a different model: {name} is {found.get(name, 'absent')}, but config.yaml, contract.yaml and "
            f"metrics.json require {wanted.get(name, 'absent')}; copy the complete folder again, not single files"
        )
    agent.load_state_dict(weights)
