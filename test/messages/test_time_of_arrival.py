# SPDX-License-Identifier: Apache-2.0
"""When messages without a stamp count in simulated time: by hand, and block by block as one by one."""

import numpy as np
import pytest

from spc_core.alignment import NO_TIME
from spc_ros.messages.simulated_time import SimulatedTime, simulated_ns

S = 10**9


@pytest.mark.parametrize(
    ("clock_ns", "state_ns", "before_ns", "found"),
    [
        (5 * S, NO_TIME, NO_TIME, 5 * S),
        (5 * S, 4 * S, NO_TIME, 5 * S),
        (5 * S, 5 * S, NO_TIME, 5 * S + 1),
        (5 * S, 6 * S, NO_TIME, 6 * S + 1),
        (5 * S, 4 * S, 5 * S, 5 * S + 1),
        (5 * S, 4 * S, 5 * S + 7, 5 * S + 8),
        (2 * S, 1 * S, 5 * S, 2 * S),
    ],
    ids=["clock", "old state", "state at the clock", "state ahead", "again", "and again", "restart"],
)
def test_a_message_is_after_the_clock_the_newest_state_and_its_topics_last_one(clock_ns, state_ns, before_ns, found):
    assert simulated_ns(clock_ns, state_ns, before_ns) == found


@pytest.mark.parametrize("seed", range(20))
def test_blocks_of_any_length_count_as_single_messages_do(seed):
    """Kinds 0 and 1 are clock and states, 2 and 3 bare messages of two topics; the clock jumps back at times."""
    random, count = np.random.default_rng(seed), 400
    kind = random.integers(0, 4, count)
    t_ns = np.cumsum(random.integers(0, 3, count)) * 10_000_000
    t_ns[count // 2 :] -= random.choice([0, 2 * S])
    expected, last = np.zeros(count, np.int64), {0: 0, 1: NO_TIME, 2: NO_TIME, 3: NO_TIME}
    for i, (k, t) in enumerate(zip(kind.tolist(), t_ns.tolist(), strict=True)):
        last[k] = expected[i] = t if k < 2 else simulated_ns(last[0], last[1], last[k])
    found, time = np.zeros(count, np.int64), SimulatedTime()
    edges = np.sort(random.integers(0, count, 12)).tolist()
    for begin, end in zip([0, *edges], [*edges, count], strict=True):
        rows = [begin + np.flatnonzero(kind[begin:end] == k) for k in range(4)]
        time.add_clock(rows[0], t_ns[rows[0]])
        time.add_states(rows[1], t_ns[rows[1]])
        for k in (2, 3):
            found[rows[k]] = time.received_ns(k, rows[k])
    np.testing.assert_array_equal(found[kind > 1], expected[kind > 1])


def test_a_state_without_a_stamp_counts_by_the_clock_after_the_state_before_it():
    time = SimulatedTime()
    time.add_clock(np.array([0, 4]), np.array([S, 2 * S]))
    states = time.states_ns(np.array([1, 2, 3, 5]), np.array([0, 3 * S // 2, 0, 0]))
    assert states.tolist() == [S, 3 * S // 2, 3 * S // 2 + 1, 2 * S]
