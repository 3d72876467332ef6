# SPDX-License-Identifier: Apache-2.0
"""How far ahead the world model predicts rewards and latents of unseen recordings, with each z."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from spc_core.assessment.judged import Judged, evenly
from spc_core.assessment.recordings import Recordings, TaskRecording
from spc_core.assessment.value import KINDS, zs_of

STEPS = 10  # ahead
WINDOWS = 100  # of a task


@dataclasses.dataclass(frozen=True)
class Foresight:
    """Squared errors over the variance in the recordings, mean over tasks; 1 is no better than the mean."""

    rewards: dict[str, tuple[float, ...]]  # 1, 2, ... steps ahead, with each z
    latents: dict[str, tuple[float, ...]]


@torch.no_grad()
def foresee(judged: Judged, recordings: Recordings) -> Foresight | None:
    """None without a world model, or without an episode of at least two steps."""
    model, tasks = judged.checkpoint.agent.world_model, recordings.tasks
    steps = min(STEPS, int(np.median([task.lengths.max() for task in tasks])))
    if not model.learnt or steps < 2:
        return None
    zs = zs_of(judged, tasks)
    kinds = KINDS[: len(zs[0])]
    found, spread = [], []
    for task, own in zip(tasks, zs, strict=True):
        windows = _windows(task, steps)
        if not len(windows):
            continue
        seen, acted, rewards = _arrays(judged, task, windows[:, None] + np.arange(steps))
        real = model.encode_target(seen[:, 1:])
        spread.append([float(rewards.var()), float(real.var((0, 1)).mean())])
        found.append([_errors(judged, seen, acted, rewards, real, z) for z in own])
    if not found:
        return None
    errors = np.mean(found, 0) / np.maximum(np.mean(spread, 0), 1e-12)  # (kinds, steps, 2)
    rewards, latents = (
        {kind: tuple(errors[place, :, part].tolist()) for place, kind in enumerate(kinds)} for part in (0, 1)
    )
    return Foresight(rewards, latents)


def _windows(task: TaskRecording, steps: int) -> np.ndarray:
    """(W,) first transitions of windows within an episode."""
    left = (task.starts + task.lengths)[task.episode] - np.arange(len(task.episode))
    possible = np.flatnonzero(left >= steps)
    return possible[evenly(len(possible), WINDOWS)] if len(possible) else possible


def _arrays(judged: Judged, task: TaskRecording, places: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Observations (W, H + 1, O), actions (W, H, A) and rewards (W, H) on unit scale, of transitions (W, H)."""
    stats = judged.checkpoint.stats
    seen = np.concatenate([task.observations[places], task.next_observations[places[:, -1:]]], 1)
    return (
        torch.from_numpy(stats.observation(seen)),
        torch.from_numpy(stats.action(task.actions[places])),
        torch.from_numpy(np.asarray(stats.reward(task.rewards[places]), np.float32)),
    )


def _errors(
    judged: Judged, seen: Tensor, acted: Tensor, rewards: Tensor, real: Tensor, z: np.ndarray
) -> list[tuple[float, float]]:
    """Mean squared errors of reward and latent, for each step."""
    model = judged.checkpoint.agent.world_model
    rows = torch.from_numpy(z.astype(np.float32)).expand(len(seen), -1)
    steps = model.rollout(seen, acted, rows, True, model.mode)
    return [
        (
            float((step.reward - rewards[:, t]).square().mean()),
            float(model.latent.difference(step.latent, real[:, t]).square().mean()),
        )
        for t, step in enumerate(steps)
    ]
