# SPDX-License-Identifier: Apache-2.0
"""Each of the doctor's checks on arrays with one known fault: found, graded, and placed in time; not found without."""

import dataclasses

import numpy as np
import pytest

from spc_core.alignment.faults import Fault, FaultKind
from spc_core.command_delay.correlogram import LAGS_S, correlogram, responses
from spc_core.doctor.across_checks import check_command_delay, check_coverage, measure, visited
from spc_core.doctor.clock_checks import (
    check_clock_domains,
    check_clock_jumps,
    check_delay,
    check_drift,
    check_unset_stamps,
)
from spc_core.doctor.diagnosis import Finding, Thresholds, TickLog, TopicLog, kind_of, message_spans, spans, worst
from spc_core.doctor.tick_checks import ages_at_ticks, check_ages, check_ticks
from spc_core.doctor.timing_checks import (
    TIMING_CHECKS,
    check_frozen_stamps,
    check_gaps,
    check_jitter,
    check_lost,
    check_order,
    check_presence,
    check_rate,
)
from spc_core.doctor.topic_stats import advancing
from spc_core.doctor.value_checks import (
    VALUE_CHECKS,
    check_arrays,
    check_constant,
    check_finite,
    check_joints,
    check_limits,
    check_rate_limits,
    value_range,
)

WALL_NS = 1_700_000_000_000_000_000
MS = 1_000_000
T = Thresholds()


def log(count=500, period_ms=20, **changes):
    """A healthy topic at 50 Hz: stamped in wall time, received 1 ms later, a ramp and a sine."""
    stamp_ns = WALL_NS + np.arange(count) * round(period_ms * MS)
    ramp = np.arange(count) / count
    known = dict(
        topic="joint_states",
        type="sensor_msgs/msg/JointState",
        role="observation",
        receive_ns=stamp_ns + MS,
        stamp_ns=stamp_ns,
        fields=("position.a", "velocity.a"),
        values=np.stack((ramp, np.sin(20 * ramp)), axis=1),
        begin_ns=WALL_NS,
        nominal_hz=50.0,
        max_age_s=0.05,
    )
    return TopicLog(**{**known, **changes})


def without(whole, lost):
    """The log without the messages of a mask or index."""
    kept = np.delete(np.arange(len(whole)), lost)
    return dataclasses.replace(
        whole, receive_ns=whole.receive_ns[kept], stamp_ns=whole.stamp_ns[kept], values=whole.values[kept]
    )


def only(findings):
    (finding,) = findings
    return finding


def near(times, begin_s, end_s, slack_s=0.021):
    """Is there exactly one place, and is it this one?"""
    ((begin, end),) = times
    return abs(begin - begin_s) <= slack_s and abs(end - end_s) <= slack_s


def test_a_healthy_topic_passes_every_check():
    healthy = log()
    for check in (*TIMING_CHECKS, check_unset_stamps, check_clock_jumps, check_delay, check_drift, *VALUE_CHECKS):
        assert check(healthy, T) == [], check.__name__
    assert check_clock_domains([healthy, log(topic="imu")], T) == []
    assert check_constant(healthy, *value_range(healthy)) == []


def test_grades_warn_from_half_of_a_threshold_on():
    assert [T.grade(value, 0.05) for value in (0.02, 0.025, 0.03, 0.05, 0.06)] == ["ok", "ok", "warn", "warn", "fail"]
    assert Thresholds(warn_share=1.0).grade(0.05, 0.05) == "ok"
    assert worst(["ok", "fail", "warn"]) == "fail" and worst([]) == "ok"


@pytest.mark.parametrize(
    ("lost", "severity"),
    [(5, None), (15, "warn"), (30, "fail")],  # of 500 periods, 1 %, 3 % and 6 %
)
def test_gaps_are_graded_by_the_time_they_take(lost, severity):
    findings = check_gaps(without(log(max_age_s=1.0), slice(200, 200 + lost)), T)
    assert [f.severity for f in findings] == ([severity] if severity else [])
    if findings:
        assert near(findings[0].times, 199 * 0.02, (200 + lost) * 0.02, slack_s=0.0011)  # received 1 ms later
        assert findings[0].value == pytest.approx(lost / 499, rel=1e-6)
        assert f"{findings[0].value:.1%} of the time is lost in 1 gap" in findings[0].text


def test_a_short_gap_that_outlasts_max_age_is_a_warning():
    assert only(check_gaps(without(log(max_age_s=0.05), slice(200, 205)), T)).severity == "warn"


def test_rates_are_told_between_gaps_against_the_contract():
    assert check_rate(without(log(), slice(100, 140)), T) == []  # a gap is not a rate
    slow = only(check_rate(log(period_ms=25), T))  # 40 Hz for 50
    assert slow.severity == "fail" and slow.value == pytest.approx(-0.2)
    assert "40.0 Hz, 20% below the contract's rate of 50.0 Hz (allowed 10%)" in slow.text
    assert only(check_rate(log(period_ms=21.5), T)).severity == "warn"  # 7 %
    assert check_rate(log(period_ms=2), T) == []  # 500 Hz of states are downsampled
    fast = only(check_rate(log(period_ms=2, role="action", faster_is_fine=False), T))
    assert fast.severity == "warn" and "only one message of each period is used" in fast.text


def test_a_rate_that_sags_is_shown_where_it_does():
    steps = np.full(1000, 20 * MS)
    steps[400:600] = 26 * MS  # 38 Hz for 5.2 s, no gap of 1.5 periods
    stamp_ns = WALL_NS + np.cumsum(steps)
    finding = only(check_rate(log(1000, stamp_ns=stamp_ns, receive_ns=stamp_ns), Thresholds(rate_tolerance=0.05)))
    assert near(finding.times, 8.02, 13.2, slack_s=1.01)  # to a window of a second


def test_jitter_is_told_in_periods():
    rng = np.random.default_rng(0)
    stamp_ns = log().stamp_ns + rng.normal(0, 5 * MS, 500).astype(np.int64)  # intervals spread by 7 ms less those cut
    jittery = only(check_jitter(log(stamp_ns=stamp_ns, receive_ns=stamp_ns), T))
    assert jittery.severity == "warn" and 0.25 < jittery.value < 0.36
    assert check_jitter(log(stamp_ns=log().stamp_ns + rng.integers(0, MS, 500)), T) == []


def test_duplicates_and_late_messages_are_dropped_and_told():
    stamp_ns = log().stamp_ns.copy()
    stamp_ns[100:105] = stamp_ns[99]
    stamp_ns[300:310] -= 200 * MS
    finding = only(check_order(log(stamp_ns=stamp_ns), T))
    assert finding.severity == "fail" and "5 duplicates, 10 late" in finding.text
    assert np.allclose(finding.times, [(2.001, 2.081), (6.001, 6.181)])


def test_frozen_stamps_are_found_from_the_given_number_on():
    stamp_ns = log().stamp_ns.copy()
    stamp_ns[100:104] = stamp_ns[100]
    assert check_frozen_stamps(log(stamp_ns=stamp_ns), T) == []
    stamp_ns[100:150] = stamp_ns[100]
    finding = only(check_frozen_stamps(log(stamp_ns=stamp_ns), T))
    assert finding.severity == "fail" and near(finding.times, 2.0, 2.98) and finding.value == 0.1


def test_a_topic_that_stops_early_is_told():
    whole = log(span=(0.0, 10.0))
    assert check_presence(whole, T) == []
    finding = only(check_presence(without(whole, slice(400, 500)), T))
    assert finding.severity == "warn" and near(finding.times, 7.98, 10.0)


def test_lost_messages_are_those_that_the_robot_counted():
    assert check_lost(log(lost=5), T) == []
    finding = only(check_lost(log(lost=50), T))
    assert finding.severity == "fail" and finding.value == pytest.approx(50 / 550)


def test_a_latched_topic_may_be_silent():
    latched = without(log(latched=True, nominal_hz=None), slice(1, 499))
    assert [f for check in TIMING_CHECKS for f in check(latched, T)] == []


def test_advancing_starts_anew_after_a_jump_back():
    newer, epoch = advancing(np.array([0, 10, 10, 5, 20, -2000, -1990, 0]) * MS, 0.5)
    assert newer.tolist() == [True, True, False, False, True, True, True, True]
    assert epoch.tolist() == [0] * 5 + [1] * 3


def test_two_interleaved_clocks_do_not_take_forever():
    time_ns = np.arange(50_000) * MS + np.where(np.arange(50_000) % 2, 10**12, 0)
    newer, epoch = advancing(time_ns, 0.5)
    assert newer.all() and epoch[-1] == 24_999


def test_clock_jumps_back_and_ahead():
    back, ahead = log().stamp_ns.copy(), log().stamp_ns.copy()
    back[250:] -= 2_000 * MS
    ahead[250:] += 3_000 * MS
    for stamp_ns, step_s in ((back, -1.98), (ahead, 3.02)):
        finding = only(check_clock_jumps(log(stamp_ns=stamp_ns), T))
        assert finding.severity == "fail" and f"{step_s:+.2f} s at 4.98 s" in finding.text
        assert near(finding.times, 4.981, 5.001, slack_s=1e-6)
        assert check_gaps(log(stamp_ns=stamp_ns), T) == []  # reported once


def test_unset_stamps_matter_where_they_align():
    stamp_ns = log().stamp_ns.copy()
    stamp_ns[50:60] = 0
    finding = only(check_unset_stamps(log(stamp_ns=stamp_ns), T))
    assert finding.severity == "fail" and near(finding.times, 1.0, 1.18)
    assert check_unset_stamps(log(stamp_ns=stamp_ns, clock="receive"), T) == []


def test_delays_are_percentiles_from_header_to_receive():
    slow = log().receive_ns.copy()
    slow[400:420] += 150 * MS
    finding = only(check_delay(log(receive_ns=slow), T))
    assert finding.severity == "warn" and finding.value == pytest.approx(0.151, abs=1e-3)
    assert "1.0 / 1.0 / 151.0 ms" in finding.text and near(finding.times, 8.151, 8.531)
    early = only(check_delay(log(receive_ns=log().stamp_ns - 5 * MS), T))
    assert early.severity == "warn" and "ahead of the receive time, by up to 5.0 ms" in early.text
    assert check_delay(log(receive_ns=slow, simulated=True), T) == []
    assert only(check_delay(log(receive_ns=slow, clock="receive"), T)).severity == "fail"  # aligned that late


def test_a_delay_that_grows_is_drift():
    drifting = log().receive_ns + np.linspace(0, 60 * MS, 500).astype(np.int64)
    finding = only(check_drift(log(receive_ns=drifting), T))
    assert finding.severity == "warn" and finding.value == pytest.approx(0.054, abs=1e-3)  # from tenth to tenth
    assert only(check_drift(log(receive_ns=drifting, clock="receive"), T)).severity == "fail"


def test_clock_domains_that_do_not_belong_together():
    sim = log(stamp_ns=log().stamp_ns - WALL_NS + MS)
    bare = log(topic="commands", stamp_ns=None)
    assert only(check_clock_domains([sim, dataclasses.replace(sim, topic="imu")], T)).severity == "ok"
    finding = only(check_clock_domains([sim, bare], T))
    assert finding.severity == "fail" and "53.9 years apart" in finding.text
    assert "commands: receive time, having no stamps; joint_states: stamps in a clock of their own" in finding.text
    assert check_clock_domains([log(), bare], T) == []


def kept(topic, count=2, before_s=90.0, at_s=0.1):
    """What latched publishers said before the bag began, received `at_s` into it."""
    receive_ns = WALL_NS + round(at_s * 1e9) + np.arange(count) * MS
    stamp_ns = WALL_NS - round(before_s * 1e9) + np.arange(count)
    return dataclasses.replace(log(count), topic=topic, role="other", receive_ns=receive_ns, stamp_ns=stamp_ns)


@pytest.mark.parametrize("count", [1, 3])
def test_messages_that_latched_publishers_kept_are_told_with_their_age(count):
    steady = log(role="other")
    note = only(check_clock_domains([steady, kept("/tf_static", count)], T))
    assert (note.severity, note.topic, note.check) == ("ok", "/tf_static", "kept messages")
    assert note.text.startswith(
        f"{count} message{'s' if count > 1 else ''}, at the start, stamped up to 90.10 s before"
    )
    assert check_clock_jumps(kept("/tf_static", count), T) == []


def test_old_stamps_that_nobody_kept_are_another_clock():
    steady = log(role="other")
    later, years = kept("/map", at_s=3.0), kept("/map", before_s=50 * 31_557_600)
    for other in (later, years):
        finding = only(check_clock_domains([steady, other], T))
        assert (finding.severity, finding.check) == ("warn", "clock domains")


def test_nan_is_placed_and_graded_by_its_share():
    values = log().values.copy()
    values[200, 1] = np.nan
    single = only(check_finite(log(values=values), T))
    assert single.severity == "warn" and near(single.times, 4.0, 4.0) and "velocity.a" in single.text
    values[200:220, 1] = np.inf
    assert only(check_finite(log(values=values), T)).severity == "fail"
    assert check_finite(log(values=values, absent=~np.isfinite(values)), T) == []  # not there is another matter


def test_joints_that_go_missing_or_change_places():
    names = ("position.a", "position.b")
    swapped = log(fields=names, layouts=((0, ("a", "b")), (300, ("b", "a")), (310, ("a", "b"))))
    finding = only(check_joints(swapped, T))
    assert finding.severity == "warn" and "not in the order a, b" in finding.text and near(finding.times, 6.0, 6.18)
    missing = only(check_joints(dataclasses.replace(swapped, layouts=((0, ("a", "b")), (400, ("a",)))), T))
    assert missing.severity == "fail" and "joints b are missing from 100 messages, first at 8.00 s" in missing.text
    unread = dataclasses.replace(swapped, fields=("position.a", "velocity.a"), layouts=((0, ("a", "b")), (400, ("a",))))
    assert only(check_joints(unread, T)).severity == "warn"


def test_an_empty_velocity_array_is_told_by_its_name():
    lengths = {"position": np.ones(500, int), "velocity": np.ones(500, int)}
    lengths["velocity"][100:150] = 0
    absent = np.zeros((500, 2), bool)
    absent[100:150, 1] = True
    empty = log(lengths=lengths, absent=absent, layouts=((0, ("a",)),))
    finding = only(check_arrays(empty, T))
    assert (finding.severity, finding.value) == ("fail", 0.1) and near(finding.times, 2.0, 2.98)
    assert "array 'velocity'" in finding.text and "velocity.a out of the contract" in finding.text


def test_constant_fields_are_told_over_all_bags():
    still = log(values=np.stack((np.ones(500), np.arange(500.0)), axis=1))
    low, high = value_range(still)
    assert only(check_constant(still, low, high)).text.startswith("never changes: position.a;")
    assert check_constant(still, low - 1, high) == []  # another bag had another value


def command(values, **changes):
    return log(topic="commands", role="action", fields=("u",), values=values, **changes)


def test_commands_beyond_and_at_the_limits():
    values = np.sin(np.arange(500) / 10)[:, None]
    assert check_limits(command(0.9 * values), [-1], [1], T) == []
    values[100:110] = 1.5
    finding = only(check_limits(command(values), [-1], [1], T))
    assert finding.severity == "fail" and finding.value == 0.02 and near(finding.times, 2.0, 2.18)
    assert "most u, by 0.5 outside [-1, 1]" in finding.text
    bang = only(check_limits(command(np.sign(values)), [-1], [1], T))
    assert (bang.check, bang.severity) == ("saturation", "warn") and "100% of the commands" in bang.text


def test_commands_that_change_faster_than_max_rate():
    values = np.zeros((500, 1))
    values[200:300:2] = 1.0  # 50 per second, up and down
    assert check_rate_limits(command(values), [60], T) == []
    finding = only(check_rate_limits(command(values), [40], T))
    assert finding.severity == "warn" and finding.value == pytest.approx(100 / 499) and near(finding.times, 4.0, 6.0)
    assert "up to 50 per second against 40" in finding.text


def test_ages_at_ticks_and_where_they_are_too_old():
    first, imu = log(), without(log(topic="imu", period_ms=20), slice(300, 350))
    age_s, at_s = ages_at_ticks(imu, first, 50.0)
    assert len(age_s) == 500 and age_s[:300] == pytest.approx(0)
    assert age_s[300:350] == pytest.approx(0.02 * np.arange(1, 51))  # one period more at each tick
    finding = only(check_ages(imu, age_s, at_s, T))
    assert finding.severity == "fail" and finding.value == pytest.approx(48 / 500)  # from 60 ms on
    assert near(finding.times, 6.04, 7.0)
    assert check_ages(dataclasses.replace(imu, max_age_s=2.0), age_s, at_s, T) == []


def test_ages_before_a_topic_begins_are_not_known():
    late = without(log(topic="imu"), slice(0, 100))
    assert np.isnan(ages_at_ticks(late, log(), 50.0)[0]).sum() == 100


def test_dropped_ticks_and_short_pieces():
    ended = Fault(FaultKind.EPISODE_UNFINISHED)
    cuts = ((1.5, Fault(FaultKind.STALE, "joint_states", 0, amount_ns=60_000_000)), (2.0, ended))
    assert check_ticks(TickLog(99, (99,), (), {"joint_states: stale": 1}), T) == []
    dropped, short = check_ticks(TickLog(80, (75, 5), cuts, {"joint_states: stale": 20}), T)
    assert (
        dropped.severity == "fail"
        and "drops 20 ticks (20.0%, allowed 10%): 20 times joint_states: stale" in dropped.text
    )
    assert short.severity == "warn" and "1 of 2 pieces" in short.text and short.times == ((1.5, 1.5),)


def test_coverage_counts_the_cells_that_are_visited():
    values = np.array([[0.0], [0.01], [0.52], [1.0], [7.0]])  # cells 0, 10 and 19 of 20
    assert visited(values, np.array([0.0]), np.array([1.0])).tolist() == [0.15]
    rng = np.random.default_rng(0)
    wide = rng.uniform(-1, 1, (2000, 2)), rng.uniform(-1, 1, (2000, 1))
    corner = 0.02 * wide[0], 0.05 * wide[1]
    coverage = measure({"corner": corner, "wide": wide}, ("x", "y"), ("u",), [-1], [1])
    assert coverage.states[1] == pytest.approx([1, 1]) and coverage.actions[1] == pytest.approx([1])
    findings = check_coverage(coverage, T)
    assert [(f.check, f.severity) for f in findings] == [
        ("coverage of states", "warn"),
        ("coverage of actions", "warn"),
    ]
    assert all("1 of 2 tasks" in f.text and "'corner'" in f.text for f in findings)


def answering(delay_s, state_period_s, order=1, noise=0.0, seconds=8.0, seed=0):
    """Random commands each 20 ms and a state that answers `delay_s` later: (command ns, u, state ns, x)."""
    rng = np.random.default_rng(seed)
    fine = 0.0005
    at_s = np.arange(0, seconds, fine)
    u = rng.normal(size=round(seconds / 0.02))
    reached = np.maximum(np.floor((at_s - delay_s) / 0.02 + 1e-9).astype(int), -1)
    force = np.where(reached >= 0, u[np.maximum(reached, 0)], 0.0)
    velocity, position, x = 0.0, 0.0, np.empty((len(at_s), 2))
    for i, f in enumerate(force.tolist()):
        x[i] = position, velocity
        velocity += fine * ((20 * f - 5 * velocity - 30 * position) if order == 1 else (f - velocity) / 0.03)
        position += fine * velocity
    every = round(state_period_s / fine)
    x = x[::every] + noise * rng.normal(size=x[::every].shape) * x.std(axis=0)
    command_ns = WALL_NS + np.round(np.arange(len(u)) * 0.02e9).astype(np.int64)
    return command_ns, u[:, None], WALL_NS + np.round(at_s[::every] * 1e9).astype(np.int64), x


@pytest.mark.parametrize("state_period_s", [0.002, 0.01, 0.02])
@pytest.mark.parametrize("delay_s", [0.0, 0.007, 0.045])
def test_a_command_delay_is_found_to_the_millisecond(delay_s, state_period_s):
    command_ns, u, state_ns, x = answering(delay_s, state_period_s)
    (answer,) = responses(correlogram(command_ns, u, ("u",), state_ns, x, ("position", "velocity")))
    assert answer.why_not == "" and abs(answer.delay_s - delay_s) < 0.001
    assert (answer.state, answer.order) in (("velocity", 1), ("position", 2)) and answer.correlation > 0.9


def test_a_command_delay_survives_noise_and_a_servo():
    command_ns, u, state_ns, x = answering(0.03, 0.01, order=0, noise=0.01)
    (answer,) = responses(correlogram(command_ns, u, ("u",), state_ns, x, ("position", "velocity")))
    assert answer.why_not == "" and abs(answer.delay_s - 0.03) < 0.004


def test_a_number_that_never_changes_does_not_hide_the_delay():
    """As those of the rotation matrix of a base, which turns about one axis."""
    command_ns, u, state_ns, x = answering(0.02, 0.01)
    with_still = np.concatenate([np.ones_like(x[:, :1]), x], axis=1)
    found = correlogram(command_ns, u, ("u",), state_ns, with_still, ("still", "position", "velocity"))
    (answer,) = responses(found.as_float32())  # as datasets keep it
    assert answer.state == "velocity" and answer.why_not == "" and abs(answer.delay_s - 0.02) < 0.004


def test_a_delay_that_cannot_be_told_is_not_told():
    command_ns, u, state_ns, x = answering(0.0, 0.01)
    alien = np.random.default_rng(1).normal(size=x.shape)
    found = correlogram(command_ns, u, ("u",), state_ns, alien, ("a", "b"))
    finding = only(check_command_delay("joint_states", found, 0.02, T))
    assert finding.severity == "ok" and "is unknown: no state answers clearly" in finding.text
    still = correlogram(command_ns, 0 * u, ("u",), state_ns, x, ("a", "b"))
    assert "the command never changes" in responses(still)[0].why_not
    early = correlogram(command_ns + 50 * MS, u, ("u",), state_ns, x, ("a", "b"))  # the state came first
    assert responses(early)[0].why_not
    assert correlogram(command_ns[:20], u[:20], ("u",), state_ns, x, ("a", "b")) is None


def test_correlograms_add_up_over_bags_and_delays_are_graded_in_periods():
    parts = [answering(0.045, 0.01, seconds=1.5, seed=seed) for seed in range(4)]
    found = [correlogram(c, u, ("u",), s, x, ("position", "velocity")) for c, u, s, x in parts]
    total = found[0] + found[1] + found[2] + found[3]
    assert total.count == sum(part.count for part in found) and total.cross.shape == (len(LAGS_S), 1, 2, 3)
    finding = only(check_command_delay("joint_states", total, 0.02, T))
    assert finding.severity == "warn" and finding.value == pytest.approx(0.045, abs=0.001)
    assert "2.2 periods, allowed 2" in finding.text
    assert only(check_command_delay("joint_states", total, 0.03, T)).severity == "warn"
    assert only(check_command_delay("joint_states", total, None, T)).severity == "ok"


def test_places_in_time_are_joined_and_limited():
    assert spans(np.array([3.0, 1.0, 1.5]), np.array([4.0, 2.0, 1.7])) == ((1.0, 2.0), (3.0, 4.0))
    many = np.arange(200.0)
    long = spans(many, many + np.where(many == 77, 0.5, 0.1))
    assert len(long) == 50 and (77.0, 77.5) in long
    mask = np.zeros(500, bool)
    mask[[10, 12, 40]] = True
    assert np.allclose(message_spans(log(), mask), [(0.201, 0.241), (0.801, 0.801)])


def test_findings_become_json_without_nan():
    plain = Finding("ok", "", "command delay", "cannot tell").as_dict()
    assert plain["value"] is None and plain["times"] == []


def test_commands_that_change_smoothly_tell_no_delay():
    """A slow sine goes with its integral at any lag of the window, best at one that has nothing to do with delay."""
    t_s = np.arange(500) / 50
    u, y = np.sin(3 * t_s)[:, None], -np.cos(3 * t_s - 0.7)[:, None]
    time_ns = WALL_NS + np.round(t_s * 1e9).astype(np.int64)
    found = correlogram(time_ns, u, ("u",), time_ns, y, ("y",))
    (answer,) = responses(found)
    assert "so smoothly" in answer.why_not
    (finding,) = check_command_delay("states", found, 0.02, T)
    assert finding.severity == "ok" and "record livelier commands" in finding.text


def test_texts_of_bags_with_short_names_are_of_one_kind():
    text = "has no topic 'arm'; it has: /base, 3 of {}_0.mcap"
    assert kind_of(text.format("a"), "/bags/a") == kind_of(text.format("b"), "/bags/b")
    assert kind_of("arm: stale", "/bags/arm") == kind_of("arm: stale", "/bags/base")
