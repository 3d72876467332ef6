# SPDX-License-Identifier: Apache-2.0
"""The agent that drives recordings: its densities, what it learns, and which of its states are kept."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from spc_core.data.dataset import DatasetError
from spc_core.data.packed import load_dataset
from spc_core.method.config import ConfigError
from spc_core.tasks import FamilyError, find_family, make_env, tasks
from spc_core.tasks.behaviour import kinds_of
from spc_core.tasks.snapshots import load_snapshots
from spc_core.training.behaviour_agent import behaviour_config, learn_behaviour, looks_table, spread_evenly
from spc_core.training.run_state import TrainingError
from spc_core.training.soft_actor_critic import Actor
from spc_core.trials.direct_collection import collect_directly
from spc_core.trials.offline_data import behaviour_episodes
from support.cart_family import write_cart_family

FAMILY = "point_robot"
TINY = {"steps": 1440, "warm_up": 600, "look_every": 300, "updates_per_step": 0.1, "hidden": 8, "batch": 16,
        "snapshots": 2}  # fmt: skip


def test_the_density_of_an_action_is_that_of_a_tanh_of_a_normal():
    torch.manual_seed(0)
    actor = Actor(np.array([1.0, -2.0], np.float32), np.array([0.5, 3.0], np.float32), 1, 2, 8)
    observation, told, hears = torch.randn(50, 2), torch.randn(50, 1), torch.ones(50, 1)
    action, density = actor.draw(observation, told, hears)
    scaled = (observation - torch.tensor([1.0, -2.0])) / torch.tensor([0.5, 3.0])
    mean, log_std = actor.network(torch.cat([scaled, told, hears], -1)).chunk(2, -1)
    expected = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform()])
    torch.testing.assert_close(density, expected.log_prob(action).sum(-1, keepdim=True), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("returns", "count", "kept"),
    [([0, 1, 2, 3, 9, 10], 3, [0, 3, 5]), ([5, 0, 10], 6, [1, 0, 2]), ([1, 1, 1], 2, [0, 1]), ([4], 3, [0])],
)
def test_states_are_kept_evenly_in_return(returns, count, kept):
    """Steps between 0 and 10 are 0, 5 and 10; the nearest to 5 that is free is 3."""
    assert spread_evenly(returns, count) == kept


@pytest.fixture(scope="module")
def learnt():
    config = behaviour_config(
        FAMILY, {"steps": 2600, "warm_up": 400, "look_every": 700, "updates_per_step": 0.3, "hidden": 64, "batch": 128}
    )
    return learn_behaviour(FAMILY, config)


def test_the_agent_learns_to_use_what_it_is_told(learnt):
    """At the start it stands still, a metre from the goal: -40 an episode. Told nothing, it cannot do much better."""
    agent, looks = learnt
    assert looks[0].told == pytest.approx(-40, abs=6)
    best = max(looks, key=lambda look: look.told)
    assert best.told > -28 and best.told > best.blind + 5
    assert agent.returns == tuple(sorted(agent.returns)) and agent.returns[-1] == max(look.told for look in looks)
    text = looks_table(looks, agent)
    assert "mean task" in text and text.count("*") == len(agent)


def test_what_is_interrupted_goes_on_where_it_stopped(tmp_path):
    """Stopped before and after the first update; the steps, and what was seen before, are those of one go."""
    config = behaviour_config(FAMILY, TINY)
    state, said, stopped = tmp_path / "agent.learning", [], []
    for stop_at in (480, 960):

        def note(done: int, total: int, text: str, stop_at: int = stop_at) -> None:
            said.append(done)
            stopped.extend([2] if done >= stop_at else [])

        with pytest.raises(KeyboardInterrupt, match=r"stopped at step \d+ of 1440; the same command resumes"):
            learn_behaviour(FAMILY, config, note, state, stopped)
        stopped.clear()
    before = state.read_bytes()
    agent, looks = learn_behaviour(FAMILY, config, lambda done, *_: said.append(done), state)
    assert said == sorted(said) and said[-1] == 1440
    assert [look.steps for look in looks] == [look.steps for look in learn_behaviour(FAMILY, config)[1]]
    assert len(agent) == 2 and looks[-1].seconds > looks[0].seconds
    assert state.read_bytes() == before, "who saves the agent deletes it"


def test_a_state_of_something_else_is_refused(tmp_path):
    state, config = tmp_path / "agent.learning", behaviour_config(FAMILY, TINY)
    with pytest.raises(KeyboardInterrupt):
        learn_behaviour(FAMILY, config, None, state, [2])
    with pytest.raises(ConfigError, match=r"agent.learning: learns with other settings \(seed was 0, is 1\); choose"):
        learn_behaviour(FAMILY, behaviour_config(FAMILY, {**TINY, "seed": 1}), None, state)
    with pytest.raises(ConfigError, match="learns family 'point_robot', not 'cheetah_vel'; choose another --out"):
        learn_behaviour("cheetah_vel", config, None, state)
    for damaged in (state.read_bytes()[:900], b""):
        state.write_bytes(damaged)
        with pytest.raises(TrainingError, match=r"agent.learning: corrupt .*; delete it to learn from scratch"):
            learn_behaviour(FAMILY, config, None, state)


def test_a_kept_state_plays_as_the_agent_did_when_it_was_looked_at(learnt, tmp_path):
    agent, _ = learnt
    agent.save(tmp_path / "agent.safetensors")
    env = make_env(FAMILY)
    loaded = load_snapshots(tmp_path / "agent.safetensors", FAMILY, env.observation_names, agent.params, 2)
    total = []
    for task in [task for split in ("train", "val", "id", "ood") for task in tasks(FAMILY, split)][::4]:
        observation, _ = env.reset(seed=task.index, options={"task": task})
        total.append(0.0)
        over = False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(loaded.act(-1, observation, task))
            total[-1], over = total[-1] + reward, terminated or truncated
    assert np.mean(total) == pytest.approx(agent.returns[-1], rel=1e-4)


def test_direct_collection_is_the_episodes_of_every_task(tmp_path):
    """Played by two processes in parts, in order, as one process plays them."""
    said = []
    root = collect_directly(FAMILY, tmp_path / "data", 11, seed=3, processes=2, progress=lambda *s: said.append(s))
    data = load_dataset(root)
    known = tasks(FAMILY, "train")
    assert [task.task_id for task in data.tasks] == [task.task_id for task in known]
    assert data.episode_count == 11 * 20 and said[-1][:2] == (220, 220)
    expected = np.concatenate([e.observations for e in behaviour_episodes(known[7], 11, 3)])
    first = 7 * 11
    rows = slice(data.episode_starts[first] + first, data.episode_starts[first + 11] + first + 11)
    np.testing.assert_array_equal(data.observations[rows], expected.astype(np.float32))
    with pytest.raises(DatasetError, match="data"):
        collect_directly(FAMILY, tmp_path / "data", 1)


def test_what_leaves_nothing_to_collect_or_to_learn_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown split 'test'; known: train, val, id, ood"):
        collect_directly(FAMILY, tmp_path / "data", 1, split="test")
    with pytest.raises(ValueError, match="split 'val' has 10 tasks, of 0 episodes each; nothing to collect"):
        collect_directly(FAMILY, tmp_path / "data", 0, split="val")
    assert not (tmp_path / "data").exists()
    with pytest.raises(ConfigError, match="--steps is 1000; use more than 4000, which are random"):
        learn_behaviour(FAMILY, behaviour_config(FAMILY, {"steps": 1000}))


def test_an_agent_of_a_family_of_ones_own_drives_its_recordings(tmp_path):
    """Learnt without one, then named in the family.yaml; a name without its file is refused."""
    few = {"steps": 400, "warm_up": 200, "hidden": 8, "batch": 16, "snapshots": 2}
    path = str(write_cart_family(tmp_path / "bare"))
    agent, _ = learn_behaviour(path, behaviour_config(path, few))
    with pytest.raises(FamilyError, match=r"agent.safetensors: no such file; write one with `spc behaviour wagon`"):
        find_family(str(write_cart_family(tmp_path / "cart", {"agent": "agent.safetensors", "name": "wagon"})))
    dataclasses.replace(agent, family="wagon").save(tmp_path / "cart" / "agent.safetensors")
    env = find_family(str(tmp_path / "cart" / "family.yaml")).make(None)
    assert env.has_expert and "snapshot" in kinds_of(env)
    assert env.expert(np.zeros(2)) == pytest.approx(5 * agent.act(-1, np.zeros(2), env.task))
