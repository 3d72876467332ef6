# SPDX-License-Identifier: Apache-2.0
"""docs/faults.md: the table of faults for people."""

from faults.bag_table import EPISODES, FILES, MESSAGES, TIMES, Fault
from faults.bytes_table import BYTES
from faults.clock_table import SIMULATED
from faults.commands_table import COMMANDS
from faults.hold_table import HOLDS
from faults.marks_table import MARKS
from faults.spread_table import SPREAD

HEAD = """# What happens when

Each row is a test: a robot whose transitions are known is recorded with one fault, the bag is converted, and what comes
out is compared with what went in (`test/faults/test_faults.py`). A robot publishes joint states
at 50 Hz (good for 50 ms), a force at 10 Hz (good for 150 ms), a command 3 ms after each state, and a reward with each
state; its bag holds 20 transitions of ticks 0 to 20. "Cut" ends an episode where data are missing; nothing is filled in
and nothing is paired across. What the words mean is in the README under "What the data mean".
`tools/write_fault_pages.py` writes this page.
"""
SECTIONS = {
    "Times and clocks": TIMES,
    "Simulated time beside wall time": SIMULATED,
    "Messages": MESSAGES,
    "Commands in arrays": COMMANDS,
    "Commands that hold": HOLDS,
    "Transforms, several action topics": SPREAD,
    "Episodes, tasks, contract": EPISODES,
    "Marks of episodes, copied stamps": MARKS,
    "Files": FILES,
    "Bytes and definitions": BYTES,
}
FAULTS = tuple(fault for faults in SECTIONS.values() for fault in faults)


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
    told += [f"{fault.outside} ticks outside"] if fault.outside else []
    told += [f"jumps: `{fault.jumps}`"] if fault.jumps else []
    told += [f"note: `{fault.note.strip()}`"] if fault.note else []
    return f"{fault.outcome} **{'; '.join(told)}**".replace("|", "\\|")
