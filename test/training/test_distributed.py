# SPDX-License-Identifier: Apache-2.0
"""Two processes that share each batch train like one; they stop and resume together."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch
import yaml

from spc_core.method.config import ConfigError, to_dict
from spc_core.training.distributed import join_group
from spc_core.training.train import train
from support.synthetic import tiny_config, write_dataset

DEADLINE_S = 90.0


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "point")


def start(dataset, out, tmp_path, config):
    """Two training processes, as a user starts them."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(to_dict(config)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
               "-m", "spc_ros.cli", "train", str(dataset), "--preset", str(file), "--out", str(out)]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(process):
    """Output without the bar, and exit code, within the deadline; no process of the group outlives this."""
    try:
        output = process.communicate(timeout=DEADLINE_S)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return "\n".join(line for line in output.splitlines() if "update/s" not in line), process.returncode


def weights(out):
    return safetensors.torch.load_file(out / "checkpoint" / "weights.safetensors")


def log(out):
    return [{**row, "seconds": ""} for row in csv.DictReader((out / "log.csv").read_text().splitlines())]


def quiet():
    """Without noise: the model draws no codes for one step."""
    return tiny_config(horizon=1, updates=10)


def test_two_processes_train_like_one(dataset, tmp_path):
    process = start(dataset, tmp_path / "two", tmp_path, quiet())
    train(dataset, tmp_path / "one", quiet())
    output, code = finish(process)
    assert code == 0, output
    assert output.count("checkpoint: ") == 1
    before = weights(tmp_path / "one")
    for name, value in weights(tmp_path / "two").items():
        torch.testing.assert_close(value, before[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    for one, two in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert one["update"] == two["update"]
        for name in ("consistency", "reward", "contrast", "v", "q", "actor"):
            assert float(one[name]) == pytest.approx(float(two[name]), rel=1e-4, abs=1e-6), name


def test_two_processes_stop_together_and_resume_to_the_same_bits(dataset, tmp_path):
    """With noise, of which each process has its own."""
    config = tiny_config(updates=300)
    complete = start(dataset, tmp_path / "complete", tmp_path, config)
    stopped = start(dataset, tmp_path / "stopped", tmp_path, config)
    deadline = time.monotonic() + DEADLINE_S
    while not (tmp_path / "stopped" / "resume.pt").exists():
        assert time.monotonic() < deadline and stopped.poll() is None
        time.sleep(0.01)  # between two looks at what other processes write
    stopped.terminate()
    output, code = finish(stopped)
    assert code != 0
    complete_output, code = finish(complete)
    assert code == 0, complete_output
    update = json.loads((tmp_path / "stopped" / "checkpoint" / "metrics.json").read_text())["update"]
    assert 10 <= update < 300 and f"stopped at update {update} of 300" in output
    state = torch.load(tmp_path / "stopped" / "resume.pt", weights_only=True)
    assert len(state["torch_rng"]) == 2 and not torch.equal(*state["torch_rng"])
    output, code = finish(start(dataset, tmp_path / "stopped", tmp_path, config))
    assert code == 0, output
    for name, value in weights(tmp_path / "complete").items():
        assert torch.equal(value, weights(tmp_path / "stopped")[name]), name


def test_a_device_that_cannot_be_shared_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="device is 'cuda:0', but 2 processes need one each"), join_group("cuda:0"):
        pass
