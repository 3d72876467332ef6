# SPDX-License-Identifier: Apache-2.0
"""Changes of the task: the evidence by hand, a known change point, quiet without one, bounded cost; and the tracker."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from spc_core.deploy import change_detector
from spc_core.deploy.change_detector import LEARN, PENDING, SUSPICION, WARM, ChangeDetector
from spc_core.deploy.checkpoint import load_checkpoint
from spc_core.deploy.context_tracker import ContextTracker
from spc_core.deploy.vote_model import COUNTS, FILE, VoteModel, load_vote_model, save_vote_model
from support.plain_votes import NOISE, deployed, plain_model, transitions, votes_of, without_alarms

NOWHERE = np.zeros(1)


def feed(detector: ChangeDetector, votes: np.ndarray) -> list[int]:
    return [detector.update(NOWHERE, NOWHERE, vote) for vote in votes]


def test_the_evidence_by_hand() -> None:
    """A constant feature makes it the textbook posterior of a normal mean, with variance 1 before any vote."""
    detector = ChangeDetector(without_alarms(plain_model()))
    seen = votes_of(0.3, WARM)
    feed(detector, seen)
    assert detector.evidence == 0.0, "nothing is looked for before"
    vote = np.array([-0.8, 0.0])
    detector.update(NOWHERE, NOWHERE, vote)
    precision = 1 + WARM / NOISE
    mean = seen[:, 0].sum() / NOISE / precision

    def log_density(value: float, centre: float, variance: float) -> float:
        return -0.5 * (math.log(variance) + (value - centre) ** 2 / variance)

    known, unknown = log_density(-0.8, mean, NOISE + 1 / precision), log_density(-0.8, 0.0, NOISE + 1)
    assert detector.evidence == pytest.approx(math.log1p(unknown - known), rel=1e-6)
    feed(detector, np.array([[mean, 0.0]]))
    assert detector.evidence < math.log1p(unknown - known), "a vote that agrees is evidence against"


def test_a_known_change_is_found_with_its_place() -> None:
    detector = ChangeDetector(plain_model())
    assert sum(feed(detector, votes_of(1.0, 300))) == 0
    found = feed(detector, votes_of(-1.0, 40, seed=1))
    at = int(np.flatnonzero(found)[0])
    assert at < 10 and found[at] == at + 1, "exactly the votes since the change"
    assert np.count_nonzero(found) == 1, "and the new task is known now"
    assert sum(feed(detector, votes_of(-1.0, 500, seed=2))) == 0


def test_no_alarm_without_a_change_and_none_from_one_wild_vote() -> None:
    detector = ChangeDetector(plain_model())
    votes = votes_of(0.5, 20_000, seed=3)
    votes[5_000::1_000] = 50.0
    assert sum(feed(detector, votes)) == 0


def test_a_suspicion_comes_first_and_may_pass() -> None:
    detector = ChangeDetector(without_alarms(plain_model()))
    feed(detector, votes_of(1.0, 100))
    assert detector.suspected == 0
    feed(detector, votes_of(-1.0, 6, seed=1))
    assert detector.evidence > SUSPICION and detector.suspected == 6
    feed(detector, votes_of(1.0, 60, seed=2))
    assert detector.evidence == 0.0 and detector.suspected == 0


def test_time_and_memory_of_a_vote_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = ChangeDetector(without_alarms(plain_model()))
    learnt: list[int] = []
    learn = ChangeDetector._learn
    monkeypatch.setattr(ChangeDetector, "_learn", lambda self, *row: (learnt.append(1), learn(self, *row))[1])
    for number, vote in enumerate(np.concatenate([votes_of(m, 150, seed=3) for m in (1.0, -1.0, 2.0, -2.0)])):
        learnt.clear()
        detector.update(NOWHERE, NOWHERE, vote)
        assert len(learnt) <= LEARN and len(detector._pending) <= PENDING, number


def test_after_an_alarm_the_threshold_is_higher_for_a_while() -> None:
    """A robot in trouble raises one alarm, not ten."""
    detector = ChangeDetector(plain_model())
    feed(detector, votes_of(1.0, 100))
    restless = [vote for number in range(20) for vote in votes_of(-1.0 if number % 2 else 1.0, 12, seed=number)]
    with_caution = np.count_nonzero(feed(detector, np.array(restless)))
    change_detector_caution = change_detector.CAUTION
    try:
        change_detector.CAUTION = 0.0
        detector = ChangeDetector(plain_model())
        feed(detector, votes_of(1.0, 100))
        assert with_caution < np.count_nonzero(feed(detector, np.array(restless)))
    finally:
        change_detector.CAUTION = change_detector_caution


def test_a_vote_model_survives_its_file_and_fits_its_weights_only(tmp_path: Path) -> None:
    model = dataclasses.replace(plain_model(error=0.25), weights="abc", noise=np.array([np.float32(0.1)], float))
    save_vote_model(tmp_path, model)
    read = load_vote_model(tmp_path, "abc")
    assert isinstance(read, VoteModel)
    for field in dataclasses.fields(VoteModel):
        np.testing.assert_allclose(getattr(read, field.name), getattr(model, field.name), rtol=1e-6) if isinstance(
            getattr(model, field.name), np.ndarray
        ) else None
    assert "other weights" in str(load_vote_model(tmp_path, "def"))
    values = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**values, "format": 9}))
    assert "format 9, this program reads 1" in str(load_vote_model(tmp_path, "abc"))
    del values["noise"]
    (tmp_path / FILE).write_text(json.dumps(values))
    assert "'noise'" in str(load_vote_model(tmp_path, "abc"))
    (tmp_path / FILE).unlink()
    assert "is missing" in str(load_vote_model(tmp_path, "abc"))


def test_the_error_of_a_mean_between_two_known_counts() -> None:
    errors = np.linspace(1.0, 0.0, len(COUNTS))[:, None] * np.array([1.0, 2.0])
    model = dataclasses.replace(plain_model(), errors=errors)
    np.testing.assert_allclose(model.error_of_mean(4), errors[2])
    np.testing.assert_allclose(model.error_of_mean(4 * 2**0.5), (errors[2] + errors[3]) / 2)
    np.testing.assert_allclose(model.error_of_mean(1e9), errors[-1])
    np.testing.assert_allclose(model.error_of_mean(0.5), errors[0])


def run(tracker: ContextTracker, votes: np.ndarray, start_ns: int = 0) -> None:
    for transition in transitions(votes, start_ns):
        tracker.update(transition)


def test_the_context_goes_on_from_the_votes_since_the_change() -> None:
    tracker = ContextTracker(deployed(plain_model()))
    assert tracker.detection == "on"
    run(tracker, votes_of(1.0, 200))
    after = votes_of(-1.0, 15, seed=1)
    run(tracker, after)
    assert tracker.restarts == 1 and tracker.count == 15
    assert tracker.last_restart.startswith("the task changed: the last ") and "200 before" in tracker.last_restart
    np.testing.assert_allclose(tracker.context, after.mean(0), atol=1e-6)
    np.testing.assert_allclose(tracker.uncertainty, after.std(0, ddof=1) / np.sqrt(15), rtol=1e-5)
    tracker.reset()
    assert tracker.restarts == 1 and tracker.count == 0, "a reset on request is no restart"


def test_a_suspicion_shows_the_suspected_votes_and_takes_them_back() -> None:
    tracker = ContextTracker(deployed(without_alarms(plain_model(error=0.01))))
    first, odd, later = votes_of(1.0, 100), votes_of(-1.0, 6, seed=1), votes_of(1.0, 60, seed=2)
    run(tracker, first)
    run(tracker, odd)
    np.testing.assert_allclose(tracker.context, odd.mean(0), atol=1e-6)
    np.testing.assert_allclose(tracker.uncertainty, odd.std(0, ddof=1) / np.sqrt(6), rtol=1e-5)  # of six, not 106
    tracker.mode = "frozen"
    np.testing.assert_allclose(tracker.context, np.concatenate([first, odd]).mean(0), atol=1e-6)
    tracker.mode = "online"
    run(tracker, later)
    np.testing.assert_allclose(tracker.context, np.concatenate([first, odd, later]).mean(0), atol=1e-6)
    assert tracker.restarts == 0


def test_switched_off_it_is_the_mean_of_all() -> None:
    for tracker in (ContextTracker(deployed(plain_model())), ContextTracker(deployed(None))):
        tracker.detect_changes = tracker.detection != "on"
        votes = np.concatenate([votes_of(1.0, 100), votes_of(-1.0, 50, seed=1)])
        run(tracker, votes)
        np.testing.assert_allclose(tracker.context, votes.mean(0), atol=1e-6)
        assert tracker.restarts == 0 and tracker.count == 150
    assert tracker.detection == "off: votes.json is missing"
    tracker.detect_changes = False
    assert tracker.detection == "off: switched off"


def test_an_old_checkpoint_says_that_it_cannot(tiny_checkpoint: Path) -> None:
    assert ContextTracker(load_checkpoint(tiny_checkpoint)).detection.startswith("off: votes.json is missing: ")


def test_modes_limits_and_half_lives_hold_with_detection() -> None:
    tracker = ContextTracker(deployed(plain_model()))
    run(tracker, votes_of(1.0, 100))
    tracker.mode = "frozen"
    before = tracker.context
    run(tracker, votes_of(-1.0, 50, seed=1))
    np.testing.assert_array_equal(tracker.context, before)
    assert tracker.restarts == 0, "nothing is added, so nothing is noticed"
    tracker.mode, tracker.limit = "collect", 110
    run(tracker, votes_of(-1.0, 200, seed=1))
    assert tracker.restarts == 1 and tracker.count == 110, "after the change it collects on, up to the limit"
    tracker.mode, tracker.limit, tracker.half_life = "online", None, 5.0
    run(tracker, votes_of(1.0, 60, seed=2))
    assert tracker.restarts == 2
    np.testing.assert_allclose(tracker.context, votes_of(1.0, 60, seed=2)[-20:].mean(0), atol=0.15)


def test_the_same_votes_give_the_same_contexts() -> None:
    paths = []
    for _ in range(2):
        tracker = ContextTracker(deployed(plain_model()))
        votes = np.concatenate([votes_of(1.0, 80), votes_of(-1.0, 40, seed=1), votes_of(0.0, 40, seed=2)])
        path = []
        for transition in transitions(votes):
            tracker.update(transition)
            path.append(np.concatenate([tracker.context, tracker.uncertainty]))
        paths.append(np.array(path))
    np.testing.assert_array_equal(*paths)


def test_a_long_pause_begins_the_context_anew() -> None:
    tracker = ContextTracker(deployed(None))
    tracker.max_gap_s = 2.0
    run(tracker, votes_of(1.0, 10))
    run(tracker, votes_of(1.0, 10, seed=1), start_ns=2_180_000_000)  # 2.0 s after the last one
    assert tracker.count == 20 and tracker.restarts == 0
    run(tracker, votes_of(0.0, 5, seed=2), start_ns=10_000_000_000)
    assert tracker.count == 5 and tracker.last_restart == "no transition for 7.6 s"
    run(tracker, votes_of(0.0, 5, seed=2), start_ns=0)
    assert tracker.count == 10, "time that jumps back is the node's affair"
    tracker.max_gap_s = None
    run(tracker, votes_of(0.0, 5, seed=2), start_ns=10**15)
    assert tracker.count == 15 and tracker.restarts == 1
