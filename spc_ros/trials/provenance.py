# SPDX-License-Identifier: Apache-2.0
"""The origin of a report's numbers: command, code, packages and machine."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "mujoco", "gymnasium", "minari", "rosbags", "rclpy")
GIT_TIMEOUT_S = 5.0


def versions() -> dict[str, str]:
    """Python and the packages that the numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def version(package: str) -> str:
    """The installed version; wheels of ROS packages carry the distribution's name."""
    for name in (package, f"ros-{package}", f"ros-jazzy-{package}"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def code_state(folder: Path | None = None) -> str:
    """The commit of this code, and the number of files changed since; empty outside a git work tree."""
    folder = folder or Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return ""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = len(_git(folder, "status", "--porcelain").splitlines())
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + (f", with {changed} files changed since" if changed else ", unchanged")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=GIT_TIMEOUT_S).stdout.strip()


def host() -> str:
    """Processor, number of cores and operating system, without the machine's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def command_line(command: str, options: Any, order: Sequence[str]) -> str:
    """`spc <command>` with every option of a dataclass, since defaults may change.

    `order`: options that come first, of which the first is positional; the others follow in their declared order.
    """
    positional, *names = dict.fromkeys([*order, *(field.name for field in dataclasses.fields(options))])
    parts = ["spc", command, str(getattr(options, positional))]
    for name in names:
        value, flag = getattr(options, name), name.replace("_", "-")
        if isinstance(value, bool):
            parts.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple):
            parts += [f"--{flag}", *map(str, value)] if value else []
        elif value not in (None, ""):
            parts += [f"--{flag}", str(value)]
    return shlex.join(parts)


def setup(command: str) -> dict[str, str]:
    """Facts needed to reproduce a result, in addition to seeds and hashes."""
    found = {"command": command, "code, git commit": code_state(), "processor": host()}
    return {name: value for name, value in found.items() if value}
