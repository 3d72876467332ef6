# SPDX-License-Identifier: Apache-2.0
"""The trial's order of episodes, by a driver that only counts."""

from __future__ import annotations

import dataclasses
import json

import pytest

from spc_core.trials.protocol import COLLECT, EpisodeResult, Trial, TrialError
from support.counting_driver import STEPS, TASKS, Counting


def run(trial: Trial, driver: Counting) -> list[EpisodeResult]:
    for request in trial.requests():
        trial.record(request, driver.run(request))
    return trial.results


def test_protocols_of_a_task() -> None:
    driver = Counting()
    trial = Trial(TASKS, episodes=2, seed=7, few_shot_sizes=(50, 10))
    results = run(trial, driver)
    first = [(r.protocol, r.k, r.mode, r.limit, r.reset_context, r.seed) for r in driver.requests[:10]]
    assert first == [
        ("no_context", 0, "frozen", None, True, 7),
        ("no_context", 0, "frozen", None, False, 8),
        ("zero_shot", 0, "online", None, True, 7),
        ("zero_shot", 0, "online", None, True, 8),
        (COLLECT, 50, "collect", 50, True, 10_007),
        (COLLECT, 50, "collect", 50, False, 10_008),
        ("few_shot", 50, "frozen", None, False, 7),
        ("few_shot", 50, "frozen", None, False, 8),
        (COLLECT, 10, "collect", 10, True, 10_007),
        ("few_shot", 10, "frozen", None, False, 7),
    ]
    assert sum(result.scored for result in results) == len(trial) == 2 * 4 * 2
    counts = {(r.protocol, r.k): r.context_count for r in results if r.scored}
    assert counts == {
        ("no_context", 0): 0, ("zero_shot", 0): STEPS, ("few_shot", 50): 50, ("few_shot", 10): 10,
    }  # fmt: skip
    assert [r.task_id for r in results] == sorted(r.task_id for r in results)


def test_offline_asks_for_recordings_once_for_each_task() -> None:
    driver = Counting()
    run(Trial(TASKS, protocols=["offline"], episodes=2), driver)
    asked = [(r.task.task_id[-2:], r.protocol, r.k, r.mode, r.reset_context) for r in driver.requests]
    assert asked == [(t, "offline", 0, "frozen", first) for t in ("00", "01") for first in (True, False)]


def test_every_task_starts_from_the_prior() -> None:
    driver = Counting()
    run(Trial(TASKS, protocols=["few_shot"], episodes=1, few_shot_sizes=(5,)), driver)
    assert [r.reset_context for r in driver.requests] == [True, False, True, False]


def test_rows_survive_json() -> None:
    (result,) = run(Trial(TASKS[:1], protocols=["no_context"], episodes=1), Counting())
    assert EpisodeResult.from_json(result.to_json()) == result
    assert (result.split, result.params, result.return_) == ("id", {"mass": 1.0}, 0.0)
    assert result.uncertainty == [0.5, 0.25]
    old = json.loads(result.to_json())
    del old["uncertainty"]  # as in rows written before there was one
    assert EpisodeResult.from_json(json.dumps(old)) == dataclasses.replace(result, uncertainty=())


def test_collection_without_transitions_gives_up() -> None:
    with pytest.raises(TrialError, match="no transition was added in 3 collection episodes"):
        run(Trial(TASKS, protocols=["few_shot"]), Counting(steps=0))


def test_results_must_be_recorded() -> None:
    requests = Trial(TASKS, protocols=["few_shot"]).requests()
    next(requests)
    with pytest.raises(TrialError, match="record"):
        next(requests)


@pytest.mark.parametrize(
    ("given", "says"),
    [({"protocols": ["one_shot"]}, "'one_shot' is unknown"), ({"few_shot_sizes": [-1]}, "at least 0")],
)
def test_refusals(given: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Trial(TASKS, **given)
