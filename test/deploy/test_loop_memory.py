# SPDX-License-Identifier: Apache-2.0
"""The work of policy and context encoder in each tick, from bytes to bytes, leaves no memory behind."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from spc_core.alignment.streaming import ObservationAligner, StreamingAligner
from spc_core.deploy.checkpoint import load_checkpoint
from spc_core.deploy.context_tracker import ContextTracker
from spc_core.deploy.deployable import Policy
from spc_core.deploy.safety import SafetyFilter
from spc_ros.messages.contract_reader import ContractReader
from spc_ros.messages.live import LiveWriter
from spc_ros.node_parts.context_message import ContextInbox, ContextOutbox, ContextReading
from support.random_checkpoint import write_random_checkpoint
from support.recorded_bags import JOINT_STATE, STORE, VECTOR, joint_state, vector

HOUR = 180_000  # ticks at 50 Hz
WARM_UP = 5_000


class Loop:
    """A robot's bytes through all the steps of both nodes between subscription and publisher."""

    def __init__(self, folder: Path) -> None:
        checkpoint = load_checkpoint(write_random_checkpoint(folder, "arm_reach"))
        contract = self.contract = checkpoint.contract
        self._policy, self._filter = Policy(checkpoint), SafetyFilter(contract)
        self._frames = ObservationAligner(contract, contract.period_ns // 4)
        self._policy_reader, self._encoder_reader = ContractReader(contract), ContractReader(contract)
        self._tracker, self._steps = ContextTracker(checkpoint), StreamingAligner(contract, 1_000_000_000)
        self._z = self._tracker.context
        self._outbox, self._inbox = ContextOutbox(len(self._z)), ContextInbox()
        joints = ["shoulder", "elbow"]
        state = joint_state(0, joints, position=[0.0, 0.0], velocity=[0.0, 0.0])
        command = joint_state(0, joints, effort=[0.0, 0.0])
        self._state = _writer(JOINT_STATE, state, lambda m: [*m.position, *m.velocity])
        self._command = _writer(JOINT_STATE, command, lambda m: [*m.effort])
        self._reward = _writer(VECTOR, vector(0, 0.0), lambda m: [m.vector.x])
        self._random = np.random.default_rng(0).normal(size=(997, 4)).tolist()
        self.tick = self.transitions = 0

    def run(self, ticks: int) -> None:
        for _ in range(ticks):
            self.tick += 1
            t_ns = self.tick * self.contract.period_ns
            stamp = divmod(t_ns, 1_000_000_000)
            self._receive("joint_states", self._state.write((*stamp, *self._random[self.tick % 997])), t_ns)
            self._receive("reward", self._reward.write((*stamp, -0.5)), t_ns)

    def _receive(self, topic: str, data: bytes, t_ns: int) -> None:
        if topic == "joint_states":
            for sample in self._policy_reader.live_samples(topic, data, lambda: t_ns, _bytes_to(topic)):
                for frame in self._frames.push(*sample):
                    assert frame.observation is not None
                    action = self._filter.apply(self._policy.act(frame.observation, self._z))
                    stamp = divmod(t_ns + 1, 1_000_000_000)
                    self._adapt("joint_commands", self._command.write((*stamp, *action.tolist())), t_ns)
        self._adapt(topic, data, t_ns)

    def _adapt(self, topic: str, data: bytes, t_ns: int) -> None:
        for sample in self._encoder_reader.live_samples(topic, data, lambda: t_ns, _bytes_to(topic)):
            for step in self._steps.push(*sample):
                if step.transition is not None:
                    self.transitions += self._tracker.update(step.transition)
                t = self._tracker
                self._z = self._inbox.read(
                    self._outbox.write(ContextReading(t.context, t.uncertainty, t.count, step.t_ns, 7))
                ).context


def _writer(type_name: str, message, values) -> LiveWriter:
    data = bytes(STORE.serialize_cdr(message, type_name))
    return LiveWriter(type_name, data, lambda m: [m.header.stamp.sec, m.header.stamp.nanosec, *values(m)])


def _bytes_to(topic: str):
    return lambda data: STORE.deserialize_cdr(data, VECTOR if topic == "reward" else JOINT_STATE)


def resident_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def test_nothing_is_kept_of_ten_thousand_ticks(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "checkpoint")
    loop.run(500)
    tracemalloc.start()
    try:
        loop.run(500)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        loop.run(10_000)
        gc.collect()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert loop.transitions == loop.tick - 1, "every tick but the first ended a transition"
    assert abs(after - before) < 2_000, f"{after - before} bytes after 10,000 ticks"
    assert peak - before < 50_000, f"{peak - before} bytes at once"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc/self/status")
def test_memory_is_flat_over_an_hour_of_ticks(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "checkpoint")
    loop.run(WARM_UP)
    gc.collect()
    before = resident_kib()
    loop.run(HOUR)
    gc.collect()
    growth = resident_kib() - before
    print(f"{growth} KiB after {HOUR} ticks")
    assert loop.transitions == loop.tick - 1
    assert growth < 2048, f"{growth} KiB after {HOUR} ticks"
