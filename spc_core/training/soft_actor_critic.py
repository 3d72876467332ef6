# SPDX-License-Identifier: Apache-2.0
"""Soft actor-critic (arXiv 1812.05905) for an agent that may be told something beside its observation."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spc_core.method.layers import EnsembleLinear, ema_
from spc_core.tasks.snapshots import LOG_STD_MAX, LOG_STD_MIN


@dataclasses.dataclass(frozen=True)
class SoftConfig:
    """Sizes and rates of the networks."""

    hidden: int = 128  # width of the two hidden layers
    learning_rate: float = 1e-3  # of all networks
    discount: float = 0.99  # discount factor of the Bellman target
    target_rate: float = 0.005  # EMA rate of the target critics
    actor_every: int = 4  # updates of the critics for each of the actor


class Actor(nn.Module):
    """(s, told task, whether told) to mean and log-std of the action before its tanh."""

    mean: Tensor  # (O,)
    std: Tensor  # (O,)

    def __init__(self, mean: np.ndarray, std: np.ndarray, told: int, actions: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("std", torch.from_numpy(std))
        self.network = nn.Sequential(
            *(nn.Linear(len(mean) + told + 1, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()),
            nn.Linear(hidden, 2 * actions),
        )

    def draw(self, observation: Tensor, told: Tensor, hears: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (B, A) in [-1, 1] and their log-likelihoods (B, 1)."""
        scaled = (observation - self.mean) / self.std
        mean, log_std = self.network(torch.cat([scaled, told, hears], -1)).chunk(2, -1)
        log_std = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        noise = torch.randn_like(mean)
        before = mean + log_std.exp() * noise
        density = -0.5 * noise.square() - log_std - 0.5 * float(np.log(2 * np.pi))
        density = density - 2 * (float(np.log(2)) - before - F.softplus(-2 * before))  # of the tanh
        return torch.tanh(before), density.sum(-1, keepdim=True)


class Critics(nn.Module):
    """Two Q (s, told task, whether told, a), with layer norms."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = EnsembleLinear(2, inputs, hidden), EnsembleLinear(2, hidden, hidden)
        self.last = EnsembleLinear(2, hidden, 1)
        for layer in (self.first, self.second):
            nn.init.uniform_(layer.weight, -(layer.weight.shape[1] ** -0.5), layer.weight.shape[1] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) to (2, B, 1)."""
        for layer in (self.first, self.second):
            x = layer(x)
            x = F.relu(F.layer_norm(x, x.shape[-1:]))
        return self.last(x)


class SoftActorCritic:
    """Soft actor-critic with an entropy bonus that holds the entropy at minus the number of actions."""

    def __init__(self, mean: np.ndarray, std: np.ndarray, told: int, actions: int, config: SoftConfig) -> None:
        """`mean`, `std` (O,) of observations; `told` numbers beside them."""
        self.config = config
        self.actor = Actor(mean, std, told, actions, config.hidden)
        self.critics = Critics(len(mean) + told + 1 + actions, config.hidden)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self._wanted = -float(actions)
        self._log_bonus = torch.zeros((), requires_grad=True)
        rate = config.learning_rate
        self._actor_steps = torch.optim.Adam(self.actor.parameters(), rate, fused=True)
        self._critic_steps = torch.optim.Adam(self.critics.parameters(), rate, fused=True)
        self._bonus_steps = torch.optim.Adam([self._log_bonus], rate)
        self._updates = 0

    @torch.no_grad()
    def act(self, observations: np.ndarray, told: np.ndarray, hears: np.ndarray) -> np.ndarray:
        """Drawn actions (B, A) in [-1, 1]."""
        return self.actor.draw(*(torch.from_numpy(array) for array in (observations, told, hears)))[0].numpy()

    def state(self) -> dict[str, Any]:
        """All that learning goes on from."""
        modules = {name: module.state_dict() for name, module in self._modules().items()}
        steps = [optimizer.state_dict() for optimizer in self._optimizers()]
        return {**modules, "optimizers": steps, "log_bonus": float(self._log_bonus.detach()), "updates": self._updates}

    def load(self, state: Mapping[str, Any]) -> None:
        for name, module in self._modules().items():
            module.load_state_dict(state[name])
        for optimizer, steps in zip(self._optimizers(), state["optimizers"], strict=True):
            optimizer.load_state_dict(steps)
        with torch.no_grad():
            self._log_bonus.fill_(state["log_bonus"])
        self._updates = state["updates"]

    def _modules(self) -> dict[str, nn.Module]:
        return {"actor": self.actor, "critics": self.critics, "targets": self.targets}

    def _optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        return self._actor_steps, self._critic_steps, self._bonus_steps

    def update(self, batch: tuple[Tensor, ...]) -> None:
        """`batch`: s, a, s', reward, whether it ended there, what the agent is told, and whether it is told."""
        observation, action, after, reward, ended, told, hears = batch
        scale = self.actor.mean, self.actor.std
        state = torch.cat([(observation - scale[0]) / scale[1], told, hears], -1)
        bonus = float(self._log_bonus.detach().exp())
        with torch.no_grad():
            next_action, density = self.actor.draw(after, told, hears)
            next_state = torch.cat([(after - scale[0]) / scale[1], told, hears], -1)
            value = self.targets(torch.cat([next_state, next_action], -1)).amin(0) - bonus * density
            target = reward + self.config.discount * (1 - ended) * value
        q = self.critics(torch.cat([state, action], -1))
        self._critic_steps.zero_grad(set_to_none=True)
        (q - target).square().mean(1).sum().backward()
        self._critic_steps.step()
        ema_(self.targets.parameters(), self.critics.parameters(), self.config.target_rate)
        self._updates += 1
        if self._updates % self.config.actor_every == 0:
            self._update_actor(observation, state, told, hears, bonus)

    def _update_actor(self, observation: Tensor, state: Tensor, told: Tensor, hears: Tensor, bonus: float) -> None:
        self.critics.requires_grad_(False)
        drawn, density = self.actor.draw(observation, told, hears)
        worth = self.critics(torch.cat([state, drawn], -1)).amin(0)
        self._actor_steps.zero_grad(set_to_none=True)
        (bonus * density - worth).mean().backward()
        self._actor_steps.step()
        self.critics.requires_grad_(True)
        self._bonus_steps.zero_grad(set_to_none=True)
        (-self._log_bonus * (density.detach() + self._wanted).mean()).backward()
        self._bonus_steps.step()
