# SPDX-License-Identifier: Apache-2.0
"""Where numbers come from: the command, the code, the packages and the machine."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import shlex
import subprocess
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
    """The commit that this code is at, and whether it was changed since; empty outside a git work tree."""
    folder = folder or Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return ""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = len(_git(folder, "status", "--porcelain").splitlines())
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + (f", with {changed} files changed since" if changed else ", unchanged")


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=GIT_TIMEOUT_S).stdout.strip()


def host() -> str:
    """Processor, number of cores, and operating system; no name of a machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def command_line(stage: str, options: Any) -> str:
    """`spc <stage>` with every option of a dataclass, since defaults may change; the first required is positional."""
    first, *fields = sorted(dataclasses.fields(options), key=lambda field: field.default is not dataclasses.MISSING)
    words = ["spc", stage, str(getattr(options, first.name))]
    for field in fields:
        value, flag = getattr(options, field.name), field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple):
            words += [f"--{flag}", *map(str, value)] if value else []
        elif value not in (None, ""):
            words += [f"--{flag}", str(value)]
    return shlex.join(words)


def setup(command: str) -> dict[str, str]:
    """What it takes to do it again, beside seeds and hashes."""
    found = {"command": command, "code, git commit": code_state(), "processor": host()}
    return {name: value for name, value in found.items() if value}
