# SPDX-License-Identifier: Apache-2.0
"""Makes a preset's settings fit a dataset, and says what they mean for it."""

from __future__ import annotations

import dataclasses

import numpy as np

from spc_core.data.packed import PackedDataset
from spc_core.method.config import TrainConfig

SPARSE = 0.9  # share of transitions with one and the same reward from which rewards are called sparse
SAMPLED = 200_000  # transitions whose rewards are looked at


def fit_batches(config: TrainConfig, tasks: int) -> TrainConfig:
    """Batches of all tasks where there are fewer than `tasks_per_batch`, with as many windows in all, or a few more."""
    if tasks >= config.tasks_per_batch:
        return config
    windows = -(-config.tasks_per_batch * config.windows_per_task // tasks)
    windows = -(-windows // config.contexts_per_task) * config.contexts_per_task  # a task's contexts share them evenly
    return dataclasses.replace(config, tasks_per_batch=tasks, windows_per_task=windows)


def batch_text(config: TrainConfig, fitted: TrainConfig, data: PackedDataset) -> str:
    """What a batch holds, and how often training sees the data."""
    drawn = fitted.updates * fitted.tasks_per_batch * fitted.windows_per_task * fitted.horizon
    text = (
        f"batches: {fitted.windows_per_task} windows of {fitted.horizon} transitions of each of "
        f"{fitted.tasks_per_batch} tasks; {fitted.updates:,} updates draw each of {data.step_count:,} transitions "
        f"{drawn / data.step_count:.1f} times"
    )
    if fitted == config:
        return text
    asked = f"{config.windows_per_task} of each of {config.tasks_per_batch}"
    return f"{text} (the settings ask for {asked}, the dataset has {len(data.tasks)} tasks)"


def discount_text(discount: float, data: PackedDataset) -> str:
    """How far ahead a discount looks, and another one where rewards are too sparse for it."""
    steps, length = 1 / (1 - discount) if discount < 1 else np.inf, float(np.median(np.diff(data.episode_starts)))
    rate_hz = data.contract.rate_hz
    text = f"discount {discount:g}: looks {steps:.1f} steps ({steps / rate_hz:.2g} s) ahead, "
    text += f"of episodes of {length:.0f} ({length / rate_hz:.2g} s)"
    share = same_reward_share(data)
    if share < SPARSE or steps >= length:
        return text
    proposed = 1 - 1 / length
    return (
        f"{text}. {share:.0%} of transitions earn one and the same reward: where rewards are sparse, look as far as an "
        f"episode, --loss.discount {proposed:.3f}"
    )


def same_reward_share(data: PackedDataset) -> float:
    """The share of transitions that earn the commonest reward."""
    rewards = np.asarray(data.rewards[:: max(1, data.step_count // SAMPLED)])
    return float(np.unique(rewards, return_counts=True)[1].max() / len(rewards))
