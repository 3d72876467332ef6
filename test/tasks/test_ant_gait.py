# SPDX-License-Identifier: Apache-2.0
"""The ants' gait goes where it is told, from what is observed now alone."""

import math

import numpy as np
import pytest

from spc_core.tasks import make_env, mean_task, tasks
from spc_core.tasks.task import make_task


def walk(family: str, steps: int, **params: float) -> np.ndarray:
    """Where the torso is after some steps (2,)."""
    env = make_env(family)
    observation, _ = env.reset(seed=2, options={"task": make_task(family, "train", 0, **params)})
    for _ in range(steps):
        observation, _, terminated, *_ = env.step(env.expert(observation))
        assert not terminated
    return env.data.qpos[:2].copy()


@pytest.mark.parametrize("angle", [0.3, 1.9, 3.5, 5.1])
def test_an_ant_goes_in_the_direction_that_it_is_told(angle: float) -> None:
    way = np.array([math.cos(angle), math.sin(angle)])
    place = walk("ant_dir", 100, direction_x=way[0], direction_y=way[1])
    along, aside = place @ way, place @ (-way[1], way[0])
    assert along > 1.2 and abs(aside) < 0.5 * along, "5 s"


def test_an_ant_stays_at_its_goal() -> None:
    for steps in (120, 200):
        assert math.dist(walk("ant_goal", steps, goal_x=-0.6, goal_y=0.8), (-0.6, 0.8)) < 0.35


def test_who_does_not_know_the_way_goes_where_the_tasks_are_on_average() -> None:
    env = make_env("ant_dir", tasks("ant_dir", "id")[3])
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(env.uninformed(observation), env.expert(observation, mean_task("ant_dir")))
    assert not np.array_equal(env.uninformed(observation), env.expert(observation))
    np.testing.assert_array_equal(env.expert(observation), env.expert(observation))  # it remembers nothing
