# SPDX-License-Identifier: Apache-2.0
"""base_drive: physics by hand, and its streams: a command without a header, a latched goal, wheels at half the rate."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from geometry_msgs.msg import Twist
from rclpy.qos import DurabilityPolicy

from spc_core.alignment.streaming import StreamingAligner
from spc_core.contract.contract import load_contract
from spc_core.system.config_files import find_config
from spc_core.tasks import SPLITS, Task, find_task, make_env, tasks
from spc_core.tasks.base_drive import DRIVE_GAIN, GOAL_STEPS, MEAN_TASK, BaseDrive
from spc_ros.messages.contract_reader import ContractReader
from spc_ros.node_parts.contract_topics import StatePublishers
from spc_ros.sim.simulation import Simulation

CONTRACT = load_contract(find_config("contracts", "base_drive"))


def base(load: float, friction: float) -> BaseDrive:
    env = BaseDrive(Task("base_drive/id/99", "base_drive", "id", 99, {"load": load, "friction": friction}))
    env.reset(seed=0)
    env.data.qpos[:], env.data.qvel[:] = 0.0, 0.0
    return env


def test_friction_slows_the_base_and_load_makes_it_slow_to_start() -> None:
    env = base(load=10.0, friction=0.3)
    for _ in range(100):
        observation, *_ = env.step(np.array([2.0, 0.0]))
    resistance = 0.3 * (8 + 10) * 9.81  # N
    assert observation[4] == pytest.approx(2 - resistance / DRIVE_GAIN, rel=1e-3)
    assert observation[6:8] * 0.08 == pytest.approx(observation[4], rel=1e-2), "wheels of 8 cm roll along"
    first = [base(load, 0.1).step(np.array([2.0, 0.0]))[0][4] for load in (0.0, 20.0)]
    assert first[0] > 2.5 * first[1] > 0
    still, *_ = base(20.0, 0.6).step(np.array([1.6, 0.0]))  # 160 N against 165 N
    assert abs(still[4]) < 0.1
    turning = base(0.0, 0.05)
    turned, *_ = [turning.step(np.array([0.0, 5.0])) for _ in range(2)][-1]
    assert turned[5] > 1 and turned[7] > 0 > turned[6], "to the left: the right wheel goes forwards"
    assert abs(turned[:2]).max() < 1e-6, "and the wheels do not slip sideways"


def test_the_expert_reaches_every_goal_and_the_mean_task_is_the_mean() -> None:
    env = make_env("base_drive")
    for split in SPLITS:
        for i, task in enumerate(tasks("base_drive", split)):
            before, over = env.reset(seed=i, options={"task": task})[0], False
            after = before
            while not over:
                before = after
                after, _, _, over, _ = env.step(env.expert(before))
            assert np.hypot(*(after[:2] - before[8:10])) < 0.05 and env.success(before, after), task.task_id
    for key in ("load", "friction"):
        assert MEAN_TASK.params[key] == pytest.approx(np.mean([t.params[key] for t in tasks("base_drive", "train")]))
    assert find_task("base_drive/mean/00") is MEAN_TASK


def test_a_seed_gives_the_same_start_and_goals_whatever_the_task() -> None:
    seen = []
    for task in (tasks("base_drive", "train")[3], tasks("base_drive", "ood")[2]):
        env = make_env("base_drive", task)
        rows = [env.reset(seed=4)[0], *(env.step(np.zeros(2))[0] for _ in range(2 * GOAL_STEPS))]
        seen.append(np.array(rows))
    np.testing.assert_array_equal(seen[0][0], seen[1][0])
    np.testing.assert_array_equal(seen[0][:, 8:], seen[1][:, 8:])
    assert np.flatnonzero(np.abs(np.diff(seen[0][:, 8:], axis=0)).any(1)).tolist() == [49, 99]


def test_wheels_are_read_at_every_second_tick() -> None:
    env = make_env("base_drive")
    observation, _ = env.reset(seed=1)
    for step in range(1, 20):
        last, (observation, *_) = observation, env.step(np.array([2.5, 3.0]))
        held = step % 2 == 1
        assert env.resting_topics() == (("wheels",) if held else ())
        assert (observation[6:8] == last[6:8]).all() == held


class Wire:
    """A node's publishers, whose messages reach a reader at once."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []
        self.durable: set[str] = set()

    def create_publisher(self, _kind: Any, topic: str, qos: Any) -> SimpleNamespace:
        if qos.durability == DurabilityPolicy.TRANSIENT_LOCAL:
            self.durable.add(topic)
        return SimpleNamespace(topic_name=f"/{topic}", publish=lambda msg: self.sent.append((topic, msg)))


def test_what_is_published_aligns_to_what_the_environment_shows() -> None:
    """Two episodes: the goal goes out when it changes, wheels at half the rate, and o_k is the env's, to the bit."""
    wire = Wire()
    env = make_env("base_drive")
    simulation = Simulation(env, CONTRACT)
    out = StatePublishers(wire, CONTRACT, True, env.latched_topics)  # type: ignore[arg-type]
    assert wire.durable == {"goal"}
    reader, aligner = ContractReader(CONTRACT), StreamingAligner(CONTRACT, 0)
    found, wanted = [], []
    for seed in (0, 0):
        state = simulation.reset(tasks("base_drive", "train")[0], seed)
        out.counts.clear()
        while True:
            out.publish(state.t_ns, state.observation, state.reward, (), state.resting)
            wanted.append(state.observation)
            sent, wire.sent = wire.sent, []
            for topic, msg in sent:
                if topic != "/clock":
                    found += reader.feed(aligner, topic, msg, state.t_ns)
            if not simulation.running:
                break
            speed, turn = env.expert(state.observation)
            command = Twist()
            command.linear.x, command.angular.z = float(speed), float(turn)
            found += reader.feed(aligner, "cmd_vel", command, state.t_ns + 1)
            state = simulation.step(np.array([speed, turn]))
        assert out.counts["/goal"] == 3 and out.counts["/wheels"] == 51 and out.counts["/odom"] == 101
    found += aligner.flush()
    transitions = [step.transition for step in found if step.transition is not None]
    assert len(transitions) == 200
    expected = [row for half in (wanted[:101], wanted[101:]) for row in half[:-1]]
    np.testing.assert_array_equal([t.observation for t in transitions], expected)
