# SPDX-License-Identifier: Apache-2.0
"""The doctor on bags in which nothing is wrong, or something else than it seems."""

from __future__ import annotations

import dataclasses

import numpy as np

from spc_core.command_delay.correlogram import correlogram
from spc_ros.doctor.doctor import diagnose
from support.contracts import ARM_REACH, make_contract, stream_section
from support.recorded_bags import PERIOD_NS, RECEIVE_NS, STRING, Sample, arm_samples, later, said_nothing, string

from support.recorded_bags import write_bag  # isort: skip


def findings(bag, contract):
    report = diagnose([bag], contract=contract, task="t", progress=False)
    return {(f.check, f.topic): f for f in report.findings if f.severity != "ok"}, report


def with_pause(pause_ns: int) -> list[Sample]:
    first = said_nothing(arm_samples(100))
    return [*first, *later(said_nothing(arm_samples(100, seed=1)), 100 * PERIOD_NS + pause_ns)]


def test_a_pause_that_parts_episodes_is_no_gap(tmp_path):
    bag = write_bag(tmp_path / "bag", with_pause(3_000_000_000), {})
    parted, report = findings(bag, make_contract(base=ARM_REACH, episode={"segment": "gap", "gap_s": 1.0}))
    assert report.episodes == 2
    assert not {check for check, _ in parted} & {"gaps", "age at ticks", "dropped ticks"}
    whole, _ = findings(bag, make_contract(base=ARM_REACH))
    assert {("gaps", topic) for topic in ("joint_states", "joint_commands", "reward")} <= set(whole)


def test_infinity_that_the_contract_clips_is_no_fault(tmp_path):
    samples = said_nothing(arm_samples(60))
    for i, sample in enumerate(samples):
        if sample.topic == "/joint_states" and i % 5 == 0:
            position = np.array([np.inf, sample.message.position[1]])
            samples[i] = dataclasses.replace(sample, message=dataclasses.replace(sample.message, position=position))
    bag = write_bag(tmp_path / "bag", samples, {})
    fields = ["position.shoulder", {"field": "position.elbow", "clip": [-10, 10]}]
    clipped, report = findings(bag, make_contract(base=ARM_REACH, observation=[stream_section("joint_states", fields)]))
    assert ("not finite", "joint_states") not in clipped and report.transitions == 60
    fields = ["position.shoulder", "position.elbow"]
    plain, _ = findings(bag, make_contract(base=ARM_REACH, observation=[stream_section("joint_states", fields)]))
    assert plain["not finite", "joint_states"].severity == "fail"


def test_no_correlation_is_beyond_one():
    random = np.random.default_rng(0)
    t_ns = np.arange(600) * 20_000_000
    commands = random.normal(size=(600, 1))
    ramp = np.cumsum(np.full((600, 1), 0.1)) + 1e-13 * random.normal(size=600)  # all of it is predicted
    answer = np.concatenate([np.zeros((1, 1)), commands[:-1]])
    found = correlogram(t_ns, commands, ("u",), t_ns, np.column_stack([answer, ramp]), ("x", "ramp"))
    assert found is not None
    assert np.abs(found.correlation).max() <= 1.0
    assert np.abs(found.correlation[:, 0, 0]).max() > 0.9


def test_another_programs_topic_called_episode_refuses_nothing(tmp_path):
    says = [
        Sample("/recorder/episode", STRING, RECEIVE_NS + k, string(text)) for k, text in ((1, "start"), (9, "stop"))
    ]
    bag = write_bag(tmp_path / "bag", sorted([*said_nothing(arm_samples(60)), *says], key=lambda s: s.receive_ns), {})
    found, report = findings(bag, make_contract(base=ARM_REACH))
    assert report.transitions == 60
    assert "'/recorder/episode' does not tell of episodes" in found["episodes", ""].text
    assert not any("/recorder/episode" in f.text for f in found.values() if f.severity == "fail")


def test_jumps_are_warned_of_where_they_are(tmp_path):
    samples = said_nothing(arm_samples(100))
    states = [i for i, s in enumerate(samples) if s.topic == "/joint_states"]
    for k, i in enumerate(states):
        position = np.array([0.01 * k, 0.02 * k]) + (5 if k >= 50 else 0)
        message = dataclasses.replace(samples[i].message, position=position, velocity=np.full(2, 0.5) + 0.001 * k)
        samples[i] = dataclasses.replace(samples[i], message=message)
    bag = write_bag(tmp_path / "bag", samples, {})
    found, _ = findings(bag, make_contract(base=ARM_REACH))
    jumps = found["jumps", ""]
    assert jumps.severity == "warn" and "1 of 100 transitions" in jumps.text
    assert jumps.times == ((1.0, 1.0),)
