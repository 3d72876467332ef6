# SPDX-License-Identifier: Apache-2.0
"""Who learns from what: a test for each arrow, and for each arrow that must not be."""

import dataclasses

import pytest
import torch
from synthetic import tiny_config

from spc_core.agent import Agent, Batch, Learner
from spc_core.context_encoder import contrastive_loss
from spc_core.world_model import world_model_losses


def make_batch(empty_context: bool = False) -> Batch:
    torch.manual_seed(0)
    weight = torch.zeros(3, 4, 6) if empty_context else torch.ones(3, 4, 6)
    return Batch(
        observations=torch.randn(3, 4, 6, 2), actions=torch.rand(3, 4, 5, 2) * 2 - 1, rewards=torch.randn(3, 4, 5),
        terminated=torch.zeros(3, 4, 5), context=torch.randn(3, 4, 6, 7), context_weight=weight,
        task=torch.tensor([2, 0, 3]), context_of=torch.arange(4),
    )  # fmt: skip


def make_learner(**overrides: object) -> Learner:
    torch.manual_seed(1)
    return Learner(Agent(2, 2, 4, tiny_config(**overrides)))


def changed(learner: Learner, work) -> set[str]:
    """Names of the parts that `work` changed."""
    agent = learner.agent
    parts = {
        "context_encoder": agent.context_encoder, "encoder": agent.world_model.encoder,
        "target_encoder": agent.world_model.target_encoder, "dynamics": agent.world_model.dynamics,
        "reward": agent.world_model.reward, "actor": agent.actor, "q": agent.critic.q,
        "target_q": agent.critic.target_q, "v": agent.critic.v,
    }  # fmt: skip
    before = {name: [p.clone() for p in part.parameters()] for name, part in parts.items()}
    means = agent.task_means.clone()
    work()
    names = {
        name for name, part in parts.items()
        if any(not torch.equal(p, q) for p, q in zip(part.parameters(), before[name], strict=True))
    }  # fmt: skip
    return names | (set() if torch.equal(means, agent.task_means) else {"task_means"})


def test_model_update_moves_the_model_and_nothing_of_the_policy():
    learner = make_learner()
    moved = changed(learner, lambda: learner._update_model(make_batch()))
    assert moved == {"context_encoder", "encoder", "target_encoder", "dynamics", "reward", "task_means"}


def test_policy_update_moves_the_policy_and_nothing_of_the_model():
    learner = make_learner()
    assert changed(learner, lambda: learner._update_policy(make_batch())) == {"actor", "q", "target_q", "v"}


@pytest.mark.parametrize("name", ["consistency", "reward", "contrast"])
def test_context_encoder_learns_from_each_loss_alone(name):
    agent, batch = make_learner().agent, make_batch()
    torch.nn.init.normal_(agent.task_means)
    model = agent.world_model
    for head in (model.dynamics, model.reward):  # at first z hardly matters to them
        torch.nn.init.normal_(head[-1].weight)
    z = agent.context_encoder(batch.context, batch.context_weight).flatten(0, 1)
    windows = [part.flatten(0, 1) for part in (batch.observations, batch.actions, batch.rewards)]
    latent = model.encode(windows[0][:, 0])
    consistency, reward = world_model_losses(
        model, latent, windows[0][:, 1:], windows[1], windows[2], z, agent.config.loss
    )
    contrast = contrastive_loss(z, agent.task_means, batch.task.repeat_interleave(4), 0.5)
    loss = {"consistency": consistency, "reward": reward, "contrast": contrast}[name]
    loss.backward()
    gradients = [p.grad for p in agent.context_encoder.parameters()]
    assert all(g is not None and g.abs().max() > 0 for g in gradients)


def test_empty_contexts_move_no_task_mean_and_carry_no_contrast():
    learner = make_learner()
    losses = {}
    moved = changed(learner, lambda: losses.update(learner._update_model(make_batch(empty_context=True))))
    assert "task_means" not in moved and float(losses["contrast"]) == 0


def test_task_means_move_for_the_tasks_of_the_batch_only():
    learner = make_learner()
    learner._update_model(make_batch())
    assert (learner.agent.task_means.abs().sum(1) > 0).tolist() == [True, False, True, True]


def test_targets_follow_by_the_target_rate():
    learner = make_learner(loss={"target_rate": 0.25})
    critic = learner.agent.critic
    before = [p.clone() for p in critic.target_q.parameters()]
    learner._update_policy(make_batch())
    for old, target, source in zip(before, critic.target_q.parameters(), critic.q.parameters(), strict=True):
        torch.testing.assert_close(target, old + 0.25 * (source - old))


def test_model_learns_every_second_update():
    learner = make_learner(world_model_every=2)
    moved = [changed(learner, lambda n=n: learner.update(make_batch(), n)) for n in range(4)]
    assert ["encoder" in names for names in moved] == [True, False, True, False]
    assert all("actor" in names for names in moved)


def test_learning_rates_fall_linearly_to_their_final_share():
    learner = make_learner(updates=10, final_lr_share=0.1, policy_lr=1e-3, context_lr=2e-3)
    rates = []
    for number in range(10):
        learner.update(make_batch(), number)
        rates.append((learner.policy_optimizer.param_groups[0]["lr"], learner.model_optimizer.param_groups[1]["lr"]))
    assert rates[0] == pytest.approx((1e-3, 2e-3)) and rates[5] == pytest.approx((0.55e-3, 1.1e-3))


def test_model_learns_deterministic_dynamics_and_rewards():
    """On data where z is needed for the reward, all three losses fall well below their start."""
    config = tiny_config(updates=150, world_model_every=1, final_lr_share=1.0, world_model_lr=3e-3, context_lr=3e-3,
                         loss={"task_mean_rate": 0.1})  # fmt: skip
    torch.manual_seed(0)
    learner = Learner(Agent(2, 2, 4, config))
    goal = torch.tensor([1.0, -1.0, 0.5, -0.5])
    first, last = {}, {}
    for number in range(150):
        batch = make_batch()
        torch.manual_seed(number + 1)
        context = torch.randn(3, 4, 6, 7)
        context[..., 4] = goal[batch.task][:, None, None]
        losses = learner.update(
            dataclasses.replace(batch, context=context, rewards=goal[batch.task][:, None, None].expand(3, 4, 5)),
            number,
        )
        first, last = first or losses, losses
    assert float(last["reward"]) < 0.1 * float(first["reward"])
    assert float(last["contrast"]) < 0.5 * float(first["contrast"])
    assert float(last["consistency"]) < 0.7 * float(first["consistency"])
