# SPDX-License-Identifier: Apache-2.0
"""README and tutorial are run: every command, as written, in a folder that has nothing but the repository's files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT

pytestmark = pytest.mark.nodes

PRODUCTS = ("tour/doctor.html", "tour/dataset.html", "tour/trial/episodes.jsonl", "tour/compare/table.md",
            "tour/lerobot/meta/info.json", "tour/my_robot.yaml")  # fmt: skip


def run_commands(page: str, folder: Path) -> str:
    """Run the shell blocks of a page, but for `make` and `ros2 launch`; returns their standard output."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.S)
    for name in ("test", "config", "launch"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    script = "\n".join(["set -e", *(block for block in blocks if not block.startswith(("make ", "ros2 ")))])
    environment = {**os.environ, "ROS_DOMAIN_ID": "79", "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    run = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, f"{run.stdout[-2000:]}\n{run.stderr[-2000:]}"
    return run.stdout


@pytest.mark.timeout(900)
def test_the_tour_runs_as_it_is_written(tmp_path):
    printed = run_commands("README.md", tmp_path)
    assert not [name for name in PRODUCTS if not (tmp_path / name).is_file()]
    assert "verdict: ok (20 bags: 20 ok)" in printed
    assert "4 tasks, 20 episodes, 2000 transitions from 20 bags" in printed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tutorial_runs_as_it_is_written(tmp_path):
    printed = run_commands("docs/tutorial.md", tmp_path)
    assert printed.count("verdict: ok (20 bags: 20 ok)") == 2
    assert "4 tasks, 20 episodes, 2000 transitions from 20 bags" in printed
    assert (tmp_path / "tour/robot-trial/report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_road_from_strange_bags_runs_as_it_is_written(tmp_path):
    printed = run_commands("docs/your_robot.md", tmp_path)
    assert "verdict: ok (80 bags: 80 ok)" in printed
    assert "10 tasks, 80 episodes, 12720 transitions from 80 bags" in printed
    assert (tmp_path / "tour/mower/trial/report.html").is_file()
    assert "goes on from tour/mower/run" in printed


@pytest.mark.parametrize("page, observed, limit_s", [("bags", 1 + 2 + 1 + 6 + 1, 30), ("ros2_control", 4, 20)])
def test_the_contract_in_the_documentation_is_one(page, observed, limit_s):
    from spc_core.contract.contract import parse_contract

    text = re.search(r"```yaml\n(name: .*?)```", (ROOT / f"docs/{page}.md").read_text(), re.S)
    assert text is not None
    contract = parse_contract(text.group(1), f"docs/{page}.md")
    assert contract.observation_dim == observed
    assert contract.segments.limit_s == limit_s
