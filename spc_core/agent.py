# SPDX-License-Identifier: Apache-2.0
"""SPC: the networks together, and one update of them. Who learns from what is decided here and nowhere else."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from spc_core.config import TrainConfig
from spc_core.context_encoder import ContextEncoder, contrastive_loss
from spc_core.iql import Actor, Critic, actor_loss, bellman_loss, expectile_loss
from spc_core.layers import ema_
from spc_core.world_model import WorldModel, world_model_losses


@dataclasses.dataclass(frozen=True)
class Batch:
    """W windows of H transitions and C contexts of up to N of each of T distinct tasks, on unit scale.

    A task's windows share its contexts, which are drawn independently of them.
    """

    observations: Tensor  # (T, W, H + 1, O)
    actions: Tensor  # (T, W, H, A)
    rewards: Tensor  # (T, W, H)
    terminated: Tensor  # (T, W, H), 0 or 1
    context: Tensor  # (T, C, N, 2 O + A + 1), zeros where the weight is 0
    context_weight: Tensor  # (T, C, N), 0 or 1; a row of zeros is the empty context
    task: Tensor  # (T,), index of the training task
    context_of: Tensor  # (W,), index of each window's context, the same for all tasks


class Agent(nn.Module):
    """Context encoder, world model, actor and critic, and the running mean of z of each training task."""

    task_means: Tensor  # (K, Z)

    def __init__(self, observation_dim: int, action_dim: int, task_count: int, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.context_encoder = ContextEncoder(observation_dim, action_dim, config.model)
        self.world_model = WorldModel(observation_dim, action_dim, config.model)
        self.actor = Actor(action_dim, config.model)
        self.critic = Critic(action_dim, config.model)
        self.register_buffer("task_means", torch.zeros(task_count, config.model.context_dim))

    @torch.no_grad()
    def act(self, observation: Tensor, z: Tensor) -> Tensor:
        """(..., O) on unit scale and (..., Z) to the mean action (..., A) in [-1, 1]."""
        return self.actor(self.world_model.encode(observation), z)[0]


class Learner:
    """An agent with its optimisers."""

    def __init__(self, agent: Agent) -> None:
        self.agent, self.config = agent, agent.config
        model, config = agent.world_model, agent.config
        learnt = [p for p in model.parameters() if p.requires_grad]
        context = list(agent.context_encoder.parameters())
        policy = [p for net in (agent.actor, agent.critic) for p in net.parameters() if p.requires_grad]
        self.model_optimizer = torch.optim.AdamW(
            [{"params": learnt}, {"params": context, "lr": config.context_lr, "weight_decay": 0.0}],
            lr=config.world_model_lr, fused=True,
        )  # fmt: skip
        self.policy_optimizer = torch.optim.Adam(policy, lr=config.policy_lr, fused=True)
        self.optimizers = {"model": self.model_optimizer, "policy": self.policy_optimizer}

    def update(self, batch: Batch, number: int) -> dict[str, Tensor]:
        """Update number `number`, counted from 0; returns the losses, still on the device."""
        losses: dict[str, Tensor] = {}
        self._schedule(number)
        if number % self.config.world_model_every == 0:
            losses |= self._update_model(batch)
        return losses | self._update_policy(batch)

    def _update_model(self, batch: Batch) -> dict[str, Tensor]:
        """World model and context encoder, from consistency, reward and contrast."""
        agent, model, loss = self.agent, self.agent.world_model, self.config.loss
        z = agent.context_encoder(batch.context, batch.context_weight)  # (T, W, Z)
        consistency, reward = world_model_losses(
            model, model.encode(batch.observations[:, :, 0].flatten(0, 1)),
            batch.observations[:, :, 1:].flatten(0, 1), batch.actions.flatten(0, 1), batch.rewards.flatten(0, 1),
            z.flatten(0, 1), loss,
        )  # fmt: skip
        seen = batch.context_weight.any(-1)  # the empty context says nothing of its task
        task = batch.task[:, None].expand_as(seen)[seen]
        contrast = 0 * reward
        if len(task):
            contrast = contrastive_loss(z[seen], agent.task_means.clone(), task, loss.contrast_temperature)
        self.model_optimizer.zero_grad(set_to_none=True)
        (consistency + loss.reward_weight * reward + loss.contrast_weight * contrast).backward()
        self.model_optimizer.step()
        self._move_task_means(z.detach(), batch.context_weight.sum(-1), batch.task)
        ema_(model.target_encoder.parameters(), model.encoder.parameters(), loss.target_rate)
        return {"consistency": consistency.detach(), "reward": reward.detach(), "contrast": contrast.detach()}

    def _update_policy(self, batch: Batch) -> dict[str, Tensor]:
        """Actor, Q and V by IQL on all transitions of the windows; z and latents are given, not learnt from."""
        agent, critic, loss = self.agent, self.agent.critic, self.config.loss
        with torch.no_grad():
            z = agent.context_encoder(batch.context, batch.context_weight).flatten(0, 1)  # (T W, Z)
            z = z[:, None].expand(-1, batch.observations.shape[2], -1)  # (T W, H + 1, Z)
            latents = agent.world_model.encode(batch.observations.flatten(0, 1))  # each observation once
        values = critic.values(latents, z)  # (T W, H + 1)
        latent, z = latents[:, :-1].flatten(0, 1), z[:, :-1].flatten(0, 1)
        value, next_value = values[:, :-1].flatten(), values[:, 1:].flatten().detach()
        action = batch.actions.flatten(0, 2)
        best = critic.target_action_value(latent, action, z)
        v_loss = expectile_loss(best - value, loss.expectile)
        q_loss = bellman_loss(critic.action_values(latent, action, z), batch.rewards.flatten(),
                              batch.terminated.flatten(), next_value, loss.discount)  # fmt: skip
        mean, log_std = agent.actor(latent, z)
        advantage = best - value.detach()
        pi_loss = actor_loss(mean, log_std, action, advantage, loss.advantage_temperature, loss.advantage_clip)
        self.policy_optimizer.zero_grad(set_to_none=True)
        (v_loss + q_loss + pi_loss).backward()  # three losses on three separate sets of weights
        self.policy_optimizer.step()
        ema_(critic.target_q.parameters(), critic.q.parameters(), loss.target_rate)
        return {"v": v_loss.detach(), "q": q_loss.detach(), "actor": pi_loss.detach()}

    def _move_task_means(self, z: Tensor, sizes: Tensor, task: Tensor) -> None:
        """Move each task's mean towards that of its votes: z (T, W, Z) weighted by the contexts' sizes (T, W)."""
        total = sizes.sum(-1, keepdim=True)
        new = (z * sizes[..., None]).sum(1) / total.clamp(min=1)
        rate = self.config.loss.task_mean_rate * (total > 0).to(z.dtype)
        means = self.agent.task_means
        means[task] = means[task].lerp(new, rate)

    def _schedule(self, number: int) -> None:
        done = number / self.config.updates
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
                group["lr"] = group["initial_lr"] * (1 - (1 - self.config.final_lr_share) * done)
