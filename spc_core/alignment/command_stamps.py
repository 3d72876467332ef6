# SPDX-License-Identifier: Apache-2.0
"""Commands and rewards whose stamps are those of other messages and may not say which period they are for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

MOST = 0.9  # of the commands carry a stamp of one other stream
FEW = 0.05  # of the commands with a state's stamp come on the other side of it than the rest


@dataclasses.dataclass(frozen=True)
class Stamped:
    """N messages of a stream in the order of the log."""

    topic: str
    t_ns: np.ndarray  # (N,)
    log_index: np.ndarray  # (N,) as in Samples


def stamp_notes(commands: Stamped, streams: Sequence[Stamped]) -> list[str]:
    """What is doubtful about the commands' stamps; `streams` are those observed that age, the first one first."""
    count = len(commands.t_ns)
    if not count or not streams:
        return []
    answered, early = _copies(commands, streams[0])
    if early > FEW * (answered + early) and answered + early > MOST * count:
        return [
            f"{early} of {count} commands carry the stamp of a state that was received after them and count for the "
            f"period before; {answered} were received after it and count as its answers; if this is not so, say "
            "clock: receive for the action, or stamp commands when they are sent"
        ]
    for stream in streams[1:] if answered + early < FEW * count else ():
        copies = sum(_copies(commands, stream))
        if copies > MOST * count:
            return [
                f"{copies} of {count} commands carry a stamp of '{stream.topic}', not of the first stream "
                f"'{streams[0].topic}': they count from when that was sampled, maybe before the state they answer; "
                f"say clock: receive for the action, put '{stream.topic}' first, or stamp commands when they are sent"
            ]
    return []


def reward_notes(
    reward_ns: np.ndarray, reward_stamp_ns: np.ndarray, state_ns: np.ndarray, state_stamp_ns: np.ndarray
) -> list[str]:
    """What is doubtful about rewards that count by receive time, from times and stamps of them and of the states."""
    stamp_ns, first = np.unique(state_stamp_ns, return_index=True)
    if not len(stamp_ns):
        return []
    row = np.minimum(np.searchsorted(stamp_ns, reward_stamp_ns), len(stamp_ns) - 1)
    same = (stamp_ns[row] == reward_stamp_ns) & (reward_stamp_ns > 0)
    behind = int((same & (state_ns[first[row]] < reward_ns)).sum())
    if behind <= FEW * len(reward_ns):
        return []
    return [
        f"{behind} of {len(reward_ns)} rewards carry the stamp of a state that was received before them: by receive "
        "time they count for the period that this state begins, not for the one that it ends; if this is not meant, "
        "say clock: header, with /clock recorded in a simulation, or publish the reward before the state"
    ]


def _copies(commands: Stamped, stream: Stamped) -> tuple[int, int]:
    """Commands with the stamp of a message of the stream that came (before, after) them in the log."""
    t_ns, first = np.unique(stream.t_ns, return_index=True)
    row = np.minimum(np.searchsorted(t_ns, commands.t_ns), max(len(t_ns) - 1, 0))
    if not len(t_ns):
        return 0, 0
    same = t_ns[row] == commands.t_ns
    before = stream.log_index[first[row]] < commands.log_index
    return int((same & before).sum()), int((same & ~before).sum())
