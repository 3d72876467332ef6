# SPDX-License-Identifier: Apache-2.0
"""SPC: the networks together, and one update of them. Who learns from what is decided here and nowhere else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from spc_core.method.config import TrainConfig
from spc_core.method.context_encoder import ClubBound, ContextEncoder, contrastive_loss, focal_loss, pool
from spc_core.method.iql import Actor, Critic, actor_loss, bellman_loss, expectile_loss
from spc_core.method.layers import NARROW, ema_
from spc_core.method.oracle import TaskScale
from spc_core.method.world_model import WorldModel, alive_steps, world_model_losses


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


class Agent(nn.Module):
    """Context encoder, world model, actor and critic, and the running mean of z of each training task."""

    task_means: Tensor  # (K, Z)

    def __init__(
        self, observation_dim: int, action_dim: int, tasks: Sequence[Mapping[str, float]], config: TrainConfig
    ) -> None:
        """`tasks`: the parameters of each training task, which may be unknown: {}."""
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
        """The true task parameters as z (Z,), for an agent that is told them."""
        assert self.task_scale is not None
        return torch.tensor(self.task_scale.vector(params), dtype=torch.float32)


class Learner:
    """An agent with its optimisers."""

    def __init__(self, agent: Agent) -> None:
        self.agent, self.config = agent, agent.config
        self.device_type = agent.task_means.device.type
        self.half = uses_bfloat16(agent.config, self.device_type)
        config, method = agent.config, agent.config.method
        model = [p for p in agent.world_model.parameters() if p.requires_grad]
        context = [] if agent.context_encoder is None else list(agent.context_encoder.parameters())
        policy = [p for net in (agent.actor, agent.critic) for p in net.parameters() if p.requires_grad]
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "policy": torch.optim.Adam(policy, lr=config.policy_lr, fused=True)
        }
        if model or context:
            groups = [
                {"params": model, "lr": config.world_model_lr},
                {"params": context, "lr": config.context_lr, "weight_decay": 0.0},
            ]
            self.optimizers["model"] = torch.optim.AdamW([group for group in groups if group["params"]], fused=True)
        self.reduce: Callable[[list[Tensor]], None] = lambda _: None  # averages gradients over processes, if several
        self.club: ClubBound | None = None
        if method.context_club:
            self.club = ClubBound(agent.observation_dim + agent.action_dim, config.model).to(agent.task_means.device)
            self.optimizers["club"] = torch.optim.Adam(self.club.parameters(), lr=config.context_lr, fused=True)

    def update(self, batch: Batch, number: int) -> dict[str, Tensor]:
        """Update number `number`, counted from 0; returns the losses, still on the device."""
        losses: dict[str, Tensor] = {}
        self._schedule(number)
        if "model" in self.optimizers and number % self.config.world_model_every == 0:
            with self._precision():
                losses |= self._update_model(batch)
        with self._precision():  # a context of its own: autocast keeps the weights that it has rounded
            return losses | self._update_policy(batch)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device_type, torch.bfloat16, enabled=self.half)

    def _update_model(self, batch: Batch) -> dict[str, Tensor]:
        """World model and context encoder, from consistency, reward, and the losses on z."""
        agent, weights, losses = self.agent, self.config.loss, {}
        real = batch.context_weight > 0
        votes = None if agent.context_encoder is None else agent.context_encoder.embed(batch.context[real])
        z = self._contexts(batch) if votes is None else pool(votes, batch.context_weight)  # (T, C, Z)
        total = z.new_zeros(())
        if agent.world_model.learnt:
            consistency, reward = world_model_losses(
                agent.world_model, batch.observations.flatten(0, 1), batch.actions.flatten(0, 1),
                batch.rewards.flatten(0, 1), alive_steps(batch.terminated.flatten(0, 1)), _of_windows(z, batch),
                weights, self.config.method.open_loop,
            )  # fmt: skip
            total = weights.consistency_weight * consistency + weights.reward_weight * reward
            losses |= {"consistency": consistency.detach(), "reward": reward.detach()}
        if votes is not None:
            on_z, parts = self._context_losses(votes, z, batch)
            total, losses = total + on_z, losses | parts
        self._step("model", total)
        if votes is not None:
            self._move_task_means(z.detach(), batch.context_weight.sum(-1), batch.task)
            if self.club is not None:
                self._step("club", -self.club.log_likelihood(*self._acted(votes.detach(), batch)).mean())
        ema_(agent.world_model.target_encoder.parameters(), agent.world_model.encoder.parameters(), weights.target_rate)
        return losses

    def _context_losses(self, votes: Tensor, z: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """What is asked of z itself: contrast between tasks, small length, silence about who acted."""
        method, weights, losses = self.config.method, self.config.loss, {}
        seen = batch.context_weight.any(-1)  # the empty context says nothing of its task
        known, task = z[seen], batch.task[:, None].expand_as(seen)[seen]
        total = 0 * z.sum()
        if method.contrast == "infonce" and len(task):
            losses["contrast"] = contrastive_loss(
                known, self.agent.task_means.clone(), task, weights.contrast_temperature
            )
        elif method.contrast == "focal":
            losses["contrast"] = focal_loss(known, task)
        if "contrast" in losses:
            total = total + weights.contrast_weight * losses["contrast"]
        if method.context_l2:
            total = total + method.context_l2 * z.square().sum(-1).mean()
        if self.club is not None and len(task):
            acted, said = self._acted(votes, batch)
            losses["club"] = self.club(acted, said)
            total = total + method.context_club * losses["club"]
        return total, {name: loss.detach() for name, loss in losses.items()}

    def _acted(self, votes: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(s, a) (M, O + A) of all transitions in contexts, and their votes (M, Z)."""
        real = batch.context[batch.context_weight > 0]
        return real[:, : self.agent.observation_dim + self.agent.action_dim], votes

    @torch.no_grad()
    def _contexts(self, batch: Batch) -> Tensor:
        """z (T, C, Z), given and not learnt from."""
        agent, shape = self.agent, batch.context_weight.shape[:2]
        if agent.context_encoder is not None:
            return agent.context_encoder(batch.context, batch.context_weight)
        if agent.task_scale is not None:
            return agent.task_means[batch.task][:, None].expand(*shape, -1)
        return agent.task_means.new_zeros(*shape, agent.context_dim)

    def _update_policy(self, batch: Batch) -> dict[str, Tensor]:
        """Actor, Q and V by IQL on all transitions of the windows; z and latents are given, not learnt from."""
        agent, critic, loss = self.agent, self.agent.critic, self.config.loss
        with torch.no_grad():
            z = _of_windows(self._contexts(batch), batch)  # (T W, Z)
            z = z[:, None].expand(-1, batch.observations.shape[2], -1)  # (T W, H + 1, Z)
            latents = agent.world_model.encode(batch.observations.flatten(0, 1))  # each observation once
            action = batch.actions.flatten(0, 2)
            if self.half and latents.shape[-1] > NARROW:  # the first products would round them, each network anew
                latents, z, action = latents.bfloat16(), z.bfloat16(), action.bfloat16()
        values = critic.values(latents, z)  # (T W, H + 1)
        latent, z = latents[:, :-1].flatten(0, 1), z[:, :-1].flatten(0, 1)
        value, next_value = values[:, :-1].flatten(), values[:, 1:].flatten().detach()
        best = critic.target_action_value(latent, action, z)
        v_loss = expectile_loss(best - value, loss.expectile)
        q_loss = bellman_loss(critic.action_values(latent, action, z), batch.rewards.flatten(),
                              batch.terminated.flatten(), next_value, loss.discount)  # fmt: skip
        mean, log_std = agent.actor(latent, z)
        advantage = best - value.detach()
        pi_loss = actor_loss(
            mean, log_std, batch.actions.flatten(0, 2), advantage, loss.advantage_temperature, loss.advantage_clip
        )
        self._step("policy", v_loss + q_loss + pi_loss)  # three losses on three separate sets of weights
        ema_(critic.target_q.parameters(), critic.q.parameters(), loss.target_rate)
        return {"v": v_loss.detach(), "q": q_loss.detach(), "actor": pi_loss.detach()}

    def _step(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device_type, enabled=False):  # gradients keep the precision of what they belong to
            loss.backward()
        self.reduce([parameter for group in optimizer.param_groups for parameter in group["params"]])
        optimizer.step()

    def _move_task_means(self, z: Tensor, sizes: Tensor, task: Tensor) -> None:
        """Move each task's mean towards that of its votes: z (T, C, Z) weighted by the contexts' sizes (T, C)."""
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


def uses_bfloat16(config: TrainConfig, device_type: str) -> bool:
    """Whether matrix products run in bfloat16: `auto` says yes for wide networks where the processor has it."""
    if config.precision != "auto":
        return config.precision == "bf16"
    if config.model.dynamics_hidden[0] < 4 * NARROW:
        return False  # casting costs what the products save
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device_type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def _of_windows(z: Tensor, batch: Batch) -> Tensor:
    """z of contexts (T, C, Z) to z of the windows that use them (T W, Z)."""
    return z[:, batch.context_of].flatten(0, 1)
