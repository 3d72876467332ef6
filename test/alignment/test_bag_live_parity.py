# SPDX-License-Identifier: Apache-2.0
"""A bag through conversion and the same messages as a node gets them: equal transitions, to the bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml
from rosbags.rosbag2 import Reader

from spc_core.alignment import PATIENCE_NS
from spc_core.alignment.streaming import StreamingAligner
from spc_core.contract.contract import Contract
from spc_core.doctor.diagnosis import Thresholds
from spc_ros.conversion.bag_conversion import Job, convert_bag
from spc_ros.doctor.bag_diagnosis import DoctorJob, diagnose_bag
from spc_ros.messages.contract_reader import ContractReader
from support.contracts import ARM_REACH, make_contract, stream_section
from support.recorded_bags import (
    JOINT_STATE,
    PERIOD_NS,
    RECEIVE_NS,
    START_NS,
    STORE,
    Sample,
    arm_samples,
    header,
    later,
    said_nothing,
    write_bag,
)

IMU = "sensor_msgs/msg/Imu"


def seen_live(bag: Path, contract: Contract):
    """(observation, action, reward, next observation) of each transition that a node would have seen."""
    reader, aligner = ContractReader(contract), StreamingAligner(contract, PATIENCE_NS)
    steps = []
    with Reader(bag) as log:
        for connection, receive_ns, data in log.messages():
            message = STORE.deserialize_cdr(data, connection.msgtype)
            steps += reader.feed(aligner, connection.topic.lstrip("/"), message, receive_ns)
    steps += aligner.flush()
    return [step.transition for step in steps if step.transition is not None]


def assert_equal_to_live(bag: Path, contract: Contract, at_least: int) -> None:
    _, entries = convert_bag(bag, Job(contract, own_contract=True, task="t"))
    episodes = [entry.episode for entry in entries]
    live = seen_live(bag, contract)
    assert len(live) >= at_least
    assert sum(map(len, episodes)) == len(live)
    np.testing.assert_array_equal(
        np.concatenate([e.observations[:-1] for e in episodes]), [t.observation for t in live]
    )
    np.testing.assert_array_equal(
        np.concatenate([e.observations[1:] for e in episodes]), [t.next_observation for t in live]
    )
    np.testing.assert_array_equal(np.concatenate([e.actions for e in episodes]), [t.action for t in live])
    np.testing.assert_array_equal(np.concatenate([e.rewards for e in episodes]), [t.reward for t in live])


def test_transformed_fields_are_the_same_from_a_bag_and_in_a_node(tmp_path):
    def imu(t_ns, random):
        def vector():
            return STORE.types["geometry_msgs/msg/Vector3"](*random.normal(size=3).tolist())

        turned = STORE.types["geometry_msgs/msg/Quaternion"](*random.normal(size=4).tolist())
        return STORE.types[IMU](header(t_ns), turned, np.zeros(9), vector(), np.zeros(9), vector(), np.zeros(9))

    random = np.random.default_rng(5)
    samples = said_nothing(arm_samples(60))
    for k in range(600):  # ten times as fast as the states, jittered
        offset_ns = k * PERIOD_NS // 10 + int(random.integers(0, 900_000))
        samples.append(Sample("/imu", IMU, RECEIVE_NS + offset_ns + 5, imu(START_NS + offset_ns, random)))
    bag = write_bag(tmp_path / "bag", sorted(samples, key=lambda s: s.receive_ns), {})
    observation = [
        {
            "topic": "joint_states",
            "type": JOINT_STATE,
            "max_age_s": 0.05,
            "fields": [
                {"field": "position.elbow", "as": "sin_cos", "scale": 2.0},
                {"field": "position.shoulder", "as": "derivative", "clip": [-20, 20]},
                {"field": "velocity.elbow", "offset": 1.0, "as": "wrap"},
            ],
        },
        {
            "topic": "imu",
            "type": IMU,
            "max_age_s": 0.05,
            "clock": "header",
            "fields": [{"field": "orientation", "as": "rotation_6d"}, {"field": "orientation", "as": "yaw"},
                       {"field": "angular_velocity.z", "as": "derivative"}],
        },
    ]  # fmt: skip
    contract = make_contract(base=ARM_REACH, observation=observation)
    assert contract.observation_dim == 4 + 8
    assert_equal_to_live(bag, contract, at_least=50)


@pytest.mark.parametrize("seed", range(3))
def test_a_reward_of_the_contract_needs_no_topic_and_is_the_same_in_a_node(tmp_path, seed):
    """With the command before, over lost messages."""
    random = np.random.default_rng(seed)
    samples = [s for s in said_nothing(arm_samples(80, seed=seed)) if s.topic != "/reward" and random.random() > 0.05]
    terms = {
        "near": {"kind": "distance", "of": "position.elbow", "to": 0.3, "scale": 0.2, "shape": "exponential"},
        "smooth": {"kind": "smoothness", "weight": 0.1},
        "closer": {"kind": "progress", "of": ["position.elbow", "position.shoulder"], "to": [0.2, 0.7]},
        "own": {"kind": "expression", "value": "-0.1 * tanh(action.effort.elbow - previous_action.effort.shoulder)"},
    }
    contract = make_contract(base=ARM_REACH, reward={"terms": terms})
    assert_equal_to_live(write_bag(tmp_path / "bag", samples, {}), contract, at_least=30)


def test_a_derivative_begins_again_where_an_irregular_bag_is_read_twice(tmp_path):
    samples = said_nothing(arm_samples(80))
    targets = [
        dataclasses.replace(s, topic="/target") for s in samples[: 3 * 20] if s.topic == "/joint_states"
    ]  # less than a clock jump long
    late = [
        dataclasses.replace(s, receive_ns=s.receive_ns + 1_300_000_000) if s.topic == "/reward" else s
        for s in [*samples, *targets]
    ]
    bag = write_bag(tmp_path / "bag", sorted(late, key=lambda s: s.receive_ns), {})
    rate = [{"field": "position.elbow", "as": "derivative"}]
    contract = make_contract(
        base=ARM_REACH,
        observation=[
            stream_section("joint_states", ["position.elbow"]),
            stream_section("target", rate, max_age_s=10.0),
        ],
    )
    assert_equal_to_live(bag, contract, at_least=50)
    diagnosis, _ = diagnose_bag(bag, DoctorJob(contract, own_contract=True, task="t", thresholds=Thresholds()))
    assert diagnosis.transitions == len(seen_live(bag, contract))


@pytest.mark.parametrize("seed", range(8))
def test_a_faulty_bag_is_the_same_as_in_a_node(tmp_path, seed):
    random = np.random.default_rng(seed)
    samples = said_nothing(arm_samples(80, seed=seed))
    samples = [s for s in samples if random.random() > 0.03]
    samples = [
        s for s in samples if not (s.topic == "/joint_states" and 30 < (s.receive_ns - RECEIVE_NS) / PERIOD_NS < 36)
    ]
    doubled = [samples[i] for i in random.integers(0, len(samples), 5)]
    late = [
        dataclasses.replace(sample, receive_ns=sample.receive_ns + int(random.integers(0, 60_000_000)))
        for sample in samples
    ]
    if seed % 4 == 1:  # a restart of the robot: its clock begins again
        late += later(said_nothing(arm_samples(20, seed=seed)), -2_000_000_000, 4_000_000_000)
    if seed % 4 == 2:  # a topic that comes in bursts more than the patience behind the others
        late = [
            dataclasses.replace(s, receive_ns=s.receive_ns + 1_300_000_000) if s.topic == "/reward" else s for s in late
        ]
    bag = write_bag(tmp_path / "bag", sorted([*late, *doubled], key=lambda s: s.receive_ns), {})
    assert_equal_to_live(bag, ARM_REACH, at_least=5)


def test_a_stream_may_be_aligned_by_receive_time_beside_others_by_header(tmp_path):
    wall = later(said_nothing(arm_samples(30)), RECEIVE_NS - START_NS, 3_000_000)  # stamps of wall time
    fields = yaml.safe_load(ARM_REACH.text)["observation"][0]
    bag = write_bag(tmp_path / "bag", wall, {})
    contract = make_contract(base=ARM_REACH, observation=[{**fields, "clock": "receive"}], rate_hz=50)
    _, entries = convert_bag(bag, Job(contract, own_contract=True, task="t"))
    first = entries[0].episode
    assert first.times_ns[0] == RECEIVE_NS + 3_000_000
    # states count 3 ms later, so a_k is the command of the state after the one that it was caused by
    assert first.actions[0, 0] == 1.0
    assert_equal_to_live(bag, contract, at_least=25)
