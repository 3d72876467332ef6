# SPDX-License-Identifier: Apache-2.0
"""A simulation at half the pace of real time, whose commands have no stamp: proposal, doctor and conversion agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from spc_core.contract.contract import Contract, parse_contract
from spc_core.doctor.diagnosis import Thresholds
from spc_ros.bags.files import BagError
from spc_ros.conversion.bag_conversion import Job, convert_bag
from spc_ros.conversion.conversion_report import ConversionReport
from spc_ros.doctor.bag_diagnosis import BagDiagnosis, DoctorJob, diagnose_bag
from spc_ros.doctor.contract_init import propose
from support.proposals import completed
from support.recorded_bags import FLOAT, JOINT_STATE, RECEIVE_NS, START_NS, STORE, Sample, joint_state, write_bag

MS, PACE, STATES = 1_000_000, 0.5, 500
TWIST, CLOCK = "geometry_msgs/msg/Twist", "rosgraph_msgs/msg/Clock"
REWARD = "reward: {topic: score, type: std_msgs/msg/Float64, field: data}\n"


def twist(speed: float) -> Any:
    vector = STORE.types["geometry_msgs/msg/Vector3"]
    return STORE.types[TWIST](vector(speed, 0.0, 0.0), vector(0.0, 0.0, 1 - speed))


def record(path: Path, clock_ms: int | None, storage: str = "mcap", pace: float = PACE) -> Path:
    """Command k follows state k, and reward k comes just before it; `/clock` every so often, or not at all."""
    samples = []

    def add(topic: str, kind: str, t_ns: int, after_ms: float, message: Any) -> None:
        received_ns = RECEIVE_NS + round((t_ns - START_NS) / pace + after_ms * MS)
        samples.append(Sample(topic, kind, received_ns, message))

    for k in range(STATES):
        t_ns = START_NS + k * 20 * MS
        state = joint_state(t_ns, ["left", "right"], position=[np.sin(k / 9), k], velocity=[np.cos(k / 9), 1])
        add("/score", FLOAT, t_ns, 0.6, STORE.types[FLOAT](float(k)))
        add("/joint_states", JOINT_STATE, t_ns, 1.0, state)
        add("/cmd_vel", TWIST, t_ns, 5.0, twist(k / STATES))
    for t_ms in range(0, 20 * STATES, clock_ms) if clock_ms else ():
        time = STORE.types["builtin_interfaces/msg/Time"](*divmod(START_NS + t_ms * MS, 10**9))
        add("/clock", CLOCK, START_NS + t_ms * MS, 0.5, STORE.types[CLOCK](time))
    return write_bag(path, sorted(samples, key=lambda sample: sample.receive_ns), {}, storage)


def diagnosed(bag: Path, contract: Contract | None) -> BagDiagnosis:
    return diagnose_bag(bag, DoctorJob(contract, own_contract=True, task="t", thresholds=Thresholds()))[0]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("clock_ms", [20, 100])
def test_with_a_clock_the_proposal_is_by_stamps_and_converts_to_what_was_sent(tmp_path, clock_ms, storage):
    bag = record(tmp_path / "bag", clock_ms, storage)
    text = propose(bag)
    known = yaml.safe_load(text)
    assert (known["clock"], known["rate_hz"], "clock" in known["action"]) == ("header", 50, False)
    assert "clock: header # stamps are of simulated time, and /cmd_vel without stamps" in text
    contract = parse_contract(completed(text, REWARD), "proposal")
    report, entries = convert_bag(bag, Job(contract, own_contract=True, task="t"))
    episode = entries[0].episode
    assert (report.transitions, report.episodes) == (STATES - 1, 1)
    np.testing.assert_array_equal(episode.actions[:, 0], np.arange(STATES - 1) / STATES)
    np.testing.assert_array_equal(episode.rewards, np.arange(1, STATES))
    assert report.notes == (
        "messages without stamps count by /clock, beside the simulated time of 'joint_states': cmd_vel, score",
    )
    summary = ConversionReport(Path("out"), contract, (report,), report.topics, 1.0).summary()
    assert f"{STATES} messages without a stamp\n" in summary and "receive time" not in summary, "told once, by the note"
    found = diagnosed(bag, contract)
    assert found.transitions == STATES - 1
    assert [f.text for f in found.findings if f.check in ("clock", "clock domains")] == [
        "all topics are stamped by one clock, but another than the recorder's (53.9 years apart), as in a simulation; "
        "they can still be aligned with each other, but delays from header to receive mean nothing",
        report.notes[0],
    ][::-1]
    assert [f.text for f in found.findings if f.severity == "fail"] == []


def test_a_doctor_without_a_contract_knows_the_clock_too(tmp_path):
    found = diagnosed(record(tmp_path / "bag", 20), None)
    assert [f.severity for f in found.findings if f.check == "clock domains"] == ["ok"]
    apart = diagnosed(record(tmp_path / "other", None), None)
    assert [f.severity for f in apart.findings if f.check == "clock domains"] == ["warn"]


def test_without_a_clock_the_proposal_is_by_receive_time_and_stamps_are_refused_with_what_to_do(tmp_path):
    bag = record(tmp_path / "bag", None)
    text = propose(bag)
    assert yaml.safe_load(text)["clock"] == "receive"
    contract = parse_contract(completed(text, REWARD), "proposal")
    assert convert_bag(bag, Job(contract, own_contract=True, task="t"))[0].episodes == 1
    by_stamps = parse_contract(completed(text.replace("clock: receive", "clock: header"), REWARD), "proposal")
    what = "'cmd_vel' has no stamps and counts by when it was received.* record /clock with the bag.* clock: receive"
    with pytest.raises(BagError, match=what):
        convert_bag(bag, Job(by_stamps, own_contract=True, task="t"))
    (refusal,) = [f.text for f in diagnosed(bag, by_stamps).findings if f.check == "conversion"]
    assert "record /clock with the bag" in refusal


@pytest.mark.parametrize(("pace", "rate_hz"), [(0.5, 25), (2.0, 100), (1.3, 65)])
def test_without_a_clock_the_ticks_are_those_of_the_receive_times_at_any_pace(tmp_path, pace, rate_hz):
    bag = record(tmp_path / "bag", None, pace=pace)
    text = propose(bag)
    assert f"rate_hz: {rate_hz} # ticks; /joint_states comes at {rate_hz}.0 Hz, the command at {rate_hz}.0 Hz\n" in text
    assert "another command" not in text
    contract = parse_contract(completed(text, REWARD), "proposal")
    report, entries = convert_bag(bag, Job(contract, own_contract=True, task="t"))
    assert report.transitions == STATES - 1
    np.testing.assert_array_equal(entries[0].episode.actions[:, 0], np.arange(STATES - 1) / STATES)
