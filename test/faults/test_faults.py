# SPDX-License-Identifier: Apache-2.0
"""Every fault of the table: what comes out is what went in, transition by transition, or a refusal that says why.

`python tools/write_fault_pages.py` writes the table for people.
"""

from pathlib import Path

import pytest

from faults.bag_page import FAULTS, document
from faults.bag_table import TIMES, Fault
from faults.bag_world import WORLD, definition, events, rows_of
from spc_core.contract.contract import ContractError
from spc_core.data.dataset import Episode
from spc_ros.bags.files import BagError
from spc_ros.conversion.bag_conversion import Job, convert_bag
from spc_ros.messages.fields import MessageError
from support.contracts import make_contract
from support.paths import ROOT
from support.recorded_bags import START_NS

DOCUMENT = ROOT / "docs" / "faults.md"


def converted(fault: Fault, path: Path):
    """(the world's messages, the report, the episodes) of the fault."""
    log = sorted(fault.change(events(fault.ticks)), key=lambda event: event.receive_ns)
    contract = make_contract(**{**WORLD, **fault.contract})
    bag = fault.record(path, fault.adapt([event.sample() for event in log]))
    report, entries = convert_bag(bag, Job(contract, own_contract=True, task=fault.task))
    return log, report, [entry.episode for entry in entries]


def end_of(episode: Episode) -> str:
    ends = {"terminated": episode.terminated, "truncated": episode.truncated, episode.cut: episode.cut is not None}
    (end,) = (name for name, is_so in ends.items() if is_so)
    return end


@pytest.mark.parametrize("fault", [f for f in FAULTS if not f.refused], ids=lambda fault: fault.name)
def test_a_fault_leaves_what_the_table_says(tmp_path, fault):
    log, report, episodes = converted(fault, tmp_path / "bag")
    assert [(rows_of(e), end_of(e)) for e in episodes] == [(p.rows(), p.end) for p in fault.pieces]
    assert report.transitions == sum(piece.last - piece.first for piece in fault.pieces)
    assert [str(why) for _, why in report.cuts] == [
        p.end for p in fault.pieces if p.end not in ("truncated", "terminated")
    ]
    assert report.dropped_samples == fault.counts
    assert (report.tasks, report.outside_ticks) == (fault.tasks, fault.outside)
    assert any(fault.note in note for note in report.notes) if fault.note else report.notes == ()
    assert any(fault.jumps in jumps.text for jumps in report.jumps) if fault.jumps else report.jumps == ()
    for topic, numbers in fault.topics.items():
        for name, number in numbers.items():
            assert getattr(report.topics[topic], name) == pytest.approx(number, rel=1e-6), (topic, name)
    if fault.by_definition:
        assert list(transitions(episodes, log[0].epoch_ns)) == list(definition(log))


def transitions(episodes: list[Episode], epoch_ns: int):
    for episode in episodes:
        rows = rows_of(episode)
        for t_ns, row, (state, force, _, _) in zip(episode.times_ns.tolist(), rows, rows[1:], strict=False):
            yield t_ns - epoch_ns, row, (state, force)


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.refused], ids=lambda fault: fault.name)
def test_a_fault_is_refused_as_the_table_says(tmp_path, fault):
    with pytest.raises((BagError, ContractError, MessageError)) as error:
        converted(fault, tmp_path / "bag")
    assert fault.refused in str(error.value)


def test_a_wrong_pairing_is_seen(tmp_path):
    """Not the table, but its eyes: commands one state too early differ from the definition in every row."""
    log, _, episodes = converted(TIMES[0], tmp_path / "bag")
    assert START_NS + log[0].t_ns == episodes[0].times_ns[0]
    moved = [event if event.topic != "joint_commands" else shifted(event) for event in log]
    pairs = list(zip(transitions(episodes, START_NS), definition(moved), strict=False))
    assert len(pairs) == 19 and all(found != other for found, other in pairs)


def shifted(event):
    return type(event)(event.topic, event.number, event.t_ns + 20_000_000, event.receive_ns)


def test_the_document_is_the_table():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) > 80
    assert DOCUMENT.read_text() == document(), "write it again: python tools/write_fault_pages.py"
