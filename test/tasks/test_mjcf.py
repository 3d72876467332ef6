# SPDX-License-Identifier: Apache-2.0
"""Any MJCF behind a contract: read and driven by name, and refused with the name, what there is, and the fix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spc_core.contract.contract import Contract, load_contract, parse_contract
from spc_core.system.config_files import find_config
from spc_core.tasks import Task, make_env
from spc_core.tasks.mjcf import MjcfEnv, ModelError
from spc_ros.sim.simulation import Simulation
from support.contracts import action_section, make_contract, stream_section
from support.paths import ROOT

NUMBERS = "std_msgs/msg/Float64MultiArray"
CART = """
<mujoco model="cart">
  <option timestep="0.005" gravity="0 0 -10" integrator="Euler"/>
  <worldbody>
    <body name="cart" pos="0 0 1">
      <joint name="rail" type="slide" axis="1 0 0" range="-9 9"/>
      <geom name="box" type="box" size=".1 .1 .1" mass="2" contype="0" conaffinity="0"/>
      <site name="imu"/>
      <body name="pole">
        <joint name="hinge" type="hinge" axis="0 1 0"/>
        <geom type="capsule" fromto="0 0 0 0 0 -.5" size=".01" mass=".001" contype="0" conaffinity="0"/>
      </body>
    </body>
    <body name="ball" pos="5 0 0"><freejoint name="free"/><geom size=".1" contype="0" conaffinity="0"/></body>
  </worldbody>
  <actuator><motor name="pull" joint="rail" gear="1"/><motor joint="hinge" gear="0.5"/></actuator>
  <sensor>
    <accelerometer name="imu/data.linear_acceleration" site="imu"/>
    <framequat name="imu/data.orientation" objtype="site" objname="imu"/>
    <jointpos name="height" joint="rail"/>
  </sensor>
  <keyframe>
    <key name="home" qpos="0.5 0 5 0 0 1 0 0 0"/>
    <key name="tilted" qpos="-0.25 0.1 5 0 0 1 0 0 0" qvel="2 0 0 0 0 0 0 0"/>
  </keyframe>
</mujoco>
"""
SECTIONS = {
    "name": "cart",
    "observation": [
        stream_section("joint_states", ["velocity.rail", "position.rail", "position.hinge", "effort.hinge"]),
        stream_section(
            "imu/data",
            ["linear_acceleration.x", "linear_acceleration.z", "orientation.w", "orientation.z"],
            "sensor_msgs/msg/Imu",
        ),
        stream_section("height", ["data.0"], NUMBERS),
    ],
    "action": action_section(["pull", "hinge"], high=[4, 1], max_rate=[1000, 1000], topic="commands", type=NUMBERS),
    "episode": {"segment": "bag", "limit_s": 0.5},
}


def contract(changes: Mapping[str, Any] | None = None) -> Contract:
    return make_contract(changes, **SECTIONS)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "cart.xml"
    path.write_text(CART)
    return path


def test_fields_are_read_by_name_and_actuators_driven_by_name(model: Path) -> None:
    env = MjcfEnv(model, contract())
    start, _ = env.reset()
    assert start[:4] == pytest.approx([0, 0.5, 0, 0]) and start[8] == 0.5, "keyframe 'home', in the contract's order"
    assert start[6:8] == pytest.approx([1, 0]), "w and z of a quaternion that MuJoCo writes as w, x, y, z"
    after, reward, terminated, truncated, _ = env.step(np.array([4.0, 0.0]))
    assert after[0] == pytest.approx(4 / 2.001 * 0.02, rel=1e-2), "v = F t / m, four steps of 5 ms"
    assert after[4:6] == pytest.approx([2.0, 10.0], rel=1e-2), "an accelerometer also feels gravity"
    assert reward is None and not terminated and not truncated
    after, *_ = env.step(np.array([0.0, 0.2]))
    assert after[3] == pytest.approx(0.1), "the hinge's motor has no name, and a gear of 0.5"


def test_actions_stay_within_the_contract_and_time_is_up_at_its_limit(model: Path) -> None:
    env = MjcfEnv(model, contract(), keyframe="tilted")
    start, _ = env.reset()
    assert start[:3] == pytest.approx([2, -0.25, 0.1])
    ends = [env.step(np.array([100.0, 0.0]))[3] for _ in range(25)]
    assert ends == [False] * 24 + [True], "0.5 s at 50 Hz"
    assert env.data.ctrl.tolist() == [4.0, 0.0]


def test_the_same_arm_moves_as_its_family_does() -> None:
    arm = find_config("contracts", "arm_reach")
    path = ROOT / "spc_core" / "tasks" / "arm_reach.xml"
    ours, theirs = MjcfEnv(path, load_contract(arm)), make_env("arm_reach")
    ours.reset()
    theirs.reset(seed=0)
    theirs.data.qpos[:], theirs.data.qvel[:] = 0.0, 0.0  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    for _ in range(50):
        torque = rng.uniform([-3, -1.5], [3, 1.5])
        assert (ours.step(torque)[0] == theirs.step(torque)[0]).all()


def test_the_reward_is_the_contracts_function(tmp_path: Path) -> None:
    """arm_payload's reward needs a target, which sensors of that name give."""
    family = ROOT / "spc_core" / "tasks" / "arm_payload.xml"
    path = tmp_path / "arm.xml"
    sensors = "".join(f'<user name="target.position.{joint}" dim="1"/>' for joint in ("shoulder", "elbow"))
    path.write_text(family.read_text().replace("</mujoco>", f"<sensor>{sensors}</sensor></mujoco>"))
    arm = load_contract(find_config("contracts", "arm_payload"))
    env = MjcfEnv(path, arm)
    function = arm.reward_function()
    assert function is not None
    before, _ = env.reset()
    for _ in range(5):
        action = np.array([3.0, 1.0])
        after, reward, *_ = env.step(action)
        assert reward == function(before, action, after) < 0
        before = after


def test_smoothness_is_of_an_episodes_own_commands(model: Path) -> None:
    """None at its first step, whatever the episode before ended with."""
    terms = {"smooth": {"kind": "smoothness", "of": ["pull"], "shape": "absolute", "scale": 0.25}}
    env = MjcfEnv(model, contract({"reward": {"terms": terms}}))
    for _ in range(2):
        env.reset(seed=0)
        assert [env.step(np.array([force, 0.0]))[1] for force in (3, 2, 2, 4)] == [0, -1, 0, -2]


def test_transforms_of_the_contract_reach_its_reward_but_not_its_topics(tmp_path: Path) -> None:
    text = find_config("contracts", "arm_payload").read_text()
    arm = parse_contract(
        text.replace("position.shoulder", "{field: position.shoulder, scale: 57.29577951308232}", 1), "x"
    )
    path = ROOT / "spc_core" / "tasks" / "arm_payload.xml"
    plain = load_contract(find_config("contracts", "arm_payload"))
    sensors = "".join(f'<user name="target.position.{joint}" dim="1"/>' for joint in ("shoulder", "elbow"))
    (tmp_path / "arm.xml").write_text(path.read_text().replace("</mujoco>", f"<sensor>{sensors}</sensor></mujoco>"))
    scaled, raw = MjcfEnv(tmp_path / "arm.xml", arm), MjcfEnv(tmp_path / "arm.xml", plain)
    scaled.reset(), raw.reset()
    (there, one, *_), (here, two, *_) = scaled.step(np.array([9.0, 0.0])), raw.step(np.array([9.0, 0.0]))
    assert (there == here).all() and one != two


def test_a_model_needs_no_keyframe_and_runs_in_a_simulation(model: Path) -> None:
    begin, end = CART.index("<keyframe>"), CART.index("</keyframe>") + len("</keyframe>")
    model.write_text(CART[:begin] + CART[end:])
    simulation = Simulation(MjcfEnv(model, contract()), contract())
    state = simulation.reset(Task("my robot", "cart", "mjcf", 0, {}), 0)
    assert state.observation[:4].tolist() == [0, 0, 0, 0] and simulation.info.task_id == "my robot"
    states = []
    while simulation.running:
        states.append(simulation.step(np.zeros(2)))
    assert len(states) == 25 and simulation.info.truncated and all(s.reward is None for s in states)


def test_physics_that_diverge_end_the_episode_and_say_why(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)  # MuJoCo keeps a log there
    model.write_text(CART.replace('gear="0.5"', 'gear="1e30"'))
    simulation = Simulation(MjcfEnv(model, contract()), contract())
    state = simulation.reset(simulation.env.task, 0)
    while simulation.running:
        state = simulation.step(np.ones(2))
    info = simulation.info
    assert "the physics diverged" in info.reason and not info.terminated and not info.truncated
    assert np.isnan(state.observation).all()


def refusal(model: Path, changes: Mapping[str, Any] | None = None, keyframe: str = "") -> str:
    with pytest.raises(ModelError) as error:
        MjcfEnv(model, contract(changes), keyframe)
    assert str(error.value).startswith(f"model {model}: ")
    return str(error.value)


def test_refusals_name_what_is_missing_and_what_there_is(model: Path) -> None:
    text = refusal(model, {"observation.0.fields.2": "position.hing"})
    assert "no joint 'hing' (did you mean 'hinge'?)" in text and "joints are rail, hinge, free" in text
    text = refusal(model, {"action.fields": ["pulll", "hinge"]})
    assert "no actuator 'pulll' (did you mean 'pull'?)" in text and "actuators are pull, (unnamed)" in text
    assert "'pull' and 'rail' drive one actuator" in refusal(model, {"action.fields": ["pull", "rail"]})
    assert "joint 'free'" in refusal(model, {"observation.0.fields.2": "position.free"})
    text = refusal(model, {"observation.1.fields.1": "angular_velocity.z"})
    assert "name one 'imu/data.angular_velocity.z', or one with several numbers 'imu/data.angular_velocity'" in text
    assert "has 1 numbers" in refusal(model, {"observation.2.fields.0": "data.1"})
    assert "timestep 0.005 s does not divide the period 0.0166667 s" in refusal(model, {"rate_hz": 60})
    assert "no keyframe 'start'; keyframes are home, tilted" in refusal(model, keyframe="start")
    assert "no such file" in refusal(model.with_name("robot.xml"))
    model.write_text("<mujoco><worldbody><body></worldbody></mujoco>")
    assert "not a model that MuJoCo can read" in refusal(model)


def test_a_timestep_that_fits_is_proposed(model: Path) -> None:
    text = refusal(model, {"rate_hz": 60})
    proposed = float(text.rsplit(" ", 1)[1])
    assert math.isclose(1 / 60 / proposed, round(1 / 60 / proposed), rel_tol=1e-4) and proposed <= 0.005
