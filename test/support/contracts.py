# SPDX-License-Identifier: Apache-2.0
"""Contracts for tests: the shipped arm, and small ones that state only what a test is about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from spc_core.contract.contract import Contract, load_contract, parse_contract
from spc_core.system.config_files import find_config

ARM_REACH = load_contract(find_config("contracts", "arm_reach"))
JOINT_STATE = "sensor_msgs/msg/JointState"
TOPIC_REWARD = {"topic": "reward", "type": "geometry_msgs/msg/Vector3Stamped", "field": "vector.x"}


def stream_section(topic: str, fields: list[Any], type: str = JOINT_STATE, max_age_s: float = 0.05) -> dict[str, Any]:
    """An entry of `observation`."""
    return {"topic": topic, "type": type, "fields": fields, "max_age_s": max_age_s}


def action_section(
    fields: list[str], high: list[float], max_rate: list[float], topic: str = "joint_commands", type: str = JOINT_STATE
) -> dict[str, Any]:
    """An `action` between -high and high, with zeros as the safe one."""
    low = [-value for value in high]
    limits = {"low": low, "high": high, "safe": [0] * len(high), "max_rate": max_rate}
    return {"topic": topic, "type": type, "fields": fields, **limits}


SECTIONS = {
    "name": "arm",
    "rate_hz": 50,
    "clock": "header",
    "observation": [stream_section("joint_states", ["position.shoulder", "position.elbow"])],
    "action": action_section(["effort.shoulder", "effort.elbow"], high=[50, 50], max_rate=[300, 150]),
    "reward": TOPIC_REWARD,
    "task": {"key": "spc.task_id"},
    "episode": {"segment": "bag"},
}


def contract_text(changes: Mapping[str, Any] | None = None, base: Contract | None = None, **sections: Any) -> str:
    """YAML of SECTIONS, or of `base`, with other sections and then `changes`, which go by path; None takes out.

    contract_text({"action.safe": [1, 1], "observation.0.max_age_s": None}, rate_hz=25)
    """
    root = {**(yaml.safe_load(base.text) if base else SECTIONS), **sections}
    root = json.loads(json.dumps(root))  # a copy, in which no two entries share a list
    for path, value in (changes or {}).items():
        *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
        entry: Any = root
        for key in parents:
            entry = entry[key]
        if value is None:
            del entry[last]
        else:
            entry[last] = value
    return yaml.safe_dump(root, sort_keys=False)


def make_contract(changes: Mapping[str, Any] | None = None, base: Contract | None = None, **sections: Any) -> Contract:
    """The contract of `contract_text`."""
    return parse_contract(contract_text(changes, base, **sections), "made.yaml")
