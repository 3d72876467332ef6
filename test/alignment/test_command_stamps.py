# SPDX-License-Identifier: Apache-2.0
"""Commands that carry the stamp of a message: of the state that they answer, of one to come, of another stream."""

from __future__ import annotations

import numpy as np

from spc_core.alignment.command_stamps import Stamped, reward_notes, stamp_notes
from spc_core.alignment.streaming import ObservationAligner, StreamingAligner
from spc_core.contract.sections import ACTION, REWARD, observed
from support.contracts import make_contract, stream_section

MS = 1_000_000
PERIOD = 20 * MS
VECTOR = "geometry_msgs/msg/Vector3Stamped"
K = np.arange(100)


def aligned(order, patience_ns: int = 100 * MS):
    """(state, command) of each transition; `order`: stream, number and stamp of each message."""
    contract = make_contract(observation=[stream_section("pose", ["vector.x"], VECTOR)])
    target, roles = StreamingAligner(contract, patience_ns), {"state": observed(0), "command": ACTION, "reward": REWARD}
    steps = []
    for kind, number, t_ns in order:
        width = contract.action_dim if kind == "command" else 1
        steps += target.push(roles[kind], t_ns, np.full(width, float(number)))
    steps += target.flush()
    return [(s.transition.observation[0], s.transition.action[0], s.transition.lag_ns) for s in steps if s.transition]


def recording(*parts):
    return [(kind, k, k * PERIOD + offset) for k in range(20) for kind, offset in parts]


def test_a_command_with_its_states_stamp_answers_it():
    found = aligned(recording(("state", 0), ("reward", 0), ("command", 0)))
    assert found == [(k, k, 1) for k in range(19)]


def test_a_command_that_is_stamped_later_answers_the_state_before():
    found = aligned(recording(("state", 0), ("reward", 0), ("command", 3 * MS)))
    assert found == [(k, k, 3 * MS) for k in range(19)]


def test_a_command_that_comes_before_the_state_of_its_stamp_does_not_answer_it():
    found = aligned(recording(("command", 0), ("state", 0), ("reward", 0)))
    assert found == [(k, k + 1, PERIOD) for k in range(19)]


def test_an_answer_may_come_after_further_states():
    log = [(kind, k, k * PERIOD, k + late) for k in range(20) for kind, late in (("state", 0), ("reward", 0.1),
                                                                                ("command", 2.5))]  # fmt: skip
    found = aligned([(kind, k, t_ns) for kind, k, t_ns, _ in sorted(log, key=lambda entry: entry[3])])
    assert found == [(k, k, 1) for k in range(19)]


def test_a_live_node_knows_the_stamps_of_recent_states():
    contract = make_contract(observation=[stream_section("pose", ["vector.x"], VECTOR)])
    aligner = ObservationAligner(contract, 5 * MS)
    for k in range(10):
        aligner.push(observed(0), k * PERIOD, np.zeros(1))
    assert aligner.is_state(9 * PERIOD) and not aligner.is_state(9 * PERIOD + 1)


def stamped(topic: str, t_ns: np.ndarray, at: float) -> Stamped:
    return Stamped(topic, t_ns, np.round(10 * (K + at)).astype(np.int64))


def test_sound_stamps_need_no_note():
    states = stamped("states", K * PERIOD, 0)
    for t_ns in (K * PERIOD, K * PERIOD + 3 * MS):
        assert stamp_notes(stamped("commands", t_ns, 0.2), [states]) == []
    assert stamp_notes(stamped("commands", K[:0], 0.2), [states]) == []


def test_commands_that_all_come_before_the_states_of_their_stamps_are_noted():
    (note,) = stamp_notes(stamped("commands", K * PERIOD, -0.2), [stamped("states", K * PERIOD, 0)])
    assert note.startswith("100 of 100 commands carry the stamp of a state that was received after them")


def test_commands_on_both_sides_of_the_states_of_their_stamps_are_noted():
    mixed = Stamped("commands", K * PERIOD, 10 * K + np.where(K % 4, 2, -2))
    (note,) = stamp_notes(mixed, [stamped("states", K * PERIOD, 0)])
    assert note.startswith("25 of 100 commands carry the stamp of a state that was received after them")
    assert "75 were received after it" in note and "clock: receive" in note


def test_commands_with_the_stamps_of_another_stream_are_noted():
    states, imu = stamped("states", K * PERIOD, 0), stamped("imu", K * PERIOD - 5 * MS, 0.1)
    (note,) = stamp_notes(stamped("commands", K * PERIOD - 5 * MS, 0.3), [states, imu])
    assert "100 of 100 commands carry a stamp of 'imu', not of the first stream 'states'" in note
    assert stamp_notes(stamped("commands", K * PERIOD + MS, 0.3), [states, imu]) == []


def test_rewards_by_receive_time_behind_the_state_of_their_stamp_are_told():
    stamps, states_ns = K * PERIOD + 1, 7 * PERIOD + 2 * K * PERIOD
    (note,) = reward_notes(states_ns + MS, stamps, states_ns, stamps)
    assert note.startswith("100 of 100 rewards carry the stamp of a state that was received before them: by receive ")
    assert reward_notes(states_ns - MS, stamps, states_ns, stamps) == []
    assert reward_notes(states_ns + MS, stamps + MS, states_ns, stamps) == []  # of their own time
    assert reward_notes(states_ns + MS, 0 * stamps, states_ns, 0 * stamps) == []  # without stamps
    assert reward_notes(K[:0], K[:0], K[:0], K[:0]) == []
