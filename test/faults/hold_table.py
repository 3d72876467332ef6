# SPDX-License-Identifier: Apache-2.0
"""The rows about commands that come only when they change, under a contract that says `hold: true`."""

from __future__ import annotations

from typing import Any

from faults.bag_injections import Change, chain, dropped, marked, put, stamped
from faults.bag_table import NO_COMMAND, NO_REWARD, STALE, Fault, refusal
from faults.bag_world import MS, WORLD, Piece, recorder
from support.recorded_bags import RECEIVE_NS

HOLD = {**WORLD["action"], "hold": True}


def only(*ticks: int) -> Change:
    """Commands after the states of these ticks alone."""
    return lambda log: [e for e in log if e.topic != "joint_commands" or e.number in ticks]


def held(*ticks: int) -> dict[int, int]:
    """Of each tick the number of the latest of these commands."""
    return {k: max((t for t in ticks if t <= k), default=k) for k in range(21)}


def row(name: str, injected: str, outcome: str, change: Change, *pieces: Piece, **more: Any) -> Fault:
    return Fault(name, injected, outcome, change, pieces=pieces,
                 **{"contract": {"action": HOLD}, "by_definition": False, **more})  # fmt: skip


STATES_LOST = {"states": {5: 4, 6: 4}, "forces": {5: 5, 6: 5}}

HOLDS = (
    row("commands only when they change", "Commands come after the states 0, 7 and 12 only; the contract says hold: "
        "true.", "Each holds until the next one.", only(0, 7, 12), Piece(0, 20, commands=held(0, 7, 12))),
    row("commands only when they change, in sqlite3", "The same in sqlite3.", "Each holds until the next one.",
        only(0, 7, 12), Piece(0, 20, commands=held(0, 7, 12)), record=recorder("sqlite3")),
    row("the same without hold", "The same, and the contract does not say that they hold.",
        "A period without a command is cut.", only(0, 7, 12), Piece(0, 1, NO_COMMAND), Piece(7, 8, NO_COMMAND),
        Piece(12, 13, NO_COMMAND), contract={}),
    row("nothing to hold yet", "The first command comes after state 3.", "Cut until then.", only(3, 12),
        Piece(3, 20, commands=held(3, 12))),
    row("a held command over a cut", "The only command comes after state 0, and the states 5 to 14 are missing.",
        "It holds behind the cut too: the robot went on executing it.",
        chain(only(0), dropped("joint_states", 5, 14)), Piece(0, 6, STALE, commands=held(0), **STATES_LOST),
        Piece(15, 20, commands=held(0))),
    row("a held command over a pause", "The same, with another command after state 17, and the contract parts episodes "
        "at pauses of 0.15 s.", "A log that begins anew has nothing to hold: cut until the next command.",
        chain(only(0, 17), dropped("joint_states", 5, 14)), Piece(0, 6, "truncated", commands=held(0), **STATES_LOST),
        Piece(17, 20, commands=held(17)), contract={"action": HOLD, "episode": {"segment": "gap", "gap_s": 0.15}}),
    row("a held command over episodes", "The only command comes after state 0; a Bool is on from tick 2 to 8 and from "
        "12 to 18.", "It holds in both episodes, since the robot goes on executing it between them.", only(0),
        Piece(3, 7, "truncated", commands=held(0)), Piece(13, 17, "truncated", commands=held(0)), outside=11,
        adapt=marked((0, False), (2, True), (8, False), (12, True), (18, False)),
        contract={"action": HOLD, "episode": {"segment": "topic", "topic": "active", "type": "std_msgs/msg/Bool"}}),
    row("a held command over a restart", "Commands come after the states 0 and 12; the robot restarts after tick 9: "
        "its clock is 2 s earlier from then on.", "Nothing holds over a clock that jumps back.",
        chain(only(0, 12), stamped(-2000 * MS, first=10)),
        Piece(0, 9, "clock jumped back by 1.980 s on joint_states", commands=held(0)),
        Piece(12, 20, commands=held(12))),
    row("a held command that is not finite", "Commands come after the states 0, 7 and 12; the second one is NaN.",
        "Cut as long as it holds.", chain(only(0, 7, 12), put("joint_commands", first=7, last=7, spoilt=float("nan"))),
        Piece(0, 7, "joint_commands: not finite", commands=held(0)), Piece(12, 20, commands=held(12)),
        topics={"joint_commands": {"nan_count": 1}}),
    row("a command is lost, and commands hold", "Command 7 is missing, and the contract says hold: true.",
        "The one before takes its place: whether one was lost or none was sent cannot be told. Say hold only "
        "where commands come when they change.", dropped("joint_commands", 7, 7), Piece(0, 20, commands={7: 6})),
    row("a reward is lost, and commands hold", "Commands come after the states 0 and 12 only, and reward 7 is missing.",
        "Cut at tick 6, as ever.", chain(only(0, 12), dropped("reward", 7, 7)),
        Piece(0, 6, NO_REWARD, commands=held(0)), Piece(7, 20, commands=held(0, 12))),
    refusal("hold: yes, in words", "The contract says hold: 'yes'.", "Refused.",
            "action.hold must be true or false, got 'yes'", contract={"action": {**HOLD, "hold": "yes"}}),
    refusal("commands that hold, of another clock", "Commands come only when they change and are stamped with wall "
            "time, states with simulated time.", "Refused: each would be held in a wrong period.",
            "commands on 'joint_commands' hold until the next one, but their stamps are of another clock than those of "
            "'joint_states'; set use_sim_time the same for all nodes",
            change=chain(only(0, 7, 12), put("joint_commands", epoch_ns=RECEIVE_NS)), contract={"action": HOLD}),
)  # fmt: skip
