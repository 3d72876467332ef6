# SPDX-License-Identifier: Apache-2.0
"""The drift test: what counts as following, by hand, and a change of task in MuJoCo with an untrained checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from spc_core.alignment.streaming import Transition
from spc_core.deploy.checkpoint import load_checkpoint
from spc_core.deploy.context_tracker import ContextTracker
from spc_core.pages.context_figures import context_path
from spc_core.pages.figures import FamilyRun
from spc_core.pages.run_figures import drift_figure
from spc_core.tasks import make_env, mean_task, tasks
from spc_core.trials.drift import (
    WINDOW,
    DriftLog,
    DriftRun,
    DriftTest,
    drift_scores,
    drift_table,
    run_drift,
    steps_until,
)
from spc_core.trials.evaluate import run_in_process
from spc_core.trials.protocol import Trial, in_order
from spc_core.trials.scores import expert_returns, score, table
from spc_ros.cli import main
from spc_ros.trials.trial_report import report_trial


@pytest.mark.parametrize(
    ("distance", "expected"),
    [([1.0, 0.6, 0.5, 0.4], 2), ([1.0, 0.4, 0.7, 0.5], 3), ([1.0, 0.4, 0.7], None), ([0.3, 0.2], 0)],
)
def test_following_means_to_stay_there(distance: list[float], expected: int | None) -> None:
    assert steps_until(distance, 0.5) == expected


def test_scores_by_hand() -> None:
    def run(strategy: str, half: int | None, follow: int | None, rewards: tuple[float, ...]) -> DriftRun:
        return DriftRun("a", "b", strategy, 0, (1.0, -rewards[-1] / 10), rewards, half, follow)

    runs = [
        run("kept", 100, None, (-9.0, -1.0, -5.0, -2.0)), run("kept", 50, None, (-9.0, -2.0, -6.0, -4.0)),
        run("kept", 60, 200, (-9.0, -3.0, -7.0, -3.0)), run("reset", 4, 8, (-9.0, -1.0, -3.0, -1.0)),
    ]  # fmt: skip
    kept, reset = drift_scores(runs, before=2 * WINDOW)
    assert dataclasses.astuple(kept) == ("kept", 3, 1, 60.0, None, -2.0, -6.0, -3.0, 0.3)
    assert dataclasses.astuple(reset) == ("reset", 1, 1, 4.0, 8.0, -1.0, -3.0, -1.0, 0.1)
    assert [line.split()[:5] for line in drift_table([kept, reset]).splitlines()[1:]] == [
        ["kept", "3", "1", "60", "never"], ["reset", "1", "1", "4", "8"],
    ]  # fmt: skip


def test_a_change_in_mujoco(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    first, second = tasks("arm_reach", "id")[:2]
    test = DriftTest(checkpoint, "arm_reach", before=50, after=100)
    kept = test.run(first, second, "kept")
    assert kept.distance[0] == 1.0 and len(kept.distance) == 101 and len(kept.rewards) == 6
    assert kept == test.run(first, second, "kept"), "nothing of a run is left for the next"
    reset = test.run(first, second, "reset")
    assert reset.rewards[:2] == kept.rewards[:2] and reset.distance[1:] != kept.distance[1:]
    alone = DriftTest(checkpoint, "arm_reach", before=50, after=100)
    assert alone.run(first, first, "kept").rewards[:2] == kept.rewards[:2]
    assert test.env.task == second
    with pytest.raises(ValueError, match="at least two tasks"):
        run_drift(checkpoint, "arm_reach", [first])


def test_a_half_life_by_hand(tiny_checkpoint: Path) -> None:
    """Weights 1, 1/2, 1/4 from the newest back, against numpy; without a half-life all are 1."""
    tracker, rng = ContextTracker(load_checkpoint(tiny_checkpoint)), np.random.default_rng(0)
    seen = [Transition(i, rng.normal(size=4), rng.normal(size=2), float(rng.normal()), rng.normal(size=4))
            for i in range(3)]  # fmt: skip
    votes = []
    for transition in seen:
        tracker.reset()
        tracker.update(transition)
        votes.append(tracker.context.astype(float))
    for half_life, weights in ((None, np.ones(3)), (1.0, np.array([0.25, 0.5, 1.0]))):
        tracker.reset()
        tracker.half_life = half_life
        for transition in seen:
            tracker.update(transition)
        mean = np.average(votes, axis=0, weights=weights)
        spread = np.average((np.array(votes) - mean) ** 2, axis=0, weights=weights)
        share = (weights**2).sum() / weights.sum() ** 2  # 1 / effective count
        np.testing.assert_allclose(tracker.context, mean, atol=1e-6)
        np.testing.assert_allclose(tracker.uncertainty, np.sqrt(spread / (1 - share) * share), rtol=1e-4)


def test_a_fading_context_follows_sooner(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    first, second = tasks("arm_reach", "id")[:2]
    test = DriftTest(checkpoint, "arm_reach", before=60, after=60, half_life=5.0)
    kept, fading = (test.run(first, second, strategy) for strategy in ("kept", "fading"))
    assert fading.distance != kept.distance and test.run(first, second, "kept") == kept, "it leaves nothing behind"
    with pytest.raises(ValueError, match="'fading' is unknown; use one of: kept, noticed, reset"):
        DriftTest(checkpoint, "arm_reach").run(first, second, "fading")


def test_success_is_the_distance_at_the_end() -> None:
    reach = make_env("arm_reach", tasks("arm_reach", "id")[0])
    goal = np.array([reach.task.params["goal_shoulder"], reach.task.params["goal_elbow"]])
    near, far = (np.array([*(goal + [miss, 0.0]), 0.0, 0.0]) for miss in (0.09, 0.11))
    assert reach.success(far, near) is True and reach.success(near, far) is False
    payload = make_env("arm_payload")
    before = np.array([0, 0, 0, 0, 0.5, 0.2])
    after = np.array([0.5, 0.2, 0, 0, -0.5, 0.0])  # the target has jumped on with the last step
    assert payload.success(before, after) is True and payload.success(after, after) is False


@pytest.mark.parametrize("family", ["arm_reach", "arm_payload"])
def test_the_expert_succeeds_and_who_believes_in_the_mean_task_does_so_less(family: str) -> None:
    def share(told_mean: bool) -> float:
        ended = []
        for task in tasks(family, "id")[:6]:
            env = make_env(family, task)
            seen, over, success = env.reset(seed=0)[0], False, None
            while not over:
                following, _, _, over, _ = env.step(env.expert(seen, mean_task(family) if told_mean else task))
                success, seen = env.success(seen, following), following
            ended.append(success)
        return sum(ended) / len(ended)

    assert share(told_mean=False) == 1.0 and share(told_mean=True) < 0.7


def test_the_page_of_a_trial(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Success in table and page, the context's way, the drift test, and what it takes to repeat it."""
    checkpoint = load_checkpoint(tiny_checkpoint)
    tried = tasks("arm_reach", "id")[:2]
    rows = run_in_process(checkpoint, Trial(tried, episodes=1, few_shot_sizes=(0, 50)), "arm_reach")
    scored = [row for row in rows if row.scored]
    assert all(row.success is False for row in scored), "untrained"
    rows[0] = dataclasses.replace(rows[0], success=True)
    zero = next(row for row in rows if row.protocol == "zero_shot")
    assert [count for count, _ in zero.trajectory[:6]] == [0, 1, 2, 3, 5, 7] and set(zero.trajectory[0][1]) == {0.0}
    assert not rows[0].trajectory, "only where the context grows"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plan.json").write_text('{"seed": 0}')
    results = []
    drift = run_drift(checkpoint, "arm_reach", tried, progress=lambda *news: results.append(news))
    DriftLog(tmp_path / "out").append(drift)
    run = report_trial(tiny_checkpoint, "arm_reach", tmp_path / "out", in_order(rows), "spc trial a --out b")
    assert len(results) == 6 and run.drift == drift, "as written, so read"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Context trajectory" in page and "steps to half way" in page and ">50%<" in page
    assert "SHA-256 of its weights" in page and "spc trial a --out b" in page and "cores, Linux" in page
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["families"]["arm_reach"]
    shares = {(e["protocol"], e["k"]): e["success"] for e in summary["splits"]["id"]}
    assert shares == {
        ("expert", 0): None, ("no_context", 0): 0.5, ("zero_shot", 0): 0.0, ("few_shot", 0): 0.0, ("few_shot", 50): 0.0,
    }  # fmt: skip
    assert [line["strategy"] for line in summary["drift"]] == ["kept", "noticed", "reset"]
    lines = table(score({0: rows}, expert_returns(tried, [0]))).splitlines()
    assert lines[2].split()[:2] == ["id", "no_context"] and "50%" in lines[2]


def test_k_of_zero_is_the_prior_frozen(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    trial = Trial(tasks("arm_reach", "id")[:1], ["no_context", "few_shot"], 1, few_shot_sizes=(10, 0), shuffle=True)
    rows = in_order(run_in_process(checkpoint, trial, "arm_reach"))
    by = {(row.protocol, row.k): row for row in rows}
    assert [(r.protocol, r.k) for r in rows] == [("no_context", 0), ("few_shot", 0), ("collect", 10), ("few_shot", 10)]
    assert by["few_shot", 0].return_ == by["no_context", 0].return_ != by["few_shot", 10].return_
    assert by["few_shot", 0].context_count == 0 and by["few_shot", 10].context_count == 10


def test_figures_without_data_are_none() -> None:
    assert drift_figure([]) is None
    assert context_path(FamilyRun("arm_reach", "", {0: []}, {})) is None


def test_cli_writes_the_changes(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    monkeypatch.setattr("spc_core.tasks.tasks", lambda family, split: tasks(family, split)[:2])
    assert (
        main(["evaluate", str(tiny_checkpoint), "--drift", "--splits", "id", "--json", str(tmp_path / "d.jsonl")]) == 0
    )
    runs = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert [(r["before"][-2:], r["after"][-2:], r["strategy"]) for r in runs] == [
        ("00", "01", "kept"), ("00", "01", "noticed"), ("00", "01", "reset"),
        ("01", "00", "kept"), ("01", "00", "noticed"), ("01", "00", "reset"),
    ]  # fmt: skip
    assert "half way" in capsys.readouterr().out
