# SPDX-License-Identifier: Apache-2.0
"""The README is run: every command of its tour, as written, in a folder that has nothing but the repository's files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = [block for block in re.findall(r"```sh\n(.*?)```", README, re.S) if "spc " in block]
PRODUCTS = ("tour/doctor.html", "tour/dataset.html", "tour/trial/episodes.jsonl", "tour/compare/table.md",
            "tour/lerobot/meta/info.json", "tour/my_robot.yaml")  # fmt: skip


@pytest.mark.timeout(900)
def test_the_tour_runs_as_it_is_written(tmp_path):
    for name in ("test", "config", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    script = "set -e\n" + "\n".join(BLOCKS)
    environment = {**os.environ, "ROS_DOMAIN_ID": "79", "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    run = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, f"{run.stdout[-2000:]}\n{run.stderr[-2000:]}"
    assert not [name for name in PRODUCTS if not (tmp_path / name).is_file()]
    assert "verdict: ok (20 bags: 20 ok)" in run.stdout
    assert "4 tasks, 20 episodes, 2000 transitions from 20 bags" in run.stdout


def test_the_contract_in_the_documentation_is_one():
    from spc_core.contract.contract import parse_contract

    text = re.search(r"```yaml\n(name: .*?)```", (ROOT / "docs/bags.md").read_text(), re.S)
    assert text is not None
    contract = parse_contract(text.group(1), "docs/bags.md")
    assert contract.observation_dim == 1 + 2 + 1 + 6 + 1
    assert contract.segments.limit_s == 30
