# SPDX-License-Identifier: Apache-2.0
"""The doctor on bags in which nothing is wrong, or something else than it seems."""

from __future__ import annotations

import ast
import dataclasses

import numpy as np

from faults.bytes_injections import PROTOBUF, Beside, definition, mcap
from spc_core.command_delay.correlogram import correlogram
from spc_core.doctor.diagnosis import Finding
from spc_core.doctor.next_steps import NEXT_STEPS, next_step
from spc_ros.doctor.doctor import diagnose
from spc_ros.doctor.doctor_page import page
from support.contracts import ARM_REACH, make_contract, stream_section
from support.paths import ROOT
from support.recorded_bags import (
    PERIOD_NS,
    RECEIVE_NS,
    START_NS,
    STORE,
    STRING,
    Sample,
    arm_samples,
    header,
    later,
    said_nothing,
    string,
    write_bag,
)

POSE, BOOL = "geometry_msgs/msg/PoseStamped", "std_msgs/msg/Bool"


def findings(bag, contract):
    report = diagnose([bag], contract=contract, task="t", progress=False)
    return {(f.check, f.topic): f for f in report.findings if f.severity != "ok"}, report


def with_pause(pause_ns: int) -> list[Sample]:
    first = said_nothing(arm_samples(100))
    return [*first, *later(said_nothing(arm_samples(100, seed=1)), 100 * PERIOD_NS + pause_ns)]


def test_a_pause_that_parts_episodes_is_no_gap(tmp_path):
    bag = write_bag(tmp_path / "bag", with_pause(3_000_000_000), {})
    parted, report = findings(bag, make_contract(base=ARM_REACH, episode={"segment": "gap", "gap_s": 1.0}))
    assert report.episodes == 2
    assert not {check for check, _ in parted} & {"gaps", "age at ticks", "dropped ticks"}
    whole, _ = findings(bag, make_contract(base=ARM_REACH))
    assert {("gaps", topic) for topic in ("joint_states", "joint_commands", "reward")} <= set(whole)


def test_infinity_that_the_contract_clips_is_no_fault(tmp_path):
    samples = said_nothing(arm_samples(60))
    for i, sample in enumerate(samples):
        if sample.topic == "/joint_states" and i % 5 == 0:
            position = np.array([np.inf, sample.message.position[1]])
            samples[i] = dataclasses.replace(sample, message=dataclasses.replace(sample.message, position=position))
    bag = write_bag(tmp_path / "bag", samples, {})
    fields = ["position.shoulder", {"field": "position.elbow", "clip": [-10, 10]}]
    clipped, report = findings(bag, make_contract(base=ARM_REACH, observation=[stream_section("joint_states", fields)]))
    assert ("not finite", "joint_states") not in clipped and report.transitions == 60
    fields = ["position.shoulder", "position.elbow"]
    plain, _ = findings(bag, make_contract(base=ARM_REACH, observation=[stream_section("joint_states", fields)]))
    assert plain["not finite", "joint_states"].severity == "fail"


def test_no_correlation_is_beyond_one():
    random = np.random.default_rng(0)
    t_ns = np.arange(600) * 20_000_000
    commands = random.normal(size=(600, 1))
    ramp = np.cumsum(np.full((600, 1), 0.1)) + 1e-13 * random.normal(size=600)  # all of it is predicted
    answer = np.concatenate([np.zeros((1, 1)), commands[:-1]])
    found = correlogram(t_ns, commands, ("u",), t_ns, np.column_stack([answer, ramp]), ("x", "ramp"))
    assert found is not None
    assert np.abs(found.correlation).max() <= 1.0
    assert np.abs(found.correlation[:, 0, 0]).max() > 0.9


def test_another_programs_topic_called_episode_refuses_nothing(tmp_path):
    says = [
        Sample("/recorder/episode", STRING, RECEIVE_NS + k, string(text)) for k, text in ((1, "start"), (9, "stop"))
    ]
    bag = write_bag(tmp_path / "bag", sorted([*said_nothing(arm_samples(60)), *says], key=lambda s: s.receive_ns), {})
    found, report = findings(bag, make_contract(base=ARM_REACH))
    assert report.transitions == 60
    assert "'/recorder/episode' does not tell of episodes" in found["episodes", ""].text
    assert not any("/recorder/episode" in f.text for f in found.values() if f.severity == "fail")


def test_jumps_are_warned_of_where_they_are(tmp_path):
    samples = said_nothing(arm_samples(100))
    states = [i for i, s in enumerate(samples) if s.topic == "/joint_states"]
    for k, i in enumerate(states):
        position = np.array([0.01 * k, 0.02 * k]) + (5 if k >= 50 else 0)
        message = dataclasses.replace(samples[i].message, position=position, velocity=np.full(2, 0.5) + 0.001 * k)
        samples[i] = dataclasses.replace(samples[i], message=message)
    bag = write_bag(tmp_path / "bag", samples, {})
    found, _ = findings(bag, make_contract(base=ARM_REACH))
    jumps = found["jumps", ""]
    assert jumps.severity == "warn" and "1 of 100 transitions" in jumps.text
    assert jumps.times == ((1.0, 1.0),)


def with_nan(seed: int, array: str, joint: int) -> list[Sample]:
    """NaN in one joint's number of the states 40 to 44."""
    samples, states = said_nothing(arm_samples(100, seed)), 0
    for i, sample in enumerate(samples):
        if sample.topic != "/joint_states":
            continue
        states += 1
        if 40 <= states < 45:
            values = getattr(sample.message, array).copy()
            values[joint] = np.nan
            message = dataclasses.replace(sample.message, **{array: values})
            samples[i] = dataclasses.replace(sample, message=message)
    return samples


def test_different_faults_are_different_findings_each_with_its_bags(tmp_path):
    kinds = [("position", 0), ("position", 1), ("velocity", 0)]
    bags = [write_bag(tmp_path / f"bag{i}", with_nan(i, *kinds[i % 3]), {}) for i in range(12)]
    report = diagnose(bags, contract=make_contract(base=ARM_REACH), task="t", progress=False, workers=1)
    found = [f for f in report.findings if f.check == "not finite"]
    assert [f.bags for f in found] == [4, 4, 4]
    for i, field in enumerate(("position.elbow", "position.shoulder", "velocity.elbow")):
        (one,) = [f for f in found if f"infinity in {field};" in f.text]
        assert one.in_bags == tuple(str(bag) for bag in bags[i::3])
        assert one.as_dict()["in_bags"] == [*one.in_bags] and one.as_dict()["bags"] == 4
        assert f"[4 bags: bag{i}, bag{i + 3}, bag{i + 6} and 1 more]" in report.text()
    for bag in bags:  # all of them by name on the page
        assert f"<code>{bag.name}</code>" in page(report)


def test_numbers_do_not_part_a_fault_but_names_do():
    def fault(text: str, bag: str = "/data/run_7"):
        return Finding("warn", "imu", "bag", text, bag=bag).fault

    assert fault("3 messages (1.5 %), the first at 0.20 s") == fault("1,200 messages (20 %), the first at 3 s")
    assert fault("at 1.00, 2.00 s") == fault("at 1.00, 2.00, 3.50 s")
    assert fault("joint_1 has NaN") != fault("joint_2 has NaN")
    assert fault("ranges.1 has NaN") != fault("ranges.2 has NaN")
    assert fault("run_7.mcap is cut off") == fault("run_8.mcap is cut off", "/data/run_8")


def test_what_no_contract_reads_fails_nothing(tmp_path):
    samples = said_nothing(arm_samples(100))
    for i, sample in enumerate(samples):
        if sample.topic == "/joint_states":
            message = dataclasses.replace(sample.message, effort=np.full(2, np.nan))
            samples[i] = dataclasses.replace(sample, message=message)
    bag = write_bag(tmp_path / "bag", samples, {})
    read, report = findings(bag, make_contract(base=ARM_REACH))
    assert not [f for f in read.values() if f.check == "not finite"] and report.transitions == 100
    unread, report = findings(bag, None)
    assert unread["not finite", "/joint_states"].severity == "warn" and report.verdict == "warn"
    assert "no contract reads it" in unread["not finite", "/joint_states"].text
    assert "findings on topics are warnings at most" in report.text()


def goals(*times_s: tuple[float, float]) -> list[Sample]:
    """Goals, each as (received after the start, stamped after the start) in seconds."""
    return [
        Sample("/goal", POSE, RECEIVE_NS + round(received * 1e9), goal(START_NS + round(stamped * 1e9)))
        for received, stamped in times_s
    ]


def goal(t_ns: int):
    point = STORE.types["geometry_msgs/msg/Point"](x=t_ns % 7 / 7, y=0.0, z=0.0)
    turn = STORE.types["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=0.0, w=1.0)
    return STORE.types[POSE](header=header(t_ns), pose=STORE.types["geometry_msgs/msg/Pose"](point, turn))


def recorded(path, *more: Sample):
    return write_bag(path, sorted([*more, *said_nothing(arm_samples(250))], key=lambda s: s.receive_ns), {})


def test_latched_messages_from_before_are_no_clock_jump(tmp_path):
    kept = goals((0.0, -1.0), (0.001, -0.9), (1.0, 1.0), (2.0, 2.0))
    bag = recorded(tmp_path / "kept", *kept)
    fields = stream_section("joint_states", ["position.shoulder", "position.elbow"])
    section = stream_section("goal", ["pose.position.x"], type=POSE, max_age_s=3.0)
    for contract in (None, make_contract(base=ARM_REACH, observation=[fields, section])):
        found, report = findings(bag, contract)
        assert not {check for check, _ in found} & {"clock jump", "clock domains"}
        assert any(f.check == "kept messages" and "the first 2 messages" in f.text for f in report.findings)
    assert report.transitions == 250
    restarted = recorded(tmp_path / "restarted", *goals(*((k / 10, k / 10 - 100 * (k < 15)) for k in range(40))))
    found, _ = findings(restarted, make_contract(base=ARM_REACH, observation=[fields, section]))
    assert found["clock jump", "goal"].severity == "fail"  # in the middle of a bag it is one


def test_gaps_that_leave_no_observation_stale_lose_nothing(tmp_path):
    seldom = goals(*((s, s) for s in (k / 10 for k in range(50)) if round(s * 10) % 10 < 7))
    bag = recorded(tmp_path / "bag", *seldom)
    fields = stream_section("joint_states", ["position.shoulder", "position.elbow"])
    for max_age_s, severity, transitions in ((1.0, "warn", 250), (0.2, "fail", None)):
        section = stream_section("goal", ["pose.position.x"], type=POSE, max_age_s=max_age_s)
        found, report = findings(bag, make_contract(base=ARM_REACH, observation=[fields, section]))
        assert found["gaps", "goal"].severity == severity
        assert (report.transitions == 250) == (transitions == 250)


def test_samples_that_are_sent_again_are_not_lost(tmp_path):
    def repeated(change):
        samples = []
        for sample in said_nothing(arm_samples(100)):
            again = [dataclasses.replace(sample, receive_ns=sample.receive_ns + k * 1_000_000) for k in range(1, 9)]
            samples += [sample, *map(change, again)] if sample.topic == "/joint_states" else [sample]
        return sorted(samples, key=lambda s: s.receive_ns)

    def other(sample: Sample) -> Sample:
        moved = dataclasses.replace(sample.message, position=sample.message.position + sample.receive_ns % 7)
        return dataclasses.replace(sample, message=moved)

    for name, change, severity in (("same", lambda sample: sample, "warn"), ("other", other, "fail")):
        found, report = findings(write_bag(tmp_path / name, repeated(change), {}), make_contract(base=ARM_REACH))
        assert report.transitions == 100
        assert found["order", "joint_states"].severity == found["frozen stamps", "joint_states"].severity == severity


def test_gaps_outside_all_episodes_are_none(tmp_path):
    first, second = said_nothing(arm_samples(100)), said_nothing(arm_samples(100, seed=1))
    third = later(said_nothing(arm_samples(20, seed=2)), 200 * PERIOD_NS + 9_000_000_000)
    running = [(10, 0, True), (90, 0, False), (110, 3, True), (190, 3, False)]  # (period, seconds more, it runs)
    marks = [
        Sample("/running", BOOL, RECEIVE_NS + k * PERIOD_NS + s * 10**9 + 5, STORE.types[BOOL](data=on))
        for k, s, on in running
    ]
    samples = [*first, *later(second, 100 * PERIOD_NS + 3_000_000_000), *third, *marks]
    bag = write_bag(tmp_path / "bag", sorted(samples, key=lambda s: s.receive_ns), {})
    marked = {"segment": "topic", "topic": "running", "type": BOOL, "field": "data"}
    found, report = findings(bag, make_contract(base=ARM_REACH, episode=marked, clock="receive"))
    assert report.episodes == 2
    assert not {check for check, _ in found} & {"gaps", "age at ticks", "dropped ticks"}


def test_numbers_outside_all_episodes_are_not_judged(tmp_path):
    def spoilt(at_k: int) -> set[tuple[str, str]]:
        samples = said_nothing(arm_samples(200))
        states = [i for i, s in enumerate(samples) if s.topic == "/joint_states"]
        for k in range(at_k, at_k + 5):
            message = dataclasses.replace(samples[states[k]].message, position=np.full(2, np.nan))
            samples[states[k]] = dataclasses.replace(samples[states[k]], message=message)
        marks = [
            Sample("/running", BOOL, RECEIVE_NS + k * PERIOD_NS + 5, STORE.types[BOOL](data=on))
            for k, on in ((20, True), (90, False), (120, True), (180, False))
        ]
        whole = sorted([*samples, *marks], key=lambda s: s.receive_ns)
        bag = write_bag(tmp_path / str(at_k), whole, {})
        marked = {"segment": "topic", "topic": "running", "type": BOOL, "field": "data"}
        return set(findings(bag, make_contract(base=ARM_REACH, episode=marked, clock="receive"))[0])

    for at_k in (5, 100, 190):  # before, between, behind
        assert ("not finite", "joint_states") not in spoilt(at_k)
    assert ("not finite", "joint_states") in spoilt(50)


def test_every_topic_is_listed_with_what_was_looked_at(tmp_path):
    beside = [Sample("/notes", STRING, RECEIVE_NS + 1, string("on the table")), *goals((0.5, 0.5))]
    bag = recorded(tmp_path / "bag", *beside)
    with_one = diagnose([bag], contract=make_contract(base=ARM_REACH), task="t", progress=False)
    without = diagnose([bag], progress=False)
    topics = {"joint_states": 251, "joint_commands": 250, "reward": 250}
    assert {t.topic: t.look for t in with_one.topics} == {n: f"decoded {c} of {c}" for n, c in topics.items()}
    assert {t.topic: t.why for t in with_one.unchecked} == {
        "/notes": "not read: not in the contract",
        "/goal": "not read: not in the contract",
    }
    assert {t.topic: t.why for t in without.unchecked} == {"/notes": "decoded 1 of 1: no number in it"}
    for report in (with_one, without):
        listed = [line.split()[0] for line in report.text().splitlines()[1:6]]
        assert {name.lstrip("/") for name in listed} == {*topics, "notes", "goal"}
        assert len(report.as_dict()["topics"]) + len(report.as_dict()["unchecked"]) == 5
        assert all(t.why in page(report) for t in report.unchecked)


def test_damaged_messages_are_not_counted_as_decoded(tmp_path):
    samples = said_nothing(arm_samples(50))
    short = mcap(data=lambda topic, raw: raw[:20] if topic == "/reward" and raw[4] % 2 else raw)
    bag = short(tmp_path / "bag", sorted(samples, key=lambda s: s.receive_ns))
    (reward,) = [t for t in diagnose([bag], progress=False).topics if t.topic == "/reward"]
    whole = sum(s.topic == "/reward" and not s.message.header.stamp.sec % 2 for s in samples)  # raw[4]: of the seconds
    assert reward.look == f"decoded {whole} of 50" and 0 < whole < 50


def test_a_bag_of_which_nothing_was_looked_at_is_not_ok(tmp_path):
    bag = write_bag(tmp_path / "bag", [Sample("/notes", STRING, RECEIVE_NS, string("a"))], {})
    found, report = findings(bag, None)
    assert report.verdict == "warn" and "no check looked at its 1 topic;" in found["topic", ""].text


def test_a_topic_that_cannot_be_decoded_is_listed_with_the_reason(tmp_path):
    samples = said_nothing(arm_samples(50))
    bag = mcap(PROTOBUF, Beside("/own", "own_msgs/msg/Own", "own_msgs/msg/Lost lost"))(tmp_path / "bag", samples)
    without = {t.topic: t.why for t in diagnose([bag], progress=False).unchecked}
    assert without["/scene"] == "not decoded: not serialised as CDR"
    assert without["/own"].startswith("not decoded: ") and "own_msgs" in without["/own"]
    assert without["/own"].count("not decoded") == 1
    found, _ = findings(bag, None)
    assert found["topic", "/own"].severity == "warn"


def test_joints_that_are_defined_otherwise_are_told_and_the_rest_is_looked_at(tmp_path):
    samples = sorted(said_nothing(arm_samples(50)), key=lambda s: s.receive_ns)
    other = mcap(text=lambda kind: definition(kind).replace("float64[] effort", "float64[] efgort"))
    report = diagnose([other(tmp_path / "bag", samples)], progress=False)
    listed = {t.topic: t.look for t in report.topics} | {t.topic: t.why for t in report.unchecked}
    assert listed["/reward"] == "decoded 50 of 50"
    assert listed["/joint_states"].startswith("not decoded: no array of it has a number for each joint")


def test_every_check_says_what_to_type_next():
    """By the names of checks in the source and in the documented table."""
    named = {
        text
        for file in [*ROOT.glob("spc_core/doctor/*.py"), *ROOT.glob("spc_ros/doctor/*.py")]
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Finding" and len(call.args) > 3
        for part in ast.walk(call.args[2])
        if isinstance(part, ast.Constant) and isinstance(text := part.value, str)
    }
    notes = {"spread", "kept messages", "outside episodes", "coverage of ", "clock", "frames"}  # a note needs nothing
    assert named - notes == {name for name in NEXT_STEPS if not name.startswith("coverage")}
    for check in NEXT_STEPS:
        assert Finding("warn", "imu", check, "text", bag="/data/a").next.strip() and "{" not in next_step(check, "", "")
    assert Finding("ok", "imu", "gaps", "text").next == ""


def test_next_steps_are_printed_and_in_the_json(tmp_path):
    bag = write_bag(tmp_path / "bag", with_nan(0, "position", 0), {})
    found, report = findings(bag, make_contract(base=ARM_REACH))
    step = found["not finite", "joint_states"].next
    assert f"next: {step}" in report.text() and str(bag) in step
    assert step in [entry["next"] for entry in report.as_dict()["findings"]]
