# SPDX-License-Identifier: Apache-2.0
"""The description of a dataset: hand-worked numbers, every end separately, a page that needs no network."""

import dataclasses
import json
import re

import numpy as np
import pytest

from spc_core.data.dataset import DatasetError, DatasetWriter
from spc_core.data.describe import describe
from spc_core.data.reader import read_episodes
from spc_core.pages import describe_figures
from spc_core.pages.describe_figures import (
    at_limits,
    coverage,
    drawn_episodes,
    field_groups,
    lengths,
    returns,
    task_counts,
)
from spc_core.pages.describe_page import describe_page
from spc_ros.cli import main
from support.synthetic import POINT, episode

STALE = "joint_states: stale, {} ms old, allowed 50 ms"


def write(root, tasks=2):
    """Each task: a truncated episode of 4 steps by an expert, a terminated one of 10, and two of 6 that are cut."""
    rng = np.random.default_rng(0)
    with DatasetWriter(root, POINT) as writer:
        for task in range(tasks):
            made = [episode(rng, np.zeros(2), steps, steps == 10) for steps in (4, 10, 6, 6)]
            made[0] = dataclasses.replace(made[0], behaviour="expert", rewards=np.full(4, -0.5), source="bag 0")
            for number in (2, 3):
                made[number] = dataclasses.replace(made[number], truncated=False, cut=STALE.format(70 + number))
            for one in made:
                writer.add_episode(f"point/train/{task:02d}", {"goal": float(task)}, one)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "point")


def test_counts_by_hand(root):
    description = describe(root)
    assert [task.task_id for task in description.tasks] == ["point/train/00", "point/train/01"]
    for task in description.tasks:
        assert (task.episodes, task.transitions) == (4, 26)
        assert task.hours == pytest.approx(26 * 0.02 / 3600)
        assert task.ends == {"terminated": 1, "truncated": 1, "cut": 2}
        assert task.behaviours == {"": 3, "expert": 1}
        assert (task.lengths.low, task.lengths.median, task.lengths.high) == (4, 6, 10)
    assert description.whole.ends == {"terminated": 2, "truncated": 2, "cut": 4} and description.whole.transitions == 52
    assert description.cuts == {"joint_states: stale": 4} and description.sources == 2
    assert [line.return_ for line in description.episodes if line.behaviour] == [-2.0, -2.0]
    sums = [float(episode.rewards.sum()) for _, episode in read_episodes(root)]
    assert [line.return_ for line in description.episodes] == sums
    spread = description.tasks[1].returns
    assert (spread.low, spread.median, spread.high) == (min(sums[4:]), np.median(sums[4:]), max(sums[4:]))
    ends = [(task, sample.terminated, sample.truncated, sample.behaviour) for task, sample in description.samples]
    assert ends == [("point/train/00", False, True, "expert"), ("point/train/00", True, False, ""),
                    ("point/train/00", False, False, "")]  # fmt: skip


def test_spreads_are_those_of_all_the_data(root):
    """Observations are those that an action answered: o_T of an episode is left out."""
    description = describe(root)
    stored = [episode for _, episode in read_episodes(root)]
    seen = np.concatenate([episode.observations[:-1] for episode in stored])
    rewards = np.concatenate([episode.rewards for episode in stored])
    for values, spread in ((seen[:, 1], description.whole.observation[1]), (rewards, description.whole.reward)):
        quantiles = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95))
        wanted = [values.min(), *quantiles, values.max(), values.mean(), values.std()]
        np.testing.assert_allclose(dataclasses.astuple(spread), wanted)


def test_actions_at_and_beyond_limits(tmp_path):
    """Limits are -1..1 and -2..2. x: 3 of 8 at the upper limit, one of them beyond; y: 2 of 8 at the lower."""
    made = episode(np.random.default_rng(0), np.zeros(2), 8)
    x = [1.0, 1.0, 1.5, 0.999, 0.0, 0.0, 0.0, 0.0]
    y = [-2.0, -2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.999]
    made = dataclasses.replace(made, actions=np.column_stack([x, y]), rewards=np.ones(8))
    still = dataclasses.replace(made, observations=made.observations * [1.0, 0.0])
    with DatasetWriter(tmp_path / "point", POINT) as writer:
        writer.add_episode("a", {}, still)
    description = describe(tmp_path / "point")
    assert (
        description.whole.at_high == (0.375, 0.0)
        and description.whole.at_low == (0.0, 0.25)
        and description.whole.beyond == (0.125, 0.0)
    )
    assert description.notes() == [
        "observation joint_states.position.y never changes: training ignores it; record it where it does, "
        "or leave it out",
        "the reward is 1 in every transition: nothing can be learnt from it",
        "action velocity.x is beyond its limits in 12.50% of transitions",
        "action velocity.x is at a limit in 38% of transitions",
        "action velocity.y is at a limit in 25% of transitions",
    ]
    assert all(f"note: {note}" in description.text() for note in description.notes())
    np.testing.assert_array_equal(at_limits(description).data[0].z, [[0.0], [0.375], [0.25], [0.0]])


def test_figures_show_every_episode_and_every_end(root):
    description = describe(root)
    bars = {bar.name: list(bar.y) for bar in task_counts(description).data}
    assert bars == {"not known": [3, 3], "expert": [1, 1], "terminated": [10, 10], "truncated": [4, 4], "cut": [12, 12]}
    dots = {trace.name: len(trace.y) for trace in returns(description).data}
    assert dots == {"not known": 6, "expert": 2, "median": 2}
    assert {bar.name: sum(bar.y) for bar in lengths(description).data} == {"terminated": 2, "truncated": 2, "cut": 4}
    medians = [trace for trace in coverage(description).data if trace.name == "median"]
    assert len(medians) == 5  # two observed numbers, two actions, the reward
    assert list(medians[4].y) == [task.reward.median for task in description.tasks]
    groups = field_groups(["joints.position.a", "joints.position.b", "mass"], ["a", "joint.b"])
    assert groups == [
        ("joints.position", [("a", "observations", 0), ("b", "observations", 1)]),
        ("", [("mass", "observations", 2)]),
        ("action", [("a", "actions", 0)]),
        ("action.joint", [("b", "actions", 1)]),
        ("reward", [("reward", "rewards", 0)]),
    ]


def test_large_datasets_are_thinned_and_say_so(root, monkeypatch):
    monkeypatch.setattr(describe_figures, "MAX_TASKS", 1)
    monkeypatch.setattr(describe_figures, "MAX_POINTS", 3)
    monkeypatch.setattr("spc_core.pages.describe_page.MAX_TASKS", 1)
    monkeypatch.setattr("spc_core.pages.describe_page.MAX_POINTS", 3)
    description = describe(root)
    assert list(task_counts(description).data[0].x) == ["train/00"]
    assert max(len(trace.x) for trace in describe_figures.sample_episodes(description).data) == 3
    page = describe_page(description)
    assert "1 of 2 tasks are shown" in page and "Lines have at most 3 points" in page
    monkeypatch.setattr(describe_figures, "MAX_DOTS", 5)
    assert len(drawn_episodes(description, description.episodes)) == 5


def test_page_is_whole_and_needs_no_network(root, tmp_path):
    """Every figure is in it, names are escaped, and nothing is loaded; plotly.js itself names addresses in its code."""
    named = dataclasses.replace(describe(root), root=root.with_name("a<b"), cuts={"<script>": 1})
    page = describe_page(named)
    assert "a&lt;b" in page and "<script>:" not in page
    for name in ("counts", "returns", "lengths", "coverage", "limits", "samples"):
        assert f'id="{name}"' in page
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"(src|href)=|url\(|@import", markup) and len(markup) < 20_000
    assert "<script src" not in page
    for text in ("2 tasks, 8 episodes, 52 transitions", "2 terminated, 2 truncated, 4 cut"):
        assert text in markup


def test_command_line(root, tmp_path, capsys):
    page, numbers = tmp_path / "new" / "page.html", tmp_path / "numbers.json"
    assert main(["describe", str(root), "--html", str(page), "--json", str(numbers)]) == 0
    said = capsys.readouterr().out
    assert "2 tasks, 8 episodes, 52 transitions, 0.00 h, from 2 sources" in said
    assert "ends:       2 terminated, 2 truncated, 4 cut" in said and "cut 4 times: joint_states: stale" in said
    assert page.read_text().startswith("<!DOCTYPE html>")
    stored = json.loads(numbers.read_text())
    assert stored["tasks"][1]["params"] == {"goal": 1.0} and stored["whole"]["transitions"] == 52
    assert main(["describe", str(tmp_path / "nowhere")]) == 1
    assert "no such folder" in capsys.readouterr().err
    with pytest.raises(DatasetError):
        describe(tmp_path)
