# SPDX-License-Identifier: Apache-2.0
"""The texts of faults, as bags, datasets and reports have always held them, and the way back from a stored text."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spc_core.alignment.faults import Fault, FaultKind, stale
from spc_core.contract.sections import Stream

MS = 1_000_000
TEXTS = [  # fault, summary, details
    (Fault(FaultKind.START), "start", ""),
    (Fault(FaultKind.NO_MESSAGE, "force", 1), "force: no message yet", ""),
    (Fault(FaultKind.STALE, "force", 1, "", 60 * MS, 0.05), "force: stale", ", 60 ms old, allowed 50 ms"),
    (Fault(FaultKind.NOT_FINITE, "imu", 2, "vector.x"), "imu: vector.x is not finite", ""),
    (Fault(FaultKind.SAMPLE_NOT_FINITE, "reward"), "reward: not finite", ""),
    (Fault(FaultKind.REWARD_NOT_FINITE, detail="ratio"), "the reward's term 'ratio' is not finite", ""),
    (Fault(FaultKind.NO_COMMAND, "joint_commands"), "joint_commands: no command in the period", ""),
    (Fault(FaultKind.NO_REWARD, "reward"), "reward: no reward in the period", ""),
    (Fault(FaultKind.CLOCK_JUMP, "force", 1, "", 5_080 * MS), "clock jumped", " back by 5.080 s on force"),
    (Fault(FaultKind.SILENCE, "a/b", 0, "", 30 * MS), "a/b: no observation", " for 0.030 s"),
    (Fault(FaultKind.NO_OBSERVATION), "no observation", ""),
    (Fault(FaultKind.HELD_UP), "the policy was held up: this observation may be old", ""),
    (Fault(FaultKind.RECORDING_ENDED), "the recording ended", ""),
    (Fault(FaultKind.EPISODE_UNFINISHED), "the recording ended while the episode ran", ""),
    (Fault(FaultKind.TASK_CHANGED, detail="arm/a, b"), "the task changed to arm/a, b in mid-episode", ""),
    (Fault(FaultKind.GIVEN_UP, detail="no, force: not finite"), "episode given up", ", no, force: not finite"),
    (Fault(FaultKind.NO_DATA_AT_END, amount_ns=100 * MS), "no data at the end of the episode", ", 0.10 s of it"),
    (Fault(FaultKind.OTHER, detail="continued: longer than 4 steps"), "continued: longer than 4 steps", ""),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "summary", "details"), TEXTS, ids=lambda value: getattr(value, "kind", ""))
def test_a_fault_has_its_text_and_is_read_back_from_it(fault, summary, details):
    assert (str(fault), fault.summary) == (summary + details, summary)
    stored = Fault.parse(str(fault))
    assert (stored.kind, stored.summary, str(stored)) == (fault.kind, summary, str(fault))
    assert (stored.topic, stored.detail, stored.amount_ns) == (fault.topic, fault.detail, fault.amount_ns)
    assert stored.limit_s == fault.limit_s and stored.stream is None


def test_every_kind_has_its_text_here():
    assert {fault.kind for fault, _, _ in TEXTS} == set(FaultKind)


@given(st.text())
def test_any_stored_text_is_kept(text):
    assert str(Fault.parse(text)) == text


def test_only_the_end_of_a_recording_is_one():
    ends = {fault.kind for fault, _, _ in TEXTS if fault.is_end_of_recording}
    assert ends == {FaultKind.RECORDING_ENDED, FaultKind.EPISODE_UNFINISHED}


def test_an_age_is_kept_in_whole_milliseconds():
    stream = Stream("force", "geometry_msgs/msg/Vector3Stamped", ("vector.x",), 0.0125, "header")
    assert stale(1, stream, 60_499_999) == stale(1, stream, 60 * MS)
    assert str(stale(1, stream, 60_500_001)) == "force: stale, 61 ms old, allowed 12 ms"
    assert math.isclose(stale(1, stream, 0).limit_s, 0.0125)
