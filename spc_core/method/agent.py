# SPDX-License-Identifier: Apache-2.0
"""SPC: all networks, and one update of them as plain equations; this file alone decides which gradient reaches which.

`fused.FusedLearner` computes the same update several times faster.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spc_core.method.config import TrainConfig
from spc_core.method.iql import Actor, Critic, actor_loss, bellman_loss, expectile_loss
from spc_core.method.layers import ema_
from spc_core.method.losses import ClubBound, contrastive_loss, focal_loss, mean_over_steps, step_mask
from spc_core.method.normalize import TaskScale
from spc_core.method.world_model import ContextEncoder, WorldModel


@dataclasses.dataclass(frozen=True)
class Batch:
    """W windows of H transitions of each of T distinct tasks, on unit scale, and C contexts of up to N transitions.

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

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`, as the same object on a CPU."""
        if device.type == "cpu":
            return self
        fields = (field.name for field in dataclasses.fields(self))
        return Batch(**{name: getattr(self, name).to(device, non_blocking=True) for name in fields})

    def window_contexts(self, z: Tensor) -> Tensor:
        """z of contexts (T, C, Z) to z of the windows that use them (T W, Z)."""
        return z[:, self.context_of].flatten(0, 1)


class Agent(nn.Module):
    """Context encoder, world model, actor and critic, and the running mean of z of each training task."""

    task_means: Tensor  # (K, Z)

    def __init__(
        self, observation_dim: int, action_dim: int, tasks: Sequence[Mapping[str, float]], config: TrainConfig
    ) -> None:
        """`tasks` are the parameters of each training task, {} if unknown."""
        super().__init__()
        self.config, self.observation_dim, self.action_dim = config, observation_dim, action_dim
        self.task_scale = TaskScale.of(tasks) if config.method.context == "oracle" else None
        self.context_dim = len(self.task_scale.names) if self.task_scale else config.model.context_dim
        self.context_encoder = None
        if config.method.context == "learnt":
            self.context_encoder = ContextEncoder(observation_dim, action_dim, config.model)
        self.world_model = WorldModel(observation_dim, action_dim, self.context_dim, config)
        inputs = self.world_model.latent.dim + self.context_dim
        self.actor = Actor(inputs, action_dim, config.model.policy_hidden)
        self.critic = Critic(inputs, action_dim, config.model.policy_hidden)
        self.register_buffer("task_means", torch.zeros(len(tasks), self.context_dim))
        if self.task_scale:
            self.task_means.copy_(torch.stack([self.oracle_context(task) for task in tasks]))

    @torch.no_grad()
    def act(self, observation: Tensor, z: Tensor) -> Tensor:
        """(..., O) on unit scale and (..., Z) to the mean action (..., A) in [-1, 1]."""
        return self.actor(self.world_model.encode(observation), z)[0]

    def oracle_context(self, params: Mapping[str, float]) -> Tensor:
        """The true task parameters as z (Z,), for the method `oracle`."""
        assert self.task_scale is not None
        return torch.tensor(self.task_scale.vector(params), dtype=torch.float32)


class Learner:
    """Trains an agent: the losses, their optimisers, and the running task means."""

    OPTIMIZER: dict[str, Any] = {"foreach": False}  # arguments of torch's optimisers

    def __init__(self, agent: Agent) -> None:
        self.agent, self.config = agent, agent.config
        config, method = agent.config, agent.config.method
        model = [p for p in agent.world_model.parameters() if p.requires_grad]
        context = [] if agent.context_encoder is None else list(agent.context_encoder.parameters())
        policy = [p for net in (agent.actor, agent.critic) for p in net.parameters() if p.requires_grad]
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "policy": torch.optim.Adam(policy, lr=config.policy_lr, **self.OPTIMIZER)
        }
        if model or context:
            groups = [
                {"params": model, "lr": config.world_model_lr},
                {"params": context, "lr": config.context_lr, "weight_decay": 0.0},
            ]
            self.optimizers["model"] = torch.optim.AdamW(
                [group for group in groups if group["params"]], **self.OPTIMIZER
            )
        self.reduce: Callable[[list[Tensor]], None] = lambda _: None  # averages gradients over processes
        self.club: ClubBound | None = None
        if method.context_club:
            self.club = ClubBound(agent.observation_dim + agent.action_dim, config.model).to(agent.task_means.device)
            self.optimizers["club"] = torch.optim.Adam(self.club.parameters(), lr=config.context_lr, **self.OPTIMIZER)

    def update(self, batch: Batch, number: int) -> dict[str, Tensor]:
        """Update number `number`, counted from 0; returns the losses, still on the device."""
        self._schedule(number)
        losses: dict[str, Tensor] = {}
        if "model" in self.optimizers and number % self.config.world_model_every == 0:
            losses |= self._update_model(batch)
        return losses | self._update_policy(batch)

    def _update_model(self, batch: Batch) -> dict[str, Tensor]:
        """Train world model and context encoder on consistency, reward, and the losses on z."""
        model, weights, losses = self.agent.world_model, self.config.loss, {}
        embeddings, z = self._contexts(batch)
        total = z.new_zeros(())
        if model.learnt:
            consistency, rewards = self._rollout(batch, z)
            mask = step_mask(batch.terminated.flatten(0, 1))
            errors = [(reward - batch.rewards[..., t].flatten()).square() for t, reward in enumerate(rewards)]
            losses["consistency"] = mean_over_steps(consistency, mask, weights.horizon_discount)
            losses["reward"] = mean_over_steps(errors, mask, weights.horizon_discount)
            total = weights.consistency_weight * losses["consistency"] + weights.reward_weight * losses["reward"]
        if embeddings is not None:
            total = total + self._context_losses(embeddings, z, batch, losses)
        self._step("model", total)
        if embeddings is not None:
            self._update_task_means(z.detach(), batch.context_weight.sum(-1), batch.task)
            if self.club is not None:
                self._step("club", -self.club.log_likelihood(self._state_actions(batch), embeddings.detach()).mean())
        ema_(model.target_encoder.parameters(), model.encoder.parameters(), weights.target_rate)
        return {name: loss.detach() for name, loss in losses.items()}

    def _contexts(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """Embeddings (M, Z) of all context transitions, if there is an encoder, and z (T, C, Z)."""
        agent, shape = self.agent, batch.context_weight.shape[:2]
        if agent.context_encoder is not None:
            return agent.context_encoder(batch.context, batch.context_weight)
        if agent.task_scale is not None:
            return None, agent.task_means[batch.task][:, None].expand(*shape, -1)
        return None, agent.task_means.new_zeros(*shape, agent.context_dim)

    def _rollout(self, batch: Batch, z: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Consistency losses and predicted rewards (T W,) of each of H steps, rolled out with z (T, C, Z)."""
        model, observations = self.agent.world_model, batch.observations.flatten(0, 1)
        targets = model.encode_target(observations[:, 1:])
        actions, open_loop = batch.actions.flatten(0, 1), self.config.method.open_loop
        losses, rewards = [], []
        for t, step in enumerate(model.rollout(observations, actions, batch.window_contexts(z), open_loop)):
            target, real = targets[:, t], observations[:, t + 1]
            losses.append(model.consistency(model.latent, step.output, step.latent, target, real))
            rewards.append(step.reward)
        return losses, rewards

    def _context_losses(self, embeddings: Tensor, z: Tensor, batch: Batch, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the losses on z: contrast between tasks, length, information on the behaviour policy.

        Adds each of them to `losses`.
        """
        method, weights = self.config.method, self.config.loss
        seen = batch.context_weight.any(-1)  # the empty context does not identify its task
        known, task = z[seen], batch.task[:, None].expand_as(seen)[seen]
        total = 0 * z.sum()
        if method.contrast == "infonce" and len(task):
            means, temperature = self.agent.task_means.clone(), weights.contrast_temperature
            losses["contrast"] = contrastive_loss(known, means, task, temperature)
        elif method.contrast == "focal":
            losses["contrast"] = focal_loss(known, task)
        if "contrast" in losses:
            total = total + weights.contrast_weight * losses["contrast"]
        if method.context_l2:
            total = total + method.context_l2 * z.square().sum(-1).mean()
        if self.club is not None and len(task):
            losses["club"] = self.club(self._state_actions(batch), embeddings)
            total = total + method.context_club * losses["club"]
        return total

    def _state_actions(self, batch: Batch) -> Tensor:
        """(s, a) (M, O + A) of all context transitions."""
        return batch.context[batch.context_weight > 0][:, : self.agent.observation_dim + self.agent.action_dim]

    def _update_policy(self, batch: Batch) -> dict[str, Tensor]:
        """Train V, Q and actor by IQL on all transitions of the windows, without gradients to z and latents."""
        critic, loss, action = self.agent.critic, self.config.loss, batch.actions.flatten(0, 2)
        latents, z, actions = self._policy_inputs(batch)
        latent, z_before = latents[:, :-1].flatten(0, 1), z[:, :-1].flatten(0, 1)
        values = critic.values(latents, z)  # (T W, H + 1)
        value, next_value = values[:, :-1].flatten(), values[:, 1:].flatten().detach()
        target_q = critic.target_action_value(latent, actions, z_before)
        v_loss = expectile_loss(target_q - value, loss.expectile)

        q = critic.action_values(latent, actions, z_before)
        q_loss = bellman_loss(q, batch.rewards.flatten(), batch.terminated.flatten(), next_value, loss.discount)

        mean, log_std = self.agent.actor(latent, z_before)
        advantage = target_q - value.detach()
        pi_loss = actor_loss(mean, log_std, action, advantage, loss.advantage_temperature, loss.advantage_clip)

        self._step("policy", v_loss + q_loss + pi_loss)  # three losses with disjoint weights
        ema_(critic.target_q.parameters(), critic.q.parameters(), loss.target_rate)
        return {"v": v_loss.detach(), "q": q_loss.detach(), "actor": pi_loss.detach()}

    @torch.no_grad()
    def _policy_inputs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (T W, H + 1, L) and z (T W, H + 1, Z) of all observations, and actions (T W H, A)."""
        z = batch.window_contexts(self._contexts(batch)[1])[:, None].expand(-1, batch.observations.shape[2], -1)
        return self.agent.world_model.encode(batch.observations.flatten(0, 1)), z, batch.actions.flatten(0, 2)

    def _step(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.reduce([parameter for group in optimizer.param_groups for parameter in group["params"]])
        optimizer.step()

    def _update_task_means(self, z: Tensor, sizes: Tensor, task: Tensor) -> None:
        """Move each task's mean towards that of its embeddings: z (T, C, Z) weighted by the contexts' sizes (T, C)."""
        total = sizes.sum(-1, keepdim=True)
        new = (z * sizes[..., None]).sum(1) / total.clamp(min=1)
        rate = self.config.loss.task_mean_rate * (total > 0).to(z.dtype)
        means = self.agent.task_means
        means[task] = means[task].lerp(new, rate)

    def _schedule(self, number: int) -> None:
        """Let learning rates fall linearly with the update number."""
        done = number / self.config.updates
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
                group["lr"] = group["initial_lr"] * (1 - (1 - self.config.final_lr_share) * done)
