# SPDX-License-Identifier: Apache-2.0
"""One-step heads, imagined tasks and the action gradient through the model, against numbers worked out by hand."""

import math

import pytest
import torch

from spc_core.method.agent import Agent, Batch
from spc_core.method.config import ConfigError
from spc_core.method.fused import FusedLearner
from spc_core.method.imagination import imagine_outcomes, imagine_tasks, worth_ahead
from spc_core.method.one_step import OneStep, beta_nll, frozen
from support.method_options import configured
from support.synthetic import tiny_config

HEADS = {"one_step_weight": 1.0}


def make_batch() -> Batch:
    torch.manual_seed(0)
    weight = torch.ones(3, 4, 6)
    weight[1, 2] = 0  # an empty context
    return Batch(
        observations=torch.randn(3, 4, 6, 2), actions=torch.rand(3, 4, 5, 2) * 2 - 1, rewards=torch.randn(3, 4, 5),
        terminated=torch.zeros(3, 4, 5), count=torch.ones(3, 4, 5), context=torch.randn(3, 4, 6, 7),
        context_weight=weight, task=torch.tensor([2, 0, 3]), context_of=torch.arange(4),
    )  # fmt: skip


def make_learner(method: str = "spc_paper", **loss: float) -> FusedLearner:
    torch.manual_seed(1)
    config = configured(method, tiny_config(method.split()[0], contexts_per_task=4, loss={**HEADS, **loss}))
    agent = Agent(2, 2, [{"goal": float(task)} for task in range(4)], config)
    for weights in agent.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    torch.nn.init.normal_(agent.task_means)
    return FusedLearner(agent, torch.Generator().manual_seed(0))


def test_beta_nll_by_hand():
    """An error of 1 at std 1/2: half of 4, and log 1/2; beta weighs it by std^(2 beta), without a gradient."""
    mean, log_std = torch.zeros(1, 1, requires_grad=True), torch.full((1, 1), -math.log(2), requires_grad=True)
    for beta in (0.0, 0.5, 1.0):
        loss = beta_nll(mean, log_std, torch.ones(1, 1), beta)
        assert loss.item() == pytest.approx((2 - math.log(2)) * 0.5 ** (2 * beta))
        slope, log_slope = torch.autograd.grad(loss.sum(), (mean, log_std))
        assert slope.item() == pytest.approx(-4 * 0.5 ** (2 * beta)), "at beta 1 that of a squared error, halved"
        assert log_slope.item() == pytest.approx((1 - 4) * 0.5 ** (2 * beta))


def test_heads_predict_the_change_in_units_of_its_spread():
    heads = OneStep(3, 2, (4,))
    heads.scale.copy_(torch.tensor([0.5, 2.0]))
    observation, following = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.0])
    targets = heads.targets(torch.tensor(7.0), observation, following)
    assert targets.tolist() == [7.0, 2.0, -0.5]
    reward, back = heads.outlook(targets, observation)
    assert reward == 7.0 and torch.equal(back, following)
    mean, log_std = heads(torch.zeros(1, 3))
    torch.testing.assert_close(log_std, torch.full((1, 3), -2.5 + 3.5 * math.tanh(0.7)))
    assert mean.shape == (1, 3)


def test_heads_learn_a_line_and_its_noise():
    torch.manual_seed(0)
    heads = OneStep(1, 1, (16,))
    optimizer = torch.optim.Adam(heads.parameters(), 1e-2)
    for _ in range(400):
        x = torch.rand(256, 1) * 2 - 1
        target = torch.cat([2 * x, -x + 0.3 * torch.randn(256, 1)], -1)
        loss = beta_nll(*heads(x), target, 0.5).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mean, log_std = heads(torch.tensor([[0.5]]))
    torch.testing.assert_close(mean[0].detach(), torch.tensor([1.0, -0.5]), atol=0.1, rtol=0)
    assert abs(log_std[0, 1].exp().item() - 0.3) < 0.1 and log_std[0, 0].exp() < 0.1


def test_contexts_move_between_their_own_and_another_tasks_mean():
    learner, batch = make_learner(imagined_share=0.5, imagined_low=-0.2, imagined_high=0.8), make_batch()
    agent, z = learner.agent, torch.zeros(3, 4, 5)
    drawn = torch.zeros(3, 3, 4)  # the next task of the batch, always, and as low as may be
    drawn[1, :, 1] = 0.6  # not below the share
    drawn[0, :, 3], drawn[2, :, 3] = 0.99, 0.5  # the last of the others, half way
    moved, hit = imagine_tasks(agent, batch, z, torch.tensor(1.0), drawn)
    means = agent.task_means[batch.task]
    torch.testing.assert_close(moved[0, 0], -0.2 * (means[1] - means[0]))
    torch.testing.assert_close(moved[2, 0], -0.2 * (means[0] - means[2]))
    torch.testing.assert_close(moved[0, 3], 0.3 * (means[2] - means[0]))
    assert not moved[:, 1].any() and not moved[1, 2].any(), "unhit contexts and the empty one stay"
    contexts = torch.tensor([[1, 0, 1, 1], [1, 0, 0, 1], [1, 0, 1, 1]], dtype=torch.bool)
    assert torch.equal(hit, contexts.flatten().repeat_interleave(5)), "all steps of the windows that use them"
    early, none = imagine_tasks(agent, batch, z, torch.tensor(0.0), drawn)
    assert torch.equal(early, z) and not none.any()
    assert imagine_tasks(make_learner().agent, batch, z, torch.tensor(1.0), drawn)[1] is None


@pytest.mark.parametrize("method", ["spc_paper", "spc_paper policy_sees=both", "dora"])
def test_imagined_outcomes_are_those_of_heads_and_v(method):
    agent = make_learner(method).agent
    observation, action, z = torch.randn(4, 2), torch.rand(4, 2), torch.randn(4, 5)
    hit, rewards, values = torch.tensor([True, False, True, False]), torch.randn(4), torch.randn(4)
    model = agent.world_model
    seen = [observation, action, z] if method == "dora" else [model.encode(observation), observation, action, z]
    mean = model.one_step(torch.cat(seen, -1))[0]
    expected_value = agent.critic.values(agent.see(observation + mean[:, 1:] * model.one_step.scale), z)
    reward, value = imagine_outcomes(agent, observation, action, z, hit, rewards, values)
    torch.testing.assert_close(reward, torch.where(hit, mean[:, 0], rewards))
    torch.testing.assert_close(value, torch.where(hit, expected_value, values))
    assert not reward.requires_grad and not value.requires_grad


@pytest.mark.parametrize("method", ["spc_paper", "spc_paper policy_sees=both", "spc_continuous", "dora"])
def test_worth_ahead_teaches_the_action_and_no_network(method):
    agent = make_learner(method).agent
    observation, z, terminated = torch.randn(4, 2), torch.randn(4, 5), torch.tensor([0.0, 0, 0, 1])
    action = torch.rand(4, 2, requires_grad=True)
    worth = worth_ahead(agent, observation, action, z, terminated)
    every = torch.tensor([True])
    reward, value = imagine_outcomes(agent, observation, action, z, every, torch.zeros(4), torch.zeros(4))
    torch.testing.assert_close(worth, reward + agent.config.loss.discount * (1 - terminated) * value)
    worth.sum().backward()
    assert action.grad is not None and (action.grad.abs().sum(1) > 0).all()
    assert all(weights.grad is None for weights in agent.parameters())
    if agent.config.method.latent != "discrete":  # where nothing is rounded, the gradient is the difference quotient
        step = torch.tensor([1e-2, 0.0])
        near = [worth_ahead(agent, observation, action + sign * step, z, terminated).detach() for sign in (1, -1)]
        torch.testing.assert_close(action.grad[:, 0], (near[0] - near[1]) / 2e-2, rtol=2e-2, atol=2e-3)


def test_a_frozen_module_passes_gradients_and_learns_nothing():
    layer, x = torch.nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
    frozen(layer)(x).sum().backward()
    assert torch.equal(x.grad, layer.weight) and layer.weight.grad is None


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_models_gradient_reaches_z(share):
    def gradient(share: float) -> torch.Tensor:
        learner = make_learner("unicorn_sup", model_share=share)
        learner.model_loss(make_batch())[0].backward()
        weight = learner.agent.context_encoder.network[0].weight.grad
        return torch.zeros(()) if weight is None else weight

    torch.testing.assert_close(gradient(share), share * gradient(1.0), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", ["spc_paper", "dora", "oracle"])
def test_heads_learn_in_every_method_and_the_policy_does_not_teach_them(method):
    learner = make_learner(f"{method} action_slope=model", imagined_share=0.5, action_gradient=1.0, late_from=0.0)
    heads = learner.agent.world_model.one_step
    before = [p.clone() for p in heads.parameters()]
    losses = learner.update(make_batch(), 0)
    assert {"one_step", "worth"} <= set(losses)
    assert not any(torch.equal(a, b) for a, b in zip(before, heads.parameters(), strict=True))
    before = [p.clone() for p in learner.agent.world_model.parameters()]
    learner._update_policy(make_batch())
    assert all(torch.equal(a, b) for a, b in zip(before, learner.agent.world_model.parameters(), strict=True))


@pytest.mark.parametrize(
    "method, loss, message",
    [
        (
            "spc_paper",
            {"one_step_weight": 0.0, "imagined_share": 0.5},
            "imagined_share needs the one-step heads; set loss",
        ),
        (
            "spc_paper action_slope=model",
            {"one_step_weight": 0.0, "action_gradient": 1.0},
            "action_slope model needs the one",
        ),
        ("no_context", {"imagined_share": 0.5}, "imagined_share needs task vectors, which method.context none lacks"),
        ("spc_paper", {"imagined_low": 0.6}, "imagined_low is 0.6 and imagined_high 0.5; the first must not be above"),
        ("spc_paper", {"model_share": -0.1}, "loss.model_share is -0.1; it must be from 0 to 1"),
    ],
)
def test_what_needs_heads_or_contexts_says_so(method, loss, message):
    with pytest.raises(ConfigError, match=message):
        make_learner(method, **loss)
