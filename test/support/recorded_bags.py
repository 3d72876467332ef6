# SPDX-License-Identifier: Apache-2.0
"""Bags for tests, as the sim and its recorder write them: lock-step, 50 Hz, commands 1 ns after a tick."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.typesys import Stores, get_typestore

from spc_core.alignment.episode import EpisodeInfo
from spc_core.contract.contract import Contract
from spc_ros.bags.writer import BagWriter
from support.contracts import ARM_REACH

STORE = get_typestore(Stores.ROS2_JAZZY)
JOINT_STATE = "sensor_msgs/msg/JointState"
VECTOR = "geometry_msgs/msg/Vector3Stamped"
STRING = "std_msgs/msg/String"
FLOAT = "std_msgs/msg/Float64"
PERIOD_NS = 20_000_000
START_NS = 5_000_000_000
RECEIVE_NS = 1_700_000_000_000_000_000  # receive times are wall time


def header(t_ns: int) -> Any:
    seconds, nanoseconds = divmod(t_ns, 1_000_000_000)
    stamp = STORE.types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanoseconds)
    return STORE.types["std_msgs/msg/Header"](stamp=stamp, frame_id="")


def joint_state(t_ns: int, names: list[str], **arrays: Any) -> Any:
    """position, velocity and effort as given, else empty."""
    values = {k: np.asarray(arrays.get(k, []), np.float64) for k in ("position", "velocity", "effort")}
    return STORE.types[JOINT_STATE](header=header(t_ns), name=names, **values)


def vector(t_ns: int, x: float) -> Any:
    return STORE.types[VECTOR](header=header(t_ns), vector=STORE.types["geometry_msgs/msg/Vector3"](x=x, y=0.0, z=0.0))


def string(text: str) -> Any:
    return STORE.types[STRING](data=text)


@dataclasses.dataclass(frozen=True)
class Sample:
    topic: str
    type: str
    receive_ns: int
    message: Any


def arm_samples(steps: int = 20, seed: int = 0, info: EpisodeInfo | None = None) -> list[Sample]:
    """One episode of `steps` transitions of arm_reach: joint_states, joint_commands, reward, episode."""
    random = np.random.default_rng(seed)
    info = info or episode_info(steps)
    running = dataclasses.replace(info, state="running", terminated=False, truncated=False, end_ns=0)
    samples = [Sample("/episode", STRING, RECEIVE_NS, string(running.to_json()))]
    for k in range(steps + 1):
        t_ns, receive_ns = START_NS + k * PERIOD_NS, RECEIVE_NS + k * PERIOD_NS
        state = joint_state(t_ns, ["elbow", "shoulder"], position=random.random(2), velocity=random.random(2))
        samples.append(Sample("/joint_states", JOINT_STATE, receive_ns, state))
        if k:
            samples.append(Sample("/reward", VECTOR, receive_ns + 100, vector(t_ns, -float(k))))
        if k < steps:
            command = joint_state(t_ns + 1, ["shoulder", "elbow"], effort=[float(k), -1.0])
            samples.append(Sample("/joint_commands", JOINT_STATE, receive_ns + 200, command))
    samples.append(Sample("/episode", STRING, RECEIVE_NS + steps * PERIOD_NS + 300, string(info.to_json())))
    return samples


def episode_info(steps: int, task: str = "arm_reach/train/00", **changes: Any) -> EpisodeInfo:
    info = EpisodeInfo(
        state="ended",
        task_id=task,
        params={"angle": 0.5},
        episode=1,
        seed=7,
        start_ns=START_NS,
        end_ns=START_NS + steps * PERIOD_NS,
        truncated=True,
        reason="time limit",
    )
    return dataclasses.replace(info, **changes)


def custom_data(contract: Contract, info: EpisodeInfo) -> dict[str, str]:
    return {
        "spc.task_id": info.task_id,
        "spc.task_params": json.dumps(dict(info.params)),
        "spc.contract_sha256": contract.sha256,
        "spc.contract": contract.text,
    }


def write_bag(path: Path, samples: list[Sample], custom: dict[str, str], storage: str = "mcap") -> Path:
    with BagWriter(path, custom, storage) as writer:
        for topic, type_name in dict.fromkeys((s.topic, s.type) for s in samples):
            writer.add_topic(topic, type_name, latched=topic == "/episode")
        for sample in samples:
            data = STORE.serialize_cdr(sample.message, sample.type)
            writer.write_raw(sample.topic, sample.receive_ns, bytes(data))
    return path


def record_arm(
    path: Path,
    steps: int = 20,
    seed: int = 0,
    storage: str = "mcap",
    change: Callable[[Sample], Sample | None] = lambda sample: sample,
    contract: Contract | None = None,
    **info: Any,
) -> Path:
    """An arm_reach bag; `change` may alter or drop (None) each sample, `info` alters the episode's end."""
    said = episode_info(steps, **info)
    samples = [s for s in map(change, arm_samples(steps, seed, said)) if s is not None]
    return write_bag(path, samples, custom_data(contract or ARM_REACH, said), storage)


def said_nothing(samples: list[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.topic != "/episode"]


def later(samples: list[Sample], shift_ns: int, receive_ns: int | None = None) -> list[Sample]:
    """The same samples with stamps shifted, and receive times shifted as much or by `receive_ns`."""
    moved = []
    for sample in samples:
        stamp = sample.message.header.stamp
        message = dataclasses.replace(sample.message, header=header(stamp.sec * 10**9 + stamp.nanosec + shift_ns))
        received = sample.receive_ns + (shift_ns if receive_ns is None else receive_ns)
        moved.append(dataclasses.replace(sample, message=message, receive_ns=received))
    return moved
