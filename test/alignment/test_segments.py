# SPDX-License-Identifier: Apache-2.0
"""Which stretch of a recording is an episode, and how its segments end; times in periods of 20 ms."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from spc_core.alignment.batch.aligner import Ticks
from spc_core.alignment.episode import EpisodeSpan, Segment, episode_span, marker_spans, split_ticks
from spc_core.alignment.episode_rewards import episode_rewards
from spc_core.alignment.faults import Fault, FaultKind
from spc_core.contract.sections import Segments
from support.contracts import ARM_REACH, make_contract
from support.recorded_bags import episode_info

MS = 1_000_000
PERIOD_NS = 20 * MS
NO_COMMAND = Fault(FaultKind.NO_COMMAND, "commands")
STALE = Fault(FaultKind.STALE, "states", 0, amount_ns=80 * MS, limit_s=0.05)
ENDED = Fault(FaultKind.RECORDING_ENDED)


def ticks(reasons: str, t: list[int] | None = None) -> Ticks:
    """A letter for each tick: s the start of a sequence, w whole, m no command, g stale. Times count periods."""
    codes = np.array(["wsmg".index(letter) for letter in reasons], np.int32)
    n = len(codes)
    times = np.array(t if t is not None else range(n), np.int64) * PERIOD_NS
    nothing = np.zeros((n, 4)), np.zeros((n, 2)), np.zeros(n), np.zeros(n, np.int64)
    return Ticks(times, *nothing, codes, (None, Fault(FaultKind.START), NO_COMMAND, STALE))


def test_an_episodes_first_step_has_no_command_before_wherever_it_begins():
    """Commands rise by 1, of 10; the second episode begins while commands go on, the third behind its time limit."""
    smooth = {"smooth": {"kind": "smoothness", "of": ["effort.shoulder"], "shape": "absolute", "scale": 0.1}}
    wanted = make_contract({"action.high": [10, 10], "action.low": [-10, -10]}, reward={"terms": smooth})
    wanted = dataclasses.replace(wanted, segments=Segments(limit_s=0.08))
    found = ticks("swwwwwwwwwww")
    actions = np.column_stack([np.arange(12.0), np.zeros(12)])
    rewards = np.array([np.nan, 0, *[-1.0] * 10])
    found = dataclasses.replace(found, observations=np.zeros((12, 2)), actions=actions, rewards=rewards)
    spans = [EpisodeSpan(0, 2 * PERIOD_NS), EpisodeSpan(4 * PERIOD_NS, 11 * PERIOD_NS)]
    segmentation = split_ticks(found, spans, wanted)
    own = episode_rewards(found, segmentation, wanted)
    parts = [own[segment.first + 1 : segment.last + 1].tolist() for segment in segmentation.segments]
    assert parts == [[0, -1], [0, -1, -1, -1], [-1, -1, -1]]
    assert found.rewards[5] == -1, "the ticks are as they were"


def contract(**segments):
    return dataclasses.replace(ARM_REACH, segments=Segments(**segments))


def segmented(reasons, spans=None, t=None, **segments):
    return split_ticks(ticks(reasons, t), spans or [EpisodeSpan()], contract(**segments))


def test_a_gap_parts_two_pieces_and_its_lost_ticks_are_counted():
    found = segmented("swwmwggsww")
    assert found.segments == (
        Segment(0, 2, 0, False, False, NO_COMMAND),
        Segment(3, 4, 0, False, False, STALE),
        Segment(7, 9, 0, False, False, ENDED),
    )
    assert found.dropped == {"commands: no command in the period": 1, "states: stale": 2}
    assert found.cuts[:2] == ((3 * PERIOD_NS, NO_COMMAND), (5 * PERIOD_NS, STALE))


def test_a_window_holds_the_transitions_that_begin_and_end_in_it():
    span = EpisodeSpan(2 * PERIOD_NS, 5 * PERIOD_NS, terminated=True, cut=None)
    assert segmented("swwwwwww", [span]).segments == (Segment(2, 5, 0, True, False, None),)


def test_nothing_is_known_of_an_end_that_was_not_recorded():
    span = EpisodeSpan(0, 9 * PERIOD_NS, truncated=True, cut=None)
    (segment,) = segmented("swwww", [span]).segments
    assert (segment.truncated, str(segment.cut)) == (False, "no data at the end of the episode, 0.10 s of it")


def test_a_pause_may_be_what_parts_episodes():
    times = [0, 1, 2, 3, 40, 41, 42, 43, 60, 61]
    found = segmented("swwgswwgsw", t=times, by="gap", gap_s=0.7)
    ends = [(segment.truncated, segment.cut) for segment in found.segments]
    assert ends == [(True, None), (False, STALE), (False, ENDED)]


def test_a_time_limit_truncates_and_the_rest_keeps_its_end():
    span = EpisodeSpan(terminated=True, cut=None)
    found = segmented("swwwwwww", [span], limit_s=0.06)  # three periods
    assert [(p.first, p.last, p.truncated, p.terminated) for p in found.segments] == [
        (0, 3, True, False),
        (3, 6, True, False),
        (6, 7, False, True),
    ]


def test_an_episode_as_long_as_the_limit_is_left_whole():
    (segment,) = segmented("swww", [EpisodeSpan(terminated=True, cut=None)], limit_s=0.06).segments
    assert (segment.first, segment.last, segment.terminated) == (0, 3, True)


def test_every_transition_inside_is_in_one_piece():
    random = np.random.default_rng(3)
    for _ in range(200):
        reasons = "s" + "".join(random.choice(list("wwwwmg"), 40))
        for at in range(1, len(reasons)):  # a sequence that was broken off starts again
            if reasons[at - 1] == "g" and reasons[at] in "wm":
                reasons = reasons[:at] + "s" + reasons[at + 1 :]
        found = segmented(reasons, limit_s=float(random.choice([math.inf, 0.1])))
        used = [tick for segment in found.segments for tick in range(segment.first + 1, segment.last + 1)]
        assert used == [i for i, letter in enumerate(reasons) if letter == "w"]
        assert sum(found.dropped.values()) == reasons.count("m") + reasons.count("g")


def test_markers_give_windows_while_they_are_on():
    on = marker_spans([10, 20, 30, 40, 50, 60, 70], [0.0, 1.0, 1.0, 0.0, 2.0, 3.0, 3.0])
    assert [(w.begin_ns, w.end_ns, w.truncated) for w in on] == [
        (20, 39, True),
        (50, 59, True),
        (60, math.inf, False),
    ]
    assert on[-1].cut == Fault(FaultKind.EPISODE_UNFINISHED)
    assert [w.begin_ns for w in marker_spans([1, 2, 3], ["", "pick", ""])] == [2]
    assert marker_spans([1, 2], [0.0, 0.0]) == []


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({}, (False, True, None)),
        ({"terminated": True}, (True, False, None)),
        ({"truncated": False, "reason": "operator left"}, (False, False, "episode given up, operator left")),
        ({"state": "running"}, (False, False, "the recording ended while the episode ran")),
    ],
)
def test_the_window_that_the_robot_tells_of(changes, end):
    info = episode_info(10, **changes)
    span = episode_span(info, PERIOD_NS)
    assert (span.terminated, span.truncated, span.cut and str(span.cut)) == end
    assert span.begin_ns == info.start_ns - PERIOD_NS // 2
    assert (span.task_id, span.params) == ("arm_reach/train/00", {"angle": 0.5})
