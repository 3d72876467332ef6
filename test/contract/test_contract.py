# SPDX-License-Identifier: Apache-2.0
"""A contract that cannot work is refused when it is loaded, with file, field, value and fix."""

import re

import numpy as np
import pytest

from spc_core.contract.contract import ContractError, load_contract, parse_contract
from spc_core.system.config_files import ConfigFileError, find_config
from support.contracts import action_section, contract_text, stream_section

SECTIONS = {
    "observation": [
        stream_section("joint_states", ["position.shoulder", "position.elbow", "velocity.shoulder", "velocity.elbow"]),
        stream_section("target", ["position.shoulder", "position.elbow"]),
    ],
    "action": action_section(["effort.shoulder", "effort.elbow"], high=[40, 20], max_rate=[4000, 2000]),
    "reward": {"function": "reach", "weights": {"distance": 1.0, "scale": 2.0, "effort": 0.01}},
}
TEXT = contract_text(**SECTIONS)


LIMITS = {"low": [-1, -1], "high": [1, 1], "safe": [0, 0], "max_rate": [1, 1]}


def changed(path, value):
    """The contract with one entry replaced, or taken out with None; `path` like 'action.low'."""
    return contract_text({path: value}, **SECTIONS)


@pytest.mark.parametrize("name", ["arm_reach", "arm_payload"])
def test_shipped_contracts_are_consistent(name):
    contract = load_contract(find_config("contracts", name))
    assert contract.name == name
    assert contract.observation_dim == len(contract.observation_names) == (4 if name == "arm_reach" else 6)
    assert contract.action_dim == 2
    assert contract.period_ns == 20_000_000
    assert contract.observation[0].max_age_ns == 50_000_000
    assert contract.observation_names[2] == "joint_states.velocity.shoulder"


@pytest.mark.parametrize("path", ["name", "rate_hz", "observation", "action", "reward", "task", "action.safe"])
def test_a_missing_field_is_named(path):
    with pytest.raises(ContractError, match=rf"^robot\.yaml: {re.escape(path)} is missing; add it$"):
        parse_contract(changed(path, None), "robot.yaml")


ARRAY = {"topic": "commands", "type": "std_msgs/msg/Float64MultiArray", **LIMITS}


@pytest.mark.parametrize(
    ("fields", "missing"), [(["data.1", "data.2"], "data.0"), (["data.3", "data.0"], "data.1, data.2")]
)
def test_a_command_with_holes_in_an_array_without_names_is_refused(fields, missing):
    last = max(fields)
    problem = rf"^robot\.yaml: action\.fields leaves out {missing}: elements .* list all of data\.0 to {last}, also"
    with pytest.raises(ContractError, match=problem):
        parse_contract(changed("action", {**ARRAY, "fields": fields}), "robot.yaml")


def test_elements_in_any_order_and_joints_that_are_called_by_numbers_are_whole():
    contract = parse_contract(changed("action", {**ARRAY, "fields": ["data.1", "data.0"]}), "robot.yaml")
    assert contract.action.parts[0].fields == ("data.1", "data.0")
    joints = {"type": "sensor_msgs/msg/JointState", "fields": ["position.3", "position.7"]}
    assert parse_contract(changed("action", {**ARRAY, **joints}), "robot.yaml").action_dim == 2


def test_commands_hold_only_where_the_contract_says_so_and_contracts_that_differ_in_it_say_so():
    plain, holding = parse_contract(TEXT, "robot.yaml"), parse_contract(changed("action.hold", True), "robot.yaml")
    assert (plain.action.holds, holding.action.parts[0].hold) == (False, True)
    assert plain.differences(holding) == ["action.hold: absent here, True there"]


def test_a_misspelt_field_gets_a_suggestion():
    text = TEXT.replace("rate_hz:", "rate_hertz:")
    with pytest.raises(ContractError, match=r"rate_hertz is not a known field \(did you mean 'rate_hz'\?\)"):
        parse_contract(text, "robot.yaml")
    text = TEXT.replace("max_age_s: 0.05", "max_age: 0.05", 1)
    with pytest.raises(ContractError, match=r"observation\[0\]\.max_age is not .*did you mean 'max_age_s'"):
        parse_contract(text, "robot.yaml")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("rate_hz", 0, "rate_hz must be a positive number, got 0"),
        ("rate_hz", "fast", "rate_hz must be a positive number, got 'fast'"),
        ("clock", "wall", "clock is 'wall'; use one of: header, receive"),
        ("action.low", [-40], r"action.low must be a list of 2 numbers, one for each field, got [-40]"),
        ("action.low", [-40, "x"], "action.low[1] must be a finite number, got 'x'"),
        ("action.high", [40, float("inf")], "action.high[1] must be a finite number, got inf"),
        ("action.high", [-50, 20], "action.low[0] (effort.shoulder) is -40.0, not below high -50.0"),
        ("action.safe", [0, 21], "action.safe[1] (effort.elbow) is 21.0, outside [-20.0, 20.0]"),
        (
            "action.safe",
            "fill_in_the_safe_command",
            "replace it with 2 numbers, one for each of effort.shoulder, effort.elbow",
        ),
        (
            "action.fields",
            ["effort.elbow", "effort.elbow"],
            "action.fields lists effort.elbow more than once; keep one",
        ),
        ("action.max_rate", [0, 1], "action.max_rate[0] (effort.shoulder) must be positive, got 0.0"),
        ("action.hold", "yes", "action.hold must be true or false, got 'yes'"),
        ("action.hold", 1, "action.hold must be true or false, got 1"),
        ("action.type", "JointState", "action.type is 'JointState'; write package/msg/Type"),
        ("observation.0.fields", [], "observation[0].fields must be a list with at least one entry"),
        (
            "observation.0.max_age_s",
            float("inf"),
            "observation[0].max_age_s is infinite, but the first stream",
        ),
        ("observation.0.max_age_s", -1, "observation[0].max_age_s must be a positive number, got -1"),
        ("reward.function", "rech", "reward.function is 'rech' (did you mean 'reach'?); use one of: reach"),
        ("reward.function", "os.system", "reward.function is 'os.system'; use one of: reach"),
        ("reward.weights.speed", 1, "reward.weights.speed is not a known field"),
        ("observation.1.fields", ["velocity.elbow"], "reward 'reach' needs observed fields target.position"),
        ("episode.segment", "gaps", "episode.segment is 'gaps' (did you mean 'gap'?); use one of: bag, topic, gap"),
        ("task", "x", "task must be a mapping, got 'x'"),
        ("action", {"fill_in_the_action": True}, "action.fill_in_the_action is a placeholder; replace it"),
        ("reward", {"fill_in_the_reward": True}, "reward.fill_in_the_reward is a placeholder; replace it"),
        ("episode.gap_s", 1.0, "episode.gap_s is required for segment: gap"),
        ("episode.segment", "gap", "episode.gap_s is required for segment: gap and only allowed there"),
        (
            "episode.topic",
            "marker",
            "episode.topic is for segment: topic only, but segment is 'bag'; remove it",
        ),
        ("episode.limit_s", 0, "episode.limit_s must be a positive number, got 0"),
        ("observation.0.clock", "ros", "observation[0].clock is 'ros'; use one of: header, receive"),
        ("observation.0.fields", [3], "observation[0].fields[0] must be a field's path, or a mapping"),
        (
            "observation.0.fields",
            [{"field": "position.elbow", "as": "sincos"}],
            "observation[0].fields[0].as is 'sincos' (did you mean 'sin_cos'?)",
        ),
        ("observation.0.fields", [{"as": "yaw"}], "observation[0].fields[0].field is missing; add it"),
        (
            "observation.0.fields",
            [{"field": "position.elbow", "clip": [1, 1]}],
            "observation[0].fields[0].clip is [1.0, 1.0]; the first must be below the second",
        ),
        (
            "observation.0.fields",
            [{"field": "position.elbow", "scale": 0}],
            "observation[0].fields[0].scale is 0, which makes all values equal",
        ),
    ],
)
def test_a_bad_value_is_refused_with_its_place(path, value, message):
    with pytest.raises(ContractError) as error:
        parse_contract(changed(path, value), "robot.yaml")
    assert message in str(error.value)
    assert str(error.value).startswith("robot.yaml: ")


def test_a_field_listed_twice_is_refused():
    fields = ["position.shoulder", "position.elbow", "velocity.shoulder", "position.elbow"]
    with pytest.raises(ContractError, match=r"observation lists joint_states\.position\.elbow more than once"):
        parse_contract(changed("observation.0.fields", fields), "robot.yaml")


def test_a_file_that_is_no_contract_is_refused(tmp_path):
    with pytest.raises(ContractError, match=r"missing\.yaml: cannot be read \(No such file or directory\); give"):
        load_contract(tmp_path / "missing.yaml")
    with pytest.raises(ContractError, match="not valid YAML"):
        parse_contract("a: [", "robot.yaml")
    with pytest.raises(ContractError, match=r"the file must be a mapping, got \['x'\]"):
        parse_contract("[x]", "robot.yaml")


def test_differences_name_the_fields_and_ignore_comments():
    contract = parse_contract(TEXT, "a")
    same = parse_contract("# another comment\n" + TEXT, "b")
    assert contract.sha256 != same.sha256
    assert contract.differences(same) == []
    other = parse_contract(TEXT.replace("rate_hz: 50", "rate_hz: 100").replace("0.05", "0.06", 1), "c")
    assert contract.differences(other) == [
        "observation[0].max_age_s: 0.05 here, 0.06 there",
        "rate_hz: 50 here, 100 there",
    ]


def test_find_config_takes_names_and_paths():
    assert find_config("contracts", "arm_reach").name == "arm_reach.yaml"
    assert str(find_config("contracts", "./mine.yaml")) == "mine.yaml"
    with pytest.raises(ConfigFileError) as error:
        find_config("contracts", "arm_reech")
    assert str(error.value).startswith("no contracts file is called 'arm_reech' (did you mean 'arm_reach'?); known: ")


def test_the_reward_function_gives_what_the_formula_gives():
    reward = parse_contract(TEXT, "a").reward_function()
    before, after = np.array([0, 0, 0, 0, 0.3, 0.4]), np.array([0, 0, 0, 0, 9, 9.0])
    # distance 0.5, scale 2: tanh(1); effort (20/40)^2 + (20/20)^2 = 1.25
    assert reward(before, np.array([20.0, -20.0]), after) == pytest.approx(-np.tanh(1.0) - 0.01 * 1.25)


def test_transformed_fields_are_read_and_named_apart():
    fields = [
        "position.shoulder",
        "position.elbow",
        {"field": "effort.elbow", "as": "sin_cos"},
        {"field": "velocity.elbow", "as": "derivative", "clip": [-5, 5]},
    ]
    contract = parse_contract(changed("observation.0.fields", fields), "a")
    stream = contract.observation[0]
    assert stream.fields == ("position.shoulder", "position.elbow", "effort.elbow", "velocity.elbow")
    assert stream.names[2:] == ("effort.elbow.sin", "effort.elbow.cos", "velocity.elbow.derivative")
    assert contract.observation_dim == 5 + len(contract.observation[1].names)
    assert contract.observation_names[2] == "joint_states.effort.elbow.sin"


def test_a_stream_may_have_a_clock_of_its_own():
    contract = parse_contract(changed("observation.1.clock", "receive"), "a")
    assert [stream.clock for stream in contract.observation] == ["header", "receive"]
    assert contract.action.parts[0].clock == contract.reward.clock == "header"


def test_yaml_that_nests_too_deep_is_refused():
    with pytest.raises(ContractError, match=r"^robot\.yaml: not valid YAML: nested more than 100 levels deep$"):
        parse_contract(f"a: {'[' * 101}{']' * 101}", "robot.yaml")


def test_an_error_in_yaml_shows_its_line():
    with pytest.raises(ContractError, match=r"line 2, column 1:\n    \tclock: header\n"):
        parse_contract("name: arm\n\tclock: header\n", "robot.yaml")
