# SPDX-License-Identifier: Apache-2.0
"""SPC: all networks, and one update of them as plain equations; this file alone decides which gradient reaches which.

`fused.FusedLearner` computes the same update several times faster.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spc_core.method.config import TrainConfig
from spc_core.method.imagination import imagine_outcomes, imagine_tasks, worth_ahead
from spc_core.method.iql import Actor, Critic, actor_loss, bellman_loss, bellman_target, expectile_loss
from spc_core.method.layers import ema_
from spc_core.method.losses import ClubBound, contrastive_loss, focal_loss, mean_over_steps, step_mask
from spc_core.method.normalize import TaskScale
from spc_core.method.one_step import OneStep, beta_nll
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
    count: Tensor  # (T, W, H), how much the policy's losses count a transition, 1 on average; 0 after an episode's end
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


class Contexts(NamedTuple):
    """z of all contexts of a batch, and the votes of their M transitions, if they are learnt."""

    z: Tensor  # (T, C, Z)
    embeddings: Tensor | None = None  # (M, Z)
    acted: Tensor | None = None  # (M, O + A), s and a of the same transitions
    real: Tensor | None = None  # (M,), 0 for padding, which comes last

    def detached(self) -> Contexts:
        z, *others = self
        return Contexts(z.detach(), *(part if part is None else part.detach() for part in others))

    def mean(self, values: Tensor) -> Tensor:
        """The mean of values (M,) over real transitions; 0 without any."""
        assert self.real is not None
        return (values * self.real).sum() / self.real.sum().clamp(min=1)


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
            self.context_encoder = ContextEncoder(
                observation_dim, action_dim, config.model, config.method.votes == "precision"
            )
        self.world_model = WorldModel(observation_dim, action_dim, self.context_dim, config)
        latent_dim, sees = self.world_model.latent.dim, config.method.sees
        seen = {"latent": latent_dim, "observation": observation_dim, "both": latent_dim + observation_dim}[sees]
        inputs = seen + self.context_dim
        self.actor = Actor(inputs, action_dim, config.model.policy_hidden)
        self.critic = Critic(inputs, action_dim, config.model.policy_hidden)
        self.average_actor = None  # the mean of recent actors, which scatters less than the last one
        if config.loss.actor_average_rate:
            self.average_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.register_buffer("task_means", torch.zeros(len(tasks), self.context_dim))
        if self.task_scale:
            self.task_means.copy_(torch.stack([self.oracle_context(task) for task in tasks]))

    @property
    def acting(self) -> Actor:
        """The actor that acts: the average, where there is one."""
        return self.actor if self.average_actor is None else self.average_actor

    @torch.no_grad()
    def act(self, observation: Tensor, z: Tensor) -> Tensor:
        """(..., O) on unit scale and (..., Z) to the mean action (..., A) in [-1, 1]."""
        return self.acting(self.see(observation), z)[0]

    def see(self, observation: Tensor, encoder: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(..., O) on unit scale to what actor and critic see beside z (..., S), by the model's encoder or another."""
        if self.config.method.sees == "observation":
            return observation
        latent = self.world_model.latent.encode((encoder or self.world_model.encoder)(observation))
        return latent if self.config.method.sees == "latent" else torch.cat([latent, observation], -1)

    def oracle_context(self, params: Mapping[str, float]) -> Tensor:
        """The true task parameters as z (Z,), for the method `oracle`."""
        assert self.task_scale is not None
        return torch.tensor(self.task_scale.vector(params), dtype=torch.float32)


class Learner:
    """Trains an agent: the losses, their optimisers, and the running task means."""

    OPTIMIZER: dict[str, Any] = {"foreach": False}  # arguments of torch's optimisers

    def __init__(self, agent: Agent, terminal_value: float = 0.0) -> None:
        """`terminal_value`: what a terminal state is worth on the scale of the batches' rewards."""
        self.agent, self.config, self.terminal_value = agent, agent.config, terminal_value
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
        schedule_(self.optimizers, self.config, number)
        losses: dict[str, Tensor] = {}
        if "model" in self.optimizers and number % self.config.world_model_every == 0:
            losses |= self._update_model(batch)
        return losses | self._update_policy(batch, is_late(self.config, number))

    def _update_model(self, batch: Batch) -> dict[str, Tensor]:
        """Train world model and context encoder on consistency, reward, and the losses on z."""
        total, losses, contexts = self.model_loss(batch)
        self._step("model", total)
        contexts = contexts.detached()
        if contexts.embeddings is not None:
            self.agent.task_means.copy_(self.moved_task_means(contexts, batch))
            if self.club is not None:
                self._step("club", self.club_loss(contexts))
        model = self.agent.world_model
        ema_(model.target_encoder.parameters(), model.encoder.parameters(), self.config.loss.target_rate)
        return {name: loss.detach() for name, loss in losses.items()}

    def model_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Contexts]:
        """What world model and context encoder minimise, its parts, and the contexts that it used."""
        model, weights, losses = self.agent.world_model, self.config.loss, {}
        contexts = self._contexts(batch)
        total, z = contexts.z.new_zeros(()), contexts.z
        if weights.model_share < 1:
            z = z.detach().lerp(z, weights.model_share)
        if model.learnt:
            consistency, rewards = self._rollout(batch, z)
            mask = counted_steps(batch)
            errors = [(reward - batch.rewards[..., t].flatten()).square() for t, reward in enumerate(rewards)]
            losses["consistency"] = mean_over_steps(consistency, mask, weights.horizon_discount)
            losses["reward"] = mean_over_steps(errors, mask, weights.horizon_discount)
            total = weights.consistency_weight * losses["consistency"] + weights.reward_weight * losses["reward"]
        if model.one_step is not None:
            losses["one_step"] = self._one_step_loss(model.one_step, batch, z)
            total = total + weights.one_step_weight * losses["one_step"]
        if contexts.embeddings is not None:
            total = total + self._context_losses(contexts, batch, losses)
        return total, losses, contexts

    def _one_step_loss(self, heads: OneStep, batch: Batch, z: Tensor) -> Tensor:
        """beta-NLL of all steps of the windows up to a terminal one, given z (T, C, Z)."""
        observations, beta = batch.observations.flatten(0, 1), self.config.loss.one_step_beta
        before, actions = observations[:, :-1], batch.actions.flatten(0, 1)
        z = batch.window_contexts(z)[:, None].expand(-1, before.shape[1], -1)
        mean, log_std = heads(self.agent.world_model.one_step_inputs(before, actions, z))
        targets = heads.targets(batch.rewards.flatten(0, 1), before, observations[:, 1:])
        mask = counted_steps(batch)
        return (beta_nll(mean, log_std, targets, beta) * mask).sum() / mask.sum()

    def club_loss(self, contexts: Contexts) -> Tensor:
        """What CLUB's own network minimises: its error in predicting embeddings from (s, a)."""
        assert self.club is not None and contexts.acted is not None and contexts.embeddings is not None
        return -contexts.mean(self.club.log_likelihood(contexts.acted, contexts.embeddings))

    def _contexts(self, batch: Batch) -> Contexts:
        agent, shape = self.agent, batch.context_weight.shape[:2]
        if agent.context_encoder is not None:
            embeddings, z = agent.context_encoder(batch.context, batch.context_weight)
            acted = batch.context[batch.context_weight > 0][:, : agent.observation_dim + agent.action_dim]
            return Contexts(z, embeddings, acted, z.new_ones(len(acted)))
        if agent.task_scale is not None:
            return Contexts(agent.task_means[batch.task][:, None].expand(*shape, -1))
        return Contexts(agent.task_means.new_zeros(*shape, agent.context_dim))

    def _rollout(self, batch: Batch, z: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Consistency losses and predicted rewards (T W,) of each of H steps, rolled out with z (T, C, Z)."""
        model, observations = self.agent.world_model, batch.observations.flatten(0, 1)
        targets = model.encode_target(observations[:, 1:])
        actions, open_loop = batch.actions.flatten(0, 1), self.config.method.open_loop
        losses, rewards = [], []
        steps = model.rollout(observations, actions, batch.window_contexts(z), open_loop, self._next_latent)
        for t, step in enumerate(steps):
            target, real = targets[:, t], observations[:, t + 1]
            losses.append(model.consistency(model.latent, step.output, step.latent, target, real))
            rewards.append(step.reward)
        return losses, rewards

    def _next_latent(self, latent: Tensor, output: Tensor) -> Tensor:
        return self.agent.world_model.latent.step(latent, output)

    def _context_losses(self, contexts: Contexts, batch: Batch, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the losses on z: contrast between tasks, length, information on the behaviour policy.

        Adds each of them to `losses`.
        """
        method, weights, z = self.config.method, self.config.loss, contexts.z
        seen = batch.context_weight.any(-1)  # the empty context does not identify its task
        known, task = seen.flatten(), batch.task[:, None].expand_as(seen).flatten()
        total = 0 * z.sum()
        if method.contrast == "infonce":
            means, temperature = self.agent.task_means, weights.contrast_temperature
            losses["contrast"] = contrastive_loss(z.flatten(0, 1), means, task, temperature, known)
        elif method.contrast == "focal":
            losses["contrast"] = focal_loss(z.flatten(0, 1), task, known)
        if "contrast" in losses:
            total = total + weights.contrast_weight * losses["contrast"]
        if method.context_l2:
            total = total + method.context_l2 * z.square().sum(-1).mean()
        if self.club is not None:
            losses["club"] = self.club(contexts.acted, contexts.embeddings, contexts.real, self.draw_shift(contexts))
            total = total + method.context_club * losses["club"]
        return total

    def draw_shift(self, contexts: Contexts) -> Tensor:
        """By how many rows CLUB's shuffled pairs are apart."""
        assert contexts.acted is not None
        return torch.randint(1, max(len(contexts.acted), 2), (), device=contexts.acted.device)

    def _update_policy(self, batch: Batch, late: bool = True) -> dict[str, Tensor]:
        """Train V, Q and actor by IQL on all transitions of the windows, without gradients to z and latents."""
        total, losses = self.policy_loss(batch, batch.rewards.new_tensor(float(late)), self.draw_tasks(batch))
        self._step("policy", total)
        agent, rates = self.agent, self.config.loss
        ema_(agent.critic.target_q.parameters(), agent.critic.q.parameters(), rates.target_rate)
        if agent.average_actor is not None:
            ema_(agent.average_actor.parameters(), agent.actor.parameters(), rates.actor_average_rate)
        return {name: loss.detach() for name, loss in losses.items()}

    def policy_loss(self, batch: Batch, late: Tensor, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What V, Q and actor minimise, three losses with disjoint weights, and these parts.

        `late` is 1 once `late_from` of the training is done, before that 0; `drawn` as from draw_tasks().
        """
        critic, loss, action = self.agent.critic, self.config.loss, batch.actions.flatten(0, 2)
        contexts, hit = imagine_tasks(self.agent, batch, self._contexts(batch).z.detach(), late, drawn)
        latents, z, actions = self._policy_inputs(batch, contexts)
        latent, z_before = latents[:, :-1].flatten(0, 1), z[:, :-1].flatten(0, 1)
        values = critic.values(latents, z)  # (T W, H + 1)
        value, next_value = values[:, :-1].flatten(), values[:, 1:].flatten().detach()
        target_q = critic.target_action_value(latent, actions, z_before)
        count = batch.count.flatten()
        v_loss = expectile_loss(target_q - value, loss.expectile, count)

        rewards, observation = batch.rewards.flatten(), batch.observations[:, :, :-1].flatten(0, 2)
        if hit is not None:
            rewards, next_value = imagine_outcomes(self.agent, observation, actions, z_before, hit, rewards, next_value)
        q = critic.action_values(latent, actions, z_before)
        ends = batch.terminated.flatten()
        target = bellman_target(rewards, ends, next_value, loss.discount, self.terminal_value)
        q_loss = bellman_loss(q, target, count)

        mean, log_std = self.agent.actor(latent, z_before)
        advantage = target_q - value.detach()
        temperature, clip = loss.advantage_temperature, loss.advantage_clip
        pi_loss = actor_loss(mean, log_std, action, advantage, temperature, clip, count)

        losses = {"v": v_loss, "q": q_loss, "actor": pi_loss}
        if loss.action_gradient:
            if self.config.looks_ahead:
                worth = worth_ahead(self.agent, observation, mean, z_before, ends)
            else:
                worth = critic.worth(latent, mean, z_before)
            losses["worth"] = (count * worth).mean()
            pi_loss = pi_loss - late * loss.action_gradient * losses["worth"]
        return v_loss + q_loss + pi_loss, losses

    @torch.no_grad()
    def _policy_inputs(self, batch: Batch, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is seen (T W, H + 1, S) of all observations, their z (T W, H + 1, Z), and actions (T W H, A)."""
        z = batch.window_contexts(z)[:, None].expand(-1, batch.observations.shape[2], -1)
        return self.agent.see(batch.observations.flatten(0, 1)), z, batch.actions.flatten(0, 2)

    def draw_tasks(self, batch: Batch) -> Tensor:
        """Uniform numbers (3, T, C) for imagined tasks: which other task, whether, and how far."""
        shape = (3, *batch.context_weight.shape[:2]) if self.config.loss.imagined_share else (0,)
        return self.draw_uniform(shape, batch.rewards)

    def draw_uniform(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return torch.rand(shape, dtype=like.dtype, device=like.device)

    def _step(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.reduce([parameter for group in optimizer.param_groups for parameter in group["params"]])
        optimizer.step()

    def moved_task_means(self, contexts: Contexts, batch: Batch) -> Tensor:
        """The tasks' means (K, Z), each moved towards that of its embeddings: z weighted by the contexts' sizes."""
        z, sizes, means = contexts.z, batch.context_weight.sum(-1), self.agent.task_means
        total = sizes.sum(-1, keepdim=True)
        new = (z * sizes[..., None]).sum(1) / total.clamp(min=1)
        rate = self.config.loss.task_mean_rate * (total > 0).to(z.dtype)
        return means.index_copy(0, batch.task, means[batch.task].lerp(new, rate))


def counted_steps(batch: Batch) -> Tensor:
    """(T W, H), 1 for the steps of each window that an episode has, up to and with a terminal one; else 0."""
    return step_mask(batch.terminated.flatten(0, 1)) * (batch.count.flatten(0, 1) > 0)


def is_late(config: TrainConfig, number: int) -> bool:
    """Whether what begins late in training counts in update `number`."""
    return number >= config.loss.late_from * config.updates


def schedule_(optimizers: Mapping[str, torch.optim.Optimizer], config: TrainConfig, number: int) -> None:
    """Let learning rates fall linearly with the update number."""
    done = number / config.updates
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = group["initial_lr"] * (1 - (1 - config.final_lr_share) * done)
