# SPDX-License-Identifier: Apache-2.0
"""Writes config/nodes.yaml from the parameter tables of the nodes: `python tools/write_nodes_yaml.py`."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from spc_ros.node_parts.episode_driver import DRIVER_PARAMS, DriverNode  # noqa: E402
from spc_ros.node_parts.lifecycle import AUTOSTART, ManagedNode  # noqa: E402
from spc_ros.node_parts.plain_node import EXECUTOR, Param  # noqa: E402

FILE = ROOT / "config" / "nodes.yaml"
NODES = ("sim", "behaviour", "recorder", "context_encoder", "policy", "collect", "trial")
HEAD = """\
# SPDX-License-Identifier: Apache-2.0
# Every parameter of every node with its default, written by tools/write_nodes_yaml.py. Copy this file, change it, and
# give it to a launch file as params_file:=<path>. `/**/` makes an entry hold in every namespace.
"""
HEADINGS = {  # comments above a parameter, for it and the ones below
    ("sim", "sensor_delay_ms"): "Disturbances from the next episode on; the same seed gives the same disturbances:",
    ("policy", "hold_ms"): "Never looser than the contract, which -1 stands for; where it says nothing: 0, and never:",
    ("policy", "workspace_fields"): "A box in addition to the contract's safety.workspace; outside of either the robot"
    " gets the safe action:",
}


def declared(node: str) -> list[Param]:
    """All parameters declared by a node."""
    module = importlib.import_module(f"spc_ros.nodes.{node}")
    classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    params = list(module.PARAMS)
    if any(issubclass(c, DriverNode) for c in classes):
        params += DRIVER_PARAMS
    if any(issubclass(c, ManagedNode) for c in classes):
        params.append(AUTOSTART)
    return [*params, EXECUTOR]


def text() -> str:
    """The content of the file."""
    headings = dict(HEADINGS)
    lines = [HEAD]
    for node in NODES:
        lines.append(f"/**/{node}:\n  ros__parameters:")
        for param in declared(node):
            if heading := headings.pop((node, param.name), ""):
                lines.append(f"    # {heading}")
            lines.append(f"    {param.name}: {plain(param.default)} # {comment(param)}")
        lines.append("")
    if headings:
        raise KeyError(f"no such parameters: {', '.join(map(str, headings))}")
    return "\n".join(lines)


def plain(value: Any) -> str:
    """A default as YAML, with quotes where they are needed."""
    if isinstance(value, list):
        return f"[{', '.join(map(plain, value))}]"
    word = isinstance(value, str) and re.fullmatch(r"[a-z]\w+", value) and value not in ("true", "false", "null")
    return str(value) if word else json.dumps(value)


def comment(param: Param) -> str:
    """The meaning, followed by the choices unless it names them all."""
    named = all(choice in param.meaning for choice in param.choices)
    return param.meaning if named else f"{param.meaning} ({' | '.join(filter(None, param.choices))})"


if __name__ == "__main__":
    FILE.write_text(text())
