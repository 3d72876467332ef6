# SPDX-License-Identifier: Apache-2.0
"""Planning: the optimum of a known model, independent robots, deadlines, refusals."""

from __future__ import annotations

import dataclasses
import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spc_core.deploy.checkpoint import load_checkpoint
from spc_core.deploy.deployable import Policy
from spc_core.method.agent import Agent
from spc_core.method.config import ConfigError, LossConfig, MethodConfig
from spc_core.method.planner import Planner, PlannerConfig, refit, shift
from spc_core.tasks import tasks
from spc_core.trials.evaluate import InProcessDriver
from spc_core.trials.protocol import EpisodeRequest
from support.method_options import configured
from support.synthetic import tiny_config

GAIN, EFFORT, LAST, DISCOUNT = 0.5, 0.3, 2.0, 0.9
SHARP = PlannerConfig(iterations=10, temperature=5.0, min_std=0.02, max_std=1.0)
SMALL = PlannerConfig(samples=16, iterations=2, elites=4, policy_samples=4)


class PointModel:
    """The latent is the observation, an action moves it by GAIN times itself; z is the goal."""

    def encode(self, observation: Tensor) -> Tensor:
        return observation

    def predict(self, latent: Tensor, action: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        next_latent = latent + GAIN * action
        return next_latent, -(next_latent - z).square().sum(-1) - EFFORT * action.square().sum(-1)

    def mode(self, latent: Tensor, output: Tensor) -> Tensor:
        return output


def point_agent() -> Any:
    """An agent with that model, a V that is quadratic too, and an actor that dithers around zero."""

    def actor(latent: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(latent), 2), torch.full((len(latent), 2), -1.0)

    return SimpleNamespace(
        config=SimpleNamespace(loss=LossConfig(discount=DISCOUNT), method=MethodConfig()),
        action_dim=2,
        world_model=PointModel(),
        actor=actor,
        acting=actor,
        critic=SimpleNamespace(values=lambda latent, z: -LAST * (latent - z).square().sum(-1)),
    )


def optimal_actions(start: float, goal: float, horizon: int) -> np.ndarray:
    """(H,) by least squares: each field on its own, as long as no limit binds."""
    weight = DISCOUNT ** np.arange(horizon)
    reach = GAIN * np.tri(horizon)
    rows = np.concatenate([
        np.sqrt(weight)[:, None] * reach,
        np.sqrt(EFFORT * weight)[:, None] * np.eye(horizon),
        math.sqrt(LAST * DISCOUNT**horizon) * reach[-1:],
    ])  # fmt: skip
    wanted = [
        np.sqrt(weight) * (goal - start),
        np.zeros(horizon),
        [math.sqrt(LAST * DISCOUNT**horizon) * (goal - start)],
    ]
    return np.linalg.lstsq(rows, np.concatenate(wanted), rcond=None)[0]


def robots(count: int, dim: int = 2, z: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Observations (R, O) and goals (R, Z) that no plan reaches the limits for."""
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(count, dim, generator=rng) - 0.5, torch.rand(count, z, generator=rng) - 0.5


def ticking(step_s: float):
    """A clock that advances by `step_s` at each reading."""
    ticks = itertools.count()
    return lambda: next(ticks) * step_s


@pytest.mark.parametrize("horizon", [1, 3])
def test_finds_the_known_optimum(horizon):
    observation, goal = robots(6)
    config = dataclasses.replace(SHARP, horizon=horizon)
    action = Planner(point_agent(), config).plan(observation, goal)
    wanted = [
        [optimal_actions(s, g, horizon)[0] for s, g in zip(*rows, strict=True)]
        for rows in zip(observation.tolist(), goal.tolist(), strict=True)
    ]
    np.testing.assert_allclose(action, wanted, atol=0.03)
    assert np.abs(wanted).max() > 0.3


def test_goes_to_the_limit_where_the_optimum_is_beyond_it():
    action = Planner(point_agent(), SHARP).plan(torch.zeros(1, 2), torch.tensor([[2.0, -2.0]]))
    np.testing.assert_allclose(action, [[1, -1]], atol=0.05)


def test_robots_are_planned_independently():
    agent = point_agent()
    together, moved = Planner(agent, SHARP), robots(5, seed=1)
    first, second = together.plan(*robots(5)), together.plan(*moved)
    for robot in range(5):
        alone = Planner(agent, SHARP)
        for wanted, (observation, goal) in ((first, robots(5)), (second, moved)):
            action = alone.plan(observation[robot : robot + 1], goal[robot : robot + 1])
            np.testing.assert_allclose(action[0], wanted[robot], atol=1e-5)
    with pytest.raises(ValueError, match=r"2 robots, but the last plan was for 5; call reset\(\)"):
        together.plan(*robots(2))


def test_deadline_cuts_rounds_and_counts():
    agent, (observation, goal) = point_agent(), robots(3)
    # read at 0 ms (start), 1 (first round), 2 (one round done: 3 would be the end of the next), 3, 4 (5 is too late)
    cut = Planner(agent, PlannerConfig(deadline_ms=4.5), clock=ticking(0.001))
    action = cut.plan(observation, goal)
    assert torch.equal(action, Planner(agent, PlannerConfig(iterations=3)).plan(observation, goal))
    assert action.isfinite().all() and action.abs().max() <= 1
    assert (cut.plans, cut.cut_short) == (1, 1)
    assert cut.late == 1, "by this clock reading it costs time: 5 ms at the end"
    late = Planner(agent, PlannerConfig(deadline_ms=0.001), clock=ticking(1.0))
    assert torch.equal(
        late.plan(observation, goal), Planner(agent, PlannerConfig(iterations=1)).plan(observation, goal)
    )
    calm = Planner(agent, PlannerConfig(deadline_ms=1e9), clock=ticking(0.001))
    calm.plan(observation, goal)
    assert (calm.plans, calm.cut_short, calm.late) == (1, 0, 0)


def test_plans_from_the_actor_alone_are_no_worse_than_the_actor():
    agent, (observation, goal) = point_agent(), robots(8)
    config = PlannerConfig(horizon=1, samples=0, elites=1)
    planner = Planner(agent, config)
    action = planner.plan(observation, goal)
    gain = planner.returns(observation, goal, torch.stack([action, 0 * action], 1)[:, :, None])
    assert (gain[:, 0] >= gain[:, 1]).all() and (gain[:, 0] > gain[:, 1]).any()
    only_mean = PlannerConfig(samples=0, policy_samples=1, elites=1)
    assert not Planner(agent, only_mean).plan(observation, goal).any(), "the actor's mean and nothing else"


def test_without_the_actor_the_optimum_is_found_too():
    observation, goal = robots(1)
    both = [Planner(point_agent(), dataclasses.replace(SHARP, policy_samples=n)) for n in (0, 24)]
    actions = [planner.plan(observation, goal) for planner in both]
    np.testing.assert_allclose(*actions, atol=0.03)


def test_last_plan_is_shifted_by_one_step_until_the_reset():
    plan, last = torch.arange(12.0).view(2, 3, 2), -torch.ones(2, 2)
    assert shift(plan, last).tolist() == [[[2, 3], [4, 5], [-1, -1]], [[8, 9], [10, 11], [-1, -1]]]
    far = torch.zeros(1, 2), torch.full((1, 2), 9.0)  # the best is full speed all the time
    narrow = Planner(point_agent(), PlannerConfig(iterations=1, min_std=0.1, max_std=0.1, policy_samples=1, horizon=6))
    first, second = (narrow.plan(*far).mean().item() for _ in range(2))
    assert first + 0.1 < second, "the second continues the first"
    narrow.reset()
    assert narrow.plan(*far).mean().item() == first


def test_refit_by_hand():
    candidates = torch.tensor([0.0, 0.5, 1.0, -1.0]).view(1, 4, 1, 1)
    returns = torch.tensor([[0.0, math.log(3), math.nan, -5.0]])
    config = PlannerConfig(elites=2, temperature=1.0, min_std=0.0, max_std=0.2)
    mean, std = refit(candidates, returns, config)  # weights 1/4 and 3/4 of 0 and 0.5; std sqrt(3) / 8 is capped
    assert mean.item() == pytest.approx(0.375) and std.item() == pytest.approx(0.2)
    mean, std = refit(candidates, returns, PlannerConfig(elites=2, temperature=1.0, max_std=1.0))
    assert std.item() == pytest.approx(math.sqrt(3) / 8)


def test_a_non_finite_observation_affects_one_plan():
    planner, (observation, goal) = Planner(point_agent(), SHARP), robots(2)
    bad = observation.clone()
    bad[1] = math.nan
    action = planner.plan(bad, goal)
    assert action[0].isfinite().all() and action[1].isnan().all(), "for the safety filter to see"
    assert planner.plan(observation, goal).isfinite().all()


@pytest.mark.parametrize(
    "method",
    [
        "spc_paper",
        "spc_continuous",
        "spc_simnorm",
        "spc_reconstruction",
        "spc_no_consistency",
        "unicorn_sup",
        "unicorn_ss",
    ],
)
def test_plans_in_every_learnt_model(method):
    torch.manual_seed(0)
    agent = Agent(3, 2, [{}, {}], tiny_config(method)).requires_grad_(False)
    for weights in agent.parameters():
        weights.normal_(0, 0.5)
    observation, z = robots(4, dim=3, z=agent.context_dim)
    one, two = (Planner(agent, SMALL).plan(observation, z) for _ in range(2))
    assert torch.equal(one, two) and one.shape == (4, 2)
    assert one.isfinite().all() and one.abs().max() <= 1 and len(one.unique(dim=0)) == 4


@pytest.mark.parametrize("method", ["spc", "focal", "csro", "dora", "no_context", "oracle"])
def test_refuses_methods_without_a_model(method):
    agent = Agent(3, 2, [{"mass": 1.0}, {"mass": 2.0}], tiny_config(method))
    with pytest.raises(ConfigError, match=f"method '{method}' has no world model to plan with; use the actor"):
        Planner(agent)


def test_refuses_a_policy_that_sees_what_the_model_does_not_predict():
    for sees, named in (("observation", "observation"), ("both", "observation too")):
        agent = Agent(3, 2, [{}], configured(f"spc_paper policy_sees={sees}", tiny_config()))
        with pytest.raises(ConfigError, match=f"sees the {named}, which its world model does not predict"):
            Planner(agent)


def test_refuses_a_model_without_dynamics_or_reward():
    config = tiny_config("spc_no_consistency")
    config = dataclasses.replace(config, method=dataclasses.replace(config.method, open_loop=False))
    with pytest.raises(ConfigError, match="does not train its world model to predict the next state; use the actor"):
        Planner(Agent(3, 2, [{}], config))
    with pytest.raises(
        ConfigError, match="'spc_paper' was trained with loss.reward_weight 0, so it predicts no reward; use"
    ):
        Planner(Agent(3, 2, [{}], tiny_config(loss={"reward_weight": 0.0})))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 0}, "planning: horizon is 0; it must be at least 1"),
        ({"iterations": 0}, "iterations is 0; it must be at least 1"),
        ({"samples": -1}, "samples is -1; it must be at least 0"),
        ({"elites": 0}, "elites is 0; it must be at least 1"),
        ({"samples": 10}, "elites is 64, more than the 34 sequences drawn; lower it, or raise samples or policy_"),
        ({"temperature": math.nan}, "temperature is nan; it must be finite and not negative"),
        ({"deadline_ms": -1.0}, "deadline_ms is -1.0; it must be finite"),
        ({"min_std": 3.0}, "min_std 3.0 is above max_std 2.0; lower it"),
        ({"min_std": 0.0, "max_std": 0.0}, "max_std is 0, so that all drawn sequences are the same; raise it"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Planner(point_agent(), PlannerConfig(**settings))


def test_policy_plans_in_the_contracts_units_and_episodes_repeat(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint)
    observation, z = np.array([0.3, -0.4, 1.0, 2.0]), np.full(5, 0.1)
    action, planned = (Policy(checkpoint, p).act(observation, z) for p in (None, SMALL))
    assert planned.dtype == np.float64 and (np.abs(planned) <= checkpoint.contract.action.high).all()
    assert not np.allclose(action, planned)
    Policy(checkpoint).reset()  # the actor has nothing to forget
    driver = InProcessDriver(checkpoint, "arm_reach", SMALL)
    request = EpisodeRequest(tasks("arm_reach", "id")[0], "zero_shot", 0, 0, 0, True, "online", None)
    first, second = driver.run(request), driver.run(request)
    assert first == second and first.steps == driver.policy.planner.plans // 2
    assert first.return_ != InProcessDriver(checkpoint, "arm_reach").run(request).return_
