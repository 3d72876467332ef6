# SPDX-License-Identifier: Apache-2.0
"""Goes on from an earlier run with other recordings of the same contract: its weights, its normalisation, new tasks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from spc_core.data.dataset import DatasetError
from spc_core.data.packed import PackedDataset
from spc_core.deploy.checkpoint import Checkpoint, load_checkpoint
from spc_core.deploy.checkpoint_files import model_id
from spc_core.method.agent import Agent
from spc_core.method.config import ConfigError, TrainConfig, to_dict
from spc_core.method.normalize import Stats
from spc_core.training.vote_fit import task_votes

OF_THE_ROBOT = ("collect", "hypothesis_s", "task_belief")  # settings of a method that do not concern its weights
WIDER, MOVED = 2.0, 2.0  # a field's spread, and its mean in spreads, from which its normalisation no longer fits
TASK_MEANS = "task_means"


@dataclasses.dataclass(frozen=True)
class Beginning:
    """The earlier run from which one goes on."""

    folder: Path
    checkpoint: Checkpoint

    @property
    def stats(self) -> Stats:
        """Its normalisation, by which its weights were learnt."""
        return self.checkpoint.stats

    @property
    def origin(self) -> dict[str, Any]:
        """For the metrics of what comes of it: which model it was, and how long it had been trained."""
        return {"model": model_id(self.folder), "update": self.checkpoint.metrics["update"]}


def open_beginning(folder: Path, data: PackedDataset, config: TrainConfig) -> Beginning:
    """Load the earlier run. Raises CheckpointError, DatasetError (other contract) or ConfigError (other networks)."""
    checkpoint = load_checkpoint(folder)
    if differing := data.contract.differences(checkpoint.contract):
        raise DatasetError(
            f"{data.root}: has another contract than {folder}, which cannot go on with it; train anew, without --from. "
            "In the dataset (here) and the run (there):\n  " + "\n  ".join(differing)
        )
    was, now = _weights_of(checkpoint.config), _weights_of(config)
    if changed := [f"{key} was {was[key]}, is {now[key]}" for key in was if was[key] != now[key]]:
        raise ConfigError(
            f"{folder}: has other networks ({'; '.join(changed)}); keep its settings, or train anew, without --from"
        )
    if config.method.context == "oracle":
        raise ConfigError(
            f"{folder}: method.context 'oracle' scales parameters by its training tasks, so it cannot go on with "
            "others; train anew, without --from"
        )
    return Beginning(folder, checkpoint)


def _weights_of(config: TrainConfig) -> dict[str, Any]:
    """The settings on which names and shapes of weights, and what they mean, depend."""
    values = to_dict(config)
    method = {f"method.{key}": value for key, value in values["method"].items() if key not in OF_THE_ROBOT}
    model = {f"model.{key}": value for key, value in values["model"].items()}
    parts = {name: getattr(config.loss, name) > 0 for name in ("actor_average_rate", "one_step_weight")}
    return method | model | {f"loss.{name} above 0": used for name, used in parts.items()}


def take_weights(agent: Agent, beginning: Beginning, data: PackedDataset) -> None:
    """Give `agent` the earlier weights, and each task its mean z: the earlier one, or that of its recordings."""
    weights = beginning.checkpoint.agent.state_dict()
    earlier = dict(zip(_task_ids(beginning.checkpoint), weights.pop(TASK_MEANS), strict=True))
    agent.load_state_dict(weights | {TASK_MEANS: agent.task_means})
    if agent.context_encoder is None:
        return
    new = [number for number, task in enumerate(data.tasks) if task.task_id not in earlier]
    votes = dict(zip(new, task_votes(agent, beginning.stats, data, new), strict=True))
    means = [
        torch.from_numpy(votes[number].mean).float() if number in votes else earlier[task.task_id]
        for number, task in enumerate(data.tasks)
    ]
    agent.task_means.copy_(torch.stack([mean.to(agent.task_means.device) for mean in means]))


def beginning_text(beginning: Beginning, data: PackedDataset, stats: Stats) -> str:
    """What is old and new, and what does not fit: `stats` are those of the dataset itself."""
    earlier, now = set(_task_ids(beginning.checkpoint)), {task.task_id for task in data.tasks}
    lines = [
        f"goes on from {beginning.folder} ({beginning.checkpoint.metrics['update']:,} updates): "
        f"{len(now & earlier)} of its {len(earlier)} tasks, {len(now - earlier)} new"
    ]
    if missing := sorted(earlier - now):
        named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        lines.append(f"not in the dataset: {named}; what was learnt of them will fade, so mix old and new recordings")
    old, names = beginning.stats, data.contract.observation_names
    for place, name in enumerate(names):
        if old.ignored[place]:
            if not stats.ignored[place]:
                lines.append(f"{name} never changed there and changes here; it stays ignored unless you train anew")
        elif not stats.ignored[place]:
            wider = stats.observation_std[place] / old.observation_std[place]
            moved = abs(stats.observation_mean[place] - old.observation_mean[place]) / old.observation_std[place]
            if wider > WIDER or moved > MOVED:
                lines.append(
                    f"{name} spreads {wider:.1f} times as wide as there, its mean is {moved:.1f} of its spreads away; "
                    "the earlier normalisation is kept, which training anew would not do"
                )
    if (moved := abs(stats.reward_mean - old.reward_mean) / old.reward_std) > MOVED:
        lines.append(f"the mean reward is {moved:.1f} of its earlier spreads away; is it the same reward?")
    return "\n".join(lines)


def _task_ids(checkpoint: Checkpoint) -> list[str]:
    return [task["task_id"] for task in checkpoint.metrics["tasks"]]
