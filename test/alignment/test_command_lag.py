# SPDX-License-Identifier: Apache-2.0
"""The time from a state to its command, and the phase of ticks whose states are faster than the contract."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from spc_core.alignment.command_lag import CommandLag, LagWatch, percentiles_ms, skipped_states
from spc_core.contract.contract import Contract
from spc_core.data.packed import load_dataset
from spc_core.data.reader import read_episodes
from spc_ros.conversion.convert import convert
from spc_ros.conversion.convert_options import ConvertOptions
from support.contracts import ARM_REACH, make_contract
from support.recorded_bags import (
    RECEIVE_NS,
    START_NS,
    Sample,
    custom_data,
    episode_info,
    joint_state,
    vector,
    write_bag,
)

MS = 1_000_000


@pytest.mark.parametrize(
    ("lag_ms", "state_ms", "skip"),
    [(3, 20, 0), (20, 20, 0), (27, 20, 1), (39, 20, 1), (3, 40, 0), (39, 40, 0), (27, 10, 2), (100, 10, 3)],
)
def test_states_are_skipped_up_to_the_one_before_the_command(lag_ms: float, state_ms: float, skip: int) -> None:
    """A contract at 25 Hz, by hand."""
    assert skipped_states(np.full(20, lag_ms * MS), state_ms * MS, 40 * MS) == skip


def test_too_few_transitions_tell_nothing() -> None:
    assert skipped_states(np.full(9, 27 * MS), 20 * MS, 40 * MS) == 0
    assert CommandLag.of(np.full(9, MS)) is None and percentiles_ms(np.full(9, MS)) == ()
    assert CommandLag.pooled([(9, ())]) is None


def test_recordings_count_by_their_transitions() -> None:
    """100 transitions at 1 ms and 900 at 5 ms: the median is 5 ms, and so is the 95 % level."""
    few, many = percentiles_ms(np.full(100, MS)), percentiles_ms(np.full(900, 5 * MS))
    assert CommandLag.pooled([(100, few), (900, many)]) == CommandLag(5.0, 5.0)
    assert CommandLag.pooled([(960, few), (40, many)]) == CommandLag(1.0, 1.0)


def two_rates(path: Path, lag_ms: float, contract: Contract) -> Path:
    """States at 50 Hz, and a controller at 25 Hz that answers every second one, from the second on."""
    samples = []
    names = ["shoulder", "elbow"]
    for k in range(101):
        t_ns = k * 20 * MS
        at = Sample("/reward", "geometry_msgs/msg/Vector3Stamped", RECEIVE_NS + t_ns, vector(START_NS + t_ns, -0.5))
        position = joint_state(START_NS + t_ns, names, position=[k, k], velocity=[0, 0])
        samples += [at, Sample("/joint_states", "sensor_msgs/msg/JointState", RECEIVE_NS + t_ns, position)]
        if k % 2:
            later_ns = t_ns + round(lag_ms * MS)
            command = joint_state(START_NS + later_ns, names, effort=[k, k])
            samples.append(Sample("/joint_commands", "sensor_msgs/msg/JointState", RECEIVE_NS + later_ns, command))
    return write_bag(
        path, sorted(samples, key=lambda sample: sample.receive_ns), custom_data(contract, episode_info(1))
    )


def test_ticks_are_the_states_that_the_controller_acted_on(tmp_path: Path) -> None:
    """Each command carries the number of its state, which is the position: they must be in one transition."""
    contract = make_contract(base=ARM_REACH, rate_hz=25)
    bag = two_rates(tmp_path / "bag", 7.0, contract)
    report = convert(ConvertOptions((bag,), tmp_path / "out", workers=1), contract, progress=False)
    (episode,) = [episode for _, episode in read_episodes(tmp_path / "out")]
    np.testing.assert_array_equal(episode.observations[:-1, 0], episode.actions[:, 0])
    assert report.bags[0].skipped_states == 1
    assert "from state to command: median 7.0 ms, 95 % within 7.0 ms" in report.summary()
    assert "1 bag: states are faster than the contract's rate" in report.summary()
    known = json.loads((tmp_path / "out" / "conversion.json").read_text())["command_lag"]
    assert known == {"median_ms": 7.0, "p95_ms": 7.0} == dict(load_dataset(tmp_path / "out").command_lag or {})


def test_a_live_robot_of_another_timing_is_a_warning() -> None:
    watch = LagWatch(40 * MS)
    watch.compare_with(CommandLag(3.0, 5.0))
    for k in range(20):
        watch.state(k * 20 * MS)
        watch.add(27 * MS)
    assert watch.skip() == 1
    assert watch.warning.startswith("commands follow their state after 27 ms, and after 3 ms in the training data")
    watch.clear()
    assert watch.skip() == 0 and watch.warning == ""
    for _ in range(20):
        watch.add(22 * MS)
    assert watch.warning == "", "19 ms apart, half a period is 20"


def test_a_damaged_lag_is_refused() -> None:
    with pytest.raises(ValueError, match="command_lag is {'median': 1}, without median_ms and p95_ms"):
        CommandLag.from_dict({"median": 1})
