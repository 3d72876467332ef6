# SPDX-License-Identifier: Apache-2.0
"""States of a learnt agent as drivers: what they do, and files that are not theirs."""

import numpy as np
import pytest

from spc_core.tasks import FamilyError, make_env, tasks
from spc_core.tasks.behaviour import Behaviour, behaviour_mix, kinds_of
from spc_core.tasks.families import BUILT_IN
from spc_core.tasks.snapshots import Snapshots, agent_file, load_snapshots

FAMILY = "point_robot"
NAMES = ("position.x", "position.y")
GOAL = ("goal_x", "goal_y")


def made(states: int = 3, **changes: object) -> Snapshots:
    """An agent whose state i moves by i + 1 times the told goal: means are products, log-stds 0."""
    hidden = np.zeros((states, 5, 6))  # x, y, the goal's x and y, told or not; to plus and minus of each of three
    hidden[:, 2, 0], hidden[:, 2, 1], hidden[:, 3, 2], hidden[:, 3, 3] = 1, -1, 1, -1
    out = np.zeros((states, 6, 4))
    for state in range(states):
        out[state, 0, 0], out[state, 1, 0] = state + 1, -(state + 1)
        out[state, 2, 1], out[state, 3, 1] = state + 1, -(state + 1)
    layers = ((hidden.astype(np.float32), np.zeros((states, 6), np.float32)),
              (out.astype(np.float32), np.zeros((states, 4), np.float32)))  # fmt: skip
    fields = {
        "family": FAMILY, "observation_names": NAMES,
        "params": GOAL, "params_mean": np.array([0.0, 0.5]),
        "params_std": np.array([2.0, 0.5]), "layers": layers, "returns": tuple(float(i) for i in range(states)),
    }  # fmt: skip
    return Snapshots(**{**fields, **changes})


def test_each_state_acts_on_the_task_that_it_is_told():
    task = tasks(FAMILY, "train")[3]
    told = np.array([task.params["goal_x"] / 2, (task.params["goal_y"] - 0.5) / 0.5])
    agent = made()
    for state in range(3):
        np.testing.assert_allclose(agent.act(state, np.zeros(2), task), np.tanh((state + 1) * told), rtol=1e-5)
    assert agent.act(2, np.ones(2), None).tolist() == [0, 0], "told nothing, it knows no goal"


def test_a_draw_has_the_spread_of_the_network():
    rng = np.random.default_rng(0)
    draws = np.arctanh([made().act(0, np.zeros(2), None, rng) for _ in range(4000)])
    np.testing.assert_allclose(draws.std(0), [1, 1], atol=0.05)
    np.testing.assert_allclose(draws.mean(0), [0, 0], atol=0.06)


def test_a_file_gives_the_same_agent(tmp_path):
    agent = made()
    agent.save(tmp_path / "agent.safetensors")
    loaded = load_snapshots(tmp_path / "agent.safetensors", FAMILY, NAMES, GOAL, 2)
    assert (loaded.params, loaded.returns, len(loaded)) == (agent.params, agent.returns, 3)
    task = tasks(FAMILY, "ood")[0]
    assert np.array_equal(loaded.act(1, np.ones(2), task), agent.act(1, np.ones(2), task))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"family": "cheetah_vel"}, "is of family 'cheetah_vel', not 'point_robot'; use that family's own file"),
        ({"observation_names": ("position.x", "speed")}, "observes position.x, speed, family 'point_robot' now has"),
        (
            {"params": ("goal_x", "speed")},
            "is told goal_x, speed, tasks of family 'point_robot' now have goal_x, goal_y",
        ),
        ({"layers": made().layers[:1]}, "its agent has 3 actions, the family has 2; write it anew"),
        ({"layers": made().layers[1:]}, r"layer 0 has weights \(3, 6, 4\) and biases \(3, 4\), wanted \(3, 5, n\)"),
        ({"layers": made(2).layers}, r"layer 0 has weights \(2, 5, 6\) .* wanted \(3, 5, n\) and \(3, n\)"),
        ({"layers": tuple((w, b + np.nan) for w, b in made().layers)}, "layer 0 has weights that are not finite"),
    ],
)
def test_an_agent_of_something_else_is_refused(tmp_path, changes, said):
    file = tmp_path / "agent.safetensors"
    made(**changes).save(file)
    with pytest.raises(FamilyError, match=said):
        load_snapshots(file, FAMILY, NAMES, GOAL, 2)


@pytest.mark.parametrize("content", [b"", b"not an agent" * 9, None])
def test_a_file_that_is_no_agent_is_refused(tmp_path, content):
    """Empty, of something else, and half written."""
    file = tmp_path / "agent.safetensors"
    made().save(file)
    file.write_bytes(file.read_bytes()[:-40] if content is None else content)
    with pytest.raises(FamilyError, match="not a file of behaviour.*`spc behaviour point_robot`"):
        load_snapshots(file, FAMILY, NAMES, GOAL, 2)
    with pytest.raises(FamilyError, match="no such file"):
        load_snapshots(tmp_path / "other", FAMILY, NAMES, GOAL, 2)


def test_recordings_are_driven_by_all_states_with_noise():
    env = make_env(FAMILY)
    assert kinds_of(env) == ("expert", "noisy", "random")
    env.snapshots = made()
    assert behaviour_mix(7, kinds_of(env)) == "snapshot"
    first, states = [], set()
    for seed in range(20):
        behaviour = Behaviour(env, "snapshot", seed)
        states.add(behaviour._state)
        first.append(behaviour.act(np.zeros(2)))
    assert states == {0, 1, 2} and np.std(first, 0).min() > 0.1 and np.abs(first).max() <= 1
    again = Behaviour(env, "snapshot", 5).act(np.zeros(2))
    assert np.array_equal(again, first[5]), "the seed decides"


def test_every_family_of_the_package_has_a_driver_in_little_space():
    assert all(make_env(family).has_expert for family in BUILT_IN)
    assert sum(file.stat().st_size for file in agent_file("any").parent.iterdir()) < 12e6
