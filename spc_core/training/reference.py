# SPDX-License-Identifier: Apache-2.0
"""The same update as in agent.py, written as the equations read: full precision, padding and one-hot codes and all.

It is slow, and there to be compared with: tests hold the fast path against it, `spc bench train` measures by it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spc_core.method.agent import Agent, Batch, Learner, _of_windows
from spc_core.method.context_encoder import contrastive_loss
from spc_core.method.latents import SampledCodes
from spc_core.method.layers import Mish
from spc_core.method.world_model import WorldModel


class ReferenceLearner(Learner):
    """A Learner of `spc` or `spc_continuous` without its shortcuts; the same weights learn from the same losses."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent)
        self.half = False
        for module in agent.modules():
            if isinstance(module, nn.Sequential):
                for place, layer in enumerate(module):
                    if isinstance(layer, Mish):
                        module[place] = nn.Mish()
        for name, fused in self.optimizers.items():
            groups = [{key: group[key] for key in ("params", "lr", "weight_decay")} for group in fused.param_groups]
            self.optimizers[name] = type(fused)(groups, foreach=False)  # type: ignore[call-arg]

    def _contexts(self, batch: Batch) -> Tensor:
        encoder = self.agent.context_encoder
        assert encoder is not None
        votes = torch.tanh(encoder.network(batch.context)) * batch.context_weight[..., None]
        return votes.sum(-2) / batch.context_weight.sum(-1, keepdim=True).clamp(min=1)

    def _update_model(self, batch: Batch) -> dict[str, Tensor]:
        agent, weights = self.agent, self.config.loss
        z = self._contexts(batch)  # (T, C, Z)
        consistency, reward = _rollout(agent.world_model, batch, _of_windows(z, batch), weights.horizon_discount)
        seen = batch.context_weight.any(-1)
        task = batch.task[:, None].expand_as(seen)[seen]
        contrast = contrastive_loss(z[seen], agent.task_means.clone(), task, weights.contrast_temperature)
        model_loss = weights.consistency_weight * consistency + weights.reward_weight * reward
        self._step("model", model_loss + weights.contrast_weight * contrast)
        self._move_task_means(z.detach(), batch.context_weight.sum(-1), batch.task)
        with torch.no_grad():
            model = agent.world_model
            for target, source in zip(model.target_encoder.parameters(), model.encoder.parameters(), strict=True):
                target.add_(weights.target_rate * (source - target))
        return {"consistency": consistency.detach(), "reward": reward.detach(), "contrast": contrast.detach()}


def _rollout(model: WorldModel, batch: Batch, z: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """Consistency and reward loss, step by step."""
    observations, actions = batch.observations.flatten(0, 1), batch.actions.flatten(0, 1)
    rewards, horizon = batch.rewards.flatten(0, 1), batch.actions.shape[2]
    latent = model.encode(observations[:, 0])
    consistency, reward = z.new_zeros(()), z.new_zeros(())
    for t in range(horizon):
        target = model.encode_target(observations[:, t + 1])
        inputs = torch.cat([latent, actions[:, t], z], -1)
        head, said = model.dynamics(inputs), model.reward(inputs).squeeze(-1)
        if isinstance(model.latent, SampledCodes):
            logits = model.latent.logits(head).transpose(1, 2).contiguous()  # (B, G, codes)
            loss = F.cross_entropy(logits.flatten(0, 1), model.latent.indices(target).flatten())
            draw = F.gumbel_softmax(logits, model.latent.temperature, hard=True)  # one-hot
            latent = (draw @ model.latent.fsq.codebook).flatten(-2)
        else:
            loss, latent = F.mse_loss(head, target), head
        consistency = consistency + discount**t / horizon * loss
        reward = reward + discount**t / horizon * F.mse_loss(said, rewards[:, t])
    return consistency, reward
