# SPDX-License-Identifier: Apache-2.0
"""What the one-step heads add to the policy's batch: tasks that nobody recorded, and where an action would lead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spc_core.method.one_step import frozen

if TYPE_CHECKING:
    from spc_core.method.agent import Agent, Batch


@torch.no_grad()
def imagine_tasks(agent: Agent, batch: Batch, z: Tensor, late: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor | None]:
    """z (T, C, Z) of all contexts, some of them moved to or away from another task, and which (T W H,).

    A context moves as a whole, so that the windows that share it are of one task. None move before `late` is 1; `drawn`
    are uniform numbers (3, T, C): which other task, whether, and how far.
    """
    loss, means = agent.config.loss, agent.task_means[batch.task]
    if not loss.imagined_share:
        return z, None
    (which, whether, how_far), tasks = drawn, len(means)
    own = torch.arange(tasks, device=z.device)[:, None]
    other = (own + 1 + (which * (tasks - 1)).long()) % tasks
    far = loss.imagined_low + (loss.imagined_high - loss.imagined_low) * how_far[..., None]
    hit = (whether < loss.imagined_share * late) & batch.context_weight.any(-1)
    z = torch.where(hit[..., None], z + far * (means[other] - means[:, None]), z)
    return z, batch.window_contexts(hit[..., None]).expand(-1, batch.rewards.shape[-1]).flatten()


@torch.no_grad()
def imagine_outcomes(
    agent: Agent, observation: Tensor, action: Tensor, z: Tensor, hit: Tensor, rewards: Tensor, next_value: Tensor
) -> tuple[Tensor, Tensor]:
    """Rewards and values of next states (B,); where `hit`, those that the heads expect in the imagined task."""
    model = agent.world_model
    assert model.one_step is not None
    ahead = model.one_step.outlook(model.one_step(model.one_step_inputs(observation, action, z))[0], observation)
    value = agent.critic.values(agent.see(ahead.next_observation), z)
    return torch.where(hit, ahead.reward, rewards), torch.where(hit, value, next_value)


def worth_ahead(agent: Agent, observation: Tensor, action: Tensor, z: Tensor, terminated: Tensor) -> Tensor:
    """Expected reward and value after an action (B,), by heads and V, which do not learn from it."""
    heads = agent.world_model.one_step
    assert heads is not None
    with torch.no_grad():
        latent = agent.world_model.one_step_inputs(observation, action, z)[..., : -action.shape[-1] - z.shape[-1]]
    ahead = heads.outlook(frozen(heads)(torch.cat([latent, action, z], -1))[0], observation)
    seen = agent.see(ahead.next_observation, frozen(agent.world_model.encoder))
    value = frozen(agent.critic.v)(torch.cat([seen, z], -1)).squeeze(-1)
    return ahead.reward + agent.config.loss.discount * (1 - terminated) * value
