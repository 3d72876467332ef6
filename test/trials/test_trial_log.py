# SPDX-License-Identifier: Apache-2.0
"""A trial that crashes anywhere resumes to the same result; and requests to a running trial."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spc_core.trials.control import TrialControl
from spc_core.trials.log import EPISODES, TrialLog, read_rows
from spc_core.trials.protocol import ATTEMPTS, COLLECT, EpisodeRequest, Outcome, Trial, TrialError, in_order
from support.counting_driver import TASKS, Counting

PLAN = {"tasks": ["a"], "seed": 3}


class Crash(Exception):
    """The process ends here."""


def make_trial() -> Trial:
    return Trial(TASKS, episodes=2, seed=3, few_shot_sizes=(0, 50, 10), shuffle=True)


def run(folder: Path, driver: Counting, crash_at: int | None = None, half_line: bool = False) -> Trial:
    """Run a trial as the node does; `crash_at`: rows written before it ends during the next step."""
    trial, log = make_trial(), TrialLog(folder)
    log.open(trial, PLAN, recorded=False)
    for written, request in enumerate(trial.requests()):
        row = trial.record(request, driver.run(request))
        if written == crash_at:
            if half_line:
                with log.path.open("a") as file:
                    file.write(row.to_json()[:-7])
            raise Crash
        log.append(row)
    return trial


def key(row) -> tuple:
    return (*row.block, row.protocol, row.episode, row.seed, row.return_, row.context_count)


@pytest.mark.parametrize("half_line", [False, True])
def test_a_crash_at_any_step_changes_no_result(tmp_path: Path, half_line: bool) -> None:
    complete = [key(row) for row in in_order(run(tmp_path / "complete", Counting()).results)]
    steps = len(complete)
    assert steps == 2 * (2 + 2 + 2 + (2 + 2) + (1 + 2)), "two tasks; 50 transitions take two episodes of 40"
    for step in range(steps):
        folder = tmp_path / str(step)
        with pytest.raises(Crash):
            run(folder, Counting(), step, half_line)
        run(folder, Counting())  # a new driver: the earlier context is lost
        assert [key(row) for row in in_order(read_rows(folder / EPISODES))] == complete


def test_only_a_few_shot_block_without_its_end_is_done_again(tmp_path: Path) -> None:
    order = [block.key for block in make_trial().blocks()]
    rows = run(tmp_path / "complete", Counting()).results
    index = next(i for i, row in enumerate(rows) if row.block[1:] == ("few_shot", 50) and row.scored) + 1
    with pytest.raises(Crash):
        run(tmp_path / "cut", Counting(), index)
    driver = Counting()
    run(tmp_path / "cut", driver)
    first = driver.requests[0]
    assert (first.protocol, first.k, first.episode, first.reset_context) == (COLLECT, 50, 0, True)
    assert len(driver.requests) == len(rows) - index + 3  # two of collection, one scored
    again = read_rows(tmp_path / "cut" / "abandoned.jsonl")
    assert {row.block for row in again} == {rows[index].block} and len(again) == 3
    assert order != sorted(order), "the order is shuffled"
    assert order == [block.key for block in make_trial().blocks()], "but the seed decides it"


def test_another_trials_folder_is_refused(tmp_path: Path) -> None:
    run(tmp_path, Counting())
    with pytest.raises(TrialError, match=r"holds another trial; choose another --out[\s\S]*seed: 3 there, 4 here"):
        TrialLog(tmp_path).open(make_trial(), {**PLAN, "seed": 4}, recorded=False)
    (tmp_path / "plan.json").unlink()
    with pytest.raises(TrialError, match="episodes of an unknown trial"):
        TrialLog(tmp_path).open(make_trial(), PLAN, recorded=False)


def test_a_row_without_its_bag_is_done_again_and_a_bag_without_a_row_is_set_aside(tmp_path: Path) -> None:
    class Recording(Counting):
        def run(self, request: EpisodeRequest) -> Outcome:
            outcome = super().run(request)
            bag = tmp_path / "elsewhere" / "bags" / f"{len(self.requests):04d}"  # the folder was moved since
            (tmp_path / "bags" / bag.name).mkdir(parents=True)
            return Outcome(outcome.return_, 1, [], 0, bag=str(bag))

    trial = Trial(TASKS[:1], ["zero_shot"], episodes=3)
    log = TrialLog(tmp_path)
    log.open(trial, PLAN, recorded=True)
    driver = Recording()
    for request in trial.requests():
        log.append(trial.record(request, driver.run(request)))
    (tmp_path / "bags" / "0002").rmdir()
    (tmp_path / "bags" / ".0004.recording").mkdir()
    (tmp_path / "bags" / "0009").mkdir()
    moved = log.set_aside_orphan_bags(read_rows(log.path))
    assert [path.name for path in moved] == [".0004.recording", "0009"] and all(path.is_dir() for path in moved)
    again = Trial(TASKS[:1], ["zero_shot"], episodes=3)
    assert log.open(again, PLAN, recorded=True) == 2
    assert [request.episode for request in one_by_one(again)] == [1]


def one_by_one(trial: Trial) -> list[EpisodeRequest]:
    driver = Counting()
    for request in trial.requests():
        trial.record(request, driver.run(request))
    return driver.requests


def test_damage_in_the_middle_names_the_line(tmp_path: Path) -> None:
    run(tmp_path, Counting())
    lines = (tmp_path / EPISODES).read_text().splitlines(keepends=True)
    (tmp_path / EPISODES).write_text("".join([*lines[:2], "{]\n", *lines[3:]]))
    with pytest.raises(TrialError, match=r"episodes.jsonl, line 3: .*delete that line"):
        read_rows(tmp_path / EPISODES)


class Aborting(Counting):
    """Aborts the first `times` scored episodes."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def run(self, request: EpisodeRequest) -> Outcome:
        outcome = super().run(request)
        if request.protocol == COLLECT or len(self.requests) > self.times:
            return outcome
        return Outcome(-1.0, 3, [], self.count, aborted="emergency stop")


def test_an_aborted_episode_is_repeated_and_does_not_score() -> None:
    trial, driver = Trial(TASKS[:1], ["no_context"], episodes=2), Aborting(2)
    for request in trial.requests():
        trial.record(request, driver.run(request))
    assert [(r.episode, r.aborted, r.scored) for r in trial.results] == [
        (0, "emergency stop", False), (0, "emergency stop", False), (0, "", True), (1, "", True),
    ]  # fmt: skip
    row = json.loads(trial.results[0].to_json())
    assert row["aborted"] == "emergency stop" and row["success"] is None


def test_an_episode_that_never_works_ends_the_trial_with_its_reason() -> None:
    trial, driver = Trial(TASKS[:1], ["no_context"], episodes=2), Aborting(99)
    with pytest.raises(TrialError, match=r"aborted 5 times in a row, most recently by: emergency stop"):
        for request in trial.requests():
            trial.record(request, driver.run(request))
    assert len(driver.requests) == ATTEMPTS == 5


def test_no_operator_no_questions() -> None:
    control = TrialControl()
    assert control.waits_for == ""
    control.begin()
    control.end(judged=True)
    assert control.phase == "between" and control.success is None
    assert control.ready() == (False, "this trial runs without an operator; set the parameter operator")
    assert control.judge(True)[0] is False and control.resume()[0] is False


def test_the_operator_is_asked_before_and_after() -> None:
    problem = ["is off"]
    control = TrialControl(operator=True, problem=lambda: problem[0])
    assert control.waits_for == "the robot, which is off" and control.ready() == (False, "the robot is off")
    problem[0] = ""
    assert "continue" in control.waits_for
    with pytest.raises(RuntimeError, match="cannot start now"):
        control.begin()
    assert control.ready()[0] and not control.ready()[0] and control.waits_for == ""
    control.begin()
    assert control.judge(True)[0] is False, "not while it runs"
    control.end(judged=True)
    assert "success" in control.waits_for
    assert control.judge(False)[0] and control.success is False
    assert "continue" in control.waits_for, "asked again for each episode"
    control.ready()
    control.begin()
    control.end(judged=False)
    assert control.phase == "between" and control.success is None, "collection is not judged"


def test_pause_lets_the_episode_end_and_blocks_the_next() -> None:
    control = TrialControl()
    control.begin()
    assert control.pause() == (True, "the trial pauses when this episode has ended")
    assert control.invalid_reason == "" and control.waits_for == ""
    control.end(judged=True)
    assert "paused" in control.waits_for
    assert control.resume() == (True, "running") and control.waits_for == ""
    assert control.pause() == (True, "paused")
    control.abort()
    assert control.aborted and control.pause()[0] is False


def test_emergency_stop_invalidates_the_episode_and_blocks_until_released() -> None:
    control = TrialControl(operator=True)
    control.ready()
    control.begin()
    control.emergency_stop(True)
    control.emergency_stop(False)  # released at once: the episode stays invalid
    assert control.invalid_reason == "emergency stop"
    control.end(judged=True)
    assert control.phase == "between", "nobody is asked about an episode that does not count"
    control.ready()
    control.emergency_stop(True)
    assert "release" in control.waits_for and control.ready() == (
        False, "the emergency stop is pressed; release it first",
    )  # fmt: skip
    control.emergency_stop(False)
    assert "continue" in control.waits_for, "the robot may have been moved since"
