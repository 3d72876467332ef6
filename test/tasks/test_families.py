# SPDX-License-Identifier: Apache-2.0
"""Families by name, by entry point and by file; a family.yaml does what it says, and a wrong one says what to mend."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from spc_core.contract.contract import load_contract
from spc_core.tasks import SPLITS, Family, FamilyError, families, find_family, find_task, is_family, make_env, tasks
from spc_core.tasks import families as registry_names
from spc_core.tasks.family_file import load_family
from spc_core.tasks.hidden import spread
from spc_core.tasks.mjcf import ModelError
from spc_core.tasks.task import make_task
from spc_core.trials.offline_data import behaviour_episodes
from spc_core.trials.options import TrialOptions, make_trial
from spc_core.trials.scores import Score, expert_returns, table
from spc_ros.sim.simulation import Simulation
from support.cart_family import CART, write_cart_family

registry: Any = sys.modules["spc_core.tasks.families"]


def test_a_family_is_found_by_name_and_by_path_and_then_its_tasks_by_id(tmp_path: Path) -> None:
    path = write_cart_family(tmp_path)
    assert find_family("ant_dir") is find_family("ant_dir") and not is_family("cart")
    cart = find_family(str(path))
    assert (cart.name, cart.reference, cart.contract.name) == ("cart", str(path), "contract.yaml")
    assert find_family("cart") is cart and is_family("cart") and is_family(str(path)) and "cart" in families()
    assert find_task("cart/val/03") is tasks(str(path), "val")[3]
    assert find_family("arm_reach").reference == "arm_reach"


def test_an_unknown_family_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match=r"unknown task family 'ant_dirr' \(did you mean 'ant_dir'\?\).*family.yaml"):
        make_env("ant_dirr")
    with pytest.raises(FamilyError, match="unknown task family 'cart'"):
        find_task("cart/train/00")
    with pytest.raises(FamilyError, match=r"none.yaml: cannot be read \(No such file"):
        find_family(str(tmp_path / "none.yaml"))


def test_names_stand_for_one_family(tmp_path: Path) -> None:
    find_family(str(write_cart_family(tmp_path / "a")))
    with pytest.raises(FamilyError, match="b/family.yaml: name is 'cart', as in .*a/family.yaml"):
        find_family(str(write_cart_family(tmp_path / "b")))
    with pytest.raises(FamilyError, match="name is 'ant_dir', as another family's"):
        find_family(str(write_cart_family(tmp_path / "c", {"name": "ant_dir"})))


def test_other_packages_bring_families_by_entry_points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cart = load_family(write_cart_family(tmp_path))
    points = {
        "cart": SimpleNamespace(name="cart", value="carts:cart", load=lambda: lambda: cart),
        "lorry": SimpleNamespace(name="lorry", value="carts:lorry", load=lambda: cart),
        "bus": SimpleNamespace(name="bus", value="carts:bus", load=lambda: 3),
        "arm_reach": SimpleNamespace(name="arm_reach", value="carts:arm", load=lambda: cart),
    }
    asked = []
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: asked.append(group) or points.values())
    registry._plugged_in.cache_clear()
    registry._named.cache_clear()
    try:
        assert find_family("cart") is cart and asked == ["spc_ros.families"] and "lorry" in registry_names()
        assert find_family("arm_reach").name == "arm_reach", "a shipped name stays what it is"
        with pytest.raises(FamilyError, match="'lorry = carts:lorry' gives a family 'cart', not a Family of its name"):
            find_family("lorry")
        with pytest.raises(FamilyError, match="'bus = carts:bus' gives a int"):
            find_family("bus")
    finally:
        monkeypatch.undo()
        registry._plugged_in.cache_clear()
        registry._named.cache_clear()


def test_families_load_only_when_they_are_asked_for() -> None:
    code = (
        "import sys, spc_core.tasks; loaded = lambda: [m for m in sys.modules if m.startswith('spc_core.tasks.')]\n"
        "assert sorted(loaded()) == ['spc_core.tasks.families', 'spc_core.tasks.task'], loaded()\n"
        "spc_core.tasks.tasks('arm_reach', 'id')\n"
        "assert 'spc_core.tasks.arm_reach' in loaded() and 'spc_core.tasks.locomotion' not in loaded()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_splits_that_share_a_task_are_refused() -> None:
    def family(**others: Any) -> Family:
        listed: dict[str, Any] = {split: () for split in SPLITS}
        listed["train"] = (make_task("cart", "train", 0, load=1.0), make_task("cart", "train", 1, load=2.0))
        return Family("cart", make_env, {**listed, **others}, Path("cart.yaml"))  # type: ignore[arg-type]

    assert dict(family().mean_task.params) == {"load": 1.5}
    with pytest.raises(FamilyError, match="cart/train/01 and cart/id/00 are one task, {'load': 2.0}"):
        family(id=(make_task("cart", "id", 0, load=2.0),))
    with pytest.raises(FamilyError, match="'cart/id/00' is not of its split 'val'"):
        family(val=(make_task("cart", "id", 0, load=3.0),))
    with pytest.raises(FamilyError, match="needs tasks to train on"):
        family(train=())


def test_each_kind_of_parameter_sets_its_part_of_the_model(tmp_path: Path) -> None:
    parameters = {
        "load": {"mass": "cart", "range": [1, 4]},
        "floor": {"friction": ["floor", "box"], "range": [0.2, 0.4]},
        "rail": {"damping": "rail", "range": [2, 3]},
        "motor": {"gain": "pull", "range": [0.5, 2]},
        "planet": {"gravity": "down", "range": [3, 12]},
        "goal": {"place": "goal.x", "range": [-2, -1]},
        "late": {"delay": "commands", "range": [0.05, 0.06]},
    }
    path = write_cart_family(tmp_path, {"parameters": parameters, "tasks": {"ood": 0}})
    env = make_env(str(path))
    task = tasks("cart", "id")[2]
    value = task.params
    env.set_task(task)
    model, nominal = env.model, mujoco.MjModel.from_xml_path(str(tmp_path / "cart.xml"))
    cart, inertia = model.body("cart").id, nominal.body_inertia[nominal.body("cart").id]
    assert model.body_mass[cart] == value["load"] and 1 <= value["load"] <= 4
    np.testing.assert_allclose(model.body_inertia[cart], inertia * value["load"] / 2)
    assert model.dof_M0[0] == pytest.approx(value["load"]), "and what follows from it"
    assert [model.geom(name).friction[0] for name in ("floor", "box", "flag")] == [value["floor"], value["floor"], 1]
    assert model.joint("rail").damping[0] == value["rail"]
    assert model.actuator("pull").gainprm[0] == value["motor"]
    assert model.opt.gravity.tolist() == [0, 0, -value["planet"]]
    assert model.body("goal").pos[0] == value["goal"]
    env.reset(seed=0)
    speeds = [env.step(np.array([1.0]))[0][1] for _ in range(5)]
    assert speeds[:2] == [0, 0] and speeds[2] > 0, "2.5 to 3 periods of 20 ms go by before a command acts"
    first = float(np.float64(value["motor"]) * (3 - value["late"] * 50) / value["load"] * 0.02)
    assert speeds[2] == pytest.approx(first, rel=0.05), "the share of the period that is left"


@pytest.mark.filterwarnings("ignore:.*(symmetric and normalized|infinity).*")
def test_a_family_file_ends_starts_and_pays_as_it_says(tmp_path: Path) -> None:
    told = {
        "terminate": {"joint_states.position.rail": [-float("inf"), 0.25]},
        "start": {"position": 0.2, "velocity": 0.1},
    }
    env = make_env(str(write_cart_family(tmp_path, told)))
    starts = [env.reset(seed=seed)[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[0], starts[2]) and max(np.abs(starts)[:, 0]) <= 0.2
    env.reset(seed=1)
    steps = 0
    while True:
        observation, reward, terminated, truncated, _ = env.step(np.array([5.0]))
        steps += 1
        assert reward == observation[1], "the sensor named as the reward topic, of this very state"
        assert terminated == (observation[0] > 0.25) and not truncated
        if terminated:
            break
    env.reset(seed=1)
    ends = [env.step(np.array([-5.0]))[2:4] for _ in range(25)]
    assert ends == [(False, False)] * 24 + [(False, True)], "0.5 s at 50 Hz"
    Simulation(env, load_contract(find_family("cart").contract))
    check_env(env, skip_render_check=True)


def test_tasks_are_spread_over_the_ranges_and_beyond(tmp_path: Path) -> None:
    parameters = {
        "load": {"mass": "cart", "range": [1, 4], "beyond": [0.5, 6]},
        "rail": {"damping": "rail", "range": [0, 1]},
        "motor": {"gain": "pull", "range": [1, 2], "beyond": [1, 3]},
    }
    family = load_family(write_cart_family(tmp_path, {"parameters": parameters}))
    assert [len(family.tasks[split]) for split in SPLITS] == [20, 10, 10, 10]
    for split in ("train", "val", "id"):
        loads = np.sort([task.params["load"] for task in family.tasks[split]])
        assert loads[0] > 1 and loads[-1] < 4 and np.diff(loads).max() < 2 * 3 / (len(loads) - 1), "no large gap"
        assert all(0 < t.params["rail"] < 1 and 1 < t.params["motor"] < 2 for t in family.tasks[split])
    ood = [task.params for task in family.tasks["ood"]]
    assert all((not 1 <= p["load"] <= 4) is (i % 2 == 0) for i, p in enumerate(ood)), "in turn"
    assert all((2 < p["motor"] <= 3) is (i % 2 == 1) and 0 < p["rail"] < 1 for i, p in enumerate(ood))
    assert min(p["load"] for p in ood) < 1 and max(p["load"] for p in ood) > 4
    again = load_family(tmp_path / "family.yaml")
    assert again.tasks == family.tasks, "the same file gives the same tasks"
    golden = (1 + 5**0.5) / 2
    np.testing.assert_allclose(spread(3, 1, 0)[:, 0], (0.5 + np.arange(1, 4) / golden) % 1)
    plastic = 1.32471795724474602596
    np.testing.assert_allclose(spread(1, 2, 4)[0], (0.5 + 5 / np.array([plastic, plastic**2])) % 1)


def test_tasks_can_be_counted_or_listed(tmp_path: Path) -> None:
    given = {"train": [{"load": 1}, {"load": 3.5}], "val": 2, "id": 0, "ood": [{"load": 9}]}
    family = load_family(write_cart_family(tmp_path, {"tasks": given}))
    loads = {split: [task.params["load"] for task in family.tasks[split]] for split in SPLITS}
    assert loads["train"] == [1, 3.5] and loads["ood"] == [9] and loads["id"] == [] and len(loads["val"]) == 2
    assert dict(family.mean_task.params) == {"load": 2.25}
    inside = load_family(write_cart_family(tmp_path, {"parameters": {"load": {"mass": "cart", "range": [1, 4]}}}))
    assert inside.tasks["ood"] == (), "nothing lies beyond"


def test_without_an_expert_there_is_random_data_and_no_scale(tmp_path: Path) -> None:
    find_family(str(write_cart_family(tmp_path)))
    task = find_task("cart/train/01")
    assert expert_returns([task], [0]) == {}
    made = list(behaviour_episodes(task, 2, seed=1))
    assert [episode.behaviour for episode in made] == ["random", "random"] and all(len(e) == 25 for e in made)
    assert np.ptp(made[0].actions) > 1, "it moves"
    row = Score("id", "zero_shot", 0, 1.5, 0.1, math.nan, (math.nan,), 1, 1, 1)
    lines = table([row]).splitlines()
    assert lines[1].split()[:5] == ["id", "zero_shot", "1.50", "0.10", "-"] and "nan" not in lines[1]
    assert lines[2].startswith("no normalised scores: there is no expert")
    poor = dataclasses.replace(row, protocol="expert")  # no better than no_context
    assert table([row, poor]).endswith("or it gains nothing by knowing the task; compare returns")
    known = dataclasses.replace(row, protocol="expert", normalised=1.0)
    assert len(table([row, known]).splitlines()) == 3, "with one, nothing is to be explained"


def test_episodes_that_can_end_early_have_no_drift_test(tmp_path: Path) -> None:
    path = write_cart_family(tmp_path, {"terminate": {"joint_states.position.rail": [-1, 1]}})
    with pytest.raises(ValueError, match="they can end early here; set drift_tasks to 0"):
        make_trial(TrialOptions(family=str(path), drift_tasks=2))
    assert make_trial(TrialOptions(family=str(path), tasks_per_split=1)).tasks[0].task_id == "cart/id/00"
    early = {name for name in families() if make_env(name).terminates}
    assert early == {"cart", "ant_dir", "hopper_mass", "hopper_friction", "walker_mass", "walker_friction"}


REFUSALS: list[tuple[Mapping[str, Any], str]] = [
    ({"contract": None}, "contract is missing; give the robot's contract"),
    ({"contract": "arm_rech"}, "no contracts file is called 'arm_rech' .did you mean 'arm_reach'"),
    ({"model": None}, "model is missing"),
    ({"model": "card.xml"}, "card.xml', which cannot be read .No such file"),
    ({"modell": "cart.xml"}, "modell is not a known field .did you mean 'model'"),
    ({"episode_s": None}, "episode_s is missing; give the length of an episode"),
    ({"episode_s": -1}, "episode_s must be a positive number"),
    ({"name": "a/b"}, "name is 'a/b'; use a name without '/'"),
    ({"parameters": {}}, "parameters. is empty"),
    ({"parameters": {"load": {"mass": "cat", "range": [1, 4]}}},
     "parameters.load.mass: no body 'cat' .did you mean 'cart'.. in model .*cart.xml; it has world, cart, goal, ball"),
    ({"parameters": {"load": {"mass": "world", "range": [1, 4]}}}, "body 'world' has no mass"),
    ({"parameters": {"load": {"damping": "free", "range": [1, 4]}}}, "joint 'free' is neither hinge nor slide"),
    ({"parameters": {"load": {"gain": "push", "range": [1, 4]}}}, "no actuator 'push'.*it has pull"),
    ({"parameters": {"load": {"place": "goal", "range": [1, 4]}}}, "'goal' is not <body>.x, .y or .z"),
    ({"parameters": {"load": {"gravity": "up", "range": [1, 4]}}}, "parameters.load.gravity is 'up'.*down"),
    ({"parameters": {"load": {"weight": "cart", "range": [1, 4]}}}, "parameters.load.weight is not a known field"),
    ({"parameters": {"load": {"range": [1, 4]}}}, "parameters.load. needs one of mass, .* and has none"),
    ({"parameters": {"load": {"mass": "cart", "range": [4, 1]}}}, r"range is \[4, 1\], upside down; write"),
    ({"parameters": {"load": {"mass": "cart", "range": [1]}}}, r"range must be two numbers \[low, high\], got \[1\]"),
    ({"parameters": {"load": {"mass": "cart", "range": [-1, 1]}}}, "range begins at -1; mass is at least 1e-06"),
    ({"parameters": {"load": {"mass": "cart", "range": [1, 4], "beyond": [2, 6]}}}, "beyond is .2, 6.; it must"),
    ({"parameters": {"load": {"mass": "cart", "range": [1, 4], "beyond": [1, 4]}}}, "beyond is .* it must enclose"),
    ({"tasks": {"train": [{"load": 1}], "id": [{"load": 1}]}}, "cart/train/00 and cart/id/00 are one task"),
    ({"tasks": {"train": 0}}, "needs tasks to train on"),
    ({"tasks": {"train": [{"lode": 1}]}}, r"tasks.train\[0\].lode is not a known field .did you mean 'load'"),
    ({"tasks": {"train": [{"load": -1}]}}, r"tasks.train\[0\].load is -1; mass is at least"),
    ({"tasks": {"test": 3}}, "tasks.test is not a known field"),
    ({"tasks": {"val": -1}}, "tasks.val must be a number of tasks or a list"),
    ({"tasks": {"ood": 3}, "parameters": {"load": {"mass": "cart", "range": [1, 4]}}}, "tasks.ood needs a parameter"),
    ({"terminate": {"joint_states.position.rial": [0, 1]}}, "is not an observed field .did you mean .*rail"),
    ({"terminate": {"joint_states.position.rail": [1, 0]}}, r"must be \[low, high\], low first"),
    ({"keyframe": "home"}, "no keyframe 'home'"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSALS, ids=[message[:40] for _, message in REFUSALS])
def test_a_wrong_family_file_is_refused_with_the_key_and_the_fix(
    changes: Mapping[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        load_family(write_cart_family(tmp_path, changes))


def test_a_reward_without_its_sensor_and_models_that_reach_out_of_their_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no sensor 'reward', the reward topic of contract 'cart'.*reward function"):
        load_family(write_cart_family(tmp_path, model=CART.replace('name="reward"', 'name="speed"')))
    (tmp_path / "secret.xml").write_text("<mujoco/>")
    for reach in ('<include file="../secret.xml"/>', f'<include file="{tmp_path}/secret.xml"/>',
                  '<asset><mesh name="m" file="../m.stl"/></asset>',
                  '<asset><texture name="t" type="cube" fileright="../t.png"/></asset>',
                  '<compiler meshdir="../meshes"/><asset><mesh name="m" file="m.stl"/></asset>',
                  '<include file="inner.xml"/>'):  # fmt: skip
        folder = tmp_path / "robot"
        path = write_cart_family(folder, model=CART.replace("<worldbody>", f"{reach}<worldbody>", 1))
        (folder / "inner.xml").write_text('<mujoco><include file="../secret.xml"/></mujoco>')
        with pytest.raises(FamilyError, match="which names '.*', outside of .*robot; copy it there"):
            load_family(path)
    (folder / "inner.xml").write_text('<mujoco><option gravity="0 0 -3"/></mujoco>')
    assert load_family(path).make(None).model.opt.gravity[2] == -3, "its own folder is allowed"
    (folder / "cart.xml").write_text("<mujoco")
    with pytest.raises(FamilyError, match="cart.xml', which is not XML"):
        load_family(path)
    path.write_text("model: [")
    with pytest.raises(FamilyError, match="family.yaml: not valid YAML"):
        load_family(path)
