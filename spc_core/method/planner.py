# SPDX-License-Identifier: Apache-2.0
"""Planning with MPPI in the latent world model: a slower alternative to the actor.

Model predictive path integral control (arXiv 1509.01149), iterated as in TD-MPC (arXiv 2203.04955): roll out sequences
of actions, keep the best, and sample again around them. The actor's sequences are among the candidates. The model does
not predict terminations: steps after a terminal state count like any others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from spc_core.method.agent import Agent
from spc_core.method.config import ConfigError, PlannerConfig, TrainConfig


class Planner:
    """Plans for R robots at once: P sequences of the actor, S sampled ones, H steps, A fields of an action.

    The noise comes from the planner's own generator, is the same for all robots, and does not depend on skipped rounds:
    a plan depends only on the seed, the plans since the last reset, and its robot.
    """

    def __init__(
        self,
        agent: Agent,
        config: PlannerConfig | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` returns seconds. Raises ConfigError if the agent's method has no model to plan with."""
        self.config = config or PlannerConfig()
        self.config.check("planning")
        check_plannable(agent.config)
        self.plans = self.cut_short = self.late = 0  # plans made, with rounds skipped, past the deadline
        self._agent, self._clock, self._seed = agent, clock, seed
        self._generator = torch.Generator()  # on the CPU: the same noise on every device
        self.reset()

    def reset(self) -> None:
        """Forget the last plan and restart the noise, for a new episode."""
        self._generator.manual_seed(self._seed)
        self._plan: Tensor | None = None  # (R, H, A)

    @torch.inference_mode()
    def plan(self, observation: Tensor, z: Tensor) -> Tensor:
        """(R, O) on unit scale and (R, Z) to actions (R, A) in [-1, 1].

        Raises ValueError if R changes without a reset. A non-finite observation yields a non-finite action.
        """
        if self._plan is not None and len(self._plan) != len(observation):
            raise ValueError(
                f"{len(observation)} robots, but the last plan was for {len(self._plan)}; call reset() in between"
            )
        began_s = self._now_s(observation)
        latent = self._agent.world_model.encode(observation)
        policy, policy_returns = self._follow_actor(latent, z)
        mean = self._start(policy)
        std = torch.full_like(mean, self.config.max_std)
        slowest_s, round_s = 0.0, self._now_s(observation)
        shape = (self.config.iterations, self.config.samples, *mean.shape[1:])
        for number, noise in enumerate(torch.randn(shape, generator=self._generator).to(mean)):
            if number and self.config.deadline_ms:
                now_s = self._now_s(observation)
                slowest_s, round_s = max(slowest_s, now_s - round_s), now_s
                if now_s + slowest_s - began_s > self.config.deadline_ms / 1e3:
                    self.cut_short += 1
                    break
            drawn = (mean[:, None] + std[:, None] * noise).clamp(-1, 1)
            returns = torch.cat([policy_returns, self.returns(latent, z, drawn)], 1)
            mean, std = refit(torch.cat([policy, drawn], 1), returns, self.config)
        self.plans += 1
        if self.config.deadline_ms:
            self.late += self._now_s(observation) - began_s > self.config.deadline_ms / 1e3
        self._plan = mean.nan_to_num()  # one bad observation must not spoil later plans
        return mean[:, 0].clamp(-1, 1)  # rounding may put a mean beyond the limits

    def returns(self, latent: Tensor, z: Tensor, actions: Tensor) -> Tensor:
        """Predicted returns (R, S) of sequences (R, S, H, A) from latents (R, L)."""
        flat = actions.flatten(0, 1)
        return self._imagine(latent, z, actions.shape[1], lambda t, _latent, _z: flat[:, t])[1]

    def _follow_actor(self, latent: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The actor's sequences (R, P, H, A) and their predicted returns (R, P)."""
        count, config = self.config.policy_samples, self.config
        shape = (count, config.horizon, self._agent.action_dim)
        noise = torch.randn(shape, generator=self._generator).to(latent)
        noise[:1] = 0  # the mean itself is a candidate
        noise = noise.repeat(len(latent), 1, 1)

        def act(t: int, latent: Tensor, z: Tensor) -> Tensor:
            mean, log_std = self._agent.acting(latent, z)
            return (mean + log_std.exp() * noise[:, t]).clamp(-1, 1)

        return self._imagine(latent, z, count, act)

    def _imagine(
        self, latent: Tensor, z: Tensor, count: int, act: Callable[[int, Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """`count` sequences from each of R latents, all in one batch, by `act` (t, (R N, L), (R N, Z)) -> (R N, A).

        Returns the sequences (R, N, H, A) and sum of discount^t reward + discount^H V of the last latent (R, N).
        """
        robots, discount, horizon = len(latent), self._agent.config.loss.discount, self.config.horizon
        model, actions = self._agent.world_model, []
        latent, z = latent.repeat_interleave(count, 0), z.repeat_interleave(count, 0)
        total = latent.new_zeros(len(latent))
        for t in range(horizon):
            actions.append(act(t, latent, z))
            output, reward = model.predict(latent, actions[t], z)
            total = total + discount**t * reward
            latent = model.mode(latent, output)
        total = total + discount**horizon * self._agent.critic.values(latent, z)
        return torch.stack(actions, 1).unflatten(0, (robots, count)), total.view(robots, count)

    def _start(self, policy: Tensor) -> Tensor:
        """The mean of the first round (R, H, A): the last plan, else the actor's mean sequence, else zero."""
        likely = policy[:, 0] if policy.shape[1] else policy.new_zeros(len(policy), *policy.shape[2:])
        return likely if self._plan is None else shift(self._plan, likely[:, -1])

    def _now_s(self, like: Tensor) -> float:
        if self.config.deadline_ms and like.is_cuda:
            torch.cuda.synchronize(like.device)  # else queued work would not be counted
        return self._clock()


def refit(candidates: Tensor, returns: Tensor, config: PlannerConfig) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (R, H, A) of the elites of candidates (R, N, H, A), weighted by returns (R, N)."""
    returns = returns.nan_to_num(nan=-math.inf, posinf=-math.inf)  # a diverged prediction is never an elite
    best, which = returns.topk(config.elites, 1)
    elites = candidates.gather(1, which[..., None, None].expand(-1, -1, *candidates.shape[2:]))
    weight = torch.softmax(config.temperature * best, 1)[..., None, None]  # (R, E, 1, 1)
    mean = (weight * elites).sum(1)
    std = (weight * (elites - mean[:, None]).square()).sum(1).sqrt()
    return mean, std.clamp(config.min_std, config.max_std)


def shift(plan: Tensor, last: Tensor) -> Tensor:
    """A plan (R, H, A) one step later, with `last` (R, A) as its last step."""
    return torch.cat([plan[:, 1:], last[:, None]], 1)


def check_plannable(config: TrainConfig) -> None:
    """Raises ConfigError unless both dynamics and reward were trained."""
    method, name = config.method, config.method.name
    if not method.learns_model:
        raise ConfigError(f"method '{name}' has no world model to plan with; use the actor")
    if method.latent != "raw" and method.policy_sees != "latent":
        seen = {"observation": "observation", "both": "observation too"}[method.policy_sees]
        raise ConfigError(
            f"method '{name}' has a policy that sees the {seen}, which "
            "its world model does not predict; use the actor, or train with method.policy_sees latent"
        )
    if method.consistency == "none" and not method.open_loop:  # the reward of one step does not involve the next
        raise ConfigError(f"method '{name}' does not train its world model to predict the next state; use the actor")
    if config.loss.reward_weight == 0:
        raise ConfigError(
            f"method '{name}' was trained with loss.reward_weight 0, so it predicts no reward; use the actor"
        )
