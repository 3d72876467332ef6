# SPDX-License-Identifier: Apache-2.0
"""Joints that several drivers publish on one topic, in messages with some of the joints each: in bags and in nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spc_core.alignment import PATIENCE_NS
from spc_core.alignment.streaming import StreamingAligner, Transition
from spc_core.contract.contract import Contract
from spc_core.data.dataset import Episode
from spc_ros.bags.reader import BagReader
from spc_ros.conversion.bag_conversion import Job, convert_bag
from spc_ros.conversion.conversion_report import BagReport
from spc_ros.doctor.doctor import diagnose
from spc_ros.messages.columns import sources
from spc_ros.messages.contract_reader import MISSING_NS, ContractReader
from spc_ros.messages.fields import MessageError
from support.contracts import action_section, make_contract, stream_section
from support.recorded_bags import JOINT_STATE, PERIOD_NS, START_NS, VECTOR, Sample, joint_state, vector, write_bag

ARM, FINGER = ["position.j1", "position.j2"], ["position.finger"]
TICKS = 40
MS = 1_000_000


def contract(*streams: list[str], max_age_s: float = 0.05) -> Contract:
    return make_contract(
        observation=[stream_section("joint_states", fields, max_age_s=max_age_s) for fields in streams],
        action=action_section(["effort.j1"], [9], [999], "commands"),
        reward={"topic": "reward", "type": VECTOR, "field": "vector.x"},
        clock="header",
    )


def arm(k: int) -> Sample:
    t_ns = START_NS + k * PERIOD_NS
    return Sample("/joint_states", JOINT_STATE, t_ns, joint_state(t_ns, ["j1", "j2"], position=[k, 100 + k]))


def finger(k: int) -> Sample:
    """5 ms after the arm's message."""
    t_ns = START_NS + k * PERIOD_NS + 5 * MS
    return Sample("/joint_states", JOINT_STATE, t_ns, joint_state(t_ns, ["finger"], position=[200 + k]))


def samples(states: list[Sample]) -> list[Sample]:
    """With a command 3 ms and a reward 19 ms after each period's begin, in the order of arrival."""
    found = list(states)
    for k in range(TICKS):
        t_ns = START_NS + k * PERIOD_NS
        found.append(
            Sample("/commands", JOINT_STATE, t_ns + 3 * MS, joint_state(t_ns + 3 * MS, ["j1"], effort=[k / 9]))
        )
        found.append(Sample("/reward", VECTOR, t_ns + 19 * MS, vector(t_ns + 19 * MS, float(k))))
    return sorted(found, key=lambda sample: sample.receive_ns)


def every(count: int = 1, missing: range = range(0)) -> list[Sample]:
    """Arm messages at every tick, finger messages after every so manieth."""
    fingers = [finger(k) for k in range(0, TICKS + 1, count) if k not in missing]
    return samples([arm(k) for k in range(TICKS + 1)] + fingers)


def convert(bag: Path, wanted: Contract) -> tuple[BagReport, list[Episode]]:
    report, entries = convert_bag(bag, Job(wanted, own_contract=True, task="t"))
    return report, [entry.episode for entry in entries]


def live(log: list[Sample], wanted: Contract) -> list[Transition]:
    reader, aligner = ContractReader(wanted), StreamingAligner(wanted, PATIENCE_NS)
    steps = [
        step
        for sample in log
        for step in reader.feed(aligner, sample.topic.lstrip("/"), sample.message, sample.receive_ns)
    ]
    return [step.transition for step in [*steps, *aligner.flush()] if step.transition is not None]


def test_the_newest_value_of_each_joint_is_the_streams(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", every(2), {})
    report, (episode,) = convert(bag, contract(ARM + FINGER))
    assert report.dropped_samples == {"joint_states incomplete": 1}  # the first state, before any finger
    ticks = ((episode.times_ns - START_NS) // PERIOD_NS).tolist()
    assert ticks == list(range(1, TICKS + 1))
    newest = [200 + k - 1 if k % 2 else 200 + k - 2 for k in ticks]  # a finger's message comes after its tick
    assert episode.observations.tolist() == [[k, 100 + k, value] for k, value in zip(ticks, newest, strict=True)]
    assert episode.actions[:, 0].tolist() == [k / 9 for k in ticks[:-1]]


@pytest.mark.parametrize(
    "wanted", [contract(ARM + FINGER), contract(ARM, FINGER), contract(ARM), contract(FINGER + ARM)]
)
def test_bag_and_node_agree(tmp_path: Path, wanted: Contract) -> None:
    log = every(1, missing=range(10, 16))
    _, episodes = convert(write_bag(tmp_path / "bag", log, {}), wanted)
    found = live(log, wanted)
    assert len(found) == sum(map(len, episodes)) > 20
    recorded = [row for episode in episodes for row in episode.observations[:-1].tolist()]
    assert [transition.observation.tolist() for transition in found] == recorded


def test_a_joint_that_is_too_old_cuts(tmp_path: Path) -> None:
    """The finger is silent after tick 9: its value is 35 ms old at tick 11, and too old at tick 12."""
    bag = write_bag(tmp_path / "bag", every(1, missing=range(10, 20)), {})
    report, (before, after) = convert(bag, contract(ARM + FINGER))
    assert before.observations[-1].tolist() == [11, 111, 209]
    assert (before.times_ns[-1] - START_NS) // PERIOD_NS == 11
    assert (after.times_ns[0] - START_NS) // PERIOD_NS == 21
    assert str(report.cuts[0][1]) == "joint_states: position.finger is not finite"


def test_a_joint_that_appears_later_cuts_what_is_before(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", every(1, missing=range(0, 15)), {})
    report, (episode,) = convert(bag, contract(ARM + FINGER))
    assert (episode.times_ns[0] - START_NS) // PERIOD_NS == 16 and len(episode) == TICKS - 16
    assert report.dropped_samples == {"joint_states incomplete": 16}


def test_a_joint_that_never_comes_is_refused(tmp_path: Path) -> None:
    wanted = contract([*ARM, "position.wrist"])
    told = "no message has the joint wrist; they have finger, j1, j2; correct the contract or the driver"
    with pytest.raises(MessageError, match=told):
        convert(write_bag(tmp_path / "bag", every(), {}), wanted)
    reader = ContractReader(wanted)
    ((_, _, values),) = reader.samples("joint_states", arm(0).message, 0)  # it may still come
    assert np.isnan(values[2])
    assert reader.samples("joint_states", finger(0).message, 0) == []
    with pytest.raises(MessageError, match=told):
        reader.samples("joint_states", arm(MISSING_NS // PERIOD_NS + 1).message, 0)


def test_a_joint_named_twice_is_refused(tmp_path: Path) -> None:
    t_ns = START_NS
    twice = Sample("/joint_states", JOINT_STATE, t_ns, joint_state(t_ns, ["j1", "j2", "j1"], position=[0, 1, 2]))
    bag = write_bag(tmp_path / "bag", samples([twice, *(arm(k) for k in range(1, TICKS + 1))]), {})
    with pytest.raises(MessageError, match="names j1 more than once"):
        convert(bag, contract(ARM))
    with pytest.raises(MessageError, match="names j1 more than once"):
        ContractReader(contract(ARM)).samples("joint_states", twice.message, 0)


def test_the_doctor_takes_spread_joints_for_what_they_are(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", every(2), {})
    for wanted, names in (
        (contract(ARM + FINGER), ["joint_states"]),
        (
            contract(ARM, FINGER, max_age_s=0.1),
            ["joint_states (position.j1, position.j2)", "joint_states (position.finger)"],
        ),
    ):
        report = diagnose([bag], wanted, task="t", progress=False)
        assert report.verdict == "ok", report.findings
        assert [topic.topic for topic in report.topics][: len(names)] == names
        assert report.topics[0].count == TICKS + 1 - (len(names) == 1)


def test_the_reading_of_a_bag_in_blocks_is_the_same(tmp_path: Path) -> None:
    """Values are kept from one block of the log to the next."""
    log = every(3)
    wanted = contract(ARM + FINGER, max_age_s=0.1)
    with BagReader(write_bag(tmp_path / "bag", log, {})) as bag:
        columns = [block["/joint_states"] for block in bag.blocks(["/joint_states"])]
        (source, *_), (column,) = sources(wanted), columns
        stamps, values, absent = source.columns(bag.typestore_of("/joint_states")).read_partial(column)
    whole = source.samples(column.log_index, stamps, values, absent)
    source.reset()
    assert absent is not None
    parts = [
        source.samples(column.log_index[part], stamps[part], values[part], absent[part])
        for part in (slice(i, i + 7) for i in range(0, len(stamps), 7))
    ]
    np.testing.assert_array_equal(whole.values, np.concatenate([part.values for part in parts]))
    np.testing.assert_array_equal(whole.t_ns, np.concatenate([part.t_ns for part in parts]))
