# SPDX-License-Identifier: Apache-2.0
"""The soak itself: one trial of it runs clean, and it notices what it is there to notice."""

import os
import subprocess
import sys

import pytest
import soak

from spc_ros.processes import PARENT_VARIABLE
from support.random_checkpoint import write_random_checkpoint

pytestmark = pytest.mark.nodes


def test_one_trial_of_the_soak_finds_nothing(tmp_path):
    result = soak.soak(tmp_path / "soak", duration_s=0.1, episodes=1)
    assert result["found"] == [] and result["trials"] == 1 and result["bags"] > 4
    assert set(result["samples"]) == {"recorder", "context_encoder", "policy", "sim"}


def series(growth_kib_per_s, files=(9, 9)):
    """Twenty minutes, sampled every ten seconds."""
    ends = [files[0]] * 119 + [files[1]]
    return [
        {"t_s": 10.0 * k, "memory_kib": 5e4 + 10 * k * growth_kib_per_s, "threads": 12.0, "files": float(ends[k])}
        for k in range(120)
    ]


@pytest.mark.parametrize(
    ("growth", "files", "found"),
    [(0.1, (9, 9), []), (1.0, (9, 9), ["policy: memory grows by 3600 KiB per hour"]),
     (0.0, (9, 14), ["policy: 5 more files at the end"])],
)  # fmt: skip
def test_a_leak_is_found(growth, files, found):
    findings = []
    soak.judge(series(growth, files), findings, "policy")
    assert findings == found


def test_an_orphan_is_found():
    command = [sys.executable, "-c", "input()"]
    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as child:
        try:
            while "input" not in soak._children().get(child.pid, ""):  # exec is under way
                assert child.poll() is None
        finally:
            child.kill()


def test_a_bag_that_is_no_bag_is_found(tmp_path):
    write_random_checkpoint(tmp_path / "not a bag", soak.FAMILY)
    with pytest.raises(ValueError, match="not a bag"):
        soak._read_bags(tmp_path)
