# SPDX-License-Identifier: Apache-2.0
"""An action of several topics: an arm and its gripper, each commanded on a topic of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from spc_core.contract.contract import Contract, ContractError
from spc_core.data.relabel import _fixed
from spc_core.deploy.shadow import ShadowComparison
from spc_ros.conversion.bag_conversion import Job, convert_bag
from spc_ros.doctor.doctor import diagnose
from spc_ros.doctor.doctor_page import page
from spc_ros.messages.fields import MessageError
from support.contracts import SECTIONS, TOPIC_REWARD, action_section, make_contract, stream_section
from support.recorded_bags import (
    JOINT_STATE,
    PERIOD_NS,
    START_NS,
    STORE,
    VECTOR,
    Sample,
    joint_state,
    vector,
    write_bag,
)

FLOATS = "std_msgs/msg/Float64MultiArray"
ARM = action_section(["effort.j1", "effort.j2"], [90, 90], [9999, 9999], "arm/commands")
GRIPPER = action_section(["data.0"], [90], [9999], "gripper/commands", FLOATS)
TICKS = 30
MS = 1_000_000


def floats(*values: float) -> Any:
    layout = STORE.types["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0)
    return STORE.types[FLOATS](layout=layout, data=np.array(values, float))


def contract(**sections: Any) -> Contract:
    return make_contract(
        **{
            "observation": [stream_section("joint_states", ["position.j1"])],
            "action": [ARM, GRIPPER],
            "reward": TOPIC_REWARD,
            "clock": "header",
            **sections,
        }
    )


def log_of(without: dict[str, range] | None = None) -> list[Sample]:
    """State k at tick k; the arm's command k 3 ms after it, the gripper's 100 + k 7 ms after it."""
    found = []
    for k in range(TICKS + 1):
        t_ns = START_NS + k * PERIOD_NS
        found.append(Sample("/joint_states", JOINT_STATE, t_ns, joint_state(t_ns, ["j1"], position=[k])))
        if k:
            found.append(Sample("/reward", VECTOR, t_ns + 1, vector(t_ns, -float(k))))
        arm = joint_state(t_ns + 3 * MS, ["j2", "j1"], effort=[k + 0.5, k])
        for topic, kind, message, ms in (
            ("/arm/commands", JOINT_STATE, arm, 3),
            ("/gripper/commands", FLOATS, floats(k + 50), 7),
        ):
            if k < TICKS and k not in (without or {}).get(topic, ()):
                found.append(Sample(topic, kind, t_ns + ms * MS, message))
    return found


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_bag_of_two_commanded_topics_gives_the_joined_action(tmp_path: Path, storage: str) -> None:
    bag = write_bag(tmp_path / "bag", log_of(), {}, storage)
    report, (entry,) = convert_bag(bag, Job(contract(), own_contract=True, task="t"))
    assert entry.episode.actions.tolist() == [[k, k + 0.5, k + 50] for k in range(TICKS)]
    assert entry.episode.observations[:, 0].tolist() == list(range(TICKS + 1))
    assert entry.episode.rewards.tolist() == [-k for k in range(1, TICKS + 1)]
    assert set(report.lag_ms) == {7.0}  # of the later of the two
    assert {"arm/commands", "gripper/commands"} <= set(report.topics)


def test_a_missing_command_cuts_and_its_topic_is_named(tmp_path: Path) -> None:
    log = log_of({"/gripper/commands": range(10, 11), "/arm/commands": range(20, 21)})
    report, entries = convert_bag(write_bag(tmp_path / "bag", log, {}), Job(contract(), own_contract=True, task="t"))
    assert [entry.episode.observations[0, 0] for entry in entries] == [0, 11, 21]
    assert [str(why) for _, why in report.cuts[:2]] == [
        "gripper/commands: no command in the period",
        "arm/commands: no command in the period",
    ]


def test_the_order_of_the_list_is_that_of_the_vector(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", log_of(), {})
    wanted = contract(action=[GRIPPER, ARM])
    _, (entry,) = convert_bag(bag, Job(wanted, own_contract=True, task="t"))
    assert entry.episode.actions.tolist() == [[k + 50, k, k + 0.5] for k in range(TICKS)]
    names = ("gripper/commands.data.0", "arm/commands.effort.j1", "arm/commands.effort.j2")
    assert wanted.action.fields == names and wanted.action.high == (90, 90, 90)
    assert contract().differences(wanted)


def test_a_list_of_one_section_is_that_section() -> None:
    one, listed = contract(action=ARM), contract(action=[ARM])
    assert one.action == listed.action and one.action.fields == ("effort.j1", "effort.j2")


@pytest.mark.parametrize(
    ("action", "told"),
    [
        ([], "action must be a list with at least one entry"),
        ([ARM, {**GRIPPER, "topic": "/arm/commands"}],
         r"action\[1\].topic is arm/commands, as in action\[0\]; write all its fields in one section"),
        ([ARM, {k: v for k, v in GRIPPER.items() if k != "low"}], r"action\[1\].low is missing; add it"),
        ([ARM, "gripper"], r"action\[1\] must be a mapping, got 'gripper'"),
        ([ARM, {**GRIPPER, "safe": [200]}], r"action\[1\].safe\[0\] \(data.0\) is 200.0, outside \[-90.0, 90.0\]"),
    ],
)  # fmt: skip
def test_a_wrong_list_is_refused(action: Any, told: str) -> None:
    with pytest.raises(ContractError, match=told):
        contract(action=action)


def test_a_command_that_is_not_whole_names_its_topic(tmp_path: Path) -> None:
    log = [
        Sample(s.topic, s.type, s.receive_ns, floats(1, 2) if s.topic == "/gripper/commands" else s.message)
        for s in log_of()
    ]
    with pytest.raises(MessageError, match="topic 'gripper/commands': 'data' has 2 elements"):
        convert_bag(write_bag(tmp_path / "bag", log, {}), Job(contract(), own_contract=True, task="t"))


def test_the_doctor_judges_each_topic_by_its_own_limits(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", log_of(), {})
    report = diagnose([bag], contract(), task="t", progress=False)
    assert report.verdict == "ok", report.findings
    narrow = contract(action=[ARM, {**GRIPPER, "high": [60], "low": [-60]}])
    report = diagnose([bag], narrow, task="t", progress=False)
    assert {f.topic for f in report.findings if f.severity == "fail"} == {"gripper/commands"}
    assert "gripper/commands" in page(report)


def test_limits_of_a_part_may_change_at_relabelling_and_its_topic_may_not() -> None:
    assert _fixed(contract()) == _fixed(contract(action=[ARM, {**GRIPPER, "safe": [1]}]))
    assert _fixed(contract()) != _fixed(contract(action=[ARM, {**GRIPPER, "topic": "hand"}]))


def test_a_shadow_compares_when_each_topic_has_commanded() -> None:
    comparison = ShadowComparison(contract())
    comparison.pairs = []
    for k in range(6):
        t_ns = k * PERIOD_NS
        comparison.would(t_ns, [k, k, k])
        comparison.incumbent(t_ns + 1, [k, k + 1])
        if k != 2:
            comparison.incumbent(t_ns + 2, [k + 2], part=1)
    comparison.finish()
    assert [(t_ns // PERIOD_NS, theirs.tolist()) for t_ns, _, theirs in comparison.pairs] == [
        (k, [k, k + 1, k + 2]) for k in (0, 1, 3, 4)
    ]


def test_the_text_of_a_contract_with_one_topic_is_its_identity_as_ever() -> None:
    text = yaml.safe_dump(SECTIONS, sort_keys=False)
    made = make_contract()
    assert made.text == text and made.action.parts[0].topic == "joint_commands"
