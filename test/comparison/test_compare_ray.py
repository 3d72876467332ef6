# SPDX-License-Identifier: Apache-2.0
"""Comparisons on a Ray cluster of this machine, and machines that are lost or do not see the folder."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from spc_core.comparison.children import log_file
from spc_core.comparison.plan import PLAN_FILE, Work, make_plan, store_plan
from spc_core.comparison.ray_children import _Machine
from spc_core.comparison.run import ENGINES, CompareError, _Comparison, compare
from spc_core.method.config import to_dict
from spc_core.system.ray_cluster import EngineError
from spc_ros.cli import main
from support.arm_dataset import write_arm_dataset
from support.stub_command import stub_command
from support.synthetic import tiny_config

UPDATES = 30


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_arm_dataset(tmp_path_factory.mktemp("data") / "arm", task_count=3, episodes=2)


@pytest.fixture
def preset(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(to_dict(tiny_config(updates=UPDATES))))
    return str(file)


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray", reason="the optional extra spc_ros[ray] is not installed")
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, configure_logging=False)
    yield ray
    ray.shutdown()
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.slow
def test_a_cluster_gives_what_processes_give_to_the_last_digit(dataset, preset, tmp_path, monkeypatch, ray):
    monkeypatch.chdir(tmp_path)  # as users do: with paths relative to where they are
    os.symlink(dataset, "data")
    for engine in ENGINES:
        options = ["--seeds", "0", "--preset", preset, "--splits", "id", "--episodes", "1", "--engine", engine,
                   "--protocols", "zero_shot"]  # fmt: skip
        assert main(["compare", "data", "--out", engine, "--methods", "spc", *options]) == 0
    files = sorted(file.relative_to(ENGINES[0]) for file in Path(ENGINES[0]).glob("*/*/checkpoint/weights.safetensors"))
    assert len(files) == 1
    for file in files:
        assert (Path(ENGINES[0]) / file).read_bytes() == (Path(ENGINES[1]) / file).read_bytes()
        rows = [scored(Path(engine) / file.parts[0] / file.parts[1] / "episodes.jsonl") for engine in ENGINES]
        assert rows[0] == rows[1] and len(rows[0]) == 10
    assert scored(Path("processes/table.json")) == scored(Path("ray/table.json"))


def scored(file):
    """The rows of a file without the seconds that they took."""
    text = file.read_text()
    rows = json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    return [
        {key: value for key, value in row.items() if "seconds" not in key and "training" not in key} for row in rows
    ]


def test_a_signal_ends_the_processes_on_the_cluster(dataset, preset, tmp_path, ray):
    slow = tmp_path / "slow.yaml"
    slow.write_text("{}")
    out = tmp_path / "out"
    plan = make_plan(dataset, out, [str(slow), "spc"], [0], preset)
    seen = []

    def interrupt():
        while not (out / "calls.txt").is_file() or len((out / "calls.txt").read_text().splitlines()) < 2:
            time.sleep(0.05)  # until both processes run
        seen.append((out / ".lock").read_text())
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt, match="run the same command to resume"):
        compare(plan, 2, stub_command(tmp_path, UPDATES), lambda: None, engine="ray")
    thread.join()
    assert "of Ray's actor" in seen[0]
    own = f"{tmp_path}/stub.py".encode()
    commands = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if readable(file)]
    assert not any(own in command for command in commands), "no process is left"


def readable(file):
    try:
        return bool(file.read_bytes())
    except OSError:
        return False


def test_without_ray_the_engine_says_what_to_install_and_nothing_is_written(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["compare", str(dataset), "--out", str(tmp_path / "out"), "--engine", "ray"]) == 1
    assert "the engine 'ray' needs Ray; install it with pip install 'spc_ros[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_machine_that_does_not_share_the_disk_is_named(dataset, preset, tmp_path):
    plan = make_plan(dataset, tmp_path / "out", ["spc"], [0], preset)
    plan.out.mkdir()
    store_plan(plan)
    command, log = ["true"], log_file(Work("train", tuple(plan.runs())))
    with pytest.raises(
        EngineError, match=r"does not see .*; dataset and --out must have the same paths on a disk that"
    ):
        _Machine(str(tmp_path), tmp_path / "elsewhere", "").run(command, log)
    with pytest.raises(EngineError, match=f"has another {plan.out / PLAN_FILE} than this machine"):
        _Machine(os.getcwd(), plan.out, "another").run(command, log)


class LostMachines:
    """An engine whose first machines are lost."""

    jobs = 1

    def __init__(self, losses):
        self.losses, self.started = losses, []

    def start(self, work):
        self.started.append(str(work))
        return LostChild(work, len(self.started) <= self.losses)


class LostChild:
    name = "1 on a far machine"

    def __init__(self, work, lost):
        self.work, self.lost = work, "the machine is gone" if lost else ""
        if not lost and work.stage == "train":
            for run in work.runs:
                (run.folder / "checkpoint").mkdir(parents=True)
                (run.folder / "checkpoint" / "metrics.json").write_text(json.dumps({"update": UPDATES}))
        elif not lost:
            work.runs[0].episodes_file.write_text("")

    def code(self):
        return 1 if self.lost else 0

    def signal(self, number):
        raise AssertionError("it has ended")


@pytest.mark.parametrize(("losses", "started"), [(2, 4), (3, 3)])
def test_what_a_lost_machine_did_goes_on_elsewhere_twice(dataset, preset, tmp_path, losses, started, capsys):
    plan, engine = make_plan(dataset, tmp_path / "out", ["spc"], [0], preset), LostMachines(losses)
    plan.out.mkdir()
    with (plan.out / ".lock").open("a+") as lock, _Comparison(plan, engine, lock) as work:
        work.run([], lambda: None)
    assert engine.started == ["spc seed 0"] * started
    assert "goes on elsewhere: the machine is gone" in capsys.readouterr().err
    assert work.failures == ([] if losses == 2 else ["spc seed 0: train the machine is gone"])
    assert all(run.finished() for run in plan.runs()) is (losses == 2)


def test_a_failure_on_the_cluster_shows_the_end_of_its_log(dataset, preset, tmp_path, ray):
    bad = tmp_path / "bad.yaml"
    bad.write_text("{}")
    plan = make_plan(dataset, tmp_path / "out", [str(bad)], [0], preset)
    with pytest.raises(CompareError, match="the data is made of cheese"):
        compare(plan, None, stub_command(tmp_path, UPDATES), lambda: None, engine="ray")
