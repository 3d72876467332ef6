# SPDX-License-Identifier: Apache-2.0
"""A robot's recording for tests of the doctor: 100 Hz states that answer 50 Hz commands, stamps in wall time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from support.contracts import ARM_REACH
from support.recorded_bags import (
    JOINT_STATE,
    RECEIVE_NS,
    VECTOR,
    Sample,
    custom_data,
    episode_info,
    joint_state,
)

from support.recorded_bags import vector, write_bag  # isort: skip

from spc_core.contract.contract import Contract

JOINTS = ["shoulder", "elbow"]
STATE_S, COMMAND_S = 0.01, 0.02
TRAVEL_NS = 2_000_000  # from stamp to receive
MASS = np.array([0.3, 0.15])


def robot_samples(seconds: float = 6.0, delay_s: float = 0.007, seed: int = 0) -> list[Sample]:
    """joint_states, joint_commands and reward; torques reach the joints `delay_s` after they were commanded."""
    rng = np.random.default_rng(seed)
    step_s, counts = 0.001, round(seconds * 1000)
    torques = rng.uniform([-2.7, -1.3], [2.7, 1.3], size=(round(seconds / COMMAND_S) + 1, 2))
    position, velocity = np.zeros(2), np.zeros(2)
    samples = []
    for i in range(counts + 1):
        t_ns = RECEIVE_NS + i * 1_000_000
        if i % 10 == 0:
            state = joint_state(t_ns, JOINTS, position=position.copy(), velocity=velocity.copy())
            samples.append(Sample("/joint_states", JOINT_STATE, t_ns + TRAVEL_NS, state))
        if i % 20 == 5:
            command = joint_state(t_ns, JOINTS, effort=torques[i // 20])
            samples.append(Sample("/joint_commands", JOINT_STATE, t_ns + TRAVEL_NS, command))
        if i % 20 == 19:
            samples.append(Sample("/reward", VECTOR, t_ns + TRAVEL_NS, vector(t_ns, -float(np.abs(position).sum()))))
        known = i - 5 - round(delay_s * 1000)
        torque = torques[known // 20] if known >= 0 else np.zeros(2)
        velocity = velocity + step_s * (torque / MASS - 6.0 * velocity - 4.0 * position)
        position = position + step_s * velocity
    return samples


def record_robot(
    path: Path,
    change: Callable[[Sample], Sample | None] = lambda sample: sample,
    contract: Contract | None = None,
    storage: str = "mcap",
    named: bool = True,
    task: str = "arm_reach/train/00",
    **how: float,
) -> Path:
    """A bag of the robot; `change` may alter or drop (None) each sample; without `named`, it carries no custom_data."""
    samples = [s for s in map(change, robot_samples(**how)) if s is not None]
    samples.sort(key=lambda s: s.receive_ns)
    custom = custom_data(contract or ARM_REACH, episode_info(1, task)) if named else {}
    return write_bag(path, samples, custom, storage)
