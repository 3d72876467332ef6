# SPDX-License-Identifier: Apache-2.0
"""The tests' own ROS domains: two runs at once never share one."""

from __future__ import annotations

import subprocess
import sys

from support.node_probe import DOMAINS, HELD, own_domain
from support.paths import TEST_FOLDER

DRAW = """
from support.node_probe import own_domain
print(*(own_domain()["ROS_DOMAIN_ID"] for _ in range(30)), flush=True)
input()
"""


def test_two_test_runs_at_once_have_no_domain_in_common() -> None:
    mine = {own_domain()["ROS_DOMAIN_ID"] for _ in range(30)}
    command = [sys.executable, "-c", DRAW]
    with subprocess.Popen(command, cwd=TEST_FOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        theirs = set(other.stdout.readline().split())
        again = {own_domain()["ROS_DOMAIN_ID"] for _ in range(30)}
        other.communicate("\n")
    assert other.returncode == 0
    assert mine == again and len(mine) == len(theirs) == HELD
    assert not mine & theirs and mine | theirs <= {str(domain) for domain in DOMAINS}
