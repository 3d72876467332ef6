# SPDX-License-Identifier: Apache-2.0
"""Proposed contracts as a user completes them: the safe command and the reward filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from spc_core.contract.contract import Contract, parse_contract
from spc_ros.doctor.contract_init import propose
from support.robot_streams import RobotKind, Stream, record_kind

UNFILLED_REWARD = "reward: {fill_in_the_reward: true}\n"
UNFILLED_SAFE = "safe: fill_in_the_safe_command\n"


def completed(text: str, reward: str = "") -> str:
    """The proposal with the middle of its limits as the safe command; by default a command is the reward."""
    actions = yaml.safe_load(text)["action"]
    actions = actions if isinstance(actions, list) else [actions]
    for part in actions:
        if part["safe"] == "fill_in_the_safe_command":
            middle = [(low + high) / 2 for low, high in zip(part["low"], part["high"], strict=True)]
            text = text.replace(UNFILLED_SAFE, f"safe: {middle}\n", 1)
    action = actions[0]
    assert text.count(UNFILLED_REWARD) == 1
    entry = {"topic": action["topic"], "type": action["type"], "field": action["fields"][0]}
    return text.replace(UNFILLED_REWARD, reward or f"reward: {yaml.safe_dump(entry, default_flow_style=True)}")


def contract_of(text: str, reward: str = "") -> Contract:
    """The contract of a completed proposal."""
    return parse_contract(completed(text, reward), "proposal")


def proposal(folder: Path, *streams: Stream, urdf: Path | None = None) -> tuple[str, dict[str, Any]]:
    """The proposal for a robot with these topics, as text and as YAML reads it."""
    text = propose(record_kind(folder, RobotKind("robot", streams)), urdf)
    return text, yaml.safe_load(text)
