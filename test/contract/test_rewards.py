# SPDX-License-Identifier: Apache-2.0
"""The reward of a contract: what its terms and expressions pay, the same alone and in bulk, and what is refused."""

import math
import re

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from spc_core.contract.contract import ContractError, parse_contract
from spc_core.contract.reward_terms import KINDS, SHAPES
from support.contracts import action_section, contract_text, make_contract, stream_section
from support.paths import ROOT

SECTIONS = {
    "observation": [
        stream_section("base/odom", ["pose.x", "pose.y", {"field": "turn", "as": "wrap"}], "a/msg/Pose"),
        stream_section("goal", ["goal.x", "goal.y"], "a/msg/Pose"),
        stream_section("lift", [{"field": "height", "clip": [0, 2]}], "a/msg/Lift"),
    ],
    "action": action_section(["effort.left", "effort.right"], high=[4, 2], max_rate=[99, 99]),
}
BEFORE = np.array([0.0, 0.0, 3.0, 3.0, 4.0, 0.5])  # pose, turn, goal, height
AFTER = np.array([3.0, 0.0, -3.0, 9.0, 9.0, 1.5])
ACTION, PREVIOUS = np.array([2.0, -1.0]), np.array([0.0, 0.0])
ROW = BEFORE, ACTION, AFTER, PREVIOUS
POSE = ["pose.x", "pose.y"]
GOAL = ["goal.x", "goal.y"]


def reward(**terms):
    """The function of a contract with these terms."""
    function = make_contract(reward={"terms": terms}, **SECTIONS).reward_function()
    assert function is not None
    return function


def expression(text):
    function = make_contract(reward={"expression": text}, **SECTIONS).reward_function()
    assert function is not None
    return function


HAND = [  # of the transition ROW
    ({"kind": "distance", "of": POSE, "to": GOAL}, -4.0),  # to the goal of o_k at (3, 4)
    ({"kind": "distance", "of": POSE, "to": GOAL, "weight": 2, "scale": 8, "shape": "square"}, -0.5),
    ({"kind": "distance", "of": POSE, "to": [1, 0], "scale": 2, "shape": "exponential"}, math.exp(-1)),
    ({"kind": "distance", "of": POSE, "to": [0, 3], "scale": [3, 1]}, -math.sqrt(1 + 9)),
    ({"kind": "distance", "of": "pose.x", "to": 2.5, "scale": 0.5, "shape": "band"}, 1.0),
    ({"kind": "distance", "of": "pose.x", "to": 2.4, "scale": 0.5, "shape": "band"}, 0.0),
    ({"kind": "distance", "of": "turn", "to": 3.0, "angle": True}, -(2 * math.pi - 6)),
    ({"kind": "distance", "of": "action.left", "to": 0}, -2.0),
    ({"kind": "tracking", "of": "pose.x", "to": "goal.x", "scale": 0.1}, 1.0),
    ({"kind": "progress", "of": POSE, "to": GOAL}, 1.0),  # from 5 to 4
    ({"kind": "progress", "of": "pose.x", "to": 0, "scale": 3, "weight": 2}, -2.0),
    ({"kind": "effort"}, -0.5),  # (2/4)^2 + (1/2)^2
    ({"kind": "effort", "of": ["effort.left"], "shape": "absolute", "weight": 0.1}, -0.05),
    ({"kind": "smoothness", "scale": 0.5}, -2.0),
    ({"kind": "bounds", "of": POSE, "within": [0, 1]}, -2.0),
    ({"kind": "bounds", "of": "pose.x", "within": [-math.inf, 2], "shape": "square", "weight": 3}, -3.0),
    ({"kind": "alive", "weight": 0.25}, 0.25),
    ({"kind": "success", "of": POSE, "to": GOAL, "within": 4.0, "weight": 10}, 10.0),
    ({"kind": "success", "of": POSE, "to": GOAL, "within": 3.9, "weight": 10}, 0.0),
    ({"kind": "success", "of": "lift.height", "within": [1.5, math.inf], "weight": 7}, 7.0),
    ({"kind": "expression", "value": "pose.x - before.pose.x", "weight": -1}, -3.0),
]


@pytest.mark.parametrize(("term", "paid"), HAND, ids=lambda value: str(value.get("kind", "")) if isinstance(value, dict) else "")  # fmt: skip  # noqa: E501
def test_a_term_pays_what_it_does_by_hand(term, paid):
    assert float(reward(term=term)(*ROW)) == pytest.approx(paid, rel=1e-14)


@pytest.mark.parametrize(
    ("text", "paid"),
    [
        ("-abs(pose.x - 2) - 0.25 * action.left**2", -2.0),
        ("-pose.x**2", -9.0),
        ("2**-1 * pose.x", 1.5),
        ("'base/odom.pose.x' / before.goal.x", 1.0),
        ("max(pose.x, pose.y, 5) + min(action.effort.left, action.right)", 4.0),
        ("(pose.x - before.pose.x) * dt * 50", 3.0),
        ("wrap(turn - 3) + exp(0) * sqrt(4)", 2 * math.pi - 6 + 2),
        ("action.left - previous_action.left + 1e-1", 2.1),
        ("\n  1 -\n  pose.x\n", -2.0),
        ("atan2(before.goal.y, before.goal.x) - atan2(4, 3)", 0.0),
    ],
)
def test_an_expression_is_arithmetic(text, paid):
    assert float(expression(text)(*ROW)) == pytest.approx(paid, rel=1e-14)


def test_without_an_action_before_the_action_did_not_change():
    function = reward(smooth={"kind": "smoothness"}, change={"kind": "expression", "value": "previous_action.left"})
    assert function.uses_previous and not reward(alive={"kind": "alive"}).uses_previous
    assert float(function(*ROW[:3])) == float(function(*ROW[:3], np.full(2, np.nan))) == 2.0
    assert float(function(*ROW)) == pytest.approx(-0.5)


def test_the_sum_is_that_of_its_parts_in_order():
    function = reward(**{f"t{i}": term for i, (term, _) in enumerate(HAND)})
    parts = function.parts(*ROW)
    assert function.names == tuple(f"t{i}" for i in range(len(HAND))) and parts.shape == (len(HAND),)
    total = 0.0
    for part in parts.tolist():
        total += part
    assert float(function(*ROW)) == total == pytest.approx(sum(paid for _, paid in HAND))
    assert function.successes == ("t17", "t18", "t19") and bool(function.succeeded(*ROW))


EVERYTHING = {
    **{f"t{i}": term for i, (term, _) in enumerate(HAND)},
    "odd": {"kind": "distance", "of": [*POSE, "turn"], "to": [*GOAL, 0.3], "scale": [0.3, 0.7, 1.1], "angle": True},
    "functions": {
        "kind": "expression",
        "value": "exp(-abs(pose.x)) + log(1 + pose.y**2) + sin(pose.x) * cos(pose.y) + tanh(turn) "
        "+ atan2(pose.x, 0.3) + abs(pose.y)**1.7 + 1.3**(turn / 5) + sqrt(abs(pose.x)) + wrap(9 * pose.y)",
    },
}
number = st.one_of(st.floats(-5, 5), st.floats(-1e8, 1e8, allow_subnormal=True))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20).flatmap(lambda n: st.lists(st.lists(number, min_size=16, max_size=16), min_size=n, max_size=n)))  # fmt: skip  # noqa: E501
def test_many_transitions_are_paid_as_each_alone_to_the_bit(rows):
    function = reward(**EVERYTHING)
    table = np.array(rows)
    table[::3, 14:] = np.nan  # no action before
    columns = [table[:, :6], table[:, 6:8], table[:, 8:14], table[:, 14:]]
    alone = [float(function(*row)) for row in zip(*columns, strict=True)]
    for layout in (np.ascontiguousarray, np.asfortranarray):
        np.testing.assert_array_equal(function(*(layout(column) for column in columns)), alone)
    parts = function.parts(*columns)
    each = np.stack([function.parts(*row) for row in zip(*columns, strict=True)], axis=1)
    np.testing.assert_array_equal(parts, each)


def test_a_long_bag_is_paid_as_each_transition_alone_to_the_bit():
    function, random = reward(**EVERYTHING), np.random.default_rng(0)
    columns = [random.normal(size=(1201, n)) * 10.0 ** random.integers(-3, 4, (1201, 1)) for n in (6, 2, 6, 2)]
    alone = [float(function(*row)) for row in zip(*columns, strict=True)]
    np.testing.assert_array_equal(function(*columns), alone)
    folded = function(*(column[:1200].reshape(12, 100, -1) for column in columns))
    np.testing.assert_array_equal(folded, np.reshape(alone[:1200], (12, 100)))


def test_a_reward_that_is_not_finite_names_its_term():
    function = reward(alive={"kind": "alive"}, ratio={"kind": "expression", "value": "1 / before.pose.x"})
    assert not np.isfinite(function(*ROW)) and function.culprit(*ROW) == "ratio"


def refusal(reward_section):
    """What is said of a contract with this reward, without the file's name; the place comes first."""
    with pytest.raises(ContractError) as error:
        parse_contract(contract_text(reward=reward_section, **SECTIONS), "robot.yaml")
    file, text = str(error.value).split(": ", 1)
    assert file == "robot.yaml" and text.startswith("reward")
    return text


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"kind": "distanse"}, r"terms\.t\.kind is 'distanse' \(did you mean 'distance'\?\); use one of: distance, tr"),
        ({"kind": "distance", "of": "pose.x"}, r"terms\.t\.to is missing"),
        ({"kind": "distance", "of": "pose.z", "to": 0}, r"t\.of: 'pose\.z' is not observed \(did you mean"),
        ({"kind": "distance", "of": POSE, "to": ["goal.x", "gaol.y"]}, r"t\.to: 'gaol\.y' is not observed \(did you"),
        ({"kind": "distance", "of": POSE, "to": [1]}, r"t\.to has 1 entries, but of has 2"),
        ({"kind": "distance", "of": "pose.x", "to": math.nan}, r"t\.to must be a field, a finite number"),
        ({"kind": "distance", "of": "effort.left", "to": 0}, r"is commanded, not observed; write action\.effort\.left"),
        ({"kind": "distance", "of": "pose.x", "to": 0, "shape": "sqare"}, r"t\.shape is 'sqare' \(did you mean 'squ"),
        ({"kind": "distance", "of": "pose.x", "to": 0, "scale": 0}, r"t\.scale is 0; it must be positive"),
        ({"kind": "distance", "of": "pose.x", "to": 0, "scale": math.inf}, r"t\.scale must be a finite number"),
        ({"kind": "distance", "of": POSE, "to": GOAL, "scale": [1, -1]}, r"t\.scale\[1\] is -1; it must be positive"),
        ({"kind": "distance", "of": "pose.x", "to": 0, "weight": 0}, r"t\.weight is 0, so that the term pays nothing"),
        ({"kind": "distance", "of": "pose.x", "to": 0, "weight": math.nan}, r"t\.weight must be a finite number"),
        ({"kind": "distance", "of": "pose.x", "to": 0, "within": 3}, r"t\.within is not a known field"),
        ({"kind": "distance", "of": "pose.x", "to": "1e-3"}, r"t\.to is the text '1e-3' to YAML; write 0\.001"),
        ({"kind": "tracking", "of": "pose.x", "to": 1}, r"t\.to is 1, but tracking follows a field"),
        ({"kind": "progress", "of": "before.pose.x", "to": 1}, r"progress compares a field before and after"),
        ({"kind": "effort", "of": ["effort.lift"]}, r"'effort\.lift' is not commanded \(did you mean 'effort\.left"),
        ({"kind": "bounds", "of": "pose.x", "within": [2, 1]}, r"t\.within is \[2, 1\], upside down"),
        ({"kind": "bounds", "of": "pose.x", "within": 2}, r"t\.within must be a band \[low, high\]"),
        ({"kind": "bounds", "of": "height", "within": [0, 3]}, r"\[0, 3\], which lift\.height never leave"),
        ({"kind": "success", "of": "pose.x", "to": 0, "within": 0}, r"t\.within must be a positive number"),
        ({"kind": "success", "of": "height", "to": 3, "within": 0.5}, r"0\.5, which can never hold: lift\.height"),
        ({"kind": "success", "of": "height", "within": [2.5, 9]}, r"\[2\.5, 9\], which can never hold"),
        ({"kind": "success", "of": "pose.x"}, r"t\.within is missing"),
        ({"kind": "expression", "value": "pose.q"}, r"terms\.t: column 1: 'pose\.q' is not observed"),
    ],
)  # fmt: skip
def test_a_term_that_cannot_be_is_refused_with_its_place(term, message):
    assert re.search(message, refusal({"terms": {"t": term}}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pose.x + __import__('os')", r"expression: column 10: '__import__' is not a function; allowed are numbers"),
        ("pose.x + pose.y.real()", r"column 10: 'pose\.y\.real' is not a function"),
        ("squrt(pose.x)", r"column 1: 'squrt' is not a function \(did you mean 'sqrt'\?\)"),
        ("pose.x[0]", r"column 7: '\[' is not understood; allowed are"),
        ("pose.x if 1 else 2", r"column 8: 'if' is not understood here"),
        ("lambda: 1", r"column 7: ':' is not understood"),
        ("pose.x < 3", r"column 8: '<' is not understood"),
        ("pose.x // 2", r"column 9: '/' is not understood here"),
        ("pose.x +", r"column 9: ends too early"),
        ("(pose.x", r"column 8: ends too early: expected \)"),
        ("pose.x / 0", r"column 8: divides by 0"),
        ("pose.x / (1 - 1)", r"column 8: divides by 0"),
        ("pose.x + 10**999", r"column 12: '\*\*' gives inf"),
        ("pose.x + 1e999", r"column 10: '1e999' gives inf"),
        ("pose.x + log(0 - 1)", r"column 10: 'log' gives nan"),
        ("1 + 2", r"is 3 in every transition, since it names no field"),
        ("odom.pose.x", r"write names with / or - in quotes"),
        ("max(pose.x)", r"max takes at least 2 arguments, got 1"),
        ("previous_action.up", r"'previous_action\.up' is not commanded"),
        ("(" * 40 + "pose.x" + ")" * 40, r"nested more than 30 levels deep"),
        ("-" * 200 + "pose.x", r"has 201 parts; write at most 100"),
        ("-" * 50 + "pose.x", r"nested more than 30 levels deep"),
        ("pose.x + " * 60 + "1", r"has 121 parts; write at most 100"),
        (" " * 2000 + "pose.x", r"has 2006 characters; write at most 1000"),
    ],
)  # fmt: skip
def test_an_expression_that_is_not_understood_is_refused_with_its_column(text, message):
    assert re.search(message, refusal({"expression": text}))


def test_the_largest_expression_is_computed():
    function = expression("+".join(["pose.x"] * 50))
    assert float(function(*ROW)) == 150.0


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("pose.xy()+-*/ 0123.e'\"[]{}__abs,@;=\n"), max_size=60))
def test_any_text_is_a_number_or_refused(text):
    try:
        function = make_contract(reward={"expression": text}, **SECTIONS).reward_function()
    except ContractError as error:
        assert "reward.expression" in str(error)
    else:
        assert function is not None and function(*ROW).shape == ()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, r"reward\.topic is missing; give one of: topic, function, terms, expression"),
        ({"term": {}}, r"reward\.term is not a known field \(did you mean 'terms'\?\)"),
        ({"terms": {}}, r"reward\.terms has 0 terms; give 1 to 50"),
        ({"terms": {"to go": {"kind": "alive"}}}, r"reward\.terms\.to go is not a term's name"),
        ({"terms": {"a": {"kind": "alive"}}, "topic": "reward"}, r"is given beside .*; a reward has one source"),
        ({"expression": "pose.x", "weights": {}}, r"reward\.weights is not a known field"),
    ],
)
def test_a_reward_has_one_source(section, message):
    assert re.search(message, refusal(section))


def test_every_kind_and_shape_is_tried_here():
    assert {term["kind"] for term, _ in HAND} == set(KINDS)
    assert {term.get("shape", KINDS[term["kind"]].shape) for term, _ in HAND} == {*SHAPES, ""}


def test_the_rewards_in_the_documentation_are_some():
    """docs/reward.md, for a robot that has the fields it names."""
    fields = ["pose.x", "pose.y", "goal.x", "goal.y", "velocity.x", "wanted.x", "turn", "height", "position.elbow"]
    sections = {
        "observation": [stream_section("state", fields, "a/msg/State")],
        "action": action_section(["left", "right", "effort.elbow"], high=[1, 1, 1], max_rate=[9, 9, 9]),
    }
    blocks = re.findall(r"```yaml\n(reward:.*?)```", (ROOT / "docs" / "reward.md").read_text(), re.DOTALL)
    kinds = set()
    for block in blocks:
        contract = make_contract(**sections, **yaml.safe_load(block))
        kinds |= {term.kind for term in contract.reward.terms}
        assert np.isfinite(contract.reward_function()(np.ones(9), np.zeros(3), np.zeros(9)))
    assert len(blocks) == 2 and kinds == set(KINDS)
