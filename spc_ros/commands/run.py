# SPDX-License-Identifier: Apache-2.0
"""Start a node without the ros2 command line."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

NODES = Path(__file__).parents[1] / "nodes"
HIDDEN = ("latency", "relay")  # parts of a benchmark
HELP = """usage: spc run NODE [--shadow] [--ros-args ...]

Start a node of this package over plain rclpy, as `ros2 run spc_ros NODE` does on a ROS 2 machine. What follows NODE
is passed to it; exit code and signals are its own. --shadow (policy, deploy) stands for -p shadow:=true.

examples:
  spc run sim --ros-args -p auto_reset:=true -p mode:=realtime
  spc run policy --ros-args --params-file config/nodes.yaml -p checkpoint:=run -r __ns:=/robot1

nodes:
"""


@dataclasses.dataclass(frozen=True)
class Run:
    """Start a node over plain rclpy."""

    node: str
    arguments: tuple[str, ...] = ()  # passed to the node


def parse(arguments: Sequence[str]) -> Run:
    """All arguments after the node are the node's. Wrong usage and --help end the process, with exit codes 2 and 0."""
    known = nodes()
    listed = HELP + "\n".join(f"  {name:16} {line.rstrip('.')}" for name, line in known.items())
    if not arguments or arguments[0] in ("-h", "--help", "--list"):
        print(listed, file=sys.stdout if arguments else sys.stderr)
        raise SystemExit(0 if arguments else 2)
    name, *rest = arguments
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        print(f"spc run: unknown node '{name}'{meant} Known: {', '.join(known)}", file=sys.stderr)
        raise SystemExit(2)
    if "--shadow" in rest:
        if name not in ("policy", "deploy"):
            print(f"spc run: --shadow is for policy and deploy, not for {name}", file=sys.stderr)
            raise SystemExit(2)
        rest = [word for word in rest if word != "--shadow"] + ["--ros-args", "-p", "shadow:=true"]
    return Run(name, tuple(rest))


def nodes() -> dict[str, str]:
    """Each node's program with its docstring's first line; parsed, since imports would take seconds."""
    found = {}
    for file in sorted(NODES.glob("[!_]*.py")):
        if file.stem not in HIDDEN:
            line = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
            found[file.stem] = line.partition(": ")[2] or line
    return found


def run(options: Run) -> int:
    os.execv(sys.executable, [sys.executable, "-m", f"spc_ros.nodes.{options.node}", *options.arguments])
