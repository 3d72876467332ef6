# SPDX-License-Identifier: Apache-2.0
"""Which loss trains which network, and which it must not train."""

import dataclasses

import pytest
import torch

from spc_core.method.agent import Agent, Batch, Learner, is_late
from spc_core.method.config import ConfigError
from spc_core.method.fused import FusedLearner
from spc_core.system.config_files import find_config
from support.method_options import configured
from support.synthetic import tiny_config


def make_batch(empty_context: bool = False) -> Batch:
    torch.manual_seed(0)
    weight = torch.zeros(3, 4, 6) if empty_context else torch.ones(3, 4, 6)
    return Batch(
        observations=torch.randn(3, 4, 6, 2), actions=torch.rand(3, 4, 5, 2) * 2 - 1, rewards=torch.randn(3, 4, 5),
        terminated=torch.zeros(3, 4, 5), count=torch.ones(3, 4, 5), context=torch.randn(3, 4, 6, 7),
        context_weight=weight, task=torch.tensor([2, 0, 3]), context_of=torch.arange(4),
    )  # fmt: skip


def make_learner(method: str = "spc_paper", kind: type[Learner] = FusedLearner, **overrides: object) -> Learner:
    torch.manual_seed(1)
    config = configured(method, tiny_config(method.split()[0], contexts_per_task=4, **overrides))
    return kind(Agent(2, 2, [{"goal": float(task)} for task in range(4)], config))


def changed(learner: Learner, work) -> set[str]:
    """Names of the parts that `work` changed."""
    agent = learner.agent
    model = agent.world_model
    parts = {
        "context_encoder": agent.context_encoder, "encoder": model.encoder, "target_encoder": model.target_encoder,
        "dynamics": getattr(model, "dynamics", None), "reward": getattr(model, "reward", None),
        "one_step": model.one_step, "average_actor": agent.average_actor,
        "actor": agent.actor, "q": agent.critic.q, "target_q": agent.critic.target_q, "v": agent.critic.v,
    }  # fmt: skip
    parts = {name: part for name, part in parts.items() if part is not None}
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
    weights = {"consistency": 0.0, "reward": 0.0, "contrast": 0.0} | {name: 1.0}
    learner = make_learner(loss={f"{loss}_weight": weight for loss, weight in weights.items()})
    torch.nn.init.normal_(learner.agent.task_means)
    for network in (learner.agent.world_model.dynamics, learner.agent.world_model.reward):  # at first z hardly matters
        torch.nn.init.normal_(network[-1].weight)
    learner._update_model(make_batch())
    gradients = [p.grad for p in learner.agent.context_encoder.parameters()]
    assert all(g is not None and g.abs().max() > 0 for g in gradients)


WORLD_MODEL = {"encoder", "target_encoder", "dynamics", "reward"}
LEARNS = {  # networks that each method's model update trains
    "spc": {"context_encoder", "task_means", "one_step", "average_actor"},
    "spc_paper": WORLD_MODEL | {"context_encoder", "task_means"},
    "spc_continuous": WORLD_MODEL | {"context_encoder", "task_means"},
    "spc_simnorm": WORLD_MODEL | {"context_encoder", "task_means"},
    "spc_reconstruction": WORLD_MODEL | {"context_encoder", "task_means"},
    "spc_no_consistency": WORLD_MODEL | {"context_encoder", "task_means"},
    "spc_no_contrast": WORLD_MODEL | {"context_encoder", "task_means"},
    "focal": {"context_encoder", "task_means"},
    "csro": {"context_encoder", "task_means"},
    "dora": {"context_encoder", "task_means"},
    "unicorn_ss": {"context_encoder", "task_means", "dynamics", "reward"},
    "unicorn_sup": {"context_encoder", "task_means", "dynamics", "reward"},
    "no_context": set(),
    "oracle": set(),
}


def test_every_shipped_method_is_listed():
    assert {file.stem for file in (find_config("methods", "spc").parent).glob("*.yaml")} == set(LEARNS)


@pytest.mark.parametrize("kind", [Learner, FusedLearner])
@pytest.mark.parametrize("method", LEARNS)
def test_methods_train_exactly_the_listed_networks(method, kind):
    learner = make_learner(method, kind)
    batch = make_batch()
    learner.update(batch, 0)  # the first update moves running means, without which contrast has no direction
    moved = changed(learner, lambda: learner.update(batch, 2))
    assert moved == LEARNS[method] | {"actor", "q", "target_q", "v"}


def test_contexts_of_no_context_and_oracle():
    batch = make_batch()
    assert not make_learner("no_context")._contexts(batch).z.any()
    oracle = make_learner("oracle")
    z = oracle._contexts(batch).z
    expected = torch.tensor([2.0, 0.0, 3.0])[:, None, None].expand(3, 4, 1)  # the parameter of the batch's tasks
    torch.testing.assert_close(z * torch.arange(4.0).std(correction=0) + 1.5, expected)
    torch.testing.assert_close(oracle.agent.oracle_context({"goal": 1.5}), torch.zeros(1))
    with pytest.raises(ConfigError, match="lacks the parameter 'goal'"):
        oracle.agent.oracle_context({})


def test_oracle_refuses_tasks_without_parameters():
    with pytest.raises(ConfigError, match="none that differ between tasks"):
        Agent(2, 2, [{}, {}], tiny_config("oracle"))


def test_csro_bound_learns_its_own_network_and_never_through_the_encoder():
    learner = make_learner("csro")
    club = [p.clone() for p in learner.club.parameters()]
    learner._update_model(make_batch())
    assert any(not torch.equal(p, q) for p, q in zip(learner.club.parameters(), club, strict=True))
    encoder = learner.agent.context_encoder
    encoder.zero_grad()
    learner._step("club", learner.club_loss(learner._contexts(make_batch()).detached()))
    assert all(p.grad is None for p in encoder.parameters())


def test_windows_use_the_contexts_of_their_task_in_order():
    batch = make_batch()
    few = dataclasses.replace(
        batch, context=batch.context[:, :2], context_weight=batch.context_weight[:, :2],
        context_of=torch.tensor([0, 0, 1, 1]),
    )  # fmt: skip
    z = torch.arange(6.0).reshape(3, 2, 1)
    assert few.window_contexts(z).flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    make_learner().update(few, 0)


def test_empty_contexts_move_no_task_mean_and_carry_no_contrast():
    learner = make_learner()
    losses = {}
    moved = changed(learner, lambda: losses.update(learner._update_model(make_batch(empty_context=True))))
    assert "task_means" not in moved and losses["contrast"] == 0


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


class TwoPlaces:
    """At -1, a positive action earns 1 and stays, a negative one earns nothing and ends; at 1 all earn 3 and stay."""

    reward_mean, reward_std, discount = 2.0, 1.0, 0.9

    def batch(self, number: int) -> Batch:
        """Steps on unit scale, where a reward of 1 is -1."""
        torch.manual_seed(number)
        place, action = torch.randint(2, (1, 128, 1)) * 2.0 - 1, torch.rand(1, 128, 1, 1) * 2 - 1
        falls = ((place < 0) & (action[..., 0] < 0)).float()
        reward = torch.where(place > 0, 3.0, 1.0 - falls)
        return Batch(
            observations=place[..., None].expand(1, 128, 2, 1), actions=action,
            rewards=(reward - self.reward_mean) / self.reward_std, terminated=falls, count=torch.ones(1, 128, 1),
            context=torch.zeros(1, 1, 1, 4), context_weight=torch.zeros(1, 1, 1),
            task=torch.zeros(1, dtype=torch.long), context_of=torch.zeros(128, dtype=torch.long),
        )  # fmt: skip

    def learnt_action(self, terminal_value: float) -> float:
        """What the policy does at -1 after learning."""
        torch.manual_seed(0)
        config = tiny_config("no_context", policy_lr=1e-2, final_lr_share=1.0,
                             loss={"discount": self.discount, "target_rate": 0.05})  # fmt: skip
        learner = FusedLearner(Agent(1, 1, [{}], config), terminal_value=terminal_value)
        for number in range(200):
            learner.update(self.batch(number), number)
        return float(learner.agent.act(torch.tensor([[-1.0]]), torch.zeros(1, config.model.context_dim)))


def test_ending_early_does_not_pay_where_rewards_are_above_nothing():
    """Staying is worth 10 and falling 0, but after the shift by the mean reward staying earns -1 a step."""
    places = TwoPlaces()
    no_more = -places.reward_mean / places.reward_std / (1 - places.discount)
    assert places.learnt_action(terminal_value=no_more) > 0.3
    assert places.learnt_action(terminal_value=0.0) < -0.3, "the fault that this guards against"


def test_transitions_that_do_not_count_move_nothing():
    """Rows after an episode's end, whatever they hold, change no loss."""
    batch = make_batch()
    count = torch.ones(3, 4, 5)
    count[..., 3:] = 0
    noise = {name: getattr(batch, name).clone() for name in ("observations", "actions", "rewards")}
    noise["observations"][..., 4:, :] += 7
    noise["actions"][..., 3:, :] = 0
    noise["rewards"][..., 3:] = 50
    learner = make_learner("spc_continuous", loss={"one_step_weight": 1.0, "action_gradient": 1.0})
    losses = [
        learner.model_loss(changed)[1] | learner.policy_loss(changed, torch.tensor(1.0), torch.zeros(0))[1]
        for changed in (dataclasses.replace(batch, count=count), dataclasses.replace(batch, count=count, **noise))
    ]
    assert losses[0].keys() >= {"consistency", "reward", "one_step", "v", "q", "actor", "worth"}
    for name, value in losses[0].items():
        torch.testing.assert_close(losses[1][name], value)


def test_the_average_actor_follows_by_its_rate_and_acts():
    learner = make_learner(loss={"actor_average_rate": 0.25})
    agent, observation, z = learner.agent, torch.ones(3, 2), torch.zeros(3, 5)
    assert agent.average_actor is not None
    before = [p.clone() for p in agent.average_actor.parameters()]
    learner._update_policy(make_batch())
    for old, average, last in zip(before, agent.average_actor.parameters(), agent.actor.parameters(), strict=True):
        torch.testing.assert_close(average, old + 0.25 * (last - old))
    latent = agent.world_model.encode(observation)
    assert torch.equal(agent.act(observation, z), agent.average_actor(latent, z)[0])
    assert not torch.equal(agent.act(observation, z), agent.actor(latent, z)[0])
    plain = make_learner().agent
    assert plain.average_actor is None and plain.acting is plain.actor


@pytest.mark.parametrize("sees, columns", [("latent", 8), ("observation", 2), ("both", 10)])
def test_what_the_policy_sees(sees, columns):
    learner = make_learner(f"spc_paper policy_sees={sees}")
    agent, observation = learner.agent, torch.randn(3, 2)
    parts = {"latent": agent.world_model.encode(observation), "observation": observation}
    expected = torch.cat([parts[name] for name in ("latent", "observation") if sees in (name, "both")], -1)
    assert torch.equal(agent.see(observation), expected) and expected.shape == (3, columns)
    assert changed(learner, lambda: learner._update_policy(make_batch())) == {"actor", "q", "target_q", "v"}


def test_a_raw_latent_is_the_observation_whatever_is_asked_for():
    agents = [make_learner(f"dora policy_sees={sees}").agent for sees in ("latent", "observation", "both")]
    assert all(torch.equal(agent.see(torch.ones(3, 2)), torch.ones(3, 2)) for agent in agents)


def policy_gradients(late: float, **loss: float) -> dict[str, torch.Tensor | None]:
    learner = make_learner("dora", loss=loss)
    for name, weights in learner.agent.named_parameters():
        torch.manual_seed(len(name))
        torch.nn.init.normal_(weights, std=0.3)
    learner.policy_loss(make_batch(), torch.tensor(late), torch.zeros(0))[0].backward()
    return {name: p.grad for name, p in learner.agent.named_parameters()}


def test_the_action_gradient_is_the_slope_of_the_smaller_q_and_moves_the_actor_alone():
    plain, steep, early = (policy_gradients(late, action_gradient=w) for late, w in ((1, 0.0), (1, 2.0), (0, 2.0)))
    learner = make_learner("dora")
    for name, weights in learner.agent.named_parameters():
        torch.manual_seed(len(name))
        torch.nn.init.normal_(weights, std=0.3)
    agent, batch = learner.agent, make_batch()
    seen, z, _ = learner._policy_inputs(batch, learner._contexts(batch).z)
    observation, z = seen[:, :-1].flatten(0, 1), z[:, :-1].flatten(0, 1)
    mean = agent.actor(observation, z)[0]
    action = mean.detach().requires_grad_()
    both = agent.critic.target_q(torch.cat([observation, action, z], -1)).squeeze(-1)
    (slope,) = torch.autograd.grad(torch.minimum(both[0], both[1]).sum(), action)
    (-2.0 * (slope * mean).sum(-1).mean()).backward()
    for name, weights in agent.named_parameters():
        if plain[name] is None:
            assert steep[name] is None, name
        else:
            added = 0 if weights.grad is None else weights.grad
            torch.testing.assert_close(steep[name], plain[name] + added, rtol=1e-4, atol=1e-6, msg=name)
            torch.testing.assert_close(early[name], plain[name], msg=name)
    assert any(weights.grad is not None and weights.grad.abs().max() > 1e-3 for weights in agent.actor.parameters())


def test_what_begins_late_begins_after_its_share_of_the_updates():
    config = make_learner(updates=20, loss={"late_from": 0.25}).config
    assert [is_late(config, number) for number in (0, 4, 5, 19)] == [False, False, True, True]
    assert is_late(make_learner(loss={"late_from": 0.0}).config, 0)


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
        rates.append(
            (learner.optimizers["policy"].param_groups[0]["lr"], learner.optimizers["model"].param_groups[1]["lr"])
        )
    assert rates[0] == pytest.approx((1e-3, 2e-3)) and rates[5] == pytest.approx((0.55e-3, 1.1e-3))


def test_model_learns_deterministic_dynamics_and_rewards():
    """On data where z is needed for the reward, all three losses fall well below their start."""
    config = tiny_config(updates=150, world_model_every=1, final_lr_share=1.0, world_model_lr=3e-3, context_lr=3e-3,
                         loss={"task_mean_rate": 0.1})  # fmt: skip
    torch.manual_seed(0)
    learner = FusedLearner(Agent(2, 2, [{}] * 4, config))
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
