# SPDX-License-Identifier: Apache-2.0
"""The table of faults: what is injected into the world of bag_world.py, and what has to come of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from faults import bag_injections as inject
from faults.bag_injections import chain, delayed, doubled, dropped, marked, mcap_file, put, said, stamped
from faults.bag_world import MS, WORLD, Piece, Record, recorder
from support.contracts import contract_text

STALE = "joint_states: stale, 60 ms old, allowed 50 ms"
NO_COMMAND = "joint_commands: no command in the period"
NO_REWARD = "reward: no reward in the period"
WHOLE = (Piece(0, 20),)
ENDED = (Piece(0, 20, "truncated"),)
NAN = float("nan")


@dataclasses.dataclass(frozen=True)
class Fault:
    """One row of the table. The test asserts all that follows the two sentences."""

    name: str
    injected: str
    outcome: str
    change: inject.Change = lambda log: log
    adapt: inject.Adapt = lambda samples: samples
    record: Record = recorder()
    pieces: tuple[Piece, ...] = WHOLE
    refused: str = ""  # part of the refusal
    note: str = ""  # part of a note of the report
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)  # messages that were dropped, as reported
    topics: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)  # as reported
    contract: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # other sections
    task: str = "t"
    tasks: tuple[str, ...] = ("t",)  # of the episodes
    outside: int = 0  # ticks in no episode
    jumps: str = ""  # part of what is said of steps far beyond all others
    ticks: int = 20
    by_definition: bool = True  # all messages reach the converter, so that the definition alone says what comes out


def refusal(name: str, injected: str, outcome: str, refused: str, **more: Any) -> Fault:
    return Fault(name, injected, outcome, refused=refused, pieces=(), by_definition=False, **more)


def files(name: str, injected: str, outcome: str, record: Record, **more: Any) -> Fault:
    return Fault(name, injected, outcome, record=record, by_definition=False, **more)


def episode(name: str, injected: str, outcome: str, adapt: inject.Adapt, **more: Any) -> Fault:
    return Fault(name, injected, outcome, adapt=adapt, by_definition=False, **more)


TIMES = (
    Fault("nothing", "A sound bag: 21 states, 20 commands, 20 rewards.", "Every transition."),
    Fault("constant delay", "Every message is received 300 ms late.",
          "Nothing changes: messages are aligned by their stamps.", delayed(300 * MS)),
    Fault("delay that varies", "Every message is received 0 to 60 ms late, at random.",
          "Nothing changes.", inject.shaken(60 * MS)),
    Fault("states delayed in transport", "States are received 200 ms late, after ten newer commands.",
          "Nothing changes: each command stays with the state that caused it.", delayed(200 * MS, "joint_states")),
    Fault("commands delayed in transport", "Commands are received 200 ms late.", "Nothing changes.",
          delayed(200 * MS, "joint_commands")),
    Fault("bursts", "Messages are received in bursts of 100 ms, with good stamps.", "Nothing changes.",
          inject.in_bursts(100 * MS)),
    Fault("a slow policy", "Commands are sent 15 ms after the state that causes them, within the period.",
          "Nothing changes.", stamped(12 * MS, "joint_commands")),
    Fault("a policy slower than the period", "Commands are sent 23 ms after the state that causes them.",
          "A command belongs to the period in which it was sent, so each is found one state later; that it was caused "
          "earlier is in no message. The first period has no command.",
          stamped(20 * MS, "joint_commands"),
          pieces=(Piece(1, 20, commands={k: k - 1 for k in range(21)}),)),
    Fault("clock offset between machines", "Stamps of the commands are 30 ms ahead of the robot's clock.",
          "Stamps are taken at their word: each command is found one state later. The report shows the delay of the "
          "commands as -29 ms, which cannot be; synchronise the clocks.",
          chain(inject.on_wall_time, stamped(30 * MS, "joint_commands")),
          pieces=(Piece(1, 20, commands={k: k - 1 for k in range(21)}),),
          topics={"joint_commands": {"delay_p50_ms": -29}, "joint_states": {"delay_p50_ms": 1}}),
    Fault("simulated time", "Stamps are of simulated time, receive times of wall time.",
          "Nothing changes: the two are never compared."),
    Fault("drifting clock", "The robot's clock runs 1 % slower than the contract's rate.",
          "Nothing changes: a state up to a quarter of a period early or late is the next tick.", inject.slower(1)),
    Fault("uneven periods", "States come up to 2 ms early or late, commands and rewards with them.",
          "Nothing changes: the tick is where the state is.", inject.trembling(2 * MS)),
    Fault("stamps left at zero", "Commands have the stamp (0, 0); the robot is on wall time.",
          "Those are aligned by their receive time, and counted.",
          chain(inject.on_wall_time, put("joint_commands", stamped=False)), by_definition=False,
          topics={"joint_commands": {"unset_stamps": 20}, "joint_states": {"unset_stamps": 0}}),
    refusal("stamps at zero beside simulated time", "Commands have the stamp (0, 0); states are in simulated time.",
            "Refused: by their receive time no command lies in any period.",
            "topic 'joint_commands' has no stamps and counts by when it was received, but the stamps of 'joint_states' "
            "are of another clock, as in a simulation; record /clock with the bag, stamp the messages, or say clock: "
            "receive for all topics",
            change=put("joint_commands", stamped=False)),
    Fault("clock jumps back", "The robot restarts after tick 9: its clock is 2 s earlier from then on.",
          "Cut there, and what follows is another episode; nothing is paired across.", stamped(-2000 * MS, first=10),
          pieces=(Piece(0, 9, "clock jumped back by 1.980 s on joint_states"), Piece(10, 20))),
    Fault("clock jumps forward", "The clock is set 3 s ahead after tick 9.",
          "Cut there: no reward comes for the period in which it happens.", stamped(3000 * MS, first=10),
          pieces=(Piece(0, 9, NO_REWARD), Piece(10, 20))),
    Fault("frozen stamps", "The driver repeats the stamp of tick 7 for the states 8 to 12.",
          "Those states are duplicates and dropped. State 7 is held for two ticks, until it is stale; then a cut.",
          chain(*(stamped(-20 * MS * k, "joint_states", first=7 + k, last=7 + k) for k in range(1, 6))),
          pieces=(Piece(0, 9, STALE, states={8: 7, 9: 7}), Piece(13, 20)), counts={"joint_states duplicate": 5}),
)  # fmt: skip

MESSAGES = (
    Fault("a state is lost", "State 7 is missing.", "State 6 is held at tick 7: it is fresh enough (20 of 50 ms).",
          dropped("joint_states", 7, 7), pieces=(Piece(0, 20, states={7: 6}),)),
    Fault("three states are lost", "States 7 to 9 are missing.",
          "State 6 is held for two ticks, until it is stale; then a cut.",
          dropped("joint_states", 7, 9), pieces=(Piece(0, 8, STALE, states={7: 6, 8: 6}), Piece(10, 20))),
    Fault("ten states are lost", "States 5 to 14 are missing.",
          "State 4 is held for two ticks, until it is stale; the next episode begins at state 15.",
          dropped("joint_states", 5, 14), pieces=(Piece(0, 6, STALE, states={5: 4, 6: 4}, forces={5: 5, 6: 5}),
                                                  Piece(15, 20))),
    Fault("a message of a slow stream is lost", "Force 10 is missing; force may be 150 ms old.",
          "Force 5 is held up to tick 12, then a cut, until force 15.", dropped("force", 10, 10),
          pieces=(Piece(0, 12, "force: stale, 160 ms old, allowed 150 ms", forces={10: 5, 11: 5, 12: 5}),
                  Piece(15, 20))),
    Fault("a stream begins late", "Forces 0 and 5 are missing.",
          "The first episode begins where every stream has a message.",
          dropped("force", 0, 5), pieces=(Piece(10, 20),)),
    Fault("a command is lost", "Command 7 is missing.",
          "Cut: what the robot did in this period is not known, and the command before is not put in its place.",
          dropped("joint_commands", 7, 7), pieces=(Piece(0, 7, NO_COMMAND), Piece(8, 20))),
    Fault("three commands are lost", "Commands 7 to 9 are missing.", "Cut; the next episode begins at tick 10.",
          dropped("joint_commands", 7, 9), pieces=(Piece(0, 7, NO_COMMAND), Piece(10, 20))),
    Fault("a reward is lost", "Reward 7 is missing.", "Cut at tick 6; the next episode begins at tick 7.",
          dropped("reward", 7, 7), pieces=(Piece(0, 6, NO_REWARD), Piece(7, 20))),
    Fault("two commands in a period", "A second command follows 8 ms after each.",
          "The first one counts: it is the one that the state caused.",
          doubled(8 * MS, "joint_commands", number=1000)),
    Fault("two rewards in a period", "A reward that is not final comes 8 ms before each.",
          "The newest one at the tick counts.", doubled(-8 * MS, "reward", number=1000)),
    Fault("duplicates", "Every message is in the bag twice.", "The second one is dropped, and counted.",
          doubled(0), counts={"joint_states duplicate": 21, "force duplicate": 5, "joint_commands duplicate": 20,
                              "reward duplicate": 20}),
    Fault("out of order within a topic", "State 7 is received after state 8.",
          "It is late, dropped and counted, as in a node; state 6 is held at tick 7.",
          delayed(25 * MS, "joint_states", first=7, last=7),
          pieces=(Piece(0, 20, states={7: 6}),), counts={"joint_states late": 1}),
    Fault("topics 0.9 s out of order", "Rewards are received 0.9 s after they are stamped.",
          "Nothing changes: topics may be a second out of order against each other.",
          delayed(900 * MS, "reward"), ticks=100, pieces=(Piece(0, 100),)),
    Fault("topics 1.3 s out of order", "Rewards are received 1.3 s after they are stamped, in a bag of 3 s.",
          "A tick is decided when anything newer by a second was received: then its reward is not there yet. Only the "
          "last second, in which nothing newer comes, is whole.",
          delayed(1300 * MS, "reward"), ticks=150, by_definition=False, pieces=(Piece(99, 150),)),
    Fault("NaN in a state", "The shoulder of state 7 is NaN.", "Cut; the next episode begins at state 8.",
          put("joint_states", first=7, last=7, spoilt=NAN),
          pieces=(Piece(0, 6, "joint_states: position.shoulder is not finite"), Piece(8, 20)),
          topics={"joint_states": {"nan_count": 1}}),
    Fault("NaN in a command", "The shoulder of command 7 is NaN.", "Cut; the next episode begins at tick 8.",
          put("joint_commands", first=7, last=7, spoilt=NAN),
          pieces=(Piece(0, 7, "joint_commands: not finite"), Piece(8, 20)),
          topics={"joint_commands": {"nan_count": 1}}),
    Fault("infinite reward", "Reward 7 is infinite.", "Cut at tick 6; the next episode begins at tick 7.",
          put("reward", first=7, last=7, spoilt=float("inf")),
          pieces=(Piece(0, 6, "reward: not finite"), Piece(7, 20)), topics={"reward": {"nan_count": 1}}),
    Fault("twice the contract's rate", "States come at 100 Hz, the contract says 50 Hz.",
          "Every second state is a tick.", doubled(10 * MS, "joint_states", number=1000)),
    Fault("half the contract's rate", "States come at 25 Hz, the contract says 50 Hz.",
          "Each state is held for one tick; the report shows 25 Hz. Correct the contract's rate.",
          inject.every(2, "joint_states"), pieces=(Piece(0, 20, states={k: k - k % 2 for k in range(21)}),),
          topics={"joint_states": {"rate_hz": 25}}),
    Fault("a fifth of the contract's rate", "States come at 10 Hz, the contract says 50 Hz.",
          "Each state is held for two ticks, then stale: a cut after each.", inject.every(5, "joint_states"),
          pieces=tuple(Piece(k, k + 2, STALE, states={k + 1: k, k + 2: k}) for k in (0, 5, 10, 15)),
          topics={"joint_states": {"rate_hz": 10}}),
    Fault("joints in another order", "From tick 10 on, states and commands list the joints the other way round.",
          "Nothing changes: joints are read by name.",
          put("joint_states", "joint_commands", first=10, joints=("elbow", "shoulder"))),
    Fault("a joint goes missing", "From tick 10 on, states name the elbow only.",
          "The shoulder comes first in the contract, so its messages make the ticks; those without a fresh value of "
          "it are counted.",
          put("joint_states", first=10, joints=("elbow",)), by_definition=False, pieces=(Piece(0, 9),),
          counts={"joint_states incomplete": 9}),
    refusal("a joint is never there", "States name the elbow only.", "Refused.",
            "topic 'joint_states': no message has the joint shoulder; they have elbow; correct the contract or the "
            "driver",
            change=put("joint_states", joints=("elbow",))),
    refusal("no velocities", "The driver leaves the array of velocities empty.", "Refused.",
            "cannot read velocity.shoulder: the array 'velocity' is empty, the message names 2 joints; make the driver "
            "fill it or take the field out of the contract", change=put("joint_states", velocity=False)),
    refusal("states are missing altogether", "The topic joint_states was recorded under another name.", "Refused.",
            "has no topic 'joint_states' (did you mean 'joint_state'?); it has: /joint_state, ",
            adapt=inject.renamed("/joint_states", "/joint_state")),
    refusal("another type", "Rewards are strings; the contract says Vector3Stamped.", "Refused.",
            "topic '/reward' is std_msgs/msg/String, the contract says geometry_msgs/msg/Vector3Stamped; correct",
            adapt=inject.retyped),
    refusal("a computed reward is infinite", "The reward is 1 / (position.shoulder - 7), which is 7 at tick 7.",
            "Refused, with the term and the place.",
            "the reward's term 'expression' is not finite in the transition that ends at 0.14 s (tick 7, stamp ",
            contract={"reward": {"expression": "1 / (position.shoulder - 7)"}}),
)  # fmt: skip

EPISODES = (
    episode("time limit", "The topic `episode` says: truncated by a time limit at tick 20.", "Ends truncated.",
            said(truncated=True), pieces=ENDED),
    episode("task ended", "It says: terminated at tick 20.", "Ends terminated: the value of what follows is zero.",
            said(terminated=True), pieces=(Piece(0, 20, "terminated"),)),
    episode("episode never ended", "It says: running, and nothing after that.", "Ends cut.", said(state="running"),
            pieces=(Piece(0, 20, "the recording ended while the episode ran"),)),
    episode("episode given up", "It says: ended, neither terminated nor truncated; the operator left.", "Ends cut.",
            said(reason="operator left"), pieces=(Piece(0, 20, "episode given up, operator left"),)),
    episode("data end before the episode", "It says: terminated at tick 20; the states end at tick 15.",
            "Ends cut, not terminated: the end was not seen.", said(terminated=True),
            change=dropped("joint_states", 16, 20),
            pieces=(Piece(0, 15, "no data at the end of the episode, 0.11 s of it"),)),
    episode("marker topic", "A Bool is on from tick 2 to 8 and from 12 to 18; the contract parts episodes by it.",
            "One episode for each time that it is on, without the state next to each mark: see below.",
            marked((0, False), (2, True), (8, False), (12, True), (18, False)), outside=11,
            pieces=(Piece(3, 7, "truncated"), Piece(13, 17, "truncated")),
            contract={"episode": {"segment": "topic", "topic": "active", "type": "std_msgs/msg/Bool"}}),
    episode("time limit of the contract", "The contract limits episodes to 0.16 s.", "An episode every eight ticks.",
            lambda samples: samples, contract={"episode": {"segment": "bag", "limit_s": 0.16}},
            pieces=(Piece(0, 8, "truncated"), Piece(8, 16, "truncated"), Piece(16, 20))),
    refusal("no task", "Neither the bag nor the user names a task.", "Refused.",
            "names no task, neither as 'spc.task_id' in custom_data nor on the topic 'episode'; give one", task=""),
    refusal("two tasks", "The topic `task` names one task, then another.", "Refused.",
            "topic 'task' names several tasks, heavy, light; record one task per bag",
            adapt=inject.named("heavy", "light"),
            contract={"task": {"key": "spc.task_id", "topic": "task"}}),
    Fault("a namespace", "The bag was recorded as /robot_7/joint_states and so on.", "Nothing changes.",
          adapt=inject.in_namespace),
    Fault("another contract in the bag", "The bag carries a contract with 25 Hz; the user gives one with 50 Hz.",
          "The user's counts, and the report says so.",
          record=recorder(spc__contract=contract_text(**WORLD, rate_hz=25)),
          note="recorded under another contract (rate_hz: 50 here, 25 there)"),
)  # fmt: skip

FILES = (
    Fault("big-endian messages", "Recorded on a big-endian machine.", "Nothing changes.", record=inject.BIG_ENDIAN),
    Fault("messages packed", "rosbag2 compressed each message (zstd).", "Nothing changes.",
          record=inject.MESSAGES_PACKED),
    Fault("file packed", "rosbag2 compressed the whole file (zstd).", "Nothing changes.", record=inject.FILES_PACKED),
    Fault("lz4", "Chunks are compressed with lz4.", "Nothing changes.", record=mcap_file("lz4")),
    Fault("split recording", "Three parts: rec_0, rec_1, rec_2.", "Read as one: nothing is cut between them.",
          record=inject.in_parts("rec_0.mcap", "rec_1.mcap", "rec_2.mcap")),
    Fault("ten parts and more", "The parts are called rec_2, rec_10 and rec_11.", "Read in the order of their numbers.",
          record=inject.in_parts("rec_2.db3", "rec_10.db3", "rec_11.db3", storage="sqlite3")),
    files("a part is missing", "The second of three parts (ticks 7 to 13) is missing, and there is no metadata.yaml.",
          "Cut there. Force 10 was in that part, so that the next episode begins at force 15.",
          inject.in_parts("rec_0.mcap", "rec_1.mcap", "rec_2.mcap", without="rec_1.mcap"),
          pieces=(Piece(0, 6, NO_REWARD), Piece(15, 20))),
    refusal("a part is missing that metadata.yaml names", "The file of the bag is not there.", "Refused.",
            "metadata.yaml names bag.mcap, not found; copy the whole folder",
            record=inject.then(recorder(), inject.without_file("*.mcap"))),
    Fault("no metadata.yaml", "metadata.yaml is missing.", "Nothing changes; custom_data is lost.",
          record=inject.then(recorder(), inject.without_file("metadata.yaml"))),
    Fault("damaged metadata.yaml", "metadata.yaml is not YAML.", "The storage files beside it are read.",
          record=inject.then(recorder(), inject.overwritten("metadata.yaml", "a: [")),
          note="metadata.yaml cannot be read"),
    Fault("unclosed mcap", "The recorder was killed: the file has no summary and no end.", "Everything is read.",
          record=mcap_file(closed=False),
          note="recording was not closed: 4 chunks and 66 messages read, nothing that was written is lost"),
    files("truncated mcap", "The file ends within a chunk that is not compressed, 10 bytes behind command 12.",
          "All messages that are whole are read. There is no state 13, so that transition 12 is not known.",
          inject.within(lambda samples: next(s for s in samples if s.topic == "/joint_commands"
                                             and s.message.effort[0] == 12), 10),
          pieces=(Piece(0, 12),), note="are cut off, 10 messages in them saved"),
    files("damaged chunk", "One bit is wrong in the second chunk (ticks 5 to 9), which has a checksum.",
          "The chunk is left out, and that is a cut.", mcap_file(flip=(1, 0.5)),
          pieces=(Piece(0, 4, NO_REWARD), Piece(10, 20)), note="is damaged and left out (its checksum is wrong)"),
    files("damaged compressed chunk", "One bit is wrong in the second chunk (ticks 5 to 9), which is compressed.",
          "The chunk is left out, and that is a cut.", mcap_file("zstd", flip=(1, 0.5)),
          pieces=(Piece(0, 4, NO_REWARD), Piece(10, 20)), note="with 16 messages is damaged and left out"),
    files("truncated sqlite3", "Of the database's pages only the first eight are there.",
          "All messages that can be reached are read.", inject.then(recorder("sqlite3"), inject.pages_left(8)),
          pieces=(Piece(0, 12, NO_REWARD),), note="the database is damaged: "),
    Fault("sqlite3 after a power cut", "The messages from tick 10 on are only in the write-ahead log (-wal).",
          "They are read too.", record=inject.then(recorder("sqlite3"), inject.with_open_log),
          note="recording was not closed: what bag.db3-wal still held is read too"),
    refusal("empty mcap", "The file has no bytes.", "Refused.", "truncated, the recording was never closed (the file "
            "seems to be empty)", record=mcap_file(keep=lambda data: b"")),
    refusal("no bag", "The file is text by the name of bag.mcap.", "Refused.",
            "cannot be read (File magic is invalid.)", record=mcap_file(keep=lambda data: b"hello " * 100)),
    refusal("empty bag", "The bag has topics and no message.", "Refused.",
            "holds no messages; check that the robot was publishing, or delete it", record=inject.empty),
)  # fmt: skip
