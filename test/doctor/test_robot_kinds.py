# SPDX-License-Identifier: Apache-2.0
"""Proposed contracts for many kinds of robots: what an engineer would accept, whichever bag is read, in any order."""

import re

import pytest
import yaml

from spc_ros.conversion.convert import convert
from spc_ros.conversion.convert_options import ConvertOptions
from spc_ros.doctor.contract_init import propose
from support.paths import ROOT
from support.proposal_table import ASKED, PROPOSALS, ZERO, Proposal, document
from support.proposals import contract_of
from support.robot_kinds import KINDS
from support.robot_streams import record_kind

SECONDS = 8.0


def fields_of(section):
    """The fields of a proposal without offsets, which depend on the place."""
    return tuple({k: v for k, v in f.items() if k != "offset"} if isinstance(f, dict) else f for f in section["fields"])


def sections_of(known):
    """The sections of a proposed action."""
    return known["action"] if isinstance(known["action"], list) else [known["action"]]


@pytest.mark.parametrize("expected", PROPOSALS, ids=lambda proposal: proposal.kind)
def test_a_proposal_is_what_an_engineer_would_accept(tmp_path, expected: Proposal):
    text = propose(record_kind(tmp_path, expected.robot))
    known = yaml.safe_load(text)
    assert known["rate_hz"] == expected.rate_hz
    assert [(s["topic"], fields_of(s)) for s in known["observation"]] == [
        (s.topic, s.fields) for s in expected.observed
    ]
    for part in expected.says:
        assert part in text
    actions = sections_of(known)
    assert [(part["topic"], fields_of(part)) for part in actions] == [(a.topic, a.fields) for a in expected.actions]
    for part in actions:
        assert part["safe"] == {ASKED: "fill_in_the_safe_command", ZERO: [0] * len(part["fields"])}[expected.safe]
    for stream in expected.robot.streams:  # each topic is used or named
        assert re.sub("^/((mavros|bluerov2|boat|wamv)/)?", "", stream.topic) in text


@pytest.mark.parametrize("expected", PROPOSALS, ids=lambda proposal: proposal.kind)
def test_a_proposal_converts_its_bag_once_it_is_completed(tmp_path, expected: Proposal):
    bag = record_kind(tmp_path, expected.robot, seconds=SECONDS)
    contract = contract_of(propose(bag))
    report = convert(ConvertOptions((bag,), tmp_path / "out", task="t"), contract, progress=False)
    rare = expected.kind == "base told only of changes"
    assert report.transitions >= (1 if rare else 0.9 * SECONDS * expected.rate_hz)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_same_robot_gets_the_same_contract(tmp_path, kind):
    """From either of two bags but for limits; from both in either order, and from their folder, to the letter."""
    bags = [record_kind(tmp_path, kind, seed) for seed in (0, 1)]
    one, other = (yaml.safe_load(propose(bag)) for bag in bags)
    for known in (one, other):
        for key in ("low", "high", "max_rate"):
            for part in sections_of(known):
                part.pop(key, None)
        for stream in known["observation"]:
            stream["fields"] = fields_of(stream)
    assert one == other
    assert propose(bags) == propose(bags[::-1]) == propose(tmp_path)


def test_the_page_is_the_table():
    assert [proposal.kind for proposal in PROPOSALS] == [kind.name for kind in KINDS] and len(KINDS) >= 10
    page = ROOT / "docs" / "proposals.md"
    assert page.read_text() == document(), "write it again: python tools/write_proposals_page.py"
