# SPDX-License-Identifier: Apache-2.0
"""Messages without a stamp in simulated time: a node on `/clock` and a bag with `/clock` give the same transitions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rosbags.highlevel import AnyReader

from spc_core.alignment import PATIENCE_NS
from spc_core.alignment.streaming import Step, StreamingAligner
from spc_core.contract.contract import Contract
from spc_core.doctor.diagnosis import Thresholds
from spc_ros.bags.reader import BagReader
from spc_ros.conversion.bag_conversion import Job, convert_bag
from spc_ros.doctor.bag_diagnosis import DoctorJob, diagnose_bag
from spc_ros.node_parts import contract_topics
from support.contracts import action_section, make_contract, stream_section
from support.recorded_bags import FLOAT, JOINT_STATE, RECEIVE_NS, STORE, Sample, joint_state, write_bag

MS = 1_000_000
ARRAY, CLOCK, POINT = "std_msgs/msg/Float64MultiArray", "rosgraph_msgs/msg/Clock", "geometry_msgs/msg/Point"
SECTIONS: dict[str, Any] = {
    "observation": [
        stream_section("joint_states", ["position.a"]),
        stream_section("goal", ["x"], POINT, math.inf),
        stream_section("range", ["data"], FLOAT, 0.08),
    ],
    "action": action_section(["data.0"], [1e6], [1e9], "cmd", ARRAY),
    "reward": {"topic": "score", "type": FLOAT, "field": "data"},
}


def float64(value: float) -> Any:
    return STORE.types[FLOAT](value)


def command(value: float) -> Any:
    return STORE.types[ARRAY](STORE.types["std_msgs/msg/MultiArrayLayout"]([], 0), np.array([value]))


def clock(t_ns: int) -> Any:
    return STORE.types[CLOCK](STORE.types["builtin_interfaces/msg/Time"](*divmod(t_ns, 10**9)))


def simulation(seed: int, begin_ns: int, received_ns: int, every_ms: int, ticks: int = 60) -> list[Sample]:
    """Two real seconds of a simulation at its own pace: bare messages at random, and `/clock` every so often."""
    random = np.random.default_rng(seed)
    pace = random.uniform(0.3, 3.0)

    def received(t_ns: float, late_ms: float) -> int:
        return received_ns + round(t_ns / pace + random.uniform(0, late_ms) * MS)

    samples = []
    for k in range(ticks):
        t_ns, late_ms = k * 20 * MS, (12, 0.5)[seed % 2]
        state = joint_state(begin_ns + t_ns, ["a"], position=[k])
        samples.append(Sample("/joint_states", JOINT_STATE, received(t_ns, late_ms), state))
        samples.append(Sample("/range", FLOAT, received(t_ns, 5), float64(k)))
        samples.append(Sample("/score", FLOAT, received(t_ns - 2 * MS, 1), float64(-k)))
        for number in range(random.integers(0, 3)):
            samples.append(Sample("/cmd", ARRAY, received(t_ns + 3 * MS, 12), command(k + number / 10)))
    samples += [Sample("/goal", POINT, received(t_ns * 20 * MS, 1), STORE.types[POINT](t_ns, 0.0, 0.0))
                for t_ns in (-1, 25)]  # fmt: skip
    first_ms = int(random.integers(0, 60))  # nobody knows the time before it
    samples += [Sample("/clock", CLOCK, received(t_ms * MS, 2), clock(begin_ns + t_ms * MS))
                for t_ms in range(first_ms, 20 * ticks, every_ms)]  # fmt: skip
    return samples


def recorded(path: Path, seed: int) -> Path:
    every_ms = (1, 10, 100)[seed % 3]
    samples = simulation(seed, 5 * 10**9, RECEIVE_NS, every_ms)
    if seed % 4 == 3:  # the simulation starts again
        samples += simulation(seed + 100, 10**9, RECEIVE_NS + 10 * 10**9, every_ms)
    storage = ("mcap", "sqlite3")[seed % 2]
    return write_bag(path, sorted(samples, key=lambda sample: sample.receive_ns), {}, storage)


class SimulatedNode:
    """What ContractTopics asks of a node; its clock is what `/clock` said last."""

    def __init__(self) -> None:
        self.t_ns = 0

    def get_parameter(self, name: str) -> SimpleNamespace:
        assert name == "use_sim_time"
        return SimpleNamespace(value=True)

    def get_clock(self) -> SimpleNamespace:
        return SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=self.t_ns))


def seen_live(bag: Path, contract: Contract, monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """What a node decides that receives the messages in the order of the log."""
    callbacks: dict[str, Callable[[bytes], None]] = {}

    def subscribe(_node: Any, _kind: Any, topic: str, callback: Callable[[bytes], None], *_: Any) -> None:
        callbacks[f"/{topic}"] = callback

    monkeypatch.setattr(contract_topics, "MatchedSubscription", subscribe)
    node, aligner, steps, warnings = SimulatedNode(), StreamingAligner(contract, PATIENCE_NS), [], set()
    contract_topics.ContractTopics(
        node, contract, aligner, steps.extend, False, lambda kind, _: warnings.add(kind)  # type: ignore[arg-type]
    )  # fmt: skip
    with AnyReader([bag], default_typestore=STORE) as log:
        for connection, _, data in log.messages():
            if connection.topic == "/clock":
                time = STORE.deserialize_cdr(data, CLOCK).clock
                node.t_ns = time.sec * 10**9 + time.nanosec
            else:
                callbacks[connection.topic](bytes(data))
    assert warnings <= {"unset stamps"}
    return steps + aligner.flush()


def in_small_blocks(monkeypatch: pytest.MonkeyPatch, size: int = 37) -> None:
    """Bags are read a few messages at a time."""
    in_blocks = BagReader.blocks
    arrays = ("receive_ns", "log_index", "start", "size")

    def blocks(bag: BagReader, topics: Any = ()) -> Iterator[dict[str, Any]]:
        for block in in_blocks(bag, topics):
            for begin in range(0, 1 + max(int(column.log_index[-1]) for column in block.values()), size):
                parts = {}
                for name, column in block.items():
                    rows = slice(*np.searchsorted(column.log_index, (begin, begin + size)))
                    if len(column.log_index[rows]):
                        parts[name] = dataclasses.replace(column, **{a: getattr(column, a)[rows] for a in arrays})
                if parts:
                    yield parts

    monkeypatch.setattr(BagReader, "blocks", blocks)


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_a_node_a_converted_bag_and_the_doctor_agree(tmp_path, monkeypatch, seed, hold):
    if seed < 4:
        in_small_blocks(monkeypatch)
    contract = make_contract({"action.hold": hold}, **SECTIONS)
    bag = recorded(tmp_path / "bag", seed)
    steps = seen_live(bag, contract, monkeypatch)
    live = [step.transition for step in steps if step.transition is not None]
    report, entries = convert_bag(bag, Job(contract, own_contract=True, task="t"))
    episodes = [entry.episode for entry in entries]
    assert len(live) == report.transitions > (40 if hold else 10)
    np.testing.assert_array_equal(np.concatenate([e.times_ns[:-1] for e in episodes]), [t.t_ns for t in live])
    np.testing.assert_array_equal(
        np.concatenate([e.observations[:-1] for e in episodes]), [t.observation for t in live]
    )
    np.testing.assert_array_equal(np.concatenate([e.actions for e in episodes]), [t.action for t in live])
    np.testing.assert_array_equal(np.concatenate([e.rewards for e in episodes]), [t.reward for t in live])
    diagnosis, _ = diagnose_bag(bag, DoctorJob(contract, own_contract=True, task="t", thresholds=Thresholds()))
    assert (diagnosis.transitions, diagnosis.episodes) == (report.transitions, report.episodes)
    assert dict(diagnosis.dropped) == dict(report.dropped_ticks)
