# SPDX-License-Identifier: Apache-2.0
"""The rows about what parts a bag into episodes, and about stamps that do not say when a message was sent."""

from __future__ import annotations

import dataclasses
from typing import Any

from faults.bag_injections import Adapt, chain, each, stamped
from faults.bag_table import NO_COMMAND, Fault, refusal
from faults.bag_world import MS, PERIOD, Event, Piece
from spc_core.alignment.episode import EpisodeInfo
from support.recorded_bags import RECEIVE_NS, START_NS, STORE, STRING, VECTOR, Sample, string, vector

BOOL, INT = "std_msgs/msg/Bool", "std_msgs/msg/Int32"
HALF_MS = MS // 2
UNFINISHED = "the recording ended while the episode ran"


def marks(kind: str, offset_ns: int, *values: tuple[int, Any]) -> Adapt:
    """Marks on /active that are received so long after the state of their tick."""
    more = [
        Sample("/active", kind, RECEIVE_NS + k * PERIOD + MS + offset_ns, STORE.types[kind](data=value))
        for k, value in values
    ]
    return lambda samples: sorted([*samples, *more], key=lambda s: s.receive_ns)


def stamped_marks(*values: tuple[int, float], epoch_ns: int = START_NS) -> Adapt:
    """Marks on /active with the stamp of a tick, received 5 ms after it."""
    more = [
        Sample("/active", VECTOR, RECEIVE_NS + k * PERIOD + 5 * MS, vector(epoch_ns + k * PERIOD, value))
        for k, value in values
    ]
    return lambda samples: sorted([*samples, *more], key=lambda s: s.receive_ns)


def told(*ticks: tuple[int, int, int, int]) -> Adapt:
    """The topic `episode`: (tick at which it is said, number, first tick, last tick or 0 while it runs)."""
    more = []
    for at, number, first, last in ticks:
        info = EpisodeInfo(
            state="ended" if last else "running", task_id=f"task {number}", params={}, episode=number, seed=0,
            start_ns=START_NS + first * PERIOD, end_ns=START_NS + last * PERIOD if last else 0, truncated=bool(last),
        )  # fmt: skip
        more.append(Sample("/episode", STRING, RECEIVE_NS + at * PERIOD + 5 * MS, string(info.to_json())))
    return lambda samples: sorted([*samples, *more], key=lambda s: s.receive_ns)


def says(topic: str, *values: tuple[int, str]) -> Adapt:
    more = [Sample(topic, STRING, RECEIVE_NS + k * PERIOD + 2 * MS, string(text)) for k, text in values]
    return lambda samples: sorted([*samples, *more], key=lambda s: s.receive_ns)


def by(kind: str, field: str = "data", **more: Any) -> dict[str, Any]:
    """Sections of a contract that parts episodes by /active."""
    return {"episode": {"segment": "topic", "topic": "active", "type": kind, "field": field}, **more}


def row(name: str, injected: str, outcome: str, adapt: Adapt, *pieces: tuple[int, int, str], **more: Any) -> Fault:
    return Fault(name, injected, outcome, adapt=adapt, pieces=tuple(Piece(*piece) for piece in pieces),
                 by_definition=False, **more)  # fmt: skip


def early(event: Event) -> Event:
    """Every second message is received half a millisecond before the state of its tick."""
    return dataclasses.replace(event, receive_ns=event.t_ns + HALF_MS) if event.number % 2 else event


ON_OFF = ((0, False), (2, True), (8, False), (12, True), (18, False))
TWO = told((0, 1, 0, 0), (8, 1, 0, 8), (12, 2, 12, 0), (20, 2, 12, 20))
TWO_PIECES = ((0, 8, "truncated"), (12, 20, "truncated"))
T = "truncated"
PARTED = "tells of several episodes, so that the bag is parted by it"
SEGMENT_TOPIC: dict[str, Any] = {"episode": {"segment": "topic"}}

MARKS = (
    row("marks just before the states", "A Bool is on from tick 2 to 8 and from 12 to 18, without stamps, and received "
        "half a millisecond before the states of these ticks.",
        "The latest state before a mark belongs to neither side, so that no transition crosses a reset.",
        marks(BOOL, -HALF_MS, *ON_OFF), (2, 6, T), (12, 16, T), contract=by(BOOL), outside=11),
    row("marks just after the states", "The same, half a millisecond after the states.", "Nothing crosses a reset.",
        marks(BOOL, HALF_MS, *ON_OFF), (3, 7, T), (13, 17, T), contract=by(BOOL), outside=11),
    row("marks at the time of the states", "The same, received at the very time of the states, as on simulated time.",
        "Nothing crosses a reset.", marks(BOOL, 0, *ON_OFF), (3, 7, T), (13, 17, T), contract=by(BOOL), outside=11),
    row("marks by receive time", "The same before the states, and the contract says clock: receive.",
        "Nothing crosses a reset.", marks(BOOL, -HALF_MS, *ON_OFF), (2, 6, T), (12, 16, T),
        contract=by(BOOL, clock="receive"), outside=11),
    row("marks with stamps", "A number with a header is 1 from the stamp of tick 2 on, and 0 from that of tick 8 on.",
        "Each tick is on the side that its stamp says.", stamped_marks((0, 0), (2, 1), (8, 0)), (2, 7, T),
        contract=by(VECTOR, "vector.x"), outside=15),
    row("an index with stamps", "A number with a header counts episodes: 1 from tick 0 on, 2 from tick 10 on.",
        "Tick 10 is the first of the second one, and not the last of the first.", stamped_marks((0, 1), (10, 2)),
        (0, 9, T), (10, 20, UNFINISHED), contract=by(VECTOR, "vector.x")),
    row("an index from 0", "An Int32 counts episodes: 0, from tick 7 on 1, from tick 14 on 2.",
        "An index is known by its values: 0 is an episode like the others.",
        marks(INT, -HALF_MS, (0, 0), (7, 1), (14, 2)), (0, 5, T), (7, 12, T), (14, 20, UNFINISHED), contract=by(INT),
        outside=2),
    row("an index that is -1 in between", "An Int32 is 0, -1 from tick 7 on, 1 from tick 14 on.",
        "No episode where it is negative.", marks(INT, -HALF_MS, (0, 0), (7, -1), (14, 1)), (0, 5, T),
        (14, 20, UNFINISHED), contract=by(INT), outside=8),
    row("marks in words", "A String says start, stop and start again at ticks 2, 8 and 12.",
        "Words for an end end the episode.", says("/active", (2, "start"), (8, "stop"), (12, "start")), (3, 7, T),
        (13, 20, UNFINISHED), contract=by(STRING), outside=8),
    row("a mark is repeated", "A Bool says on at ticks 2 and 5, and off at tick 8.", "One episode.",
        marks(BOOL, HALF_MS, (2, True), (5, True), (8, False)), (3, 7, T), contract=by(BOOL), outside=16),
    row("two episodes in one bag", "The topic `episode` tells of ticks 0 to 8 and 12 to 20; the contract says "
        "segment: bag.", "Both, each with its task.", TWO, *TWO_PIECES, note=PARTED, outside=3,
        tasks=("task 1", "task 2")),
    row("two episodes by receive time", "The same with clock: receive.", "Both.", TWO, *TWO_PIECES, note=PARTED,
        outside=3, contract={"clock": "receive"}, tasks=("task 1", "task 2")),
    row("an episode within a bag by receive time", "The topic `episode` tells of ticks 4 to 16; the contract says "
        "clock: receive.", "Ticks before it and behind it are outside.", told((4, 1, 4, 0), (16, 1, 4, 16)), (4, 16, T),
        outside=8, contract={"clock": "receive"}, tasks=("task 1",)),
    row("the recorder repeats what was said", "At tick 15 the bag was split, and the two latest messages of the topic "
        "`episode` come again.", "Each episode once.",
        told((0, 1, 0, 0), (8, 1, 0, 8), (12, 2, 12, 0), (15, 1, 0, 8), (15, 2, 12, 0), (20, 2, 12, 20)), *TWO_PIECES,
        contract=SEGMENT_TOPIC, outside=3, tasks=("task 1", "task 2")),
    row("an end is missing", "The topic `episode` tells of the start of one at tick 0 and of another at tick 10, and "
        "of the end of the second.", "The first one ends cut, before the second.",
        told((0, 1, 0, 0), (10, 2, 10, 0), (20, 2, 10, 20)), (0, 9, "episode given up, another one began"),
        (10, 20, T), contract=SEGMENT_TOPIC, tasks=("task 1", "task 2")),
    row("one episode within another", "The topic `episode` tells of ticks 0 to 20, and of ticks 8 to 12 within them.",
        "No transition is in two episodes: the first one ends cut where the second begins.",
        told((0, 1, 0, 0), (8, 2, 8, 0), (12, 2, 8, 12), (20, 1, 0, 20)), (0, 7, "episode given up, another one began"),
        (8, 12, T), contract=SEGMENT_TOPIC, outside=8, tasks=("task 1", "task 2")),
    row("another program's topic `episode`", "A recorder says start and stop on /recorder/episode.",
        "Not used, and the report says how to.", says("/recorder/episode", (0, "start"), (20, "stop")),
        (0, 20, "the recording ended"),
        note="topic '/recorder/episode' does not tell of episodes as this software does"),
    refusal("another program's topic that parts", "The same, and the contract says segment: topic.", "Refused.",
            "has no topic 'episode' that tells of episodes, by which the contract parts them; name the topic, type and",
            adapt=says("/recorder/episode", (0, "start"), (20, "stop")), contract=SEGMENT_TOPIC),
    refusal("marks of another clock", "Marks have stamps of wall time, states of simulated time.", "Refused.",
            "if the marks are of another clock than the states, set use_sim_time the same for all nodes",
            adapt=stamped_marks((2, 1), (8, 0), epoch_ns=RECEIVE_NS), contract=by(VECTOR, "vector.x")),
    refusal("the clock restarts between episodes", "The simulation begins again at tick 10; the topic `episode` tells "
            "of an episode before and one after it.", "Refused: each time means two ticks.",
            "the clock of the states jumps back by 0.980 s, so that the times of its episodes mean two stretches each",
            ticks=100, change=stamped(-1000 * MS, first=50), adapt=told((0, 1, 0, 0), (49, 1, 0, 49), (50, 2, 1, 0)),
            contract=SEGMENT_TOPIC),
    Fault("a task in 270 letters", "The task is a long instruction.", "Kept whole; names of folders are shortened.",
          task="pick up the red cube and put it into the bowl. " * 6, tasks=("pick up the red cube and put it into the "
                                                                           "bowl. " * 6,)),
    Fault("commands with the stamps of their states", "The controller copies the header of the state that it answers.",
          "Nothing changes: a command with the stamp of a state that was received before it answers that state.",
          stamped(-3 * MS, "joint_commands")),
    Fault("commands and states received at one time", "The same in receive times, and the contract says "
          "clock: receive.", "Nothing changes.",
          lambda log: [dataclasses.replace(e, receive_ns=e.number * PERIOD + MS) for e in log],
          contract={"clock": "receive"}, by_definition=False),
    Fault("commands logged before their states", "The same, and every second command is logged before its state.",
          "Such a command counts for the period before, which has one already: a cut after each other, and a note.",
          chain(stamped(-3 * MS, "joint_commands"), each(early, "joint_commands")), by_definition=False,
          pieces=tuple(Piece(k, k + 1, NO_COMMAND) for k in range(0, 20, 2)),
          note="commands carry the stamp of a state that was received after them"),
    Fault("a second publisher of the states", "Every fifth state is of a publisher that says zero.",
          "They are in the data, and the report says when and what to do.",
          each(lambda e: dataclasses.replace(e, number=0) if e.number % 5 == 0 else e, "joint_states", first=12),
          ticks=100, pieces=(Piece(0, 100, states={k: 0 for k in range(15, 101, 5)}),),
          jumps="they go there and back at once, as with a second publisher on the topic"),
    Fault("resets in mid-bag", "At ticks 40 and 80 the robot is back where it began; nothing marks it.",
          "The data hold these transitions, and the report says when and what to do.",
          each(lambda e: dataclasses.replace(e, number=e.number % 40), "joint_states"),
          ticks=100, pieces=(Piece(0, 100, states={k: k % 40 for k in range(40, 101)}),),
          jumps="2 of 100 transitions step by 39 or more, all others by 1 at most, at 0.80, 1.60 s; as with a reset"),
    Fault("some commands with the stamps of their states", "From tick 10 on the controller copies the header.",
          "Nothing changes.", stamped(-3 * MS, "joint_commands", first=10)),
)  # fmt: skip
