# SPDX-License-Identifier: Apache-2.0
"""What `spc bench train` and `evaluate` report: shares and ratios that belong to one run, and what they are of."""

import json
import subprocess
import types
from pathlib import Path

import pytest
import torch
import yaml

from spc_core.method.config import ConfigError, to_dict
from spc_core.training.bench_train import ACTIONS, GROUPS, OBSERVATIONS, bench_train
from spc_ros.cli import main
from support.synthetic import tiny_config


@pytest.mark.parametrize(
    "method, model, baseline", [("spc_paper", True, True), ("focal", True, False), ("oracle", False, False)]
)
def test_report_of_an_update(method, model, baseline):
    report = bench_train(tiny_config(method, contexts_per_task=4, tasks_per_batch=8), "tiny", rounds=2)
    assert (report.with_model is not None, report.baseline_ms is not None) == (model, baseline)
    assert sum(report.breakdown.values()) == pytest.approx(1) and set(report.breakdown) == {*GROUPS, "everything else"}
    assert report.gflops == pytest.approx(report.gflop / report.mean.least * 1e3)
    assert report.gflops > 0 and report.matmul_gflops["fp32"] > 0  # which is faster is not a test's to say
    assert report.ratio == (report.baseline_ms / report.mean.least if baseline else None)
    assert f"peak memory {report.peak_mib:.0f} MiB" in report.text()


def test_operations_are_counted_by_hand_for_the_simplest_method():
    """IQL alone: B rows, and for V also the windows' last observations, through networks of known sizes."""
    config = tiny_config("no_context", tasks_per_batch=2, windows_per_task=4)
    rows, more, z, hidden = 2 * 4 * 5, 2 * 4 * 6, 5, 8
    inputs = OBSERVATIONS + z

    def products(count: int, sizes: list[int]) -> int:
        return sum(2 * count * i * o for i, o in zip(sizes[:-1], sizes[1:], strict=True))

    def learnt(count: int, sizes: list[int]) -> int:
        """Forward, gradients of weights, and gradients of inputs but for the first layer's."""
        return 3 * products(count, sizes) - products(count, sizes[:2])

    expected = learnt(more, [inputs, hidden, 1]) + learnt(rows, [inputs, hidden, 2 * ACTIONS])
    expected += 2 * learnt(rows, [inputs + ACTIONS, hidden, 1]) + 2 * products(rows, [inputs + ACTIONS, hidden, 1])
    assert bench_train(config, "tiny", rounds=1).gflop == pytest.approx(expected / 1e9, rel=1e-6)


def test_command_prints_the_report_and_writes_the_numbers(tmp_path, capsys):
    preset = tmp_path / "tiny.yaml"
    preset.write_text(yaml.safe_dump(to_dict(tiny_config(tasks_per_batch=8))))
    threads = torch.get_num_threads()
    code = main(["bench", "train", "--size", str(preset), "--device", "cpu", "--threads", str(threads), "--rounds", "1",
                 "--json", str(tmp_path / "bench.json")])  # fmt: skip
    assert code == 0 and "plain equations" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "bench.json").read_text())
    assert numbers["ratio"] == pytest.approx(numbers["baseline_ms"] / numbers["mean"]["least"])


def test_the_whole_table_is_one_command_each_row_in_a_process_of_its_own(tmp_path, capsys, monkeypatch):
    asked = []

    def measured(command, **_):
        words = command[command.index("bench") :]
        asked.append(" ".join(words[2:-2]))
        least = {"least": 12.34}
        focal = "focal" in words
        row = {
            "size": words[3], "method": words[5], "device": "a GPU", "threads": 2, "with_model": least, "mean": least,
            "without_model": least, "peak_mib": 1234.0, "gflops": 9.0, "baseline_ms": None if focal else 24.68,
            "ratio": None if focal else 2.0, "matmul_gflops": {"fp32": 1000.0},
        }  # fmt: skip
        Path(words[-1]).write_text(json.dumps(row))
        return types.SimpleNamespace(returncode=0 if "paper" in words else failure["code"])

    failure = {"code": 0}
    monkeypatch.setattr(subprocess, "run", measured)
    arguments = ["bench", "train", "--table", "--device", "cuda", "--json", str(tmp_path / "rows.json")]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "| paper, spc_paper | 12.3 ms | 12.3 ms | **12.3 ms** | 24.7 ms, 2.0 times | 1,234 MiB | 9 |" in shown
    assert "| paper, focal | 12.3 ms | 12.3 ms | **12.3 ms** |  | 1,234 MiB | 9 |" in shown
    assert "a GPU, 2 threads; products alone: fp32 1,000 GFLOP/s" in shown
    settings = "--device cuda --threads 2 --precision auto --rounds 3 --baseline"
    assert asked[0] == f"--size paper --method spc_paper {settings}" and len(asked) == 4
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 4
    failure["code"] = 1
    assert main(arguments) == 1
    assert "the measurement of small, spc_paper ended with code 1" in capsys.readouterr().err


def test_seeds_that_train_together_are_compared_with_the_same_one_by_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    preset = tmp_path / "tiny.yaml"
    preset.write_text(yaml.safe_dump(to_dict(tiny_config(tasks_per_batch=8))))
    arguments = ["bench", "seeds", "--size", str(preset), "--device", "cpu", "--rounds", "1", "--threads",
                 str(torch.get_num_threads()), "--json", str(tmp_path / "seeds.json"), "--seeds"]  # fmt: skip
    assert main([*arguments, "1", "2"]) == 0
    shown = capsys.readouterr().out
    numbers = json.loads((tmp_path / "seeds.json").read_text())
    assert [row["seeds"] for row in numbers] == [1, 2]
    for row in numbers:
        assert row["ratio"] == pytest.approx(row["alone_ms"] / row["stacked_ms"])
        assert f"| {row['seeds']} | {row['alone_ms']:.1f} ms | {row['uncompiled_ms']:.1f} ms |" in shown
    assert main([*arguments, "0"]) == 1
    assert "--seeds has 0; use at least 1" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="device is 'cuda:7'"):
        bench_train(tiny_config(device="cuda:7"), "tiny")


def test_evaluation_side_by_side_is_compared_with_one_robot_at_a_time(tmp_path, capsys):
    code = main(["bench", "evaluate", "--family", "base_drive", "--tasks", "2", "--episodes", "1", "--rounds", "1",
                 "--json", str(tmp_path / "bench.json")])  # fmt: skip
    assert code == 0 and "side by side" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "bench.json").read_text())
    slow, fast = numbers["one_by_one"], numbers["side_by_side"]
    assert list(slow) == list(fast) == ["no_context", "zero_shot", "few_shot"]
    assert numbers["ratio"] == pytest.approx(sum(fast.values()) / sum(slow.values()))
    assert numbers["steps"] == 2 * 100 * (3 + 1), "one episode each, and one that collects 100 transitions"


def test_a_benchmark_of_no_tasks_is_refused(capsys):
    assert main(["bench", "evaluate", "--tasks", "0"]) != 0
    assert "--tasks has 0; use a number of at least 1" in capsys.readouterr().err
