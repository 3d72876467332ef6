# SPDX-License-Identifier: Apache-2.0
"""Task families: seeded, bounded, physically right, and hard enough that knowing the task pays."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from spc_core.tasks import SPLITS, Task, find_task, make_env, mean_task, tasks
from spc_core.tasks.behaviour import Behaviour, SmoothNoise, behaviour_mix, kinds_of
from spc_core.tasks.task_env import TaskEnv
from support.families import ARMS, WITH_EXPERT

PAYS = {"base_drive": 0.35}  # least gain of an expert that knows the task, as a share of its return; arms: half
G = 9.81


def rollout(env: TaskEnv, task: Task, seed: int, act) -> tuple[float, np.ndarray]:
    """Return and observations (T+1, D) of one episode."""
    observation, _ = env.reset(seed=seed, options={"task": task})
    total, seen, truncated = 0.0, [observation], False
    while not truncated:
        observation, reward, terminated, truncated, _ = env.step(act(observation))
        assert -1.1 - env.progress_weight <= reward <= env.progress_weight
        assert not terminated
        total += reward
        seen.append(observation)
    return total, np.array(seen)


def mean_return(env: TaskEnv, split: str, act) -> float:
    """Mean over a split's tasks, two episodes each, every task with seeds of its own."""
    runs = [(task, 10 * i + k) for i, task in enumerate(tasks(env.family, split)) for k in range(2)]
    return float(np.mean([rollout(env, task, seed, act)[0] for task, seed in runs]))


@pytest.mark.parametrize("family", WITH_EXPERT)
def test_knowing_the_task_pays(family):
    env = make_env(family)
    mean = mean_task(family)
    for split in SPLITS:
        expert = mean_return(env, split, env.expert)
        told_mean = mean_return(env, split, lambda o: env.expert(o, mean))
        assert expert - told_mean >= PAYS.get(family, 0.5) * abs(expert), (split, expert, told_mean)  # asked for: 0.3


@pytest.mark.parametrize("family", ARMS)
def test_expert_solves_every_task(family):
    """Also the ood tasks lie within the torque limits: the arm stands on its target when the episode ends."""
    env = make_env(family)
    for split in SPLITS:
        for i, task in enumerate(tasks(family, split)):
            _, seen = rollout(env, task, i, env.expert)
            final_target = env.target() if family == "arm_reach" else seen[-2, 4:6]
            assert np.linalg.norm(seen[-1, :2] - final_target) < 0.02, task.task_id


def test_reach_expert_takes_half_a_second_without_overshoot():
    env = make_env("arm_reach")
    for task in tasks("arm_reach", "train"):
        env.reset(seed=0, options={"task": task})
        env.data.qpos[:], env.data.qvel[:] = env.home, 0.0
        direction = env.target() - env.home  # 1 rad long
        along = []
        for _ in range(50):
            observation, *_ = env.step(env.expert(env.observation()))
            along.append((observation[:2] - env.home) @ direction)
        assert max(along) < 1.01
        assert 15 <= int(np.argmax(np.array(along) > 0.95)) <= 25


@pytest.mark.parametrize("family", ARMS)
def test_same_seed_same_episode_whatever_the_task(family):
    first, second = make_env(family), make_env(family)
    task, other = tasks(family, "train")[3], tasks(family, "ood")[8]
    _, a = rollout(first, task, 5, first.expert)
    _, b = rollout(second, task, 5, second.expert)
    np.testing.assert_array_equal(a, b)
    _, c = rollout(second, other, 5, lambda o: np.zeros(2))
    np.testing.assert_array_equal(a[0], c[0])
    np.testing.assert_array_equal(a[:, 4:], c[:, 4:])  # visible targets
    assert not np.array_equal(a[0], first.reset(seed=6)[0])


@pytest.mark.parametrize("family", WITH_EXPERT)
def test_later_episodes_do_not_depend_on_the_length_of_earlier_ones(family):
    short, long = make_env(family), make_env(family)
    short.reset(seed=1)
    rollout(long, tasks(family, "id")[0], 1, long.expert)
    np.testing.assert_array_equal(short.reset()[0], long.reset()[0])


@pytest.mark.parametrize("family", WITH_EXPERT)
def test_splits_are_disjoint_and_sized(family):
    everything = [task for split in SPLITS for task in tasks(family, split)]
    assert [len(tasks(family, split)) for split in SPLITS] == [20, 10, 10, 10]
    assert len({task.task_id for task in everything}) == 50
    params = np.array([list(task.params.values()) for task in everything])
    apart = np.linalg.norm(params[:, None] - params[None], axis=-1) + 9 * np.eye(50)
    assert apart.min() > 0.05
    for task in everything:
        assert find_task(task.task_id) is task
        assert task.task_id == f"{family}/{task.split}/{task.index:02d}"


def test_split_geometry():
    low, high = (
        [pick(task.params[k] for task in tasks("arm_payload", "train")) for k in ("payload", "strength")]
        for pick in (min, max)
    )
    assert (low, high) == ([0.0, 0.5], [1.5, 1.5])
    for split, inside in (("val", True), ("id", True), ("ood", False)):
        for task in tasks("arm_payload", split):
            point = [task.params["payload"], task.params["strength"]]
            assert bool(np.all(np.less(low, point)) and np.all(np.less(point, high))) is inside
    for split, radius in (("train", 1.0), ("val", 1.0), ("id", 1.0), ("ood", 1.35)):
        for task in tasks("arm_reach", split):
            goal = np.array([task.params["goal_shoulder"], task.params["goal_elbow"] - 1.4])
            assert np.linalg.norm(goal) == pytest.approx(radius)


def test_reach_id_goals_stand_in_gaps_of_their_own():
    """Each strictly between two training goals, where no val goal is, and no two in the same place of their gap."""
    gap = 2 * math.pi / 20
    turns = {split: np.array([t.params["angle"] / gap for t in tasks("arm_reach", split)]) for split in SPLITS}
    assert np.floor(turns["val"]).tolist() == list(range(0, 20, 2))
    assert np.floor(turns["id"]).tolist() == list(range(0, 20, 2))
    places = turns["id"] % 1
    assert len(set(places.round(6))) == 10 and (abs(places - 0.5) >= 0.2 - 1e-9).all()
    assert (places.min(), places.max()) == pytest.approx((0.25 + 0.05 / 9, 0.75))


def test_payload_lattices_use_every_row_and_column_once():
    points = {}
    for split in ("val", "id"):
        params = np.array(
            [[t.params["payload"] / 1.5, t.params["strength"] - 0.5] for t in tasks("arm_payload", split)]
        )
        cells = np.floor(params * 10).astype(int)
        assert [sorted(cells[:, axis]) for axis in (0, 1)] == [list(range(10))] * 2
        points[split] = params
    assert np.linalg.norm(points["val"][:, None] - points["id"], axis=-1).min() > 0.14


def test_held_out_tasks_are_none_of_those_that_were_looked_at():
    """The id and ood tasks of before, by their rules and numbers."""
    gap = 2 * math.pi / 20
    seen = np.array([2 * i + 1 + 0.25 + 0.5 * ((3 * i + 1) % 10) / 9 for i in range(10)])
    turns = {split: np.array([t.params["angle"] / gap for t in tasks("arm_reach", split)]) for split in ("id", "ood")}
    assert abs(turns["id"][:, None] - seen).min() > 0.4
    assert abs(turns["ood"][:, None] - [2 * i + 1.5 for i in range(10)]).min() == pytest.approx(1.0)
    outside = [(2.0, 0.7), (2.0, 1.0), (2.2, 1.3), (1.8, 0.85), (0.3, 0.42), (0.9, 0.4), (0.3, 1.7), (1.1, 1.75),
               (1.8, 0.45), (2.2, 1.7)]  # fmt: skip
    seen = np.array([*outside, *((0.075 + 0.15 * i, 0.55 + (3 * i + 7) % 10 / 10) for i in range(10))])
    for split in ("id", "ood"):
        points = np.array([(t.params["payload"], t.params["strength"]) for t in tasks("arm_payload", split)])
        assert np.linalg.norm(points[:, None] - seen, axis=-1).min() > 0.09


def test_val_tasks_are_those_that_settings_were_chosen_by():
    """Numbers written out: these tasks never change, or old choices would look held out."""
    first, last = tasks("arm_reach", "val")[0].params, tasks("arm_reach", "val")[9].params
    assert (first["angle"], last["angle"]) == pytest.approx((0.15707963, 5.81194641))
    payloads = [(t.params["payload"], t.params["strength"]) for t in tasks("arm_payload", "val")[:3]]
    np.testing.assert_allclose(payloads, [(0.075, 0.65), (0.225, 0.95), (0.375, 1.25)])


@pytest.mark.parametrize("family", ARMS)
def test_mean_task_is_the_mean_of_the_training_tasks(family):
    mean = mean_task(family)
    for key in ("goal_shoulder", "goal_elbow") if family == "arm_reach" else ("payload", "strength"):
        assert mean.params[key] == pytest.approx(np.mean([t.params[key] for t in tasks(family, "train")]), abs=1e-12)
    assert find_task(mean.task_id) is mean


def test_task_is_immutable_hashable_and_picklable():
    task = tasks("arm_payload", "id")[2]
    with pytest.raises(TypeError):
        task.params["payload"] = 9.0  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.index = 3  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(task)) == task == copy.deepcopy(task)
    assert {task: 1}[task] == 1
    assert set(dict(task.params)) == {"payload", "strength"}


def test_changed_masses_equal_a_recompiled_model():
    """Every array of the model, derived ones included, equals that of a model compiled with the payload."""
    env = make_env("arm_payload")
    for task in (
        tasks("arm_payload", "ood")[0],
        tasks("arm_payload", "train")[0],
        tasks("arm_payload", "id")[4],
    ):
        env.set_task(task)
        spec = mujoco.MjSpec.from_file(str(Path(sys.modules[type(env).__module__].__file__).with_suffix(".xml")))
        spec.body("payload").mass = task.params["payload"]
        for actuator in spec.actuators:
            actuator.gear[0] = task.params["strength"]
        fresh = spec.compile()
        names = [name for name in dir(fresh) if isinstance(getattr(fresh, name), np.ndarray)]
        assert {"body_subtreemass", "body_invweight0", "dof_M0", "dof_invweight0", "actuator_acc0"} <= set(names)
        for name in names:
            np.testing.assert_allclose(
                getattr(env.model, name), getattr(fresh, name), rtol=1e-9, atol=1e-12, err_msg=name
            )
        assert env.model.stat.meaninertia == pytest.approx(fresh.stat.meaninertia)


def test_set_task_takes_effect_at_once_and_keeps_the_state():
    env = make_env("arm_payload")
    light, heavy = tasks("arm_payload", "train")[0], tasks("arm_payload", "ood")[0]
    env.reset(seed=0, options={"task": light})
    before = env.observation()
    env.set_task(heavy)
    np.testing.assert_array_equal(before, env.observation())
    after_heavy, *_ = env.step(np.zeros(2))
    env.reset(seed=0, options={"task": light})
    after_light, *_ = env.step(np.zeros(2))
    assert not np.allclose(after_heavy, after_light)


def test_holding_torque_is_m_g_l():
    """Level arm: 0.4 kg at 0.125 m, 0.3 kg at 0.35 m, payload at 0.45 m; from the elbow 0.1 m and 0.2 m."""
    env = make_env("arm_payload")
    task = Task("arm_payload/id/99", "arm_payload", "id", 99, {"payload": 1.2, "strength": 0.8})
    env.reset(seed=0, options={"task": task})
    shoulder = G * (0.4 * 0.125 + 0.3 * 0.35 + 1.2 * 0.45)
    elbow = G * (0.3 * 0.1 + 1.2 * 0.2)
    level = np.zeros(6)
    np.testing.assert_allclose(env.expert(level), np.array([shoulder, elbow]) / 0.8, rtol=1e-12)
    env.data.qpos[:], env.data.qvel[:] = 0.0, 0.0
    for _ in range(100):
        env.step(np.array([shoulder, elbow]) / 0.8)
    assert np.abs(env.position()).max() < 1e-6
    upright = np.array([math.pi / 2, 0.0, 0.0, 0.0, math.pi / 2, 0.0])
    np.testing.assert_allclose(env.expert(upright), 0.0, atol=1e-12)


@pytest.mark.parametrize("family", ARMS)
def test_paper_dynamics_equal_mujoco(family):
    env = make_env(family, tasks(family, "train")[7])
    payload = dict(env.task.params).get("payload", 0.0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        q, v, acceleration = rng.uniform(-2, 2, 2), rng.uniform(-5, 5, 2), rng.uniform(-30, 30, 2)
        env.data.qpos[:], env.data.qvel[:], env.data.qacc[:] = q, v, acceleration
        mujoco.mj_inverse(env.model, env.data)
        np.testing.assert_allclose(
            env.dynamics.torque(q, v, acceleration, payload), env.data.qfrc_inverse, rtol=1e-6, atol=1e-8
        )


def test_strength_scales_the_torque():
    env = make_env("arm_payload", tasks("arm_payload", "ood")[5])  # strength 0.43
    env.reset(seed=0)
    env.step(np.array([5.0, -2.0]))
    np.testing.assert_allclose(env.data.qfrc_actuator, [5.0 * 0.43, -2.0 * 0.43])


def test_reward_by_hand():
    env = make_env("arm_reach", tasks("arm_reach", "train")[0])  # goal (1, 1.4)
    env.reset(seed=0)
    reward = env.reward(np.array([0.4, 1.4]), np.array([0.5, 1.4]), np.array([1.5, 1.5]))
    before, after = 1 - math.exp(-0.18), 1 - math.exp(-0.125)  # 0.6 and 0.5 rad from the goal
    assert reward == pytest.approx(-after + 10 * (before - after) - 0.01 * (0.25 + 1.0))
    env = make_env("arm_payload")
    env.reset(seed=0)
    off = env.target() + [0.3, 0.4]
    assert env.reward(env.target(), off, np.array([24.0, 6.0])) == pytest.approx(-math.tanh(1.0) - 0.01 * 1.25)


def test_observation_shows_the_target_of_the_coming_step():
    env = make_env("arm_payload")
    observation, _ = env.reset(seed=3)
    jumps = []
    for step in range(100):
        shown = observation[4:6]
        action = env.expert(observation)
        observation, reward, *_ = env.step(action)
        effort = np.sum((action / env.action_high) ** 2)
        assert reward == pytest.approx(-math.tanh(2 * np.linalg.norm(observation[:2] - shown)) - 0.01 * effort)
        if not np.array_equal(shown, observation[4:6]):
            jumps.append(step + 1)
    assert jumps == [50, 100]


@pytest.mark.parametrize("family", WITH_EXPERT)
def test_gymnasium_check_env(family):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*symmetric and normalized space.*")  # actions are torques in Nm on purpose
        check_env(make_env(family), skip_render_check=True)


@pytest.mark.parametrize("family", WITH_EXPERT)
def test_full_torque_stays_in_the_observation_space(family):
    env = make_env(family, tasks(family, "train")[0])
    rng = np.random.default_rng(0)
    for flips in (0.0, 0.1, 0.5):
        _, seen = rollout(env, env.task, 0, lambda o, p=flips: env.action_high * (1 if rng.uniform() > p else -1))
        assert all(env.observation_space.contains(o) for o in seen)


@pytest.mark.parametrize("family", WITH_EXPERT)
def test_expert_and_behaviour_use_the_observation_alone(family):
    env, stranger = make_env(family), make_env(family)
    task = tasks(family, "train")[11]
    observation, _ = env.reset(seed=2, options={"task": task})
    stranger.reset(seed=9)
    np.testing.assert_array_equal(env.expert(observation), stranger.expert(observation, task))
    never_reset = make_env(family, task)  # as in a robot node
    for kind in kinds_of(env):
        acts = [Behaviour(e, kind, seed=4) for e in (env, never_reset)]
        np.testing.assert_array_equal(acts[0].act(observation), acts[1].act(observation))


@pytest.mark.parametrize("family", WITH_EXPERT)
def test_behaviours_range_from_expert_to_random(family):
    env = make_env(family)
    returns = {}
    for kind in kinds_of(env):
        behaviour = Behaviour(env, kind, seed=0)
        runs = []
        for i, task in enumerate(tasks(family, "train")):
            behaviour.reset()
            total, seen = rollout(env, task, i, behaviour.act)
            runs.append(total)
            if kind == "random":
                assert np.ptp(seen[:, :2]) > 0.1  # it moves
        returns[kind] = np.mean(runs)
    assert returns["expert"] > returns["noisy"] + 5 > returns["random"] + 10
    assert [behaviour_mix(i) for i in range(4)] == ["expert", "noisy", "random", "expert"]


def test_smooth_noise_has_unit_variance_and_its_correlation_time():
    rng, noise = np.random.default_rng(0), SmoothNoise(2, rate_hz=50, time_s=0.2)
    noise.reset(rng)
    x = np.array([noise.step(rng) for _ in range(20000)])
    np.testing.assert_allclose(x.std(axis=0), 1.0, atol=0.08)
    np.testing.assert_allclose(np.mean(x[10:] * x[:-10], axis=0), math.exp(-1), atol=0.08)  # 10 steps = 0.2 s


def test_errors_name_the_value_and_what_is_known():
    with pytest.raises(ValueError, match=r"'cart'.*arm_reach, arm_payload, base_drive"):
        make_env("cart")
    with pytest.raises(ValueError, match=r"'test'.*train, val, id, ood"):
        tasks("arm_reach", "test")
    with pytest.raises(ValueError, match="arm_reach/train/20"):
        find_task("arm_reach/train/20")
    with pytest.raises(ValueError, match="unknown behaviour 'bad'"):
        Behaviour(make_env("arm_reach"), "bad", 0)
    env = make_env("arm_reach")
    with pytest.raises(ValueError, match="belongs to family 'arm_payload'"):
        env.set_task(tasks("arm_payload", "train")[0])
    with pytest.raises(ValueError, match="seed_"):
        env.reset(options={"seed_": 1})
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(np.zeros(2))
    env.reset(seed=0)
    for bad in ([np.nan, 0.0], [np.inf, 0.0], [0.0], [0.0, 0.0, 0.0]):
        with pytest.raises(ValueError, match="finite torques"):
            env.step(np.array(bad))
    wild, *_ = env.step(np.array([1e9, -1e9]))
    env.reset(seed=0)
    np.testing.assert_array_equal(wild, env.step(np.array([3.0, -1.5]))[0])  # clipped


def test_tasks_import_no_ros():
    code = (
        "import sys, spc_core.tasks.behaviour\n"
        "sys.exit(any(name.split('.')[0] in ('rclpy', 'rosbags') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_step_reads_the_clock():
    env = make_env("arm_reach")
    env.reset(seed=0)
    env.step(np.zeros(2))
    assert env.data.time > 0 and env.data.timer[mujoco.mjtTimer.mjTIMER_STEP].duration == 0
