# SPDX-License-Identifier: Apache-2.0
"""The vote model learnt from tasks whose votes depend on where the robot is: changes are seen, its way is not."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from spc_core.deploy.change_detector import ChangeDetector
from spc_core.deploy.checkpoint import load_checkpoint
from spc_core.deploy.checkpoint_files import weights_sha256
from spc_core.deploy.context_tracker import ContextTracker
from spc_core.deploy.deployable import load_deployed
from spc_core.deploy.vote_model import COUNTS, VoteModel, save_vote_model
from spc_core.training.vote_fit import TaskVotes, count_alarms, directions, fit_vote_model, mean_errors
from spc_ros.cli import main
from support.plain_votes import plain_model


def recorded(angle: float, count: int, seed: int) -> TaskVotes:
    """Votes swing by more than tasks differ, along with the robot, which moves slowly; the noise is small."""
    rng = np.random.default_rng(seed)
    place = 1.5 * np.sin(np.arange(count) / 30 + rng.uniform(0, 6)) + 0.1 * rng.standard_normal(count)
    task = np.array([np.cos(angle), np.sin(angle)])
    votes = task + np.outer(np.tanh(place), [1.5, -1.5]) + 0.05 * rng.standard_normal((count, 2))
    return TaskVotes(place[:, None], rng.uniform(-1, 1, (count, 1)), votes)


@pytest.fixture(scope="module")
def model() -> VoteModel:
    tasks = [recorded(angle, 800, number) for number, angle in enumerate(np.arange(10) * 2 * np.pi / 10)]
    return fit_vote_model(tasks, "", seed=0, updates=400)


def alarms(model: VoteModel, *parts: TaskVotes) -> list[int]:
    detector, found = ChangeDetector(model), []
    for part in parts:
        found += [detector.update(*row) for row in zip(part.observations, part.actions, part.embeddings, strict=True)]
    return np.flatnonzero(found).tolist()


def test_a_change_is_seen_soon_and_motion_is_none(model: VoteModel) -> None:
    """On tasks between those learnt from."""
    for number, angle in enumerate((0.3, 1.6, 3.5, 5.2)):
        before, after = recorded(angle, 2_000, 50 + number), recorded(angle + np.pi, 300, 60 + number)
        assert alarms(model, before) == []
        (at,) = alarms(model, before, after)
        assert 2_000 < at < 2_030, angle


def test_the_fit_repeats_and_leaves_no_trace_in_the_random_state() -> None:
    import torch

    tasks = [recorded(angle, 300, number) for number, angle in enumerate((0.0, 2.0, 4.0))]
    before = torch.get_rng_state()
    one, two = (fit_vote_model(tasks, "", seed=3, updates=5).to_dict() for _ in range(2))
    assert one == two and torch.equal(before, torch.get_rng_state())


def test_alarms_are_counted_as_one_detector_after_the_other_finds_them(model: VoteModel) -> None:
    """Tasks of different lengths, with a change and without one, and an hour of 180,000 votes."""
    parts = [(recorded(0.3, 400, 1), recorded(3.4, 200, 2)), (recorded(1.6, 300, 3), recorded(1.6, 50, 4))]
    tasks = [
        TaskVotes(
            *(np.concatenate([getattr(part, name) for part in pair]) for name in ("observations", "actions", "votes"))
        )
        for pair in parts
    ]
    found = [alarms(model, task) for task in tasks]
    assert [len(one) for one in found] == [1, 0]
    assert count_alarms(model, tasks).hour_alarms == 180_000 / 950


def test_directions_are_those_in_which_tasks_differ() -> None:
    means = np.array([[0.0, 5.0, 1.0], [2.0, 5.0, 1.0], [4.0, 5.0, 1.001]])
    centre, basis = directions(means)
    np.testing.assert_allclose(centre, means.mean(0))
    assert basis.shape == (3, 1)
    np.testing.assert_allclose(np.std((means - centre) @ basis, ddof=1), 1.0, rtol=1e-3)


def test_errors_of_means_by_hand() -> None:
    """White noise: 95 % lie within 1.96 sigma / sqrt(n). Beyond half a recording the last known error holds."""
    rng = np.random.default_rng(0)
    tasks = [TaskVotes(np.zeros((4_000, 1)), np.zeros((4_000, 1)), rng.standard_normal((4_000, 2))) for _ in range(4)]
    errors = mean_errors(tasks)
    assert errors.shape == (len(COUNTS), 2)
    for row, count in list(zip(errors, COUNTS, strict=True))[:7]:
        np.testing.assert_allclose(row, 1.96 / 2 / np.sqrt(count), rtol=0.15)
    short = mean_errors([dataclasses.replace(task, votes=task.votes[:100]) for task in tasks])
    np.testing.assert_array_equal(short[-1], short[5])


def test_votes_with_weights_are_fitted_by_what_they_add_to_z() -> None:
    """Every second vote is noise of little weight: without weights it would hide a change, or look like one."""

    def with_noise(angle: float, count: int, seed: int) -> TaskVotes:
        task, rng = recorded(angle, count, seed), np.random.default_rng(seed)
        weights = np.where(np.arange(count) % 2, 2.0, 1e-3)[:, None] * np.ones(2)
        noise = 5 * rng.standard_normal((count, 2))
        return TaskVotes(task.observations, task.actions, np.where(weights < 1, noise, task.votes), weights)

    tasks = [with_noise(angle, 600, number) for number, angle in enumerate(np.arange(10) * 2 * np.pi / 10)]
    plain = [recorded(angle, 600, number) for number, angle in enumerate(np.arange(10) * 2 * np.pi / 10)]
    np.testing.assert_allclose([t.mean for t in tasks], [t.votes[1::2].mean(0) for t in plain], atol=0.01)
    fitted = fit_vote_model(tasks, "", seed=0, updates=400)
    placed = [fitted.place(task.embeddings) for task in tasks]
    added = np.array([np.average(places, axis=0, weights=worth) for places, worth in placed])
    np.testing.assert_allclose(np.cov(added.T), np.eye(2), atol=0.01)  # tasks have unit spread
    before, after = with_noise(0.3, 1_000, 50), with_noise(0.3 + np.pi, 300, 60)
    assert alarms(fitted, before) == []
    (at,) = alarms(fitted, before, after)
    assert 1_000 < at < 1_060
    ones = [dataclasses.replace(task, weights=np.ones_like(task.votes)) for task in plain]
    one, other = (fit_vote_model(votes, "", seed=0, updates=5) for votes in (ones, plain))
    np.testing.assert_allclose(one.prior_mean, other.prior_mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(one.errors, other.errors)


def test_an_export_carries_the_vote_model_or_the_reason_why_not(tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed: pip install 'spc_ros[onnx]'")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'spc_ros[onnx]'")
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    assert main(["export", str(folder), "--format", "onnx", "--out", str(tmp_path / "without")]) == 0
    assert ContextTracker(load_deployed(tmp_path / "without")).detection.startswith("off: votes.json is missing")
    width = load_checkpoint(folder).networks().context_dim
    model = dataclasses.replace(
        plain_model(), input_mean=np.zeros(6), input_std=np.ones(6), hidden_weight=np.zeros((6, 1)),
        centre=np.zeros(width), basis=np.eye(width)[:, :1], errors=np.full((len(COUNTS), width), 0.5),
        weights=weights_sha256(folder),
    )  # fmt: skip
    save_vote_model(folder, model)
    assert ContextTracker(load_checkpoint(folder)).detection == "on"
    assert main(["export", str(folder), "--format", "onnx", "--out", str(tmp_path / "with")]) == 0
    deployed = load_deployed(tmp_path / "with")
    assert ContextTracker(deployed).detection == "on"
    assert deployed.vote_model is not None and deployed.vote_model.to_dict() == model.to_dict()
