# SPDX-License-Identifier: Apache-2.0
"""Alignment of samples into transitions, against cases worked out by hand."""

import heapq
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spc_core.alignment.faults import FaultKind
from spc_core.alignment.streaming import ObservationAligner, Step, StreamingAligner
from spc_core.contract.contract import Contract
from spc_core.contract.sections import ACTION, REWARD, observed
from spc_core.contract.transforms import JUMP_NS
from support.contracts import action_section, make_contract, stream_section

MS = 1_000_000
PATIENCE = 100 * MS
VECTOR = "geometry_msgs/msg/Vector3Stamped"
POSE, TARGET = observed(0), observed(1)
ROLES = {"pose": POSE, "target": TARGET, "push": ACTION, "reward": REWARD}


def cart(target_age_s: float) -> Contract:
    return make_contract(
        observation=[
            stream_section("pose", ["vector.x"], VECTOR),
            stream_section("target", ["vector.x"], VECTOR, target_age_s),
        ],
        action=action_section(["vector.x"], [9], [99], "push", VECTOR),
    )


NO_COMMAND = "push: no command in the period"
CART, LATCHED = cart(0.05), cart(math.inf)


HOLDING = make_contract({"action.hold": True}, base=CART)


def aligner(contract=CART, patience_ns=PATIENCE):
    return StreamingAligner(contract, patience_ns)


def feed(target, samples, flush=True):
    """Push (topic, ms, value) and return all steps."""
    steps: list[Step] = []
    for topic, t_ms, value in samples:
        steps += target.push(ROLES[topic], round(t_ms * MS), np.array([float(value)]))
    return steps + (target.flush() if flush else [])


def summary(steps):
    """Steps as plain values: (ms of o_k, o_k, a_k, r_k, o_{k+1}, ms of o_{k+1}), or (ms, reason of a cut)."""
    lines = []
    for step in steps:
        t = step.transition
        if t is None:
            lines.append((step.t_ns / MS, str(step.cut)))
        else:
            before, after = t.observation.tolist(), t.next_observation.tolist()
            lines.append((t.t_ns / MS, before, t.action.tolist(), t.reward, after, step.t_ns / MS))
    return lines


def lockstep(ticks, period_ms=20.0, start_ms=0.0):
    """pose = k, target = 100 + k, command 10 + k just after tick k, reward -k at the tick that it led to."""
    samples = []
    for k in range(ticks):
        t = start_ms + k * period_ms
        samples += [("pose", t, k), ("target", t, 100 + k)]
        if k:
            samples.append(("reward", t, -(k - 1)))
        samples.append(("push", t + 1e-6, 10 + k))
    return samples


def expected(k, period_ms=20.0):
    begin, end = k * period_ms, (k + 1) * period_ms
    return (begin, [k, 100 + k], [10 + k], -k, [k + 1, 101 + k], end)


def test_an_observation_is_paired_with_the_command_that_it_caused():
    assert summary(feed(aligner(), lockstep(4))) == [(0, "start"), expected(0), expected(1), expected(2)]


def test_transitions_come_out_as_soon_as_they_are_whole():
    steps = feed(aligner(), lockstep(3), flush=False)
    assert summary(steps) == [(0, "start"), expected(0), expected(1)]


def test_a_command_on_the_very_stamp_of_a_tick_belongs_to_the_transition_that_ends_there():
    samples = []
    for k, t in enumerate((0, 20, 40)):
        samples += [("push", t, 1 + k), ("pose", t, k), ("target", t, 0), ("reward", t, 5)]
    steps = summary(feed(aligner(), samples))
    assert [line[2] for line in steps if len(line) == 6] == [[2], [3]]


def test_the_first_of_two_commands_in_a_period_counts():
    samples = [*lockstep(3), ("push", 15, 99)]
    samples.sort(key=lambda s: s[1])
    assert summary(feed(aligner(), samples)) == [(0, "start"), expected(0), expected(1)]


def test_late_and_repeated_samples_are_dropped_and_counted():
    target = aligner()
    samples = lockstep(3)
    samples[6:6] = [("pose", 20, 77), ("pose", 5, 88)]  # a repetition, then one from the past
    assert summary(feed(target, samples)) == [(0, "start"), expected(0), expected(1)]
    assert target.counts == {"pose duplicate": 1, "pose late": 1}


def test_a_dropped_sample_is_a_zero_order_hold():
    samples = [s for s in lockstep(5) if s[:2] != ("pose", 40)]
    steps = summary(feed(aligner(), samples))
    assert [len(line) for line in steps] == [2, 6, 6, 6, 6]
    assert steps[2] == (20, [1, 101], [11], -1, [1, 102], 40)  # pose 1 still stands at 40 ms
    assert steps[3] == (40, [1, 102], [12], -2, [3, 103], 60)


def test_samples_dropped_for_longer_than_max_age_cut():
    lost = {("pose", 40), ("pose", 60), ("pose", 80)}
    steps = summary(feed(aligner(), [s for s in lockstep(8) if s[:2] not in lost]))
    assert [line for line in steps if len(line) == 2] == [
        (0, "start"),
        (80, "pose: stale, 60 ms old, allowed 50 ms"),
        (100, "start"),
    ]
    assert [line[0] for line in steps if len(line) == 6] == [0, 20, 40, 100, 120]


def test_a_stale_second_stream_cuts():
    steps = summary(feed(aligner(), [s for s in lockstep(6) if s[0] != "target" or s[1] < 40]))
    assert [line for line in steps if len(line) == 2][1:] == [
        (80, "target: stale, 60 ms old, allowed 50 ms"),
        (100, "target: stale, 80 ms old, allowed 50 ms"),
    ]


def test_a_stream_that_never_spoke_cuts():
    steps = summary(feed(aligner(), [s for s in lockstep(3) if s[0] != "target"]))
    assert steps == [(t, "target: no message yet") for t in (0, 20, 40)]


def test_a_latched_stream_may_be_of_any_age():
    samples = [("target", 0, 7)] + [s for s in lockstep(60) if s[0] != "target"]
    steps = feed(aligner(LATCHED), samples)
    assert sum(step.transition is not None for step in steps) == 59
    assert steps[-1].transition.next_observation.tolist() == [59, 7]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("topic", "reason"),
    [
        ("pose", "pose: vector.x is not finite"),
        ("push", "push: not finite"),
        ("reward", "reward: not finite"),
    ],
)
def test_what_is_not_finite_cuts_and_is_not_passed_on(topic, reason, value):
    samples = [(t, ms, value if t == topic and 40 <= ms < 41 else v) for t, ms, v in lockstep(6)]
    steps = feed(aligner(), samples)
    assert reason in [str(step.cut) for step in steps]
    for step in steps:
        if step.transition is not None:
            t = step.transition
            numbers = [*t.observation, *t.action, t.reward, *t.next_observation]
            assert np.isfinite(numbers).all()


def test_a_missing_command_cuts_and_the_sequence_goes_on_from_there():
    steps = summary(feed(aligner(), [s for s in lockstep(5) if s[:2] != ("push", 20 + 1e-6)]))
    assert steps == [
        (0, "start"),
        expected(0),
        (40, "push: no command in the period"),
        expected(2),
        expected(3),
    ]


def test_a_missing_reward_cuts():
    steps = summary(feed(aligner(), [s for s in lockstep(5) if s[:2] != ("reward", 40)]))
    assert steps == [
        (0, "start"),
        expected(0),
        (40, "reward: no reward in the period"),
        expected(2),
        expected(3),
    ]


@pytest.mark.parametrize("first", ["pose", "target", "push", "reward"])
def test_a_clock_that_jumps_back_cuts_whichever_topic_shows_it(first):
    before, after = lockstep(4, start_ms=5000), lockstep(4)
    after.sort(key=lambda s: (s[1] > 0.5, s[0] != first))
    steps = feed(aligner(), before + after)
    cuts = [str(step.cut) for step in steps if step.cut]
    assert any(cut.startswith("clock jumped back by 5.0") or cut.startswith("clock jumped back by 4.9") for cut in cuts)
    jump = next(i for i, step in enumerate(steps) if step.cut and step.cut.kind is FaultKind.CLOCK_JUMP)
    assert sum(step.transition is not None for step in steps[:jump]) == 3
    later = [line for line in summary(steps[jump:]) if len(line) == 6]
    assert later[-1] == expected(2)
    for step in steps:
        if step.transition is not None:
            assert step.t_ns - step.transition.t_ns == 20 * MS  # none spans the jump


def test_ticks_that_wait_for_a_command_do_not_block_what_follows_a_clock_jump():
    before = [s for s in lockstep(4, start_ms=5000) if s[0] != "push" or s[1] < 5040]
    steps = feed(aligner(), [*before, *lockstep(4)], flush=False)
    assert summary(steps)[-3:] == [expected(0), expected(1), expected(2)]


def test_a_small_step_back_is_a_late_message_and_no_jump():
    target = aligner()
    target.push(POSE, 1_000 * MS, np.zeros(1))
    assert target.push(POSE, 1_000 * MS - JUMP_NS, np.zeros(1)) == []
    assert target.counts == {"pose late": 1}


def stream(hz, jitter_ms=0.0, seconds=2.0, seed=0):
    random = np.random.default_rng(seed)
    return [t * 1e3 + random.uniform(-jitter_ms, jitter_ms) for t in np.arange(0, seconds, 1 / hz)]


def ticks(stamps_ms):
    target = ObservationAligner(CART, PATIENCE)
    frames = []
    for t in stamps_ms:
        frames += target.push(TARGET, round(t * MS), np.zeros(1))
        frames += target.push(POSE, round(t * MS), np.array([t]))
    return [frame for frame in [*frames, *target.flush()] if frame.fault is None]


@pytest.mark.parametrize("hz", [100, 200, 250, 500, 1000])
@pytest.mark.parametrize("jitter", [0.0, 0.1])
def test_a_fast_stream_is_downsampled_to_the_contracts_rate(hz, jitter):
    frames = ticks(stream(hz, jitter * 1000 / hz))
    assert abs(len(frames) - 100) <= 3
    periods = np.diff([frame.t_ns for frame in frames]) / MS
    assert np.abs(periods - 20).max() <= 1000 / hz
    assert abs(periods.mean() - 20) < 0.5


def test_200_hz_becomes_every_fourth_sample():
    assert [frame.t_ns / MS for frame in ticks(stream(200, seconds=0.1))] == [0, 20, 40, 60, 80]


@pytest.mark.parametrize("jitter", [0.0, 2.0, 4.0])
def test_a_stream_at_the_contracts_rate_gives_a_tick_for_each_sample(jitter):
    stamps = stream(50, jitter / 2)
    assert [frame.t_ns for frame in ticks(stamps)] == [round(t * MS) for t in stamps]


@pytest.mark.parametrize("hz", [48, 49.5, 50.5, 52])
def test_a_stream_slightly_off_rate_is_followed_and_not_held(hz):
    stamps = stream(hz)
    assert [frame.t_ns for frame in ticks(stamps)] == [round(t * MS) for t in stamps]


def test_a_tick_waits_for_a_slow_stream_for_patience_and_no_longer():
    target = ObservationAligner(CART, PATIENCE)
    target.push(TARGET, 0, np.zeros(1))
    target.push(POSE, 0, np.zeros(1))
    assert target.push(POSE, 20 * MS, np.ones(1)) == []  # the target of 20 ms may still come
    assert target.advance(20 * MS + PATIENCE) == []
    (frame,) = [f for f in target.advance(20 * MS + PATIENCE + 1) if f.t_ns == 20 * MS]
    assert frame.observation.tolist() == [1, 0]  # the older target is fresh enough


def test_time_alone_uncovers_a_stream_that_stopped():
    target = aligner()
    feed(target, lockstep(3), flush=False)
    cuts = [str(step.cut) for step in target.advance(2_000 * MS) if step.cut]
    assert "pose: stale, 60 ms old, allowed 50 ms" in cuts or "push: no command in the period" in cuts


def test_flush_decides_what_is_left_and_invents_no_tick():
    target = aligner()
    assert summary(feed(target, lockstep(3), flush=False))[-1] == expected(1)
    last = [("pose", 60, 3), ("reward", 60, -2)]  # the last target is missing
    steps = feed(target, last)
    assert summary(steps) == [(40, [2, 102], [12], -2, [3, 102], 60)]


def test_reset_forgets_everything():
    target = aligner()
    feed(target, lockstep(3, start_ms=9000), flush=False)
    target.reset()
    assert summary(feed(target, lockstep(2))) == [(0, "start"), expected(0)]


@st.composite
def recordings(draw):
    """Samples of a lossy, jittery recording, by topic, and a delay for each: patience covers all of them."""
    count = draw(st.integers(5, 25))
    topics = {"pose": [], "target": [], "push": [], "reward": []}
    for topic, t_ms, value in lockstep(count):
        if draw(st.integers(0, 9)) > 0:
            jitter = 0 if topic == "pose" else draw(st.integers(0, 3))
            topics[topic].append((topic, t_ms + jitter, value))
    return topics


@settings(max_examples=150, deadline=None, derandomize=True)
@given(recordings(), st.lists(st.integers(0, 45), min_size=110, max_size=110))
def test_any_interleaving_of_topics_within_patience_gives_the_same_steps(topics, delays):
    """Messages of one topic stay in order; those of different topics overtake each other by up to 45 ms."""
    in_order = list(heapq.merge(*topics.values(), key=lambda s: s[1]))
    arrivals, each_delay = [], iter(delays)
    for samples in topics.values():
        latest = 0.0
        for sample in samples:
            latest = max(latest, sample[1] + next(each_delay))
            arrivals.append((latest, sample))
    shuffled = [sample for _, sample in sorted(arrivals, key=lambda pair: pair[0])]
    assert summary(feed(aligner(), shuffled)) == summary(feed(aligner(), in_order))


def test_a_command_that_holds_is_kept_where_an_episode_ends_and_forgotten_where_all_is():
    states = [s for s in lockstep(3, start_ms=1000) if s[0] != "push"]
    for keep_held, found in ((True, (1000, [0, 100], [10], 0, [1, 101], 1020)), (False, (1020, NO_COMMAND))):
        target = aligner(HOLDING)
        feed(target, lockstep(1))
        target.reset(keep_held)
        assert summary(feed(target, states))[1] == found
