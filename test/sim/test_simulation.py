# SPDX-License-Identifier: Apache-2.0
"""The simulated robot without ROS: delays, noise, drop-outs and pushes against hand-worked numbers; any MJCF."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from spc_core.tasks import find_task, make_env
from spc_core.tasks.disturbances import DelayLine, DisturbanceConfig, Disturbances, noise_std
from spc_ros.sim.simulation import RealTimeFactor, Simulation
from support.contracts import ARM_REACH

NAMES = ("joint_states.position.a", "joint_states.position.b", "joint_states.velocity.a", "imu.z")
PERIOD_S = 0.02


def disturbances(seed: int = 0, **config: object) -> Disturbances:
    return Disturbances(DisturbanceConfig(**config), NAMES, np.array([0.5]), PERIOD_S, seed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("delay", "wanted"),
    [(0.0, [1, 2, 3, 4]), (1.0, [0, 1, 2, 3]), (2.0, [0, 0, 1, 2]), (0.25, [0.75, 1.75, 2.75, 3.75]),
     (1.5, [0, 0.5, 1.5, 2.5])],
)  # fmt: skip
def test_a_delay_holds_back_by_steps_and_shares_of_a_step(delay: float, wanted: list[float]) -> None:
    line = DelayLine(delay)
    line.reset(np.zeros(1))
    assert [float(line.push(np.array([k]))[0]) for k in (1.0, 2.0, 3.0, 4.0)] == wanted


def test_delays_are_in_milliseconds() -> None:
    slow = disturbances(sensor_delay_ms=20.0, actuator_delay_ms=50.0)
    seen = [slow.measured(np.full(4, float(k)))[0] for k in range(4)]
    assert seen == [0, 0, 1, 2], "before the first state, the robot stood as it does then"
    done = [slow.applied(np.array([float(k)]))[0] for k in range(1, 6)]
    assert done == [0.5, 0.5, 0.5 * 0.5 + 0.5 * 1, 1.5, 2.5], "before the first command, the safe action worked"


def test_nothing_is_disturbed_by_default() -> None:
    still, x = disturbances(), np.array([1.0, np.pi, -3.0, 1e-9])
    assert (still.measured(x) == x).all() and (still.applied(np.array([7.0])) == 7.0).all()
    assert not still.push(3).any() and not still.command_lost() and not still.states_lost(5)
    assert not still.counts


def test_noise_has_the_std_of_its_group() -> None:
    assert noise_std(["joint_states.position=0.1", "imu.z=2", ""], NAMES).tolist() == [0.1, 0.1, 0, 2]
    assert noise_std(["joint_states=0.1", "joint_states.velocity=0.5"], NAMES).tolist() == [0.1, 0.1, 0.5, 0]
    noisy = disturbances(noise=("joint_states.position=0.3",), noise_relative=0.2)
    true = np.array([0.0, 2.0, -5.0, 0.0])
    errors = np.array([noisy.measured(true) for _ in range(20_000)]) - true
    assert errors.std(axis=0) == pytest.approx([0.3, math.hypot(0.3, 0.4), 1.0, 0.0], rel=0.03)
    assert abs(errors.mean(axis=0)).max() < 0.03


@pytest.mark.parametrize("entry", ["joint_states.position", "imu.z=-1", "imu.z=nan", "imu.z=much"])
def test_noise_that_is_no_number_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="is not <field group>=<std>, for example joint_states.position.a=0.01"):
        noise_std([entry], NAMES)


def test_noise_on_what_is_not_observed_is_refused() -> None:
    with pytest.raises(ValueError, match="no observed field is or begins with 'joint_states.pos'; observed are"):
        noise_std(["joint_states.pos=0.1"], NAMES)


def test_the_share_asked_for_is_lost() -> None:
    lossy = disturbances(sensor_dropout=0.25, command_dropout=0.1)
    states = [lossy.states_lost(2) for _ in range(10_000)]
    lost = sum(map(len, states))
    assert lost == pytest.approx(5_000, rel=0.05) and {tuple(s) for s in states} == {(), (0,), (1,), (0, 1)}
    commands = sum(lossy.command_lost() for _ in range(10_000))
    assert commands == pytest.approx(1_000, rel=0.1)
    assert lossy.counts == {"states lost": lost, "commands lost": commands}
    everything = disturbances(sensor_dropout=1.0, command_dropout=1.0)
    assert everything.states_lost(3) == [0, 1, 2] and everything.command_lost()


def test_pushes_come_at_their_interval_and_size() -> None:
    rough = disturbances(push_impulse=0.4, push_interval_s=0.2)
    forces = np.array([rough.push(2) for _ in range(20_000)])
    pushed = forces.any(axis=1)
    assert rough.counts["pushes"] == pushed.sum() == pytest.approx(2_000, rel=0.1)  # one step in ten
    assert abs(forces).max() == pytest.approx(0.4 / PERIOD_S, rel=0.01) and abs(forces).max() <= 0.4 / PERIOD_S


def test_each_kind_draws_from_its_own_stream() -> None:
    def lost(seed: int, **config: object) -> list[list[int]]:
        one = disturbances(seed, sensor_dropout=0.5, **config)
        drawn = []
        for _ in range(50):
            one.push(2)
            one.measured(np.ones(4))
            one.command_lost()
            drawn.append(one.states_lost(2))
        return drawn

    alone = lost(3)
    assert alone == lost(3, push_impulse=1.0, noise_relative=0.1, command_dropout=0.5)
    assert alone != lost(4)


def rollout(config: DisturbanceConfig, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Observations (101, 4) and rewards (100,) of an episode of constant torque."""
    simulation = Simulation(make_env("arm_reach"), ARM_REACH)
    states = [simulation.reset(find_task("arm_reach/train/03"), seed, config)]
    while simulation.running:
        states.append(simulation.step(np.array([0.3, -0.1])))
    return np.array([s.observation for s in states]), np.array([s.reward for s in states[1:]])


def test_an_episode_with_a_sensor_delay_is_the_same_episode_seen_later() -> None:
    true, rewards = rollout(DisturbanceConfig())
    late, same = rollout(DisturbanceConfig(sensor_delay_ms=60.0))
    assert (late[3:] == true[:-3]).all() and (late[:3] == true[0]).all()
    assert (same == rewards).all(), "the reward is of what happened, not of what was seen"


def test_an_actuator_delay_starts_the_motion_later() -> None:
    """Until the command arrives the arm coasts, as with no command at all."""
    slow, _ = rollout(DisturbanceConfig(actuator_delay_ms=40.0))
    env = make_env("arm_reach")
    observation, _ = env.reset(seed=1, options={"task": find_task("arm_reach/train/03")})
    for k in range(6):
        assert (slow[k] == observation).all()
        observation, *_ = env.step(np.zeros(2) if k < 2 else np.array([0.3, -0.1]))


def test_a_push_moves_the_arm_by_its_impulse() -> None:
    """J v gains the impulse within a step: torque impulse / period on the joints for one period."""
    env = make_env("arm_reach")
    env.reset(seed=0)
    env.data.qvel[:], env.data.qpos[:] = 0.0, 0.3  # type: ignore[attr-defined]
    m11, m12, m22 = env.dynamics.mass_matrix(0.3, 0.0)  # type: ignore[attr-defined]
    impulse = np.array([1e-3, 0.0])  # Nms, small enough for the arm to stay where it is
    env.push(impulse / PERIOD_S)
    observation, *_ = env.step(np.zeros(2))
    wanted = np.linalg.solve([[m11, m12], [m12, m22]], impulse)
    assert observation[2:] == pytest.approx(wanted, rel=0.1)  # the joints' damping takes a little of it
    env.reset(seed=0)
    assert not env.data.qfrc_applied.any()  # type: ignore[attr-defined]


def test_disturbed_episodes_repeat_exactly() -> None:
    config = DisturbanceConfig(noise=("joint_states=0.01",), push_impulse=0.05, push_interval_s=0.1)
    first, again, other = rollout(config)[0], rollout(config)[0], rollout(config, seed=2)[0]
    assert (first == again).all() and (first != other).any()
    assert (first != rollout(dataclasses.replace(config, push_impulse=0.0))[0]).any()


def test_real_time_factor() -> None:
    factor = RealTimeFactor(period_s=0.02, start_s=100.0, window_s=2.0)
    assert factor.value(100.0) == 0.0
    for k in range(1, 11):
        factor.step(100.0 + 0.1 * k)  # ten steps of 20 ms in a second: a fifth of real time
    assert factor.value(101.0) == pytest.approx(0.2)
    assert factor.value(102.5) == pytest.approx(5 * 0.02 / 2.0), "the five steps after 100.5"
    assert factor.value(110.0) == 0.0
