# SPDX-License-Identifier: Apache-2.0
"""What a trial's page shows in addition to its scores: latency, stills, origin of the numbers; and its plan."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spc_core.alignment.episode import EpisodeInfo, TaskChange
from spc_core.deploy.checkpoint_files import weights_sha256
from spc_core.deploy.latency_bins import LatencyBins, latency_counts, quantile_us
from spc_core.pages.kit.png import png
from spc_core.pages.report import summarise
from spc_core.pages.report_page import page
from spc_core.pages.run_figures import latency_figure
from spc_core.pages.stills import Stills
from spc_core.trials.log import TrialLog
from spc_core.trials.options import checkpoint_name, make_plan, make_trial, robot_task
from spc_core.trials.protocol import EpisodeResult, Trial
from spc_core.trials.scores import score
from spc_ros.bags.writer import BagWriter
from spc_ros.cli import parse
from spc_ros.commands.trial import FLAG_ORDER
from spc_ros.processes import ProcessError
from spc_ros.trials.provenance import code_state, command_line, setup
from spc_ros.trials.trial import prepare
from spc_ros.trials.trial_report import trial_stills
from support.counting_driver import TASKS, Counting
from support.invented_trials import invented_run
from support.random_checkpoint import trial_options
from support.recorded_bags import STORE, header


def test_latency_bins_by_hand() -> None:
    bins = LatencyBins()
    for seconds in (1e-6, 10e-6, 11e-6, 0.001, 0.00101, 100.0):
        bins.add(seconds)
    latency = latency_counts({"limit": 3, **bins.report()})
    # 12 bins a decade: 10 us; up to 10 * 10^(1/12) = 12.1; up to 1000; up to 1000 * 10^(1/12) = 1211.5; the last one
    assert latency == {"10": 2, "12": 1, "1000": 1, "1212": 1, "10000000": 1}
    assert [quantile_us(latency, share) for share in (0.3, 0.5, 0.51, 0.99)] == [10.0, 12.0, 1000.0, 10_000_000.0]
    assert quantile_us({}, 0.5) is None


def test_png_is_what_an_imaging_library_reads() -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(image)))), image)
    with pytest.raises(ValueError, match=r"\(height, width, 3\)"):
        png(image[..., 0])


def test_the_page_shows_latency_stills_and_no_expert_where_none_is_known() -> None:
    run = invented_run("arm_reach", seeds=1)
    red = np.full((4, 500, 3), 200, np.uint8)
    timed = [dataclasses.replace(row, latency={"500": 99, "900": 1}) for row in run.results[0]]
    run = dataclasses.replace(run, results={0: timed}, experts={}, stills=[Stills("bench/<1>", ((0.5, red),))])
    assert latency_figure(dataclasses.replace(run, results={0: []})) is None
    summary = summarise([run], seed=0, wall_time_s={}, versions={}, figures={})
    assert summary["families"]["arm_reach"]["latency_us"] == {"median": 500.0, "99 %": 500.0}
    text = page([run], summary)
    (picture,) = re.findall(r"<img src='data:image/png;base64,([^']+)'", text)
    assert np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))).shape == (2, 167, 3), "every third pixel"
    assert "bench/&lt;1&gt;" in text and "Measured in lock-step" in text
    assert "expert" not in {line.protocol for line in score(run.results, {})}


def test_stills_come_from_the_bag_of_the_best_informed_episode(tmp_path: Path) -> None:
    def row(name: str, count: int) -> EpisodeResult:
        trial, driver = Trial(TASKS[:1], ["zero_shot"], episodes=1), Counting(count)
        for request in trial.requests():
            trial.record(request, driver.run(request))
        result = dataclasses.replace(trial.results[0], bag=str(tmp_path / "bags" / name))
        writer = BagWriter(tmp_path / "bags" / name, {})
        writer.add_topic("/camera/image_raw", "sensor_msgs/msg/Image")
        for i in range(5):
            pixels = np.full(12 + 4, 10 * count + i, np.uint8)  # two rows of two pixels, padded by two bytes
            image = STORE.types["sensor_msgs/msg/Image"](
                header=header(1_000_000_000 + i * 500_000_000), height=2, width=2, encoding="rgb8",
                is_bigendian=0, step=8, data=pixels,
            )  # fmt: skip
            writer.write_raw("/camera/image_raw", i, bytes(STORE.serialize_cdr(image, "sensor_msgs/msg/Image")))
        writer.close()
        return result

    (stills,) = trial_stills(TrialLog(tmp_path), [row("a", 3), row("b", 7)])
    assert [(s, image.shape, int(image[0, 0, 0])) for s, image in stills.images] == [
        (0.0, (2, 2, 3), 70), (1.0, (2, 2, 3), 72), (2.0, (2, 2, 3), 74),
    ]  # fmt: skip
    assert "family/id/00, zero_shot, return" in stills.about


def test_the_command_spells_out_every_option(tmp_path: Path) -> None:
    args = parse(["trial", "a run", *["--out", "o", "--few-shot-sizes", "0", "10", "--no-shuffle", "--episodes", "2"]])
    command = command_line("trial", args, FLAG_ORDER)
    assert command.startswith("spc trial 'a run' --out o ") and "--no-shuffle" in command and "--seed 0" in command
    assert parse(shlex.split(command)[1:]) == args
    stored = setup(command)
    assert stored["command"] == command and "cores" in stored["processor"]
    assert code_state(tmp_path) == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "a"], check=True)
    assert re.fullmatch(r"[0-9a-f]{40}, unchanged", code_state(tmp_path))
    (tmp_path / "new").touch()
    assert code_state(tmp_path).endswith("with 1 files changed since")


def test_the_stored_command_keeps_its_order() -> None:
    """Reports of all versions can be compared line by line."""
    stored = (
        "spc trial run --out o --contract c --family f --tasks a b --splits id ood --tasks-per-split 0 "
        "--few-shot-sizes 25 100 200 --episodes 3 --seed 0 --protocols no_context zero_shot few_shot --recordings r "
        "--shuffle --no-operator --sim --time-limit-s 10.0 --terminated-topic t --device cpu --record --camera free "
        "--drift"
    )
    assert command_line("trial", parse(shlex.split(stored)[1:]), FLAG_ORDER) == stored


def test_a_refused_trial_touches_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = trial_options(tiny_checkpoint, "arm_reach", out, task_ids=("arm_reach/id/00",))
    trial = make_trial(options)
    plan = make_plan(options, trial)
    assert plan["checkpoint"] == weights_sha256(tiny_checkpoint) == checkpoint_name(plan["checkpoint"])
    TrialLog(out).open(trial, plan, recorded=True)
    (out / "bags" / "loose").mkdir(parents=True)
    before = sorted(out.rglob("*"))
    with pytest.raises(ProcessError, match=r"holds another trial;[\s\S]*seed: 0 there, 1 here"):
        prepare(dataclasses.replace(options, seed=1))
    assert sorted(out.rglob("*")) == before
    prepare(options)
    assert (out / "abandoned" / "loose").is_dir() and not (out / "bags" / "loose").exists()


def test_a_robots_task_is_what_its_name_says() -> None:
    assert robot_task("arm_reach/ood/05").params["angle"] > 0, "known: a family's"
    assert [(t.split, dict(t.params)) for t in map(robot_task, ("a/ood/b", "a/b/c", "a"))] == [
        ("ood", {}), ("id", {}), ("id", {}),
    ]  # fmt: skip


def test_a_change_of_task_in_the_episodes_text() -> None:
    info = EpisodeInfo("ended", "a", {}, 1, 0, 10, 50, changes=(TaskChange(30, "b", {"m": 2.0}, False),))
    assert EpisodeInfo.from_json(info.to_json()) == info and (info.task_id, info.task_now) == ("a", "b")
    assert "changes" not in json.loads(dataclasses.replace(info, changes=()).to_json()), "older readers go on"
    for damage in ({"t_ns": "30"}, {"announced": 1}, {"extra": 0}, {"params": None}):
        stored = json.loads(info.to_json())
        stored["changes"][0] |= damage
        with pytest.raises(ValueError, match="topic 'episode'"):
            EpisodeInfo.from_json(json.dumps(stored))
