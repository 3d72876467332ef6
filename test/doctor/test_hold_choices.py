# SPDX-License-Identifier: Apache-2.0
"""Commands that come only when they change: what `spc contract init` proposes, and what the doctor says to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from spc_core.contract.contract import Contract, parse_contract
from spc_core.doctor.diagnosis import Thresholds
from spc_ros.conversion.bag_conversion import Job, convert_bag
from spc_ros.doctor.bag_diagnosis import DoctorJob, diagnose_bag
from spc_ros.doctor.contract_init import propose
from support.proposals import completed
from support.recorded_bags import JOINT_STATE, RECEIVE_NS, STORE, Sample, joint_state, write_bag

PERIOD_NS = 20_000_000
STATES = 600
TWIST = "geometry_msgs/msg/Twist"
REWARD = "reward: {topic: score, type: std_msgs/msg/Float64, field: data}\n"
RANDOM = np.random.default_rng(3)
ON_CHANGE = sorted(RANDOM.choice(np.arange(1, STATES), 40, replace=False).tolist())
LOSSY = sorted(RANDOM.choice(np.arange(1, STATES), round(0.6 * STATES), replace=False).tolist())


def twist(speed: float) -> Any:
    vector = STORE.types["geometry_msgs/msg/Vector3"]
    return STORE.types[TWIST](vector(speed, 0.0, 0.0), vector(0.0, 0.0, speed / 2))


def record(path: Path, at: list[int], speed: Any = lambda k: 0.2 + (k * 37 % 100) / 100, storage: str = "mcap") -> Path:
    """Joint states at 50 Hz on wall time, and a Twist 3 ms after each of these states."""
    samples = []
    for k in range(STATES):
        t_ns = RECEIVE_NS + k * PERIOD_NS
        state = joint_state(t_ns, ["left", "right"], position=[np.sin(k / 9), k], velocity=[np.cos(k / 9), 1])
        samples.append(Sample("/joint_states", JOINT_STATE, t_ns + 500_000, state))
        samples.append(Sample("/score", "std_msgs/msg/Float64", t_ns + 100_000, STORE.types["std_msgs/msg/Float64"](k)))
        if k in at:
            samples.append(Sample("/cmd_vel", TWIST, t_ns + 3_000_000, twist(speed(k))))
    return write_bag(path, samples, {}, storage)


def findings(bag: Path, contract: Contract) -> list[str]:
    diagnosis, _ = diagnose_bag(bag, DoctorJob(contract, own_contract=True, task="t", thresholds=Thresholds()))
    return [finding.text for finding in diagnosis.findings if finding.check == "hold"]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_publisher_of_changes_gets_hold_and_every_state_after_the_first_command_a_command(tmp_path, storage):
    bag = record(tmp_path / "bag", ON_CHANGE, storage=storage)
    text = propose(bag)
    assert (
        "  hold: true # 40 commands for 600 states, irregular, none equal to the one before: they come only when they "
        "change; the last one holds\n"
    ) in text
    assert "rare:" not in text and "the command at" not in text and yaml.safe_load(text)["rate_hz"] == 50
    contract = parse_contract(completed(text, REWARD), "proposal")
    report, entries = convert_bag(bag, Job(contract, own_contract=True, task="t"))
    assert (report.transitions, report.episodes) == (STATES - 1 - ON_CHANGE[0], 1)
    first = entries[0].episode.actions[:, 0]
    latest = [max(k for k in ON_CHANGE if k <= tick) for tick in range(ON_CHANGE[0], STATES - 1)]
    np.testing.assert_array_equal(first, [0.2 + (k * 37 % 100) / 100 for k in latest])
    assert findings(bag, contract) == []
    assert len(report.lag_ms) and 2 < report.lag_ms[0] <= report.lag_ms[-1] < 4, "of the commands that were sent"


def test_the_doctor_says_what_to_write_for_a_contract_without_hold(tmp_path):
    bag = record(tmp_path / "bag", ON_CHANGE)
    held = completed(propose(bag), REWARD)
    (said,) = findings(bag, parse_contract(held.replace("  hold: true", "  #"), "proposal"))
    assert said.startswith("40 commands for 600 states, irregular, none equal to the one before: they seem to come")
    assert said.endswith("say hold: true in the contract's action")


def test_the_doctor_offers_hold_where_commands_are_neither_steady_nor_plainly_irregular(tmp_path):
    """Six of ten intervals are those of a steady publisher: no proposal, but the loss of most periods is explained."""
    steps = [15, 5, 15, 15, 25, 15, 28, 15, 15, 4] * 4
    bag = record(tmp_path / "bag", [k for k in np.cumsum(steps).tolist() if k < STATES])
    text = propose(bag)
    assert "hold" not in yaml.safe_load(text)["action"]
    (said,) = findings(bag, parse_contract(completed(text, REWARD), "proposal"))
    assert "say hold: true in the contract's action" in said


@pytest.mark.parametrize(
    ("at", "speed"),
    [
        (list(range(STATES)), lambda k: np.sin(k / 10)),
        (list(range(0, STATES, 5)), lambda k: np.sin(k / 10)),
        (LOSSY, lambda k: np.sin(k / 10)),
        (ON_CHANGE, lambda k: float(k > 300)),
    ],
    ids=["each state", "every fifth state", "with 40 % lost", "irregular, but nearly always the same"],
)
def test_other_commands_get_no_hold(tmp_path, at, speed):
    bag = record(tmp_path / "bag", at, speed)
    text = propose(bag)
    assert "hold" not in yaml.safe_load(text)["action"]
    assert findings(bag, parse_contract(completed(text, REWARD), "proposal")) == []


def test_the_doctor_says_where_hold_hides_lost_commands(tmp_path):
    bag = record(tmp_path / "bag", list(range(STATES)), lambda k: np.sin(k / 10))
    text = completed(propose(bag), REWARD).replace("  topic: cmd_vel", "  hold: true\n  topic: cmd_vel")
    (said,) = findings(bag, parse_contract(text, "proposal"))
    assert said.startswith("commands come steadily, 50.0 times a second, but the contract says hold: true")


def test_the_gaps_of_commands_that_hold_are_no_faults_of_the_bag(tmp_path):
    bag = record(tmp_path / "bag", ON_CHANGE)
    contract = parse_contract(completed(propose(bag), REWARD), "proposal")
    diagnosis, _ = diagnose_bag(bag, DoctorJob(contract, own_contract=True, task="t", thresholds=Thresholds()))
    assert [f.check for f in diagnosis.findings if f.topic == "cmd_vel" and f.severity != "ok"] == []
