# SPDX-License-Identifier: Apache-2.0
"""The point of a JointTrajectory that a contract means, in bags and live."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rclpy.serialization import deserialize_message

from spc_core.contract.contract import Contract, ContractError
from spc_ros.bags.reader import BagReader
from spc_ros.conversion.bag_conversion import Job, convert_bag
from spc_ros.doctor.contract_init import propose
from spc_ros.doctor.doctor import diagnose
from spc_ros.messages.columns import sources
from spc_ros.messages.contract_reader import ContractReader
from spc_ros.messages.fields import JOINT_TRAJECTORY, MessageError, message_class
from support.contracts import action_section, make_contract, stream_section
from support.recorded_bags import (
    JOINT_STATE,
    PERIOD_NS,
    START_NS,
    STORE,
    VECTOR,
    Sample,
    header,
    joint_state,
    vector,
    write_bag,
)

FIELDS = ["positions.j1", "positions.j2"]
TICKS = 30
SEVERAL = "a trajectory has 2 points, and the contract does not say which one is meant; add `point: first`"


def contract(**action: Any) -> Contract:
    return make_contract(
        observation=[stream_section("joint_states", ["position.j1", "position.j2"])],
        action={**action_section(FIELDS, [99, 99], [9999, 9999], "goal", JOINT_TRAJECTORY), **action},
        reward={"topic": "reward", "type": VECTOR, "field": "vector.x"},
    )


def trajectory(t_ns: int, points: list[tuple[float, list[float]]]) -> Any:
    """Points are (time from the start in s, positions of j2 and j1)."""
    empty = np.array([])
    made = [
        STORE.types["trajectory_msgs/msg/JointTrajectoryPoint"](
            positions=np.array(positions, float), velocities=empty, accelerations=empty, effort=empty,
            time_from_start=STORE.types["builtin_interfaces/msg/Duration"](
                sec=int(time_s), nanosec=round(time_s % 1 * 1e9)
            ),
        )
        for time_s, positions in points
    ]  # fmt: skip
    return STORE.types[JOINT_TRAJECTORY](header=header(t_ns), joint_names=["j2", "j1"], points=made)


def command(k: int) -> Any:
    """From where the arm is (k, 10 + k) at 0 s to (k + 50, 60 + k) at 0.5 s."""
    t_ns = START_NS + k * PERIOD_NS + 3_000_000
    return trajectory(t_ns, [(0.0, [10.0 + k, k]), (0.5, [60.0 + k, k + 50.0])])


def record(path: Path, commands: list[Any]) -> Path:
    samples = []
    for k in range(TICKS + 1):
        t_ns = START_NS + k * PERIOD_NS
        samples.append(
            Sample("/joint_states", JOINT_STATE, t_ns, joint_state(t_ns, ["j1", "j2"], position=np.sin([k, k + 10])))
        )
        samples.append(Sample("/reward", VECTOR, t_ns + 1, vector(t_ns, 0.0)))
        if k < len(commands):
            samples.append(Sample("/goal", JOINT_TRAJECTORY, t_ns + 3_000_000, commands[k]))
    return write_bag(path, samples, {})


@pytest.mark.parametrize(("point", "ahead"), [("first", 0), ("last", 50), (0, 0), (0.1, 10), (0.25, 25), (2, 50)])
def test_the_contract_chooses_the_point(tmp_path: Path, point: str | float, ahead: float) -> None:
    """A time lies between points linearly, and after the last one stays there."""
    wanted = contract(point=point)
    _, (entry,) = convert_bag(
        record(tmp_path / "bag", [command(k) for k in range(TICKS)]), Job(wanted, own_contract=True, task="t")
    )
    expected = [[k + ahead, 10 + k + ahead] for k in range(TICKS)]
    np.testing.assert_allclose(entry.episode.actions, expected, rtol=0, atol=1e-9)
    reader, live = ContractReader(wanted), []
    for k in range(TICKS):
        data = bytes(STORE.serialize_cdr(command(k), JOINT_TRAJECTORY))
        ((_, _, values),) = reader.live_samples(
            "goal", data, lambda: 0, lambda d: deserialize_message(d, message_class(JOINT_TRAJECTORY))
        )
        live.append(values)
    np.testing.assert_array_equal(live, entry.episode.actions)


def test_without_a_choice_several_points_are_refused_and_a_single_one_is_read(tmp_path: Path) -> None:
    several = record(tmp_path / "several", [command(k) for k in range(TICKS)])
    with pytest.raises(MessageError, match=SEVERAL):
        convert_bag(several, Job(contract(), own_contract=True, task="t"))
    report = diagnose([several], contract(), task="t", progress=False)
    assert report.verdict == "fail" and any(SEVERAL in finding.text for finding in report.findings)
    with pytest.raises(MessageError, match=SEVERAL):
        ContractReader(contract()).samples("goal", command(0), 0)
    single = [trajectory(START_NS + k * PERIOD_NS + 3_000_000, [(0.02, [7.0, 8.0])]) for k in range(TICKS)]
    _, (entry,) = convert_bag(record(tmp_path / "single", single), Job(contract(), own_contract=True, task="t"))
    assert entry.episode.actions.tolist() == [[8, 7]] * TICKS


def test_messages_with_other_numbers_of_points_have_their_own_last(tmp_path: Path) -> None:
    points = [(0.1 * i, [float(i), -float(i)]) for i in range(5)]
    commands = [trajectory(START_NS + k * PERIOD_NS + 3_000_000, points[: 1 + k % 5]) for k in range(TICKS)]
    wanted = contract(point="last")
    with BagReader(record(tmp_path / "bag", commands)) as bag:
        columns = [block["/goal"] for block in bag.blocks(["/goal"])]
        source = sources(wanted)[1]
        values = np.concatenate([source.columns(bag.typestore_of("/goal")).read(column)[1] for column in columns])
    assert values.tolist() == [[-(k % 5), k % 5] for k in range(TICKS)]


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"point": "second"}, "action.point is 'second'; write first, last, or a time in s, such as 0.1"),
        ({"point": -1}, "action.point is -1; write first, last"),
        ({"point": True}, "action.point is True; write first, last"),
        ({"point": "last", "type": JOINT_STATE}, f"action.point is for {JOINT_TRAJECTORY} only; remove it"),
    ],
)
def test_a_wrong_choice_is_refused(section: dict[str, Any], told: str) -> None:
    with pytest.raises(ContractError, match=told):
        contract(**section)


def test_a_proposal_takes_the_last_of_several_points(tmp_path: Path) -> None:
    text = propose(record(tmp_path / "bag", [command(k) for k in range(TICKS)]))
    assert "  point: last # of up to 2; the first is often where the robot is already" in text
    low = re.search(r"low: \[(.*?)\]", text)
    assert low is not None and float(low[1].split(",")[0]) > 40, "the range of the goals, 50 to 79"
