# SPDX-License-Identifier: Apache-2.0
"""The context message by its numbers: what leaves and what is read is what the message's definition says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rclpy.serialization import deserialize_message, serialize_message
from std_msgs.msg import Float32MultiArray

from spc_ros.messages.live import trim_padding
from spc_ros.node_parts.context_message import (
    TYPE,
    ContextInbox,
    ContextOutbox,
    ContextReading,
    decode_context,
    encode_context,
)


def reading(number: int, size: int = 3, model: int | None = 9) -> ContextReading:
    z, uncertainty = np.random.default_rng(number).normal(size=(2, size)).astype(np.float32)
    return ContextReading(z, uncertainty, 10 * number, 1_700_000_000_123_456_789 + number, model)


def encoded(r: ContextReading) -> bytes:
    assert r.uncertainty is not None
    return trim_padding(TYPE, serialize_message(encode_context(r.context, r.uncertainty, r.count, r.t_ns, r.model)))


def same(one: ContextReading, other: ContextReading) -> bool:
    vectors = [(one.context, other.context), (one.uncertainty, other.uncertainty)]
    equal = all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in vectors)
    return equal and (one.count, one.t_ns, one.model) == (other.count, other.t_ns, other.model)


def test_outbox_writes_what_the_message_is_defined_to_be() -> None:
    outbox = ContextOutbox(3)
    for number in range(3):
        assert outbox.write(reading(number)) == encoded(reading(number))
        assert same(
            decode_context(deserialize_message(outbox.write(reading(number)), Float32MultiArray)), reading(number)
        )
    with pytest.raises(ValueError, match="uncertainty or model is missing"):
        outbox.write(reading(0, model=None))


def test_inbox_reads_every_form_in_any_order() -> None:
    inbox = ContextInbox()
    for number in range(12):
        size, model = (3, 9) if number % 3 else (5, None)  # the other comes from an older node
        expected = reading(number, size, model)
        assert same(inbox.read(encoded(expected)), expected)


def test_inbox_refuses_sizes_that_contradict_the_data() -> None:
    inbox, good = ContextInbox(), reading(1)
    inbox.read(encoded(good))
    msg = encode_context(good.context, good.context, good.count, good.t_ns, good.model)
    next(iter(msg.layout.dim)).size = 2  # laid out as those before, and yet another
    with pytest.raises(ValueError, match="not a context message"):
        inbox.read(trim_padding(TYPE, serialize_message(msg)))
    with pytest.raises(ValueError, match="context"):
        inbox.read(b"\x00\x01\x00\x00\x07")
    assert same(inbox.read(encoded(reading(2))), reading(2))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="priorities of threads are Linux's")
def test_every_thread_gives_way_and_none_takes_it_back() -> None:
    script = """
import os, threading
from spc_ros.node_parts.priority import lower_priority
end = threading.Event()
thread = threading.Thread(target=end.wait)
thread.start()
for nice in (3, 1):
    before = os.getpriority(os.PRIO_PROCESS, 0)
    lower_priority(nice)
    assert {os.getpriority(os.PRIO_PROCESS, int(t)) for t in os.listdir("/proc/self/task")} == {max(before, nice)}
end.set()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="priorities of threads are Linux's")
def test_every_thread_takes_precedence_or_the_refusal_says_what_to_do() -> None:
    script = """
import os, threading
from spc_ros.node_parts.priority import PriorityError, use_realtime_priority
end = threading.Event()
thread = threading.Thread(target=end.wait)
thread.start()
try:
    use_realtime_priority(7)
except PriorityError as error:
    assert "realtime_priority is 7" in str(error) and "limits.conf" in str(error)
else:
    threads = [int(name) for name in os.listdir("/proc/self/task")]
    of = {(os.sched_getscheduler(t), os.sched_getparam(t).sched_priority) for t in threads}
    assert of == {(os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, 7)}, of
    later = threading.Thread(target=lambda: found.append(os.sched_getscheduler(threading.get_native_id())))
    found = []
    later.start()
    later.join()
    assert found == [os.SCHED_OTHER]
finally:
    end.set()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
