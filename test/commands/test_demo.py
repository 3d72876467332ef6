# SPDX-License-Identifier: Apache-2.0
"""The whole chain at its smallest: the same stages, processes and files as `make demo`, in under two minutes."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from spc_core.contract.contract import load_contract
from spc_core.deploy.checkpoint import load_checkpoint
from spc_core.system.config_files import ConfigFileError, find_config
from spc_ros.trials.demo import load_demo_config
from support.node_probe import own_domain

TINY = {
    "families": ["arm_payload"], "episodes": 1, "updates": 20, "train_seeds": 2, "few_shot_sizes": [20],
    "trial_episodes": 1, "tasks_per_split": 1,
}  # fmt: skip


@pytest.mark.timeout(400)
def test_demo_from_nothing_to_report_and_again_without_work(tmp_path):
    preset = tmp_path / "tiny.yaml"
    preset.write_text(yaml.safe_dump(TINY))
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "spc_ros.cli", "demo", "--preset", str(preset), "--out", str(out)]
    environment = {**os.environ, **own_domain()}
    first = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "few_shot(20)" in first.stdout and str(out / "report.html") in first.stdout
    summary = json.loads((out / "summary.json").read_text())
    family = summary["families"]["arm_payload"]
    assert family["contract_sha256"] == load_contract(find_config("contracts", "arm_payload")).sha256
    protocols = {(s["protocol"], s["k"]) for s in family["splits"]["id"]}
    assert protocols == {("expert", 0), ("no_context", 0), ("zero_shot", 0), ("few_shot", 20)}
    assert all(s["tasks"] == 1 and s["seeds"] == 2 for split in family["splits"].values() for s in split)
    assert {line["strategy"] for line in family["drift"]} == {"kept", "noticed", "reset"}
    assert str(preset) in summary["setup"]["command"]
    stages = {"collect arm_payload", "convert arm_payload", "train", "trial arm_payload"}
    assert set(summary["wall_time_s"]) == stages and summary["versions"]["torch"]
    assert len(list((out / "arm_payload" / "recordings" / "bags").iterdir())) == 20
    assert load_checkpoint(out / "arm_payload" / "run-1").metrics["seed"] == 1

    weights = out / "arm_payload" / "run-0" / "checkpoint" / "weights.safetensors"
    made = weights.stat().st_mtime_ns
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert again.returncode == 0 and weights.stat().st_mtime_ns == made
    repeated = json.loads((out / "summary.json").read_text())
    assert repeated == summary, "finished stages keep their results and wall times"


def test_shipped_demo_presets_load_and_others_are_refused():
    assert load_demo_config("demo").families == ("arm_reach", "arm_payload", "point_robot")
    assert load_demo_config("smoke").updates == 60
    with pytest.raises(ConfigFileError, match="no demo file is called 'smok'"):
        load_demo_config("smok")
