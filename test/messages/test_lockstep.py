# SPDX-License-Identifier: Apache-2.0
"""A command without a stamp answers the oldest state that has none, or the next one."""

from __future__ import annotations

from spc_ros.messages.lockstep import EARLY_S, EPISODE_GAP_NS, MOST, AnswerTimes

STEP_NS = 20_000_000


def test_each_command_answers_its_own_state_however_late_it_comes() -> None:
    answers = AnswerTimes[int]()
    assert all(answers.state(k * STEP_NS, 0.0) == [] for k in (1, 2, 3))
    assert [answers.time_ns(k, 0.0) for k in (1, 2, 3)] == [k * STEP_NS + 1 for k in (1, 2, 3)]


def test_a_command_that_comes_before_its_state_waits_for_it() -> None:
    """And the ones after it keep to their own states."""
    answers = AnswerTimes[int]()
    answers.state(STEP_NS, 0.0)
    assert answers.time_ns(1, 0.0) == STEP_NS + 1
    assert answers.time_ns(2, 0.0) is None and answers.time_ns(3, 0.0) is None
    assert answers.state(2 * STEP_NS, 9.0) == [(2 * STEP_NS + 1, 2)]
    assert answers.state(3 * STEP_NS, 9.0) == [(3 * STEP_NS + 1, 3)]
    assert answers.state(4 * STEP_NS, 9.0) == []
    assert answers.time_ns(4, 9.0) == 4 * STEP_NS + 1


def test_another_episode_needs_no_answers_of_the_last_one() -> None:
    for first_ns in (10 * STEP_NS + EPISODE_GAP_NS, STEP_NS):
        answers = AnswerTimes[int]()
        answers.state(10 * STEP_NS, 0.0)
        answers.state(first_ns, 0.0)
        assert answers.time_ns(0, 0.0) == first_ns + 1


def test_what_was_sent_between_the_episodes_answers_no_state_and_what_came_just_before_does() -> None:
    for waited_s, found in ((2 * EARLY_S, []), (EARLY_S / 2, [(EPISODE_GAP_NS + 2 * STEP_NS + 1, 7)])):
        answers = AnswerTimes[int]()
        answers.state(STEP_NS, 0.0)
        assert answers.time_ns(1, 0.0) == STEP_NS + 1
        assert answers.time_ns(7, 1.0) is None
        assert answers.state(EPISODE_GAP_NS + 2 * STEP_NS, 1.0 + waited_s) == found


def test_states_that_nobody_answers_do_not_pile_up() -> None:
    answers = AnswerTimes[int]()
    for i in range(3 * MOST):
        answers.state((i + 1) * STEP_NS, 0.0)
    answered = [answers.time_ns(i, 0.0) for i in range(MOST)]
    assert answered == [(2 * MOST + i + 1) * STEP_NS + 1 for i in range(MOST)]
    assert answers.time_ns(0, 0.0) is None
