# SPDX-License-Identifier: Apache-2.0
"""Every fault of the table: what comes out is what went in, transition by transition, or a refusal that says why.

`PYTHONPATH=test python test/faults/test_faults.py > docs/faults.md` writes the table for people.
"""

import sys
from pathlib import Path

import pytest

from faults.bag_table import EPISODES, FAULTS, FILES, MESSAGES, TIMES, Fault
from faults.bag_world import CONTRACT, definition, events, rows_of
from spc_core.contract.contract import parse_contract
from spc_core.data.dataset import Episode
from spc_ros.bags.files import BagError
from spc_ros.conversion.bag_conversion import Job, convert_bag
from spc_ros.messages.fields import MessageError
from support.recorded_bags import START_NS

DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"


def converted(fault: Fault, path: Path):
    """(the world's messages, the report, the episodes) of the fault."""
    log = sorted(fault.change(events(fault.ticks)), key=lambda event: event.receive_ns)
    text = CONTRACT
    for old, new in fault.contract:
        assert old in text
        text = text.replace(old, new)
    bag = fault.record(path, fault.adapt([event.sample() for event in log]))
    report, entries = convert_bag(bag, Job(parse_contract(text, "world"), own_contract=True, task=fault.task))
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
    assert any(fault.note in note for note in report.notes) if fault.note else report.notes == ()
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
    with pytest.raises((BagError, MessageError)) as error:
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
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) > 60
    assert DOCUMENT.read_text() == document(), (
        "make it again: PYTHONPATH=test python test/faults/test_faults.py > docs/faults.md"
    )


# ---- the document ---------------------------------------------------------------------------------------------------

HEAD = """# What happens when

Each row is a test: a robot whose transitions are known is recorded with one fault, the bag is converted, and what comes
out is compared with what went in (`test/faults/test_faults.py`, which writes this page). A robot publishes joint states
at 50 Hz (good for 50 ms), a force at 10 Hz (good for 150 ms), a command 3 ms after each state, and a reward with each
state; its bag holds 20 transitions of ticks 0 to 20. "Cut" ends an episode where data are missing; nothing is filled in
and nothing is paired across. What the words mean is in the README under "What the data mean".
"""
SECTIONS = {
    "Times and clocks": TIMES,
    "Messages": MESSAGES,
    "Episodes, tasks, contract": EPISODES,
    "Files": FILES,
}


def document() -> str:
    lines = [HEAD]
    for title, faults in SECTIONS.items():
        lines += [f"## {title}", "", "| Fault | What is injected | What comes out |", "|---|---|---|"]
        lines += [f"| {fault.name} | {fault.injected} | {result(fault)} |" for fault in faults]
        lines.append("")
    return "\n".join(lines)


def result(fault: Fault) -> str:
    """The sentence, and the numbers that the test asserts."""
    if fault.refused:
        return f"{fault.outcome} `{fault.refused.strip()}`".replace("|", "\\|")
    count = sum(piece.last - piece.first for piece in fault.pieces)
    episodes = f"{len(fault.pieces)} episodes" if len(fault.pieces) > 1 else "one episode"
    ends = dict.fromkeys(piece.end for piece in fault.pieces if piece.end != "the recording ended")
    told = [f"{count} transitions in {episodes}", *(f"`{end}`" for end in ends)]
    told += [f"dropped: {', '.join(f'{n} {kind}' for kind, n in fault.counts.items())}"] if fault.counts else []
    told += [f"note: `{fault.note.strip()}`"] if fault.note else []
    return f"{fault.outcome} **{'; '.join(told)}**".replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(document())
