# SPDX-License-Identifier: Apache-2.0
"""The rows about messages without a stamp beside simulated time, which count by `/clock`."""

from __future__ import annotations

from typing import Any

from faults.bag_injections import Adapt, chain, delayed, put, stamped
from faults.bag_table import Fault, refusal
from faults.bag_world import MS, PERIOD, TICKS, Piece, recorder
from faults.commands_table import ARRAY, in_arrays
from support.contracts import action_section
from support.recorded_bags import FLOAT, RECEIVE_NS, START_NS, STORE, Sample

CLOCK = "rosgraph_msgs/msg/Clock"
NOTE = "messages without stamps count by /clock, beside the simulated time of 'joint_states': "
REFUSED = "topic 'joint_commands' has no stamps and counts by when it was received, but the stamps of 'joint_states' " \
    "are of another clock, as in a simulation; record /clock with the bag"  # fmt: skip


def clock(every_ns: int, delay_ns: int = MS // 2, offset_ns: int = START_NS, back: tuple[int, int] = (0, 0)) -> Adapt:
    """`/clock` tells every so often the time since tick 0, and is received so much later.

    From tick `back[0]` on it is `back[1]` behind.
    """

    def message(t_ns: int) -> Any:
        told_ns = offset_ns + t_ns - (back[1] if back[1] and t_ns >= back[0] * PERIOD else 0)
        seconds, nanoseconds = divmod(told_ns, 10**9)
        return STORE.types[CLOCK](STORE.types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanoseconds))

    more = [
        Sample("/clock", CLOCK, RECEIVE_NS + t_ns + delay_ns, message(t_ns))
        for t_ns in range(0, (TICKS + 1) * PERIOD, every_ns)
    ]
    return lambda samples: sorted([*samples, *more], key=lambda s: s.receive_ns)


def bare_rewards(samples: list[Sample]) -> list[Sample]:
    return [
        Sample(s.topic, FLOAT, s.receive_ns, STORE.types[FLOAT](s.message.vector.x)) if s.topic == "/reward" else s
        for s in samples
    ]


def both(*adapts: Adapt) -> Adapt:
    def adapted(samples: list[Sample]) -> list[Sample]:
        for adapt in adapts:
            samples = adapt(samples)
        return samples

    return adapted


BARE = in_arrays(lambda shoulder, elbow: [shoulder, elbow])
ACTION = action_section(["data.0", "data.1"], [2000, 2000], [1e6, 1e6], type=ARRAY)
REWARD = {"topic": "reward", "type": FLOAT, "field": "data"}


def row(name: str, injected: str, outcome: str, *adapts: Adapt, **more: Any) -> Fault:
    """Commands are arrays without a header."""
    said = {"contract": {"action": ACTION}, "note": f"{NOTE}joint_commands", "by_definition": False}
    return Fault(name, injected, outcome, adapt=both(BARE, *adapts), **{**said, **more})


SIMULATED = (
    row("commands without a header", "Commands are arrays, states are in simulated time; /clock comes at 100 Hz.",
        "A command counts by the latest /clock and state that were received before it.", clock(10 * MS)),
    row("commands without a header in sqlite3", "The same in sqlite3.", "Nothing changes.", clock(10 * MS),
        record=recorder("sqlite3")),
    row("a slow clock", "The same, and /clock comes at 10 Hz: it stands still for five states.",
        "States tell the time where they are ahead of /clock.", clock(100 * MS)),
    row("a slow clock and slow states", "/clock comes at 1000 Hz, and states are received 15 ms late, after the "
        "command of their tick.", "/clock tells the time where it is ahead of the states.", clock(MS),
        change=delayed(15 * MS, "joint_states")),
    Fault("stamps at zero beside /clock", "Commands have the stamp (0, 0); states are in simulated time, and /clock "
          "was recorded.", "They count by /clock, and are counted.", put("joint_commands", stamped=False),
          clock(10 * MS), note=f"{NOTE}joint_commands", by_definition=False,
          topics={"joint_commands": {"unset_stamps": 20, "delay_p50_ms": 0}}),
    row("clock: receive for commands alone", "The same arrays, and the contract says clock: receive for the action "
        "only.", "A receive time counts by /clock where states are in simulated time.", clock(10 * MS),
        contract={"action": {**ACTION, "clock": "receive"}}),
    row("rewards without a header", "Rewards are of Float64, and are published just before the state that they are "
        "for.", "Every transition.", bare_rewards, clock(10 * MS), change=delayed(-2 * MS // 5, "reward"),
        contract={"action": ACTION, "reward": REWARD}, note=f"{NOTE}joint_commands, reward"),
    row("rewards without a header after their state", "The same, published just after the state.",
        "Such a reward counts for the period in which it came, as by receive times on a robot: that after the state. "
        "Publish it before the state, or with a stamp.", bare_rewards, clock(10 * MS),
        contract={"action": ACTION, "reward": REWARD}, note=f"{NOTE}joint_commands, reward",
        pieces=(Piece(1, 20, rewards={k: k for k in range(21)}),)),
    row("the simulation restarts", "The simulation begins again at tick 10: states and /clock are 2 s earlier from "
        "then on.", "Cut there; commands go with the states on both sides.", clock(10 * MS, back=(10, 2000 * MS)),
        change=stamped(-2000 * MS, first=10),
        pieces=(Piece(0, 9, "clock jumped back by 1.980 s on joint_states"), Piece(10, 20))),
    refusal("commands without a header, and no /clock", "Commands are arrays, states are in simulated time; /clock was "
            "not recorded.", "Refused: by their receive time no command would lie in any period.", REFUSED, adapt=BARE,
            contract={"action": ACTION}),
    refusal("a clock of another time", "The same; /clock was recorded, but an hour ahead of the states' stamps.",
            "Refused.", REFUSED, adapt=both(BARE, clock(10 * MS, offset_ns=START_NS + 3600 * 10**9)),
            contract={"action": ACTION}),
    refusal("receive times in simulated time", "The recorder ran on simulated time, the states' stamps are of wall "
            "time; /clock was recorded.", "Refused: /clock tells the receive times, not the stamps.", REFUSED,
            adapt=both(BARE, clock(10 * MS, offset_ns=RECEIVE_NS)), contract={"action": ACTION},
            change=put("joint_states", "force", "reward", epoch_ns=RECEIVE_NS + 86_400 * 10**9)),
    Fault("no /clock, all by receive time", "Commands are arrays, states are in simulated time; /clock was not "
          "recorded, and the contract says clock: receive.", "Every transition: nothing counts by its stamp.",
          chain(), BARE, contract={"action": ACTION, "clock": "receive"}, by_definition=False),
)  # fmt: skip
