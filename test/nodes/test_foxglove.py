# SPDX-License-Identifier: Apache-2.0
"""The Foxglove layout: each panel is placed, and each path that it shows exists in a message that we publish."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from spc_core.contract.contract import load_contract
from spc_core.method.config import ModelConfig
from spc_core.system.config_files import find_config
from spc_ros.node_parts.context_message import encode_context
from spc_ros.node_parts.topics import CONTEXT_TOPIC, EPISODE_TOPIC
from spc_ros.nodes.trial import RETURN_TOPIC

LAYOUT = json.loads((find_config("contracts", "arm_reach").parents[1] / "foxglove.json").read_text())
PANELS: dict[str, dict[str, Any]] = LAYOUT["configById"]


def leaves(node: str | dict[str, Any]) -> list[str]:
    """Panels in the tree of splits."""
    if isinstance(node, str):
        return [node]
    assert node["direction"] in ("row", "column") and 0 < node["splitPercentage"] < 100
    return leaves(node["first"]) + leaves(node["second"])


def topics(family: str) -> dict[str, str]:
    """Types of all that can be watched, by absolute topic."""
    contract = load_contract(find_config("contracts", family))
    named = {stream.topic: stream.type for stream in contract.observation}
    named |= {contract.action.parts[0].topic: contract.action.parts[0].type}
    named |= {CONTEXT_TOPIC: "std_msgs/msg/Float32MultiArray", EPISODE_TOPIC: "std_msgs/msg/String"}
    named |= {RETURN_TOPIC: "std_msgs/msg/Float64", "diagnostics": "diagnostic_msgs/msg/DiagnosticArray"}
    return {f"/{name}": kind for name, kind in named.items()}


def shown() -> Iterator[str]:
    """All topics and message paths of all panels."""
    for config in PANELS.values():
        yield from (path["value"] for path in config.get("paths", ()))
        yield from (config[name] for name in ("topicPath", "topicToRender") if name in config)


def test_each_panel_is_placed_once() -> None:
    assert sorted(leaves(LAYOUT["layout"])) == sorted(PANELS)
    assert {name.split("!")[0] for name in PANELS} == {"Plot", "DiagnosticSummary", "RawMessages"}


@pytest.mark.parametrize("family", ["arm_reach", "arm_payload"])
def test_each_path_exists(family: str) -> None:
    known, used = topics(family), set()
    for path in shown():
        topic, *fields = path.split(".")
        assert topic in known, f"{path}: nobody publishes {topic} of {family}"
        used.add(topic)
        package, _, name = known[topic].split("/")
        value = getattr(importlib.import_module(f"{package}.msg"), name)()
        for field in fields:
            value = getattr(value, re.sub(r"\[\d+\]$", "", field))
        assert fields or topic == "/diagnostics", path
    contract = load_contract(find_config("contracts", family))
    assert {
        f"/{name}" for name in (contract.action.parts[0].topic, contract.observation[0].topic, CONTEXT_TOPIC)
    } <= used


def test_context_shows_the_task_vector_only() -> None:
    """`data` holds the uncertainty behind it; the layout is for task vectors of five numbers, as the presets have."""
    size = ModelConfig().context_dim
    places = [int(path[len("/context.data[") : -1]) for path in shown() if path.startswith("/context.data[")]
    assert places == list(range(size))
    msg = encode_context(np.arange(size), np.zeros(size), 3, 0)
    assert [msg.data[i] for i in places] == list(range(size))
