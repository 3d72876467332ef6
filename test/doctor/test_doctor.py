# SPDX-License-Identifier: Apache-2.0
"""The doctor on recorded bags: a healthy one passes, each injected fault is found where it was put."""

import dataclasses
import json
import pickle
import re

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from faults.bag_page import FAULTS
from faults.bag_world import WORLD, events
from spc_core.alignment.faults import FaultKind
from spc_core.contract.contract import ContractError, parse_contract
from spc_core.doctor.diagnosis import Thresholds
from spc_core.doctor.traces import MAX_POINTS
from spc_ros.bags.files import BagError
from spc_ros.bags.reader import BagReader
from spc_ros.cli import main
from spc_ros.conversion.bag_conversion import Job, convert_bag
from spc_ros.conversion.convert import convert
from spc_ros.conversion.convert_options import ConvertOptions
from spc_ros.doctor import doctor, topic_logs
from spc_ros.doctor.doctor import EXIT_FAIL, EXIT_WARN, diagnose
from spc_ros.doctor.doctor_page import page
from spc_ros.doctor.trial_conversion import UNNAMED
from spc_ros.messages.fields import MessageError
from support.contracts import ARM_REACH, make_contract
from support.recorded_bags import RECEIVE_NS, joint_state, record_arm
from support.robot_recording import JOINTS, TRAVEL_NS, record_robot


def look(*bags, **how):
    return diagnose(bags, progress=False, **how)


def found(report, check, topic=None):
    """The one finding of a check."""
    (finding,) = [f for f in report.findings if f.check == check and topic in (None, f.topic)]
    return finding


def serious(report):
    return {(f.topic, f.check, f.severity) for f in report.findings if f.severity != "ok"}


def at_s(sample):
    return (sample.receive_ns - RECEIVE_NS - TRAVEL_NS) / 1e9


def lost(topic, begin_s, end_s):
    """A change that drops the topic's messages of that time."""
    return lambda s: None if s.topic == topic and begin_s < at_s(s) < end_s else s


def inside(times, begin_s, end_s, slack_s=0.05):
    return times and all(begin_s - slack_s <= b and e <= end_s + slack_s for b, e in times)


def test_a_healthy_bag_is_ok(tmp_path):
    bags = [record_robot(tmp_path / str(i), seed=i) for i in range(2)]
    report = look(*bags)
    assert (report.verdict, report.exit_code(strict=True), serious(report)) == ("ok", 0, set())
    assert (report.episodes, report.transitions, report.tasks) == (2, 600, ("arm_reach/train/00",))
    states = report.topics[0]
    assert (states.topic, states.count, states.rate_hz) == ("joint_states", 1202, pytest.approx(100))
    assert states.delay_ms == pytest.approx((2, 2, 2)) and states.age_ms == pytest.approx((0, 0, 0))
    delay = found(report, "command delay")
    assert delay.value == pytest.approx(0.007, abs=0.001) and "0.3 periods, allowed 2" in delay.text
    assert report.coverage is not None and report.coverage.actions.min() > 0.8


def test_a_simulated_lock_step_bag_is_not_blamed_for_its_clock(tmp_path):
    contract = parse_contract(ARM_REACH.text.replace("[-3, -1.5]", "[-30, -15]").replace("[3, 1.5]", "[30, 15]"), "x")
    report = look(record_arm(tmp_path / "bag", steps=30), contract=contract)
    assert "all topics are stamped by one clock" in found(report, "clock domains").text
    assert {check for _, check, _ in serious(report)} <= {"contract", "constant", "coverage of actions"}


def test_transitions_and_cuts_are_those_of_conversion(tmp_path):
    bags = [record_robot(tmp_path / "a", change=lost("/joint_states", 2, 2.2)), record_robot(tmp_path / "b")]
    report = look(*bags)  # ticks at 2.06 to 2.18 s are stale
    converted = convert(ConvertOptions(tuple(bags), tmp_path / "out"), progress=False)
    assert (report.episodes, report.transitions) == (converted.episodes, converted.transitions) == (3, 592)
    assert [[str(fault) for _, fault in bag.cuts] for bag in report.bags] == [
        [str(fault) for _, fault in bag.cuts] for bag in converted.bags
    ]
    assert inside([(s, s) for s, fault in report.bags[0].cuts if fault.kind is FaultKind.STALE], 2.0, 2.2)
    assert report.bags[0].dropped == converted.bags[0].dropped_ticks


def test_a_bag_is_read_once(tmp_path, monkeypatch):
    passes, blocks = [], BagReader.blocks
    monkeypatch.setattr(BagReader, "blocks", lambda self, topics: passes.append(self.path) or blocks(self, topics))
    bags = [record_robot(tmp_path / str(i), seconds=2) for i in range(2)]
    assert look(*bags).episodes == 2 and sorted(passes) == bags


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_of_a_faulty_bag_the_doctor_says_what_conversion_makes_of_it(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(topic_logs, "BLOCK_MESSAGES", 7)
    log = sorted(fault.change(events(fault.ticks)), key=lambda event: event.receive_ns)
    bag, contract = fault.record(tmp_path / "bag", fault.adapt([event.sample() for event in log])), None
    try:
        try:
            contract = make_contract(**{**WORLD, **fault.contract})
        except ContractError as error:
            assert fault.refused in str(error)  # before any bag is looked at
            return
        expected, _ = convert_bag(bag, Job(contract, own_contract=True, task=fault.task or UNNAMED))
    except (BagError, MessageError) as error:
        refusal = str(error).removeprefix(f"{bag}: ")
        (bag,) = look(bag, contract=contract, task=fault.task or None).bags
        texts = [f.text.removeprefix("conversion refuses this bag: ") for f in bag.findings if f.severity == "fail"]
        assert bag.episodes == 0 and refusal in texts
        return
    (bag,) = look(bag, contract=contract, task=fault.task or None).bags
    assert (bag.transitions, bag.episodes, bag.dropped) == (
        expected.transitions,
        expected.episodes,
        expected.dropped_ticks,
    )
    assert [why for _, why in bag.cuts] == [why for _, why in expected.cuts]
    assert bag.task_id == ", ".join(expected.tasks)


def test_gaps_are_found_where_they_are(tmp_path):
    report = look(record_robot(tmp_path / "bag", change=lost("/joint_states", 2.0, 2.5)))
    gaps = found(report, "gaps")
    assert (gaps.topic, gaps.severity) == ("joint_states", "fail") and inside(gaps.times, 2.0, 2.5)
    assert inside(found(report, "age at ticks").times, 2.0, 2.5)
    assert report.exit_code() == EXIT_FAIL
    lenient = Thresholds(gap_share=0.5, stale_share=0.5, dropped_share=0.5)
    mild = look(tmp_path / "bag", thresholds=lenient)
    assert (mild.verdict, mild.exit_code(), mild.exit_code(strict=True)) == ("warn", 0, EXIT_WARN)  # outlasts max_age_s


def broken(sample):
    """NaN, an empty array, swapped joints, a missing joint and a command beyond its limits, each at its time."""
    t = at_s(sample)
    if sample.topic == "/joint_commands" and 5.0 < t < 5.2:
        sample.message.effort[0] = 4.0
    if sample.topic != "/joint_states":
        return sample
    state = sample.message
    if 1.0 < t < 1.2:
        state.position[1] = np.nan
    stamp_ns = state.header.stamp.sec * 10**9 + state.header.stamp.nanosec
    changed = None
    if 2.0 < t < 2.2:
        changed = joint_state(stamp_ns, JOINTS, position=state.position)
    elif 3.0 < t < 3.2:
        changed = joint_state(
            stamp_ns, JOINTS[::-1], position=state.position[::-1].copy(), velocity=state.velocity[::-1].copy()
        )
    elif 4.0 < t < 4.2:
        changed = joint_state(stamp_ns, JOINTS[:1], position=state.position[:1], velocity=state.velocity[:1])
    return sample if changed is None else dataclasses.replace(sample, message=changed)


def test_faults_in_the_messages_are_found_though_conversion_refuses_the_bag(tmp_path):
    report = look(record_robot(tmp_path / "bag", change=broken))
    assert inside(found(report, "not finite").times, 1.0, 1.2)
    empty = found(report, "empty array")
    assert "'velocity'" in empty.text and inside(empty.times, 2.0, 2.2)
    joints = found(report, "joints")
    assert "elbow" in joints.text and joints.severity == "fail"
    assert all(inside([span], *where) for span, where in zip(joints.times, [(3.0, 3.2), (4.0, 4.2)], strict=True))
    assert inside(found(report, "limits").times, 5.0, 5.2)
    assert "conversion refuses this bag" in found(report, "conversion").text
    assert (report.verdict, report.transitions) == ("fail", 0)


def test_clocks_that_do_not_belong_together_are_found(tmp_path):
    def simulated(sample):
        if sample.topic == "/joint_commands":
            sample.message.header.stamp.sec -= RECEIVE_NS // 10**9
        return sample

    domains = found(look(record_robot(tmp_path / "bag", change=simulated)), "clock domains")
    assert domains.severity == "fail" and "joint_commands" in domains.text


def test_unset_stamps_are_found(tmp_path):
    def unset(sample):
        if sample.topic == "/joint_commands" and 3.0 < at_s(sample) < 3.5:
            sample.message.header.stamp.sec = sample.message.header.stamp.nanosec = 0
        return sample

    finding = found(look(record_robot(tmp_path / "bag", change=unset)), "unset stamps")
    assert finding.topic == "joint_commands" and inside(finding.times, 3.0, 3.5)


def test_without_a_contract_every_topic_with_numbers_is_looked_at(tmp_path):
    report = look(record_robot(tmp_path / "bag", change=lost("/joint_states", 2.0, 2.5), named=False))
    assert report.contract is None and {t.topic for t in report.topics} == {
        "/joint_states",
        "/joint_commands",
        "/reward",
    }
    assert found(report, "gaps").topic == "/joint_states" and found(report, "command delay").value < 0.01
    assert "no contract: topics alone are checked; `spc contract init BAG` proposes one" in report.text()


def test_what_conversion_would_refuse_fails(tmp_path):
    record_robot(tmp_path / "anonymous", named=False)
    unnamed = look(tmp_path / "anonymous", contract=ARM_REACH)
    assert found(unnamed, "task").severity == "fail" and unnamed.transitions == 300
    assert look(tmp_path / "anonymous", contract=ARM_REACH, task="t").verdict == "ok"
    record_robot(tmp_path / "silent", change=lambda s: None if s.topic == "/reward" else s)
    missing = look(tmp_path / "silent")
    assert found(missing, "topic").text.startswith("has no topic 'reward'") and missing.verdict == "fail"
    assert [f.check for f in missing.findings if f.severity == "fail"] == ["topic"], "told once"


def test_another_contract_is_told(tmp_path):
    slow = make_contract(base=ARM_REACH, rate_hz=25)
    bags = [record_robot(tmp_path / "a"), record_robot(tmp_path / "b", contract=slow)]
    finding = found(look(*bags), "contract")
    assert finding.severity == "fail" and finding.bag == str(bags[1]) and "rate_hz: 50 here, 25 there" in finding.text
    assert found(look(*bags, contract=ARM_REACH), "contract").severity == "warn"


def test_a_truncated_bag_is_a_finding_and_the_others_are_looked_at(tmp_path):
    record_robot(tmp_path / "bags" / "a")
    file = record_robot(tmp_path / "bags" / "b") / "b.mcap"
    file.write_bytes(file.read_bytes()[:-50])
    report = look(tmp_path / "bags")
    assert "the end of the file is missing, behind the 1,201 messages" in found(report, "bag").text
    assert [bag.verdict for bag in report.bags] == ["ok", "warn"] and report.transitions == 600


def test_bags_of_another_rate_stand_out(tmp_path):
    def halved(sample):
        return None if sample.topic == "/joint_states" and round(at_s(sample) * 100) % 2 else sample

    bags = [record_robot(tmp_path / str(i), seed=i, change=halved if i == 2 else lambda s: s) for i in range(4)]
    finding = found(look(*bags), "rate across bags")
    assert finding.bag == str(bags[2]) and "50.0 Hz in this bag, 100.0 Hz in most" in finding.text


def test_no_bags_is_an_error(tmp_path):
    with pytest.raises(BagError, match="no bag here"):
        look(tmp_path)


def test_the_command_line_writes_json_and_a_page_and_has_exit_codes(tmp_path, capsys):
    good = record_robot(tmp_path / "good", seconds=3)
    bad = record_robot(tmp_path / "bad", change=lost("/joint_states", 1.0, 1.5), seconds=3)
    page, numbers = tmp_path / "page.html", tmp_path / "doctor.json"
    assert main(["doctor", str(good), "--strict"]) == 0
    assert main(["doctor", str(good), str(bad), "--json", str(numbers), "--html", str(page)]) == EXIT_FAIL
    out = capsys.readouterr().out
    assert "FAIL joint_states: gaps: " in out and "[bad]" in out and "verdict: fail (2 bags: 1 ok, 1 fail)" in out
    known = json.loads(numbers.read_text())
    assert known["verdict"] == "fail" and known["totals"]["bags"] == {"ok": 1, "warn": 0, "fail": 1}
    assert [bag["verdict"] for bag in known["bags"]] == ["ok", "fail"]
    assert known["bags"][1]["topics"][0]["longest_gap_s"] == pytest.approx(0.5)
    html = page.read_text().replace(get_plotlyjs(), "")
    assert re.findall(r"(?:src|href)\s*=\s*['\"]?\s*(?:https?:)?//|@import|url\(|https?://(?!plot\.ly)", html) == []
    assert "Bag doctor" in html and "bag-0-timeline" in html and "cut by conversion" in html
    assert html.count('id="bag-') == 2 and "Drawn: 1 of 2 bags" in html  # timeline and commands of the bad one
    loose = ["--thresholds.gap-share", "0.9", "--thresholds.stale-share", "0.9", "--thresholds.dropped-share", "0.9"]
    assert main(["doctor", str(bad), *loose]) == 0
    assert main(["doctor", str(bad), *loose, "--strict"]) == EXIT_WARN
    assert main(["doctor", str(tmp_path / "nowhere")]) == 1


def test_the_report_is_the_same_from_several_processes(tmp_path):
    odd = {1: lost("/joint_states", 1.0, 1.5), 3: broken}
    bags = [record_robot(tmp_path / str(i), seconds=3, seed=i, change=odd.get(i, lambda s: s)) for i in range(8)]
    one, two = look(*bags, workers=1), look(*bags, workers=2)
    assert json.dumps(one.as_dict()) == json.dumps(two.as_dict()) and one.text() == two.text()
    assert page(one) == page(two)
    assert [bag.verdict for bag in one.bags] == ["ok", "fail", "ok", "fail", "ok", "ok", "ok", "ok"]


def test_what_is_kept_of_a_bag_is_small(tmp_path):
    bag = record_robot(tmp_path / "bag", seconds=30)
    (view,) = look(bag, workers=1).views
    assert max(len(trace.step_ms.y) for trace in view.data.traces) == MAX_POINTS  # of 3,000
    assert len(pickle.dumps(view)) < 500_000


def test_progress_is_told_in_bytes_and_reaches_the_whole(tmp_path, monkeypatch):
    bars = []
    monkeypatch.setattr(doctor, "tqdm", lambda *a, **k: (bars.append(FakeBar(**k)), bars[-1])[1])
    bags = [record_robot(tmp_path / str(i), seconds=2) for i in range(2)]
    diagnose(bags, workers=1)
    assert bars[0].total == bars[0].n == sum(f.stat().st_size for bag in bags for f in bag.glob("*.mcap"))
    assert bars[0].updates > 2 and not bars[0].disable


class FakeBar:
    """A progress bar that only counts."""

    def __init__(self, desc, total, unit, unit_scale, disable):
        self.total, self.disable, self.n, self.updates = total, disable, 0, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, count):
        assert count >= 0
        self.n, self.updates = self.n + count, self.updates + 1

    def set_postfix_str(self, text, refresh):
        assert "of 2 bags" in text
