# SPDX-License-Identifier: Apache-2.0
"""Comparisons: the table by hand, children that fail or are stopped, and two methods end to end."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from spc_core.comparison.plan import make_plan, store_plan, works
from spc_core.comparison.run import CompareError, compare
from spc_core.comparison.table import MethodResults, References, compare_rows, markdown
from spc_core.contract.contract import ContractError
from spc_core.method.config import ConfigError, to_dict
from spc_core.pages.comparison_page import compare_page
from spc_core.pages.comparison_panels import headline_keys, improvement_picture, score_picture
from spc_core.pages.comparison_svg import dot_intervals, ticks
from spc_core.system.config_files import ConfigFileError
from spc_core.system.json_values import without_nan
from spc_core.trials.protocol import EpisodeResult
from spc_ros.cli import main
from support.arm_dataset import write_arm_dataset
from support.stub_command import stub_command
from support.synthetic import tiny_config, write_dataset

DEADLINE_S = 60.0
UPDATES = 30


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_arm_dataset(tmp_path_factory.mktemp("data") / "arm")


@pytest.fixture
def preset(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(to_dict(tiny_config(updates=UPDATES))))
    return str(file)


@pytest.fixture
def stub(tmp_path):
    return stub_command(tmp_path, UPDATES)


def method_file(folder, name, **settings):
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(settings))
    return str(file)


def calls(out):
    return (out / "calls.txt").read_text().splitlines()


def row(split, protocol, task, return_, k=0, episode=0):
    return EpisodeResult(
        task_id=task, split=split, params={}, protocol=protocol, k=k, episode=episode, seed=episode, return_=return_,
        steps=1, context=[], context_count=0, bag="", reason="", seconds=0.0, interventions={},
    )  # fmt: skip


def hand_made():
    """Two tasks, two seeds; the oracle has no protocol of its own but zero_shot."""
    learnt = {
        s: [row("id", "zero_shot", "a", -6.0 - s), row("id", "zero_shot", "b", -8.0), row("id", "collect", "a", 99.0),
            row("id", "few_shot", "a", -4.0, 50), row("id", "few_shot", "b", -6.0 + s, 50)]
        for s in (0, 1)
    }  # fmt: skip
    oracle = {s: [row("id", "zero_shot", "a", -4.0 - s), row("id", "zero_shot", "b", -2.0)] for s in (0, 1)}
    methods = [
        MethodResults("spc", False, learnt, {0: 60.0, 1: 120.0}),
        MethodResults("oracle", True, oracle, {0: 30.0, 1: 30.0}),
        MethodResults("focal", False, {}, {}),
    ]
    references = References({("a", 0): -12.0, ("b", 0): -8.0}, {("a", 0): -1.0, ("b", 0): -3.0})
    return compare_rows(methods, references, "spc")


def test_rows_by_hand():
    rows = {(r.method, r.protocol, r.k): r for r in hand_made()}
    assert set(rows) == {(m, p, k) for m in ("spc", "oracle") for p, k in (("zero_shot", 0), ("few_shot", 50))}
    zero, few = rows["spc", "zero_shot", 0], rows["spc", "few_shot", 50]
    assert zero.mean == (-6 - 7 - 8 - 8) / 4 and zero.normalised == pytest.approx((zero.mean + 10) / 8)
    assert few.mean == (-4 - 4 - 6 - 5) / 4 and few.training_min == 1.5 and (few.seeds, few.tasks) == (2, 2)
    assert math.isnan(few.reference_better), "nobody is better than itself"
    oracle = rows["oracle", "few_shot", 50]
    assert oracle.mean == rows["oracle", "zero_shot", 0].mean == (-4 - 5 - 2 - 2) / 4
    assert oracle.reference_better == pytest.approx(((0.5 + 1 + 0.5 + 1) / 4 + 0) / 2), "few_shot against zero_shot"
    assert oracle.interval[0] <= oracle.normalised <= oracle.interval[1]


def test_the_table_and_the_pictures_hold_the_rows():
    rows = hand_made()
    text = markdown(rows)
    assert "### id, few_shot(50) (2 tasks)" in text and "| oracle | -3.25 | 0.84 |" in text
    assert without_nan(dataclasses.asdict(rows[0]))["reference_better"] is None
    assert headline_keys(rows) == [("id", "zero_shot", 0), ("id", "few_shot", 50)]
    for picture in (pictures(rows, headline_keys(rows)) for pictures in (score_picture, improvement_picture)):
        tree = ElementTree.fromstring(dot_intervals(picture))
        words = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
        assert {"oracle", "few_shot(50)", picture.x_title} <= set(words)
        assert len(list(tree.iter("{http://www.w3.org/2000/svg}circle"))) == sum(len(p.marks) for p in picture.panels)
    page = compare_page(rows, "arm_reach", [("preset", "<small>")])
    assert "&lt;small&gt;" in page and "oracle" in page
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"(src|href)=.https?:", outside), "loads nothing from the network"


def test_one_seed_draws_without_intervals():
    returns = {"x": -2.0, "y": -1.0}
    methods = [MethodResults(m, False, {0: [row("ood", "offline", "a", r)]}, {0: 1.0}) for m, r in returns.items()]
    rows = compare_rows(methods, References({("a", 0): -4.0}, {("a", 0): 0.0}), "x")
    assert [r.normalised for r in rows] == [0.5, 0.75] and rows[1].reference_better == 0.0
    assert "| y | -1.00 | 0.75 | – | – | 0.00 | – | 1 |" in markdown(rows)
    ElementTree.fromstring(dot_intervals(score_picture(rows, headline_keys(rows))))
    assert "Methods compared" in compare_page(rows, "arm_reach", [])


def test_ticks_are_round():
    assert ticks(0.0, 1.0) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(-0.9, 1.1) == [-0.5, 0, 0.5, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": []}, "--methods is empty; name at least one"),
        ({"methods": ["spc", "focl"]}, "no methods file is called 'focl' (did you mean 'focal'?)"),
        ({"methods": ["spc", "spc"]}, "--methods has 'spc' twice"),
        ({"methods": ["spc", "elsewhere/spc.yaml"]}, "elsewhere/spc.yaml: cannot be read"),
        ({"seeds": [0, 1, 0]}, "--seeds has '0' twice"),
        ({"seeds": [-1]}, "--seeds has -1; use numbers of at least 0"),
        ({"splits": ["odd"]}, "--splits has 'odd' (did you mean 'ood'?)"),
        ({"protocols": ["oneshot"]}, "--protocols has 'oneshot' (did you mean"),
        ({"few_shot_sizes": []}, "--few-shot-sizes is empty"),
        ({"episodes": 0}, "--episodes has 0"),
        ({"family": "arm_rech"}, "--family: unknown task family 'arm_rech' (did you mean 'arm_reach'?)"),
    ],
)
def test_refusals_write_nothing(options, message, dataset, tmp_path):
    with pytest.raises((ConfigError, ConfigFileError, ContractError)) as refusal:
        make_plan(**{"dataset": dataset, "out": tmp_path / "out", "methods": ["spc"], "seeds": [0], **options})
    assert message in str(refusal.value) and not (tmp_path / "out").exists()


def test_methods_of_one_name_and_foreign_folders_are_refused(dataset, tmp_path):
    own = method_file(tmp_path, "spc", loss={"contrast_weight": 0.5})
    with pytest.raises(ConfigError, match="names of --methods has 'spc' twice"):
        make_plan(dataset, tmp_path / "out", ["spc", own], [0])
    with pytest.raises(ConfigError, match="holds files that are not a comparison"):
        make_plan(dataset, tmp_path, ["spc"], [0])
    with pytest.raises(ConfigError, match="--family: unknown task family 'point'"):
        make_plan(write_dataset(tmp_path / "point"), tmp_path / "out", ["spc"], [0])


def test_a_changed_plan_is_refused_and_an_added_method_is_not(dataset, preset, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    store_plan(make_plan(dataset, out, ["spc", "focal"], [0], preset))
    stored = (out / "compare.json").read_text()
    for methods, seeds, options, message in (
        (["spc"], [0], {}, "method focal is left out"),
        (["spc", "focal"], [1], {}, "seed 0 is left out"),
        (["spc", "focal"], [0], {"episodes": 2}, "episodes was 3, is 2"),
        (["spc", "focal"], [0], {"preset": "small"}, "method spc has another model, updates"),
    ):
        with pytest.raises(ConfigError, match=message):
            store_plan(make_plan(dataset, out, methods, seeds, **{"preset": preset, **options}))
    assert (out / "compare.json").read_text() == stored
    store_plan(make_plan(dataset, out, ["dora", "spc", "focal"], [0, 1], preset))
    assert set(json.loads((out / "compare.json").read_text())["methods"]) == {"spc", "focal", "dora"}


def test_seeds_come_first_a_failure_is_named_and_the_others_continue(dataset, preset, stub, tmp_path, capsys):
    out, seen = tmp_path / "out", []
    plan = make_plan(dataset, out, ["spc", method_file(tmp_path, "bad"), "focal"], [0, 1], preset)
    with pytest.raises(CompareError) as failure:
        compare(plan, 1, stub, lambda: seen.append(sum(run.finished() for run in plan.runs())))
    text = str(failure.value)
    assert text.startswith("2 of 6 runs failed\nbad seed 0: train ended with code 1; the end of ")
    assert text.count("the data is made of cheese") == 2
    assert calls(out) == [
        f"{stage} {name} seed-{seed}"
        for seed in (0, 1)
        for name in ("spc", "bad", "focal")
        for stage in ("train", "evaluate")
        if (stage, name) != ("evaluate", "bad")
    ]
    assert seen == [1, 2, 3, 4, 4]
    assert "4 of 6 runs finished" in capsys.readouterr().err
    with pytest.raises(CompareError):
        compare(plan, 2, stub, lambda: None)
    assert calls(out)[10:] in (["train bad seed-0", "train bad seed-1"], ["train bad seed-1", "train bad seed-0"])


def test_seeds_train_together_where_that_is_faster_and_all_jobs_are_busy(dataset, tmp_path, stub):
    together = tmp_path / "together.yaml"
    together.write_text(yaml.safe_dump(to_dict(tiny_config(updates=UPDATES, compile="on"))))
    plan = make_plan(dataset, tmp_path / "two", ["spc", "focal"], [0, 1, 2], str(together))
    assert [str(work) for work in works(plan.runs(), 2)] == ["spc seeds 0 1 2", "focal seeds 0 1 2"]
    one = make_plan(dataset, tmp_path / "one", ["spc"], [0, 1, 2], str(together))
    assert [str(work) for work in works(one.runs(), 2)] == ["spc seeds 0 1", "spc seed 2"]
    compare(one, 1, stub, lambda: None)
    assert calls(tmp_path / "one") == ["train spc seed-0 seed-1 seed-2", *(f"evaluate spc seed-{s}" for s in range(3))]
    assert all(run.finished() for run in one.runs()) and not works(one.runs(), 1)


def test_a_signal_ends_all_children_and_the_folder_is_free_again(dataset, preset, stub, tmp_path):
    out = tmp_path / "out"
    plan = make_plan(dataset, out, [method_file(tmp_path, "slow"), "spc"], [0, 1], preset)

    def interrupt():
        deadline_s = time.monotonic() + DEADLINE_S
        while not (out / "calls.txt").is_file() or len(calls(out)) < 2:
            assert time.monotonic() < deadline_s, "both children run"
            time.sleep(0.02)
        with pytest.raises(ConfigError, match=r"another comparison.*is running there \(processes \d+, \d+, \d+\)"):
            compare(plan, 2, stub, lambda: None)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt, match="run the same command to resume"):
        compare(plan, 2, stub, lambda: None)
    thread.join()
    pids = [int(pid) for pid in (out / ".lock").read_text().split(", ")]
    assert all(not Path(f"/proc/{pid}").exists() for pid in pids[1:]), "no child is left"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_two_methods_and_two_seeds_end_to_end_interrupted_and_resumed(dataset, preset, tmp_path, capsys):
    out = tmp_path / "out"
    weaker = method_file(tmp_path, "weaker", loss={"contrast_weight": 0.5})
    options = ["--methods", "spc", weaker, "--seeds", "0", "1", "--preset", preset, "--splits", "id", "--episodes", "1"]
    arguments = ["compare", str(dataset), "--out", str(out), *options]
    process = subprocess.Popen([sys.executable, "-m", "spc_ros.cli", *arguments], stderr=subprocess.PIPE, text=True)
    deadline_s = time.monotonic() + DEADLINE_S
    while not list(out.glob("*/seed-0/episodes.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert "run the same command to resume" in process.communicate(timeout=DEADLINE_S)[1]
    assert process.returncode == 130
    finished = {file: file.stat().st_mtime_ns for file in out.glob("*/*/episodes.jsonl")}
    assert 0 < len(finished) < 4

    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert len(list(out.glob("*/*/episodes.jsonl"))) == 4
    assert all(file.stat().st_mtime_ns == then for file, then in finished.items()), "finished runs are not repeated"
    rows = json.loads((out / "table.json").read_text())
    assert {(r["method"], r["protocol"], r["k"], r["seeds"], r["tasks"]) for r in rows} == {
        (m, p, k, 2, 10)
        for m in ("spc", "weaker")
        for p, k in (("no_context", 0), ("zero_shot", 0), ("few_shot", 100), ("offline", 0))
    }
    assert "### id, offline (10 tasks)" in shown and (out / "table.md").read_text() in shown
    assert {"compare.html", "scores.svg", "improvement.svg"} <= {file.name for file in out.iterdir()}
    assert main([*arguments, "--episodes", "2"]) == 1
    assert "holds another comparison (episodes was 1, is 2)" in capsys.readouterr().err
