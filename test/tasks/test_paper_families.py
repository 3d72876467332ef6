# SPDX-License-Identifier: Apache-2.0
"""The paper's families: physics as in gymnasium, rewards and ends worked out by hand, hidden what is to be hidden."""

# pyright: reportAttributeAccessIssue=false
# (mujoco re-exports its compiled functions without stubs)

from __future__ import annotations

import dataclasses
import math
import sys
import types
import warnings
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from spc_core.contract.contract import load_contract
from spc_core.tasks import SPLITS, find_family, make_env, mean_task, tasks
from spc_core.tasks.families import CHEETAHS, PAPER
from spc_core.tasks.paper_families import ENVS
from spc_core.tasks.task import make_task
from spc_ros.sim.simulation import Simulation

NOMINAL: Mapping[str, Mapping[str, float]] = {  # a robot as in its file
    "cheetah_vel": {"speed": 1.0},
    "ant_dir": {"direction_x": 0.6, "direction_y": 0.8},
    "ant_goal": {"goal_x": 1.0, "goal_y": -0.5},
    **{f"{robot}_{what}": {what: 1.0} for robot in ("hopper", "walker") for what in ("mass", "friction")},
}


@pytest.fixture(scope="module")
def gymnasiums() -> Any:
    """Environments of gymnasium; what they import for rendering is not needed here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "imageio", types.ModuleType("imageio"))
        from gymnasium.envs.mujoco import ant_v5, half_cheetah_v5, hopper_v5, walker2d_v5

        envs = {"cheetah": half_cheetah_v5.HalfCheetahEnv, "ant": ant_v5.AntEnv, "hopper": hopper_v5.HopperEnv,
                "walker": walker2d_v5.Walker2dEnv}  # fmt: skip
        yield {name: env(reset_noise_scale=0.0) for name, env in envs.items()}


def rewarded(family: str, info: Mapping[str, Any], before: np.ndarray, state: np.ndarray, action: np.ndarray) -> float:
    """The family's reward, from what gymnasium measured; its ant's velocity is of one physics step before."""
    effort, params = float(np.square(action).sum()), NOMINAL[family]
    if family == "cheetah_vel":
        return -abs(info["x_velocity"] - params["speed"]) - 0.05 * effort
    if family == "ant_dir":
        return float((state - before)[:2] @ [0.6, 0.8]) / 0.05 + 1 - 0.5 * effort
    if family == "ant_goal":
        return -abs(state[0] - 1.0) - abs(state[1] + 0.5) - 0.1 * effort
    return info["x_velocity"] + 1 - 0.001 * effort


@pytest.mark.filterwarnings("ignore:compiler attribute 'settotalmass'")
@pytest.mark.parametrize("family", NOMINAL)
def test_states_rewards_and_ends_are_those_of_gymnasium(family: str, gymnasiums: Any) -> None:
    other, env = gymnasiums[family.split("_")[0]], make_env(family)
    rng = np.random.default_rng(0)
    env.reset(seed=3, options={"task": make_task(family, "train", 0, **NOMINAL[family])})
    other.reset(seed=0)
    other.set_state(env.data.qpos.copy(), env.data.qvel.copy())
    assert (env.control_hz, len(env.action_names)) == (pytest.approx(1 / other.dt), other.action_space.shape[0])
    for step in range(60):
        action = rng.uniform(-1, 1, len(env.action_names))
        observation, reward, terminated, truncated, _ = env.step(action)
        before = other.data.qpos.copy()
        seen, _, ended, _, info = other.step(action)
        state = np.concatenate((other.data.qpos, other.data.qvel))
        np.testing.assert_allclose(np.concatenate((env.data.qpos, env.data.qvel)), state, rtol=0, atol=1e-8)
        own = state[:2] if family == "ant_goal" else []  # gymnasium leaves the place out
        wanted = np.sort(np.concatenate((own, seen[:27])))  # behind them stand the ant's contact forces
        np.testing.assert_allclose(np.sort(observation), wanted, rtol=0, atol=1e-8, err_msg="in another order")
        assert reward == pytest.approx(rewarded(family, info, before, other.data.qpos, action), abs=1e-6)
        never = family in ("cheetah_vel", "ant_goal")
        assert terminated == (ended and not never) and not truncated, step
        if ended and not never:
            break
    assert never or ended or family == "ant_dir", "hoppers and walkers fall at random actions"


@pytest.mark.parametrize("family", PAPER + CHEETAHS)
def test_named_fields_are_what_they_say(family: str) -> None:
    """Each observed number, from the state by its name; the contract asks for them in this order."""
    env, contract = make_env(family), load_contract(find_family(family).contract)
    env.reset(seed=1)
    observation, *_ = env.step(env.action_high * 0.3)
    data, model = env.data, env.model
    root = {"position": data.qpos, "twist.linear": data.qvel, "twist.angular": data.qvel[3:]}
    if model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE:
        root["orientation"] = data.qpos[[4, 5, 6, 3]]
    fields = [path.removeprefix("pose.pose.").removeprefix("twist.") for s in contract.observation for path in s.fields]
    assert contract.rate_hz == env.control_hz and len(fields) == len(observation)
    for name, field, value in zip(env.observation_names, fields, observation, strict=True):
        what, _, last = name.rpartition(".")
        assert name == field
        if len(last) == 1 and what in root:
            assert value == root[what]["xyzw".index(last)], name
        else:
            joint = data.joint(last)
            assert value == (joint.qpos if what == "position" else joint.qvel)[0], name
    assert list(env.action_names) == [field.partition(".")[2] for field in contract.action.fields]
    assert contract.action.low == tuple(env.action_low) and contract.action.high == tuple(env.action_high)
    assert all(rate >= 2 * contract.rate_hz for rate in contract.action.max_rate), "any change is allowed"
    Simulation(env, contract)


def test_the_way_covered_is_hidden_where_it_tells_the_task() -> None:
    for family in ("cheetah_vel", "ant_dir", "hopper_mass", "walker_friction"):
        names = make_env(family).observation_names
        assert not {"position.rootx", "position.x", "position.y"} & set(names), family
    assert [len(make_env(family).observation_names) for family in PAPER] == [17, 27, 29, 11, 11, 17, 17, 2]


@pytest.mark.parametrize("family", PAPER + CHEETAHS)
def test_the_task_is_hidden_at_the_start_and_shows_after_it(family: str) -> None:
    """The same seed starts alike in every task; then dynamics differ or the reward does, and nothing else."""
    env = make_env(family)
    first, second = tasks(family, "train")[0], tasks(family, "ood")[-1]
    action = 0.4 * np.ones(len(env.action_names))
    seen = []
    for task in (first, second):
        start, _ = env.reset(seed=5, options={"task": task})
        steps = [env.step(action * (-1) ** k) for k in range(20)]
        seen.append((start, np.array([step[0] for step in steps]), np.array([step[1] for step in steps])))
    (start, observations, rewards), (other_start, other_observations, other_rewards) = seen
    np.testing.assert_array_equal(start, other_start)
    dynamics = family.endswith(("mass", "friction", "length", "motors"))
    assert np.array_equal(observations, other_observations) is not dynamics
    assert not np.array_equal(rewards, other_rewards)


@pytest.mark.parametrize("family", PAPER + CHEETAHS)
def test_seed_and_task_decide_everything(family: str) -> None:
    def play(env: Any, seed: int) -> list[np.ndarray]:
        rng, states = np.random.default_rng(0), [env.reset(seed=seed, options={"task": tasks(family, "id")[4]})[0]]
        return states + [env.step(rng.uniform(-1, 1, len(env.action_names)))[0] for _ in range(12)]

    fresh, used = make_env(family), make_env(family, tasks(family, "ood")[0])
    play(used, 1)
    np.testing.assert_array_equal(play(fresh, 2), play(used, 2))
    assert not np.array_equal(fresh.reset(seed=2)[0], fresh.reset(seed=3)[0])


def test_masses_change_with_all_that_follows_from_them() -> None:
    """As in a model compiled with those masses; and back again when the task changes in mid-episode."""
    env = ENVS["hopper_mass"]()
    nominal = mujoco.MjModel.from_xml_path(str(env.body.mjcf))
    for task in (tasks("hopper_mass", "ood")[0], tasks("hopper_mass", "ood")[-1]):
        env.set_task(task)
        scale = task.params["mass"]
        np.testing.assert_allclose(env.model.body_mass, scale * nominal.body_mass)
        np.testing.assert_allclose(env.model.body_inertia, scale * nominal.body_inertia)
        spec = mujoco.MjSpec.from_file(str(env.body.mjcf))
        for geom in spec.geoms:
            geom.density *= scale
        compiled = spec.compile()
        for name in ("body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0"):
            np.testing.assert_allclose(getattr(env.model, name), getattr(compiled, name), rtol=1e-9, err_msg=name)
    assert tasks("hopper_mass", "ood")[0].params["mass"] == pytest.approx(1 / 2.25)
    assert scale == pytest.approx(2.25)
    slippery = ENVS["walker_friction"](tasks("walker_friction", "ood")[0])
    rough = slippery.nominal
    np.testing.assert_allclose(slippery.model.geom_friction, rough.geom_friction / 2.25)
    np.testing.assert_array_equal(slippery.model.body_mass, rough.body_mass)


def test_the_splits_are_the_papers() -> None:
    a = {"train": [5, 7, 8, 10, 11, 13, 14, 16, 17, 19, 20, 22, 23, 25, 26, 28, 29, 31, 32, 34],
         "id": list(range(6, 34, 3)), "ood": [0, 1, 2, 3, 4, 35, 36, 37, 38, 39]}  # fmt: skip
    for split, places in a.items():
        speeds = [task.params["speed"] for task in tasks("cheetah_vel", split)]
        assert speeds == pytest.approx([0.1 + 0.1 * i for i in places])
        angles = [math.atan2(*(task.params[f"direction_{k}"] for k in "yx")) for task in tasks("ant_dir", split)]
        assert np.cos(angles) == pytest.approx(np.cos([2 * math.pi * i / 40 for i in places]))
        assert np.sin(angles) == pytest.approx(np.sin([2 * math.pi * i / 40 for i in places]))
        scales = np.logspace(-2, 2, 40, base=1.5)[places]
        for family in ("hopper_mass", "hopper_friction", "walker_mass", "walker_friction"):
            assert [next(iter(task.params.values())) for task in tasks(family, split)] == pytest.approx(scales)
    for split, radii in (("train", {0.8, 1.2}), ("id", {1.0}), ("val", {1.0}), ("ood", {1.6})):
        assert {round(math.hypot(*task.params.values()), 9) for task in tasks("ant_goal", split)} == radii
    places = {"train": [*range(10, 30)], "id": [*range(5, 10), *range(30, 35)], "ood": [*range(5), *range(35, 40)]}
    for split, row in places.items():
        goals = [(task.params["goal_x"], task.params["goal_y"]) for task in tasks("point_robot", split)]
        assert np.array(goals) == pytest.approx(np.array([[math.cos(math.pi * i / 39), math.sin(math.pi * i / 39)]
                                                          for i in row]))  # fmt: skip


@pytest.mark.parametrize("family", PAPER)
def test_validation_tasks_lie_between_training_tasks_and_are_no_others(family: str) -> None:
    split = {name: np.array([list(task.params.values()) for task in tasks(family, name)]) for name in SPLITS}
    assert [len(split[name]) for name in SPLITS] == [20, 10, 10, 10]
    everything = np.concatenate(list(split.values()))
    apart = np.linalg.norm(everything[:, None] - everything, axis=-1) + np.eye(50)
    assert apart.min() > 0.009
    if family == "ant_goal":
        return  # between the two half circles
    order = split["train"][:, 0] if family != "ant_dir" else np.unwrap(np.arctan2(*split["train"].T[::-1]))
    val = split["val"][:, 0] if family != "ant_dir" else np.arctan2(*split["val"].T[::-1]) % (2 * math.pi)
    assert order.min() < val.min() and val.max() < order.max()


def test_angles_are_told_as_cosine_and_sine() -> None:
    for task in (task for split in SPLITS for task in tasks("ant_dir", split)):
        assert math.hypot(*task.params.values()) == pytest.approx(1.0), "what an oracle is told has no jump"
    mean = mean_task("ant_dir").params
    assert math.hypot(*mean.values()) < 0.5, "a mean of directions is hardly a direction"


def test_an_ant_ends_outside_its_heights_and_nobody_else_who_never_falls() -> None:
    for family, height, ends in (("ant_dir", 0.19, True), ("ant_dir", 0.21, False), ("ant_dir", 1.01, True),
                                 ("ant_goal", 0.1, False)):  # fmt: skip
        env = ENVS[family]()
        env.reset(seed=0)
        env.data.qpos[2] = height
        assert env.fallen() is ends
    env = ENVS["walker_mass"]()
    env.reset(seed=0)
    for height, tilt, ends in ((0.8, 0, True), (0.81, 0, False), (2.0, 0, True), (1.2, 1.0, True), (1.2, -0.9, False)):
        env.data.qpos[1:3] = height, tilt
        assert env.fallen() is ends
    hopper = ENVS["hopper_friction"]()
    for height, tilt, ends in ((0.7, 0, True), (9.0, 0, False), (1.2, 0.2, True), (1.2, -0.19, False)):
        hopper.data.qpos[1:3] = height, tilt
        assert hopper.fallen() is ends


def test_time_is_up_after_200_steps_and_40() -> None:
    for family, steps in (("cheetah_vel", 200), ("point_robot", 40)):
        env = make_env(family)
        env.reset(seed=0)
        ends = [env.step(np.zeros(len(env.action_names)))[2:4] for _ in range(steps)]
        assert ends == [(False, False)] * (steps - 1) + [(False, True)]


def test_the_point_goes_where_it_is_told_and_its_expert_reaches_the_goal() -> None:
    env = make_env("point_robot")
    for task in tasks("point_robot", "ood"):
        start, _ = env.reset(seed=1, options={"task": task})
        goal = np.array([task.params["goal_x"], task.params["goal_y"]])
        after, reward, *_ = env.step(np.array([0.5, -5.0]))
        assert after - start == pytest.approx([0.05, -0.1], rel=1e-4), "2 m/s at most, for 50 ms"
        assert reward == pytest.approx(-math.dist(after, goal))
        assert not env.success(start, after)
        for _ in range(25):
            before, (after, reward, *_) = after, env.step(env.expert(after))
        assert reward == pytest.approx(0.0, abs=1e-3) and env.success(before, after)
        assert env.rest_action(np.array([0.2, -3.0])).tolist() == [-0.2, 1.0]


@pytest.mark.parametrize("family", ["ant_goal", "hopper_mass"])
def test_gymnasium_check_env(family: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*Box observation space .*infinity.*")
        check_env(make_env(family), skip_render_check=True)


def test_refusals_name_the_robot_and_the_task() -> None:
    env = ENVS["hopper_mass"]()
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(np.zeros(3))
    env.reset(seed=0)
    for wrong in ([0.0, 0.0], [0.0, math.nan, 0.0]):
        with pytest.raises(ValueError, match="3 finite shares of torque"):
            env.step(np.array(wrong))
    with pytest.raises(ValueError, match="belongs to family 'hopper_friction', this is 'hopper_mass'"):
        env.set_task(tasks("hopper_friction", "train")[0])
    env.snapshots = None
    with pytest.raises(ValueError, match="family 'hopper_mass' has no expert"):
        env.expert(np.zeros(11))
    assert dataclasses.is_dataclass(env.body)
