# SPDX-License-Identifier: Apache-2.0
"""Robot and policy on two networks that one link joins: cut, and mended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.paths import TEST_FOLDER

pytestmark = [pytest.mark.slow, pytest.mark.nodes, pytest.mark.timeout(120)]


@pytest.fixture
def networks() -> Iterator[tuple[str, str, str]]:
    """(robot's namespace, policy's, the robot's end of the link), gone at the end."""
    number = os.getpid()
    robot, policy, ends = f"spc-robot-{number}", f"spc-policy-{number}", (f"spcr{number}", f"spcp{number}")
    try:
        try:
            _ip("netns", "add", robot)
            _ip("netns", "add", policy)
            _ip("link", "add", ends[0], "netns", robot, "type", "veth", "peer", "name", ends[1], "netns", policy)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', '') or error}")
        for host, (name, end) in enumerate(zip((robot, policy), ends, strict=True), 1):
            _ip("-n", name, "address", "add", f"10.213.7.{host}/24", "dev", end)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", end, "up")
        yield robot, policy, ends[0]
    finally:
        for name in (robot, policy):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def test_a_cut_network_is_silence_and_the_policy_acts_again(networks: tuple[str, str, str], tmp_path: Path) -> None:
    robot, policy, link = networks
    script = [sys.executable, "-m", "faults.cut_link", policy, link, str(tmp_path)]
    command = ["ip", "netns", "exec", robot, *script]
    done = subprocess.run(command, cwd=TEST_FOLDER, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)
    assert told["during"] == 0, "the cut was none"
    assert told["rose"].get("silences", 0) >= 1
    assert told["first_is_safe_or_answer"] and not told["safe"]
    assert told["back_s"] < 5.0
