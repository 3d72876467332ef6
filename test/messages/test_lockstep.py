# SPDX-License-Identifier: Apache-2.0
"""A command without a stamp answers the oldest state that has none."""

from __future__ import annotations

from spc_ros.messages.lockstep import EPISODE_GAP_NS, MOST, AnswerTimes

STEP_NS = 20_000_000


def test_each_command_answers_its_own_state_however_late_it_comes():
    answers = AnswerTimes()
    for t_ns in (1 * STEP_NS, 2 * STEP_NS, 3 * STEP_NS):
        answers.state(t_ns)
    assert [answers.answer_ns() for _ in range(3)] == [1 * STEP_NS + 1, 2 * STEP_NS + 1, 3 * STEP_NS + 1]


def test_a_command_too_many_has_no_state():
    answers = AnswerTimes()
    assert answers.answer_ns() is None
    answers.state(STEP_NS)
    assert answers.answer_ns() == STEP_NS + 1
    assert answers.answer_ns() is None


def test_another_episode_needs_no_answers_of_the_last_one():
    later, earlier = AnswerTimes(), AnswerTimes()
    for answers in (later, earlier):
        answers.state(10 * STEP_NS)
    later.state(10 * STEP_NS + EPISODE_GAP_NS)
    earlier.state(STEP_NS)
    assert later.answer_ns() == 10 * STEP_NS + EPISODE_GAP_NS + 1
    assert earlier.answer_ns() == STEP_NS + 1


def test_states_that_nobody_answers_do_not_pile_up():
    answers = AnswerTimes()
    for i in range(3 * MOST):
        answers.state((i + 1) * STEP_NS)
    count = 0
    while answers.answer_ns() is not None:
        count += 1
    assert count == MOST
