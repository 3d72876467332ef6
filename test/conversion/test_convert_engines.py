# SPDX-License-Identifier: Apache-2.0
"""Conversion in processes, on Ray, and interrupted: always the same dataset."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from spc_ros.conversion import convert as conversion
from spc_ros.conversion.bag_conversion import Job, convert_bag
from spc_ros.conversion.conversion_report import BagReport
from spc_ros.conversion.convert import ConversionError, convert, load_part, save_part
from spc_ros.conversion.convert_options import ConvertOptions
from support.contracts import ARM_REACH
from support.recorded_bags import record_arm


def tree(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def recorded(folder: Path, count: int, steps: int = 20) -> Path:
    for i in range(count):
        record_arm(folder / f"{i:02}", steps=steps, seed=i, task=f"arm_reach/train/{i % 3:02}")
    return folder


def quiet(bags: Path, out: Path, workers: int = 1, **options):
    return convert(ConvertOptions((bags,), out, workers=workers, **options), progress=False)


def started(bags: Path, out: Path, workers: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "spc_ros.cli", "convert", bags, "--out", out, "--workers", str(workers)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_a_killed_conversion_goes_on_and_gives_the_same_dataset(tmp_path, monkeypatch):
    bags = recorded(tmp_path / "bags", 40, steps=100)
    quiet(bags, tmp_path / "whole")
    process = started(bags, tmp_path / "out", 1)
    parts = tmp_path / ".out.parts"
    wait_for(lambda: len(list(parts.glob("[!.]*.npz"))) >= 3, "three bags are converted", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    done = len(list(parts.glob("[!.]*.npz")))
    assert list(tmp_path.glob(".out.partial-*")), "the dataset was not begun"
    converted = []
    real = conversion.convert_to_part
    monkeypatch.setattr(conversion, "convert_to_part", lambda *args: (converted.append(args[0][0]), real(*args)))
    quiet(bags, tmp_path / "out")
    assert len(converted) == 40 - done < 40
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert not list(tmp_path.glob(".out*"))  # nor is anything left of the killed one


def test_no_worker_outlives_a_killed_conversion(tmp_path):
    bags = recorded(tmp_path / "bags", 60, steps=300)
    process = started(bags, tmp_path / "out", 2)
    wait_for(lambda: len(list(tmp_path.glob(".out.parts/*.npz"))) >= 2, "two bags are converted", process)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(children) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), f"{children} end")


def wait_for(condition, what: str, running: subprocess.Popen | None = None) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s, f"waited 60 s until {what}"
        assert running is None or running.poll() is None, f"the conversion ended before {what}"
        time.sleep(0.002)


def test_a_part_is_made_again_when_its_bag_the_contract_or_an_option_changes(tmp_path, monkeypatch):
    bags = recorded(tmp_path / "bags", 2)
    converted = []
    real = conversion.convert_to_part
    monkeypatch.setattr(conversion, "convert_to_part", lambda *args: (converted.append(args[0][0].name), real(*args)))
    monkeypatch.setattr("spc_ros.conversion.convert._Parts.remove", lambda parts: None)

    def again(**options):
        converted.clear()
        quiet(bags, tmp_path / "out", overwrite=True, **options)
        return list(converted)

    assert again() == ["00", "01"]
    assert again() == []
    file = bags / "01" / "01.mcap"
    os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 1))
    assert again() == ["01"]
    assert again(task="another") == ["00", "01"]


def test_a_part_is_read_back_as_it_was_written(tmp_path):
    bag = record_arm(tmp_path / "bag", change=lambda s: None if s.receive_ns % 7 == 0 else s)
    report, episodes = convert_bag(bag, Job(ARM_REACH, own_contract=False))
    save_part(tmp_path / "part.npz", report, episodes)
    again, entries, _ = load_part(tmp_path / "part.npz")
    assert json.dumps(again.as_dict()) == json.dumps(report.as_dict())
    assert len(entries) == len(episodes) >= 1
    for before, after in zip(episodes, entries, strict=True):
        assert (before.task_id, before.params) == (after.task_id, after.params)
        for name, value in vars(before.episode).items():
            np.testing.assert_array_equal(getattr(after.episode, name), value)
    save_part(tmp_path / "bad.npz", BagReport("bag", error="torn"), [])
    assert load_part(tmp_path / "bad.npz") == (BagReport("bag", error="torn"), [], {})


def test_processes_give_what_one_process_gives(tmp_path):
    bags = recorded(tmp_path / "bags", 9)
    quiet(bags, tmp_path / "one")
    quiet(bags, tmp_path / "two", workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_a_ray_cluster_gives_what_one_process_gives(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="the optional extra spc_ros[ray] is not installed")
    bags = recorded(tmp_path / "bags", 5)
    record_arm(bags / "torn").joinpath("torn.mcap").write_bytes(b"\x89MCAP0\r\n")
    quiet(bags, tmp_path / "one", skip_bad=True)
    monkeypatch.chdir(tmp_path)  # as users do: with paths relative to where they are
    relative = quiet(Path("bags"), Path("ray"), skip_bad=True, engine="ray")
    assert len(relative.failed) == 1
    one, ray = tree(tmp_path / "one"), tree(tmp_path / "ray")
    said = [json.loads(files.pop("conversion.json")) for files in (one, ray)]
    assert one == ray
    assert said[0]["totals"] == said[1]["totals"]


def test_an_unknown_engine_is_refused(tmp_path):
    bags = recorded(tmp_path / "bags", 1)
    with pytest.raises(ConversionError, match="the engine is 'spark'; use one of: processes, ray"):
        quiet(bags, tmp_path / "out", engine="spark")
