# SPDX-License-Identifier: Apache-2.0
"""Half cheetahs of other dynamics: limbs and motors as they are said to be, and an agent that needs to be told."""

# pyright: reportAttributeAccessIssue=false
# (mujoco re-exports its compiled functions without stubs)

import math

import mujoco
import numpy as np
import pytest

from spc_core.tasks import make_env, tasks
from spc_core.tasks.cheetah_families import LIMBS
from spc_core.tasks.paper_families import CHEETAH
from spc_core.tasks.task import make_task


def compiled(length: float) -> mujoco.MjModel:
    """The robot's file with other limbs, of a density that weighs 14 kg where they are the file's."""
    torso = CHEETAH.nominal.body("torso").mass[0]
    spec = mujoco.MjSpec.from_string(CHEETAH.text())
    bare = spec.compile().body("torso").mass[0]
    for geom in spec.geoms:
        geom.density *= torso / bare
        if geom.name in LIMBS:
            geom.pos, geom.size = geom.pos * length, [geom.size[0], geom.size[1] * length, 0]
    for shin in ("bshin", "fshin"):
        foot = spec.body(shin).first_body()
        foot.pos = foot.pos * length
    return spec.compile()


@pytest.mark.parametrize("length", [0.5, 2.0])
def test_limbs_change_with_all_that_follows_from_them(length: float) -> None:
    """As in a model compiled with them but for the height of the stand; a limb weighs as its capsule's volume."""
    env, wanted = make_env("cheetah_length"), compiled(length)
    env.set_task(make_task("cheetah_length", "train", 0, length=length))
    rise = env.model.body("torso").pos[2] - wanted.body("torso").pos[2]
    wanted.body("torso").pos[2] += rise
    mujoco.mj_setConst(wanted, mujoco.MjData(wanted))
    for name in (
        name for name in dir(wanted) if name.startswith(("actuator_", "body_", "bvh_", "dof_", "geom_", "jnt_"))
    ):
        own, other = getattr(env.model, name), getattr(wanted, name)
        if isinstance(own, np.ndarray) and own.dtype.kind == "f":
            np.testing.assert_allclose(own, other, rtol=1e-6, atol=1e-9, err_msg=name)
    radius, half = 0.046, 0.15
    volumes = [2 * h * math.pi * radius**2 + 4 / 3 * math.pi * radius**3 for h in (half, half * length)]
    mass = env.model.body("bshin").mass[0] / env.nominal.body("bshin").mass[0]
    assert mass == pytest.approx(volumes[1] / volumes[0])
    heights = []
    for model in (env.model, env.nominal):
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        heights.append(min(contact.dist for contact in data.contact) if data.ncon else math.inf)
    assert heights[0] == pytest.approx(heights[1], abs=1e-6), "it stands as high above the floor"
    env.set_task(make_task("cheetah_length", "train", 1, length=1.0))
    np.testing.assert_allclose(env.model.body_inertia, env.nominal.body_inertia, rtol=1e-9)
    np.testing.assert_allclose(env.model.body_pos, env.nominal.body_pos, atol=1e-12)


def test_motors_pull_as_the_task_says() -> None:
    """A leg's gain -1 at action a is gain 1 at action -a; tasks lie on a circle through (1, 1)."""
    env = make_env("cheetah_motors")
    ends = []
    for back, front, signs in (
        (1, 1, [1, 1, 1, 1, 1, 1]),
        (-1, 1, [-1, -1, -1, 1, 1, 1]),
        (1, -0.5, [1, 1, 1, -2, -2, -2]),
    ):
        env.reset(seed=0, options={"task": make_task("cheetah_motors", "train", 0, back=back, front=front)})
        for _ in range(5):
            observation, *_ = env.step(np.array([0.3, -0.2, 0.4, 0.1, -0.4, 0.2]) * signs)
        ends.append(observation)
    np.testing.assert_allclose(ends[1:], [ends[0]] * 2, rtol=1e-9)
    assert all(
        math.hypot(*task.params.values()) == pytest.approx(math.sqrt(2)) for task in tasks("cheetah_motors", "id")
    )


def test_the_agent_runs_far_better_when_it_is_told_its_task() -> None:
    """Though the reward is the same for all tasks."""
    env, task = make_env("cheetah_motors"), tasks("cheetah_motors", "id")[7]
    totals = []
    for act in (env.expert, env.uninformed):
        observation, _ = env.reset(seed=0, options={"task": task})
        totals.append(0.0)
        for _ in range(env.episode_steps):
            observation, reward, *_ = env.step(act(observation))
            totals[-1] += float(reward)
    assert totals[0] > 300 and totals[0] > 1.5 * totals[1], totals
