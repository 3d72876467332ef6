# SPDX-License-Identifier: Apache-2.0
"""The topic `/clock` of a bag, where it tells when messages without a stamp were received on the states' clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from rosbags.typesys.store import Typestore

from spc_core.contract.contract import Contract
from spc_ros.bags.files import BagError
from spc_ros.bags.reader import BagReader
from spc_ros.messages.columns import ColumnReader, RawColumn, Source
from spc_ros.messages.fields import NS_PER_S, MessageError
from spc_ros.messages.simulated_time import CLOCK, SimulatedTime

APART_NS = 10_000_000_000  # stamps and receive times that differ by more are of two clocks
BY_CLOCK = "messages without stamps count by /clock"  # begins a note
FIELDS = ("clock.sec", "clock.nanosec")
NO_ROWS = np.empty((0, 3), np.int64)  # as ClockTopic.read


@dataclasses.dataclass(frozen=True)
class ClockTopic:
    """A topic of a bag with the simulated time."""

    name: str
    typestore: Typestore

    def read(self, column: RawColumn) -> np.ndarray:
        """(N, 3) places in the log, times, and receive times of the messages that can be read."""
        values = ColumnReader(self.typestore, CLOCK, FIELDS, self.name).read_all(column)[1]
        whole = np.isfinite(values).all(axis=1)
        t_ns = values[whole].astype(np.int64) @ np.array([NS_PER_S, 1])
        return np.stack([column.log_index[whole], t_ns, column.receive_ns[whole]], axis=1)


def clock_topic(bag: BagReader, first: Source) -> ClockTopic | None:
    """The clock by which messages without a stamp count beside those of the contract's `first` stream.

    None where they count by their receive times: the stamps are on that clock, or the bag has no clock of theirs.
    """
    found = find_clock(bag)
    if found is None or first.clock != "header":
        return None
    states = bag.find_topic(first.topic, first.type)
    reader = first.columns(bag.typestore_of(states))
    clock, stamped = NO_ROWS, NO_ROWS[:, :2]  # places in the log, times
    for block in bag.blocks([found.name, states]):
        if found.name in block:
            clock = np.concatenate([clock, found.read(block[found.name])])
        if states in block:
            column, stamps = block[states], reader.read_all(block[states])[0]
            rows = np.stack([column.log_index, stamps], axis=1)[stamps != 0]
            if len(rows) and not is_apart(column.receive_ns[stamps != 0], rows[:, 1]):
                return None
            stamped = np.concatenate([stamped, rows])
        if len(clock) and len(stamped):
            told_ns = clock[np.maximum(np.searchsorted(clock[:, 0], stamped[:, 0]) - 1, 0), 1]
            return None if is_apart(told_ns, stamped[:, 1]) else found
    return None


def find_clock(bag: BagReader) -> ClockTopic | None:
    """The one topic of a bag that tells the simulated time."""
    names = [name for name, topic in bag.info.topics.items() if topic.type == CLOCK and topic.count]
    names = [name for name in names if name == "/clock"] or names
    try:
        return ClockTopic(names[0], bag.typestore_of(names[0])) if len(names) == 1 else None
    except MessageError:  # its definition cannot be read; without it, what has no stamp is refused
        return None


def is_apart(one_ns: np.ndarray, other_ns: np.ndarray | float) -> bool:
    """Whether two times of each of N messages are of two clocks, as most tell."""
    return len(one_ns) > 0 and abs(float(np.median(one_ns - other_ns))) > APART_NS


class Arrivals:
    """When the messages of a contract's sources count: by their stamps, or by when they were received."""

    def __init__(self, contract: Contract, clock: ClockTopic | None) -> None:
        """`clock`: by which receive times are told on the states' clock."""
        first = len(contract.observation)
        self._holding = [first + i for i, part in enumerate(contract.action.parts) if part.hold]  # numbers of sources
        self._clock, self._simulated = clock, None if clock is None else SimulatedTime()
        self._counts: dict[int, tuple[int, int]] = {}  # of each source: messages, and those without a stamp to count by
        self._delays: dict[int, list[np.ndarray]] = {}

    def begin_block(self, block: Mapping[str, RawColumn]) -> None:
        """The next block of the log; its messages follow, the first source's before all others."""
        if self._clock is not None and self._clock.name in block:
            self.add_clock(self._clock.read(block[self._clock.name]))

    def add_clock(self, rows: np.ndarray) -> None:
        """The next messages of the clock, as ClockTopic.read."""
        if self._simulated is not None:
            self._simulated.add_clock(rows[:, 0], rows[:, 1])

    @property
    def simulated(self) -> bool:
        """Whether messages without a stamp count by `/clock`."""
        return self._simulated is not None

    def add_states(self, log_index: np.ndarray, t_ns: np.ndarray) -> None:
        """The samples that the first source's messages of the block made."""
        if self._simulated is not None:
            self._simulated.add_states(log_index, t_ns)

    def times(
        self, number: int, source: Source, log_index: np.ndarray, receive_ns: np.ndarray, stamps: np.ndarray
    ) -> np.ndarray:
        """(N,) when the next messages of source number `number` count; `stamps` are 0 where they have none."""
        by_stamp = source.clock == "header"
        by_arrival = stamps == 0 if by_stamp else np.ones(len(stamps), bool)
        if self._simulated is None or not by_arrival.any():
            t_ns = np.where(by_arrival, receive_ns, stamps) if by_stamp else receive_ns
        elif number == 0:
            t_ns = self._simulated.states_ns(log_index, stamps)
        else:
            t_ns = np.where(by_arrival, 0, stamps)
            t_ns[by_arrival] = self._simulated.received_ns(number, log_index[by_arrival])
        count, bare = self._counts.get(number, (0, 0))
        self._counts[number] = count + len(t_ns), bare + int(by_arrival.sum())
        if number == 0 or number in self._holding:
            self._delays.setdefault(number, []).append(receive_ns - t_ns)
        return t_ns

    def by_clock(self, number: int) -> bool:
        """Whether most messages of a source count by `/clock`."""
        count, bare = self._counts.get(number, (0, 0))
        return self._simulated is not None and 2 * bare > count

    def check(self, sources: Sequence[Source]) -> None:
        """Raises BagError where messages count by another clock than those of the first source, the states.

        Stamps of another clock find no state anyway, but for commands that hold; the first one may be older than all.
        """
        states = sources[0].topic
        state_ns = float(np.median(np.concatenate(self._delays[0]))) if 0 in self._delays else 0.0
        for number, (count, bare) in self._counts.items():
            if number and self._simulated is None and abs(state_ns) > APART_NS and 2 * bare > count:
                raise BagError(
                    f"topic '{sources[number].topic}' has no stamps and counts by when it was received, but the stamps "
                    f"of '{states}' are of another clock, as in a simulation; record /clock with the bag, stamp the "
                    "messages, or say clock: receive for all topics"
                )
        for number in self._holding:
            delay_ns = np.concatenate(self._delays.get(number, [np.empty(0)]))[1:]
            if not self.by_clock(number) and is_apart(delay_ns, state_ns):
                raise BagError(
                    f"commands on '{sources[number].topic}' hold until the next one, but their stamps are of another "
                    f"clock than those of '{states}'; set use_sim_time the same for all nodes, or say clock: receive "
                    "for all topics"
                )

    def notes(self, sources: Sequence[Source]) -> list[str]:
        """What to tell of messages that count by `/clock`."""
        bare = dict.fromkeys(source.topic for number, source in enumerate(sources) if self.by_clock(number))
        text = f"{BY_CLOCK}, beside the simulated time of '{sources[0].topic}'"
        return [f"{text}: {', '.join(bare)}"] if bare else []
