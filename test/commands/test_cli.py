# SPDX-License-Identifier: Apache-2.0
"""The command line: help, refusals with a reason and an exit code, and the README's commands."""

import contextlib
import dataclasses
import io
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
import tyro
import yaml

from spc_core.method.config import load_config, to_dict
from spc_core.method.planner import PlannerConfig
from spc_ros.cli import COMMANDS, commands, how_to_install, main, parse
from spc_ros.option_parser import parse_options
from support.lacking import without_torch
from support.paths import ROOT
from support.synthetic import write_dataset

RUNNABLE = [[name] for name in commands() if name != "bench"] + [["bench", name] for name in commands("bench")]


def help_of(show, monkeypatch) -> str:
    """What a call that ends in `--help` prints, on a terminal with boxes, too narrow for two of them side by side."""
    monkeypatch.setenv("COLUMNS", "100")
    screen = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(screen), pytest.raises(SystemExit) as end:
        show()
    assert end.value.code == 0
    screen.seek(0)
    return screen.read()


def options_in(text: str) -> dict[str, str]:
    """The text of each option in a `--help`, with the hint about its default."""
    found: dict[str, str] = {}
    boxes = re.sub(r"╮\n(│ .*│\n)+?│ ─+ │\n", "╮\n", text[text.index("╭") :])  # without their headings
    for row in re.findall(r"^│ (.*?) *│$", boxes, re.M):
        name, _, inline = row.partition("  ")
        if name:
            found[last := name] = inline.strip()
        else:
            found[last] += f" {row.strip()}"
    return found


def count(options) -> int:
    values = vars(options).values()
    return sum(count(value) if dataclasses.is_dataclass(value) else 1 for value in values)


def test_each_file_is_a_command_and_the_usage_lists_it(capsys):
    names = {path.relative_to(COMMANDS).with_suffix("").as_posix() for path in COMMANDS.rglob("[!_]*.py")}
    assert names == {"/".join(words) for words in RUNNABLE} and len(names) == 23
    for words in ([], ["bench"]):
        assert main([*words, "--help"]) == 0
        listed = re.findall(r"^  (\w+) +(.+)$", capsys.readouterr().out, re.M)
        assert dict(listed) == {name: line.rstrip(".") for name, line in commands(*words).items()}
        assert all(len(line) > 20 for line in commands(*words).values())


def test_no_command_and_a_wrong_command_show_the_usage(capsys):
    for words in ([], ["bench"]):
        assert main(words) == 2
        assert "usage: " in capsys.readouterr().out
        assert main([*words, "trian"]) == 2
        error = capsys.readouterr().err
        assert "unknown command 'trian'" in error and "usage: " in error
    assert main(["../cli"]) == 2 and main(["__init__"]) == 2


@pytest.mark.parametrize("words", [words for words in RUNNABLE if words != ["run"]], ids=" ".join)
def test_help_has_a_text_for_every_option_and_examples_that_parse(words, monkeypatch):
    text = help_of(lambda: main([*words, "--help"]), monkeypatch)
    assert f"usage: spc {' '.join(words)}" in text
    found = options_in(text)
    assert [
        name for name, help_text in found.items() if len(re.sub(r"\((default: .*|required)\)$", "", help_text)) < 8
    ] == []
    assert [help_text for help_text in found.values() if help_text.count("default:") > 1] == []
    head = text[: text.index("╭")]
    assert not re.search(r"None|\[\[|^ +(?!spc |torchrun )\S|.{121}", head, re.M) and "{None}" not in text
    examples = [line.strip() for line in head.partition("\nexamples:\n")[2].splitlines() if line.strip()]
    assert len(examples) >= 2 and all(len(line) < 80 for line in examples)
    for example in examples:
        _, spc, arguments = example.rpartition("spc_ros.cli ") if "torchrun" in example else example.partition("spc ")
        assert spc and arguments.startswith(" ".join(words))
        assert count(parse(shlex.split(arguments))) == len(found.keys() - {"-h, --help"})


def test_a_missing_text_and_an_empty_default_show_in_help(monkeypatch):
    """The test above relies on this: an option without a text shows none, and hints come from tyro."""

    @dataclasses.dataclass(frozen=True)
    class Bare:
        """Nothing.

        examples:
          spc bare
        """

        files: tyro.conf.Positional[tuple[Path, ...]]
        silent: int = 3
        note: Path | None = dataclasses.field(default=None, metadata={"help": "a note; default: nothing"})

    def run(options: Bare) -> int:
        return 0

    command = types.ModuleType("bare")
    command.__dict__["run"] = run
    text = help_of(lambda: parse_options(command, "spc bare", ["--help"]), monkeypatch)
    assert "usage: spc bare [-h] PATH [PATH ...] " in text and "Nothing.\n\nexamples:\n  spc bare\n" in text
    found = options_in(text)
    assert found["--silent INT"] == "(default: 3)" and found["--note PATH"] == "a note; default: nothing"
    assert found["PATH [PATH ...]"].endswith("(required)")


@pytest.mark.parametrize(("arguments", "unwanted"), [(["--help"], "tyro numpy torch"), (["train", "--help"], "torch")])
def test_help_comes_without_torch(arguments, unwanted):
    """--help must not wait for torch."""
    code = (
        "import contextlib, sys; from spc_ros.cli import main\n"
        f"with contextlib.suppress(SystemExit): main({arguments})\n"
        f"sys.exit(len(set({unwanted.split()}) & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere", "--out", "run"], "nowhere: no such folder; give the folder that `spc convert` wrote"),
        (
            ["train", "nowhere", "--out", "run", "--preset", "smal"],
            "no train file is called 'smal' (did you mean 'small'?)",
        ),
        (["train", "nowhere", "--out", "run", "--method", "focl"], "'focl' (did you mean 'focal'?)"),
        (["compare", "nowhere", "--out", "run", "--methods", "focl"], "'focl' (did you mean 'focal'?)"),
        (["compare", "nowhere", "--out", "run", "--methods"], "--methods is empty; name at least one"),
        (["compare", "nowhere", "--out", "run", "--jobs", "0"], "--jobs is 0"),
        (["evaluate", "nowhere"], "nowhere: not a checkpoint, weights.safetensors"),
        (["convert", "nowhere", "--out", "dataset"], "nowhere"),
        (["convert", ".", "--contract", "no.yaml", "--out", "dataset"], "no.yaml: cannot be read"),
        (["collect", "arm_rech", "--out", "data"], "arm_rech"),
        (["demo", "--preset", "dmo", "--out", "out"], "did you mean 'demo'?"),
    ],
)
def test_refusals_name_the_reason_and_write_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert f"spc {arguments[0]}: " in error and message in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_what_installs_it(tmp_path):
    command = [sys.executable, "-m", "spc_ros.cli", "evaluate", str(tmp_path)]
    done = subprocess.run(command, env=without_torch(tmp_path), capture_output=True, text=True)
    said = "spc evaluate: needs torch, which is not installed here; pip install torch\n"
    assert (done.returncode, done.stderr) == (1, said)
    assert how_to_install("minari") == "pip install 'spc_ros[train]'"
    assert how_to_install("rclpy").startswith("source a ROS 2 workspace")


@pytest.mark.parametrize("arguments", [["collect", "arm_reach"], ["trial"]])
def test_a_second_run_does_not_touch_the_first_ones_results(arguments, tiny_checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "bags").mkdir(parents=True)
    (out / "episodes.jsonl").write_text("first")
    if arguments == ["trial"]:
        arguments = ["trial", str(tiny_checkpoint)]
    assert main([*arguments, "--out", str(out)]) == 1
    assert "holds an earlier recording or trial; choose another --out" in capsys.readouterr().err
    assert (out / "episodes.jsonl").read_text() == "first"


def test_demo_overwrite_spares_a_folder_that_is_no_demo(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["demo", "--out", str(tmp_path), "--overwrite"]) == 1
    assert "is not a demo's folder" in capsys.readouterr().err and (tmp_path / "thesis.txt").exists()


def test_unknown_setting_in_a_preset_file_is_named(tmp_path, capsys):
    preset = tmp_path / "mine.yaml"
    preset.write_text("updtes: 10\n")
    assert main(["train", str(tmp_path), "--out", str(tmp_path / "run"), "--preset", str(preset)]) == 1
    assert "mine.yaml: updtes is not a setting (did you mean 'updates'?)" in capsys.readouterr().err


def test_train_takes_a_preset_and_flags_over_it(tmp_path, capsys):
    dataset = write_dataset(tmp_path / "point")
    flags = ["--updates", "3", "--tasks-per-batch", "2", "--model.groups", "4", "--horizon", "4", "--device", "cpu"]
    assert main(["train", str(dataset), "--out", str(tmp_path / "run"), *flags]) == 0
    assert "checkpoint: " in capsys.readouterr().out
    config = (tmp_path / "run" / "checkpoint" / "config.yaml").read_text()
    assert "updates: 3" in config and "groups: 4" in config and "context_max: 32" in config


@pytest.mark.parametrize("flags", [["--preset", "paper", "--method", "focal"], ["--preset=paper", "--method=focal"]])
def test_train_takes_a_method_over_the_preset(flags):
    args = parse(["train", "dataset", "--out", "run", *flags, "--method.contrast", "infonce"])
    method = args.config.method
    assert (method.name, method.latent, method.contrast) == (
        "focal",
        "raw",
        "infonce",
    ) and args.config.updates == 500_000


def test_train_takes_spc_and_goes_on_with_what_a_run_began_with(tmp_path):
    """A run keeps its method when the default becomes another one, also of several seeds."""
    paper = load_config("small", "spc_paper", loss={"discount": 0.7})
    for folder in ("run", "runs/seed-4"):
        (tmp_path / folder / "checkpoint").mkdir(parents=True)
        (tmp_path / folder / "checkpoint" / "config.yaml").write_text(yaml.safe_dump(to_dict(paper)))

    def chosen(out, *flags):
        config = parse(["train", "dataset", "--out", str(tmp_path / out), *flags]).config
        return config.method.name, config.loss.discount

    assert chosen("new") == ("spc", 0.85)
    assert chosen("run") == chosen("runs", "--seeds", "4") == ("spc_paper", 0.7)
    assert chosen("run", "--loss.discount", "0.9") == ("spc_paper", 0.9)
    assert chosen("run", "--overwrite") == chosen("run", "--method", "spc") == ("spc", 0.85)


def test_evaluate_without_the_tables_zero_writes_episodes_alone(tiny_checkpoint, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    arguments = ["evaluate", str(tiny_checkpoint), "--splits", "id", "--episodes", "1", "--protocols", "offline"]
    assert main(arguments) == 1
    assert "--protocols lacks no_context, the zero of the table's scale" in capsys.readouterr().err
    assert main([*arguments, "--json", str(rows)]) == 0
    assert "no table" in capsys.readouterr().out and len(rows.read_text().splitlines()) == 10
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_evaluate_prints_the_table(tiny_checkpoint, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    arguments = ["--splits", "id", "--episodes", "1", "--few-shot-sizes", "20", "--json", str(rows)]
    assert main(["evaluate", str(tiny_checkpoint), *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["expert", "no_context", "zero_shot", "few_shot(20)"]
    assert len(rows.read_text().splitlines()) == 10 * 4


def test_evaluate_can_plan(tiny_checkpoint, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("spc_core.trials.evaluate.run_in_process", lambda *arguments: asked.append(arguments[4]) or [])
    for flags in ([], ["--planning"]):
        assert main(["evaluate", str(tiny_checkpoint), "--splits", "id", "--episodes", "1", *flags]) == 0
    assert asked == [None, PlannerConfig()]


def test_readme_commands_exist():
    """Each `spc`, `make`, `ros2 launch` and `ros2 run` in the README names something that is there."""
    readme = (ROOT / "README.md").read_text()
    lines = [
        line.split("#")[0].strip()
        for block in re.findall(r"```sh\n(.*?)```", readme, re.S)
        for line in block.splitlines()
    ]
    named = {line.split()[1] for line in lines if line.startswith("spc ")}
    assert named == set(commands()) - {"assess", "behaviour", "demo", "relabel", "run", "operator"}
    targets = {line.split()[1] for line in lines if line.startswith("make ")}
    makefile = (ROOT / "Makefile").read_text()
    assert targets == {"demo", "test"} and all(f"\n{target}:" in makefile for target in targets)
    launched = {line.split()[3] for line in lines if line.startswith("ros2 launch spc_ros")}
    assert launched == {file.name for file in (ROOT / "launch").glob("*.launch.py")}
    for names in re.findall(r"ros2 run spc_ros ([\w|]+)", readme):
        assert all((ROOT / "scripts" / name).is_file() for name in names.split("|"))


def test_readme_options_are_accepted():
    """The README's own arguments parse; their files need not exist for that."""
    readme = (ROOT / "README.md").read_text()
    for line in re.findall(r"^spc (.*?)(?:#.*)?$", readme, re.M):
        assert parse(line.split()) is not None
