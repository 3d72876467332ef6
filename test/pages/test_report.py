# SPDX-License-Identifier: Apache-2.0
"""The report, made of invented trials: self-contained, complete, equal to the scores, and sturdy."""

import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from spc_core.pages.context_figures import context_space, points_of, project
from spc_core.pages.figures import adaptation_curve, cell_grid, task_bars, varying_params
from spc_core.pages.report import FamilyRun, summarise, write_report, write_summary
from spc_core.pages.run_figures import log_ticks, training_curves
from spc_core.tasks import tasks
from spc_core.trials.scores import score
from support.invented_trials import invented_run

VERSIONS = {"python": "3.12.3", "torch": "2.9.0", "mujoco": "3.4.0", "rclpy": "7.1.4", "numpy": "2.3.1"}
TIMES = {
    "collect arm_reach": 61.0,
    "convert arm_reach": 9.5,
    "train": 420.0,
    "trial arm_reach": 130.2,
    "report": 2.0,
}


def summary_of(*runs: FamilyRun) -> dict:
    return summarise(runs, seed=7, wall_time_s=TIMES, versions=VERSIONS, figures={"lock-step, times real time": 4.2})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[FamilyRun]:
    logs = tmp_path_factory.mktemp("logs")
    return [invented_run("arm_reach", logs), invented_run("arm_payload", logs, intervene=True)]


@pytest.fixture(scope="module")
def text(runs: list[FamilyRun], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, runs, summary_of(*runs))
    return path.read_text(encoding="utf-8")


def without_plotly(text: str) -> str:
    """The page less the library, whose code holds addresses that it does not visit by itself."""
    (start,) = (m.end() for m in re.finditer("<script>(?=.{0,200}plotly.js v)", text, re.S))
    return text[:start] + text[text.index("</script>", start) :]


def plain_words(text: str) -> str:
    """What a reader sees of the page's own HTML."""
    return re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style).*?</\1>", " ", text, flags=re.S))


def test_page_loads_nothing(text: str) -> None:
    own = without_plotly(text)
    assert re.findall(r"<(?:link|iframe|img|object|embed|base|script\s+[^>]*src)\b", own) == []
    assert re.findall(r"(?:src|href|action)\s*=\s*['\"]?\s*(?:https?:)?//", own) == []
    assert re.findall(r"@import|url\(|https?://(?!plot\.ly)", own) == []
    assert len(text) - len(own) > 1_000_000 and text.count("plotly.js v") == 1  # the library, once


def test_page_names_families_protocols_and_origins(text: str, runs: list[FamilyRun]) -> None:
    words = plain_words(without_plotly(text))
    names = ["no_context", "zero_shot", "few_shot(K)", *(f"few_shot({k})" for k in (10, 50, 200)), "expert"]
    for name in [*names, "arm_reach", "arm_payload", "ab" * 32, *VERSIONS, *VERSIONS.values(), *TIMES, "4.2"]:
        assert name in words, name
    assert "radius 1.00" in words and "radius 1.35" in words  # what makes a task ood
    assert "None." in words and "2160" in words  # interventions: 12 x 10 tasks x 2 splits x 3 seeds x 3 episodes
    assert "200 transitions (4.0 s)" in words
    assert not re.search(r"\bnan\b|\binf\b|Infinity", words, re.I)
    assert text.count("Plotly.newPlot(") >= 8


def test_summary_equals_scores(runs: list[FamilyRun], tmp_path: Path) -> None:
    write_summary(tmp_path / "summary.json", summary_of(*runs))
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    for run in runs:
        family, found = summary["families"][run.family], []
        for split, entries in family["splits"].items():
            found += [{"split": split, **entry} for entry in entries]
        assert found == json.loads(json.dumps([asdict(line) for line in score(run.results, run.experts)]))
        assert family["contract_sha256"] == run.contract_sha256
    assert summary["families"]["arm_payload"]["interventions"]["few_shot(10)"] == {"limit": 540, "rate": 2160}
    assert (summary["seed"], summary["versions"], summary["wall_time_s"]) == (7, VERSIONS, TIMES)


def test_table_shows_the_scores(text: str, runs: list[FamilyRun]) -> None:
    words = re.sub(r"\s+", " ", plain_words(without_plotly(text)))
    for run in runs:
        for line in score(run.results, run.experts):
            assert f"{line.mean:.1f} ± {line.stderr:.1f}".replace("-", "−") in words
            assert f"{abs(line.normalised):.2f}" in words


@pytest.mark.parametrize(
    "options",
    [
        {"seeds": 1},
        {"splits": ("ood",)},
        {"sizes": (20,)},
        {"sizes": ()},
        {"seeds": 1, "splits": ("id",), "sizes": (5,)},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["arm_reach", "arm_payload"])
def test_less_data(family: str, options: dict, tmp_path: Path) -> None:
    run = replace(invented_run(family, **options), logs={0: tmp_path / "absent.csv"})
    summary = summary_of(run)
    write_summary(tmp_path / "s.json", summary)
    write_report(tmp_path / "r.html", [run], summary)
    words = plain_words(without_plotly((tmp_path / "r.html").read_text()))
    assert "no training log was found" in words
    assert ("few_shot(" in words) == (options.get("sizes") != ())


def test_one_task_and_no_context_vector(tmp_path: Path) -> None:
    whole = invented_run("arm_reach", seeds=1, splits=("id",))
    rows = [replace(r, context=[]) for r in whole.results[0] if r.task_id == "arm_reach/id/00"]
    run = replace(whole, family="my <robot>", results={0: rows})
    write_report(tmp_path / "r.html", [run], summary_of(run))
    text = without_plotly((tmp_path / "r.html").read_text())
    assert "no task vectors to compare" in text and "my &lt;robot&gt;" in text and "<robot>" not in text


def test_not_a_number_becomes_none(tmp_path: Path) -> None:
    run = invented_run("arm_reach", seeds=1, sizes=(5,))
    summary = summarise([run], seed=0, wall_time_s={"x": math.inf}, versions={}, figures={"speed": math.nan})
    assert summary["wall_time_s"] == {"x": None} and summary["figures"] == {"speed": None}
    for entries in summary["families"]["arm_reach"]["splits"].values():
        entries[0]["normalised"] = None
    write_summary(tmp_path / "s.json", summary)
    write_report(tmp_path / "r.html", [run], summary)


def test_no_result_is_refused() -> None:
    with pytest.raises(ValueError, match="arm_reach: there is no scored episode"):
        summary_of(FamilyRun("arm_reach", "00", {0: []}, {}, {}))


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "s.json"
    write_summary(path, {"old": 1})

    def fail(*_: object) -> None:
        raise OSError("disk is full")

    with pytest.raises(ValueError):
        write_summary(path, {"new": math.nan})
    monkeypatch.setattr("spc_core.system.atomic_files.os.replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_summary(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1} and list(path.parent.iterdir()) == [path]


def test_params_that_tell_tasks_apart() -> None:
    for family, wanted in (("arm_reach", ["angle"]), ("arm_payload", ["payload", "strength"])):
        all_tasks = [*tasks(family, "id"), *tasks(family, "ood")]
        assert varying_params([t.params for t in all_tasks], [t.split for t in all_tasks]) == wanted
    assert varying_params([{"a": 1.0}, {"a": 1.0}], ["id", "id"]) == []


def test_a_missing_cell_of_an_unfinished_trial_is_nan() -> None:
    grid = cell_grid({(1, "b"): 4.0, (1, "a"): 2.0, (0, "a"): 1.0})
    assert grid[0].tolist() == [4.0, 2.0] and math.isnan(grid[1, 0]) and grid[1, 1] == 1.0


def test_projection_keeps_plane_distances() -> None:
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(20, 2)) @ np.linalg.qr(rng.normal(size=(5, 2)))[0].T
    flat, shares = project(plane + 3)
    assert shares.sum() == pytest.approx(1) and shares[0] > shares[1] > 0
    np.testing.assert_allclose(np.linalg.norm(flat[0] - flat, axis=1), np.linalg.norm(plane[0] - plane, axis=1))
    flat, shares = project(np.ones((4, 1)))
    assert flat.shape == (4, 2) and not flat.any() and not shares.any()


def test_figures_show_the_right_rows(runs: list[FamilyRun]) -> None:
    run = runs[1]
    few = [p for p in points_of(run, 0) if p.kind == "few_shot"]
    assert len(few) == 20  # one frozen context for each task, at the largest K only
    figure = context_space(replace(run, task_means={0: [({"payload": 0.5, "strength": 1.0}, [0.0] * 5)]}))
    assert figure is not None and {"coloraxis", "coloraxis2"} <= set(figure.to_dict()["layout"])
    means = [trace.y for trace in adaptation_curve(run).data if trace.name == "mean over tasks and seeds"]
    scores = {(s.split, s.protocol, s.k): s.mean for s in score(run.results, run.experts)}
    wanted = [("no_context", 0), ("few_shot", 10), ("few_shot", 50), ("few_shot", 200)]
    for split, line in zip(("id", "ood"), means, strict=True):
        assert list(line) == pytest.approx([scores[(split, *point)] for point in wanted])
    experts = [trace.y for trace in task_bars(run).data if trace.name == "expert"]
    assert float(np.mean(experts[0])) == pytest.approx(scores["id", "expert", 0])


def test_losses_with_gaps(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("update,seconds,v,q\n10,1.0,2.0,nan\n20,2.0,0.05,1.5\n30,3.0\n")
    figure = training_curves(FamilyRun("point", "00", {}, {}, {0: path, 1: tmp_path / "absent.csv"}))
    assert figure is not None
    assert [list(trace.y) for trace in figure.data] == [[2.0, 0.05, None], [None, 1.5, None]]
    assert figure.layout.yaxis.type == "log" and figure.layout.yaxis2.type is None
    assert log_ticks(0.04, 3.0) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1, 2])
