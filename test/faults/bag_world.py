# SPDX-License-Identifier: Apache-2.0
"""A world whose transitions are known: every message carries its tick's number in its values, so no pairing can hide.

Tick k is at k periods. State k is stamped there, and so is reward k, which is for the transition that ends there; force
5j is stamped at tick 5j; command k is stamped 3 ms after tick k, which caused it. Stamps are of simulated time, receive
times of wall time, 1 ms later.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from spc_core.data.dataset import Episode
from support.contracts import action_section, stream_section
from support.recorded_bags import JOINT_STATE, RECEIVE_NS, START_NS, STORE, VECTOR, Sample, header, joint_state, vector

MS = 1_000_000
PERIOD = 20 * MS
TICKS = 20
WRENCH = "geometry_msgs/msg/WrenchStamped"
TYPES = {"joint_states": JOINT_STATE, "force": WRENCH, "joint_commands": JOINT_STATE, "reward": VECTOR}
JOINTS = ("shoulder", "elbow")
WORLD = {
    "name": "world",
    "observation": [
        stream_section("joint_states", [f"{part}.{joint}" for part in ("position", "velocity") for joint in JOINTS]),
        stream_section("force", ["wrench.force.x"], WRENCH, max_age_s=0.15),
    ],
    "action": action_section([f"effort.{joint}" for joint in JOINTS], high=[2000, 2000], max_rate=[1e6, 1e6]),
}  # sections of the contract
MAX_AGE = {"joint_states": 50 * MS, "force": 150 * MS}


@dataclasses.dataclass(frozen=True)
class Event:
    """One message. `t_ns` counts from tick 0 on the robot's clock, `receive_ns` from there on the recorder's."""

    topic: str
    number: int
    t_ns: int
    receive_ns: int
    epoch_ns: int = START_NS  # of the robot's clock
    spoilt: float | None = None  # instead of the first number
    joints: tuple[str, ...] = JOINTS
    stamped: bool = True
    velocity: bool = True

    def sample(self) -> Sample:
        n, stamp_ns = float(self.number), (self.epoch_ns + self.t_ns) * self.stamped
        first = n if self.spoilt is None else self.spoilt
        if self.topic == "reward":
            message = vector(stamp_ns, -first)
        elif self.topic == "force":
            force, torque = (STORE.types["geometry_msgs/msg/Vector3"](x, 0.0, 0.0) for x in (first, 0.0))
            message = STORE.types[WRENCH](header(stamp_ns), STORE.types["geometry_msgs/msg/Wrench"](force, torque))
        elif self.topic == "joint_commands":
            message = joint_state(stamp_ns, list(self.joints), effort=self._by_joint(first, n + 0.5))
        else:
            velocity = self._by_joint(n + 0.5, n + 0.75) if self.velocity else []
            position = self._by_joint(first, n + 0.25)
            message = joint_state(stamp_ns, list(self.joints), position=position, velocity=velocity)
        return Sample(f"/{self.topic}", TYPES[self.topic], RECEIVE_NS + self.receive_ns, message)

    def _by_joint(self, shoulder: float, elbow: float) -> list[float]:
        values = {"shoulder": shoulder, "elbow": elbow}
        return [values[joint] for joint in self.joints]


def events(ticks: int = TICKS) -> list[Event]:
    """What a sound robot publishes in `ticks` transitions, in the order of receiving."""
    found = []
    for k in range(ticks + 1):
        t_ns = k * PERIOD
        found.append(Event("joint_states", k, t_ns, t_ns + MS))
        if k % 5 == 0:
            found.append(Event("force", k, t_ns, t_ns + MS))
        if k:
            found.append(Event("reward", k, t_ns, t_ns + MS))
        if k < ticks:
            found.append(Event("joint_commands", k, t_ns + 3 * MS, t_ns + 4 * MS))
    return found


# ---- what must come out ---------------------------------------------------------------------------------------------

Row = tuple[int, int, int, int]  # state, force, command, reward: numbers of the messages that a transition is made of


@dataclasses.dataclass(frozen=True)
class Piece:
    """An episode from tick `first` to tick `last`, and its end: 'truncated', 'terminated', or why it was cut.

    State k is of tick k, force of the last fifth tick, command k of the period after tick k, reward k of the one
    before, except where the mappings from tick to number say so; those of commands and rewards count transitions.
    """

    first: int
    last: int
    end: str = "the recording ended"
    states: Mapping[int, int] = dataclasses.field(default_factory=dict)
    forces: Mapping[int, int] = dataclasses.field(default_factory=dict)
    commands: Mapping[int, int] = dataclasses.field(default_factory=dict)
    rewards: Mapping[int, int] = dataclasses.field(default_factory=dict)

    def rows(self) -> list[Row]:
        """One for each transition, and the last tick's with no command and no reward."""
        found = []
        for k in range(self.first, self.last + 1):
            seen = self.states.get(k, k), self.forces.get(k, k // 5 * 5)
            act = (self.commands.get(k, k), self.rewards.get(k, k + 1)) if k < self.last else (-1, -1)
            found.append((*seen, *act))
        return found


def rows_of(episode: Episode) -> list[Row]:
    """The numbers of the messages in an episode; fails where a vector is of more than one message."""
    state, force, command = episode.observations[:, 0], episode.observations[:, 4], episode.actions[:, 0]
    np.testing.assert_array_equal(episode.observations[:, :4], state[:, None] + [0, 0.25, 0.5, 0.75])
    np.testing.assert_array_equal(episode.actions, command[:, None] + [0, 0.5])
    columns = state, force, np.append(command, -1), np.append(-episode.rewards, -1)
    return list(zip(*(column.astype(int).tolist() for column in columns), strict=True))


def definition(log: Iterable[Event]) -> Iterator[tuple[int, Row, tuple[int, int]]]:
    """(t_k, (o_k, force, a_k, r_k), (o_k+1, force)) of every transition: README, 'What the data mean', word by word."""
    for streams in _between_restarts(sorted(log, key=lambda event: event.receive_ns)):
        ticks = list(_ticks(streams))
        for (begin, before), (end, after) in zip(ticks, ticks[1:], strict=False):
            command = next((e for e in streams["joint_commands"] if begin < e.t_ns <= end), None)
            reward = next((e for e in reversed(streams["reward"]) if begin < e.t_ns <= end), None)
            if before and after and command and reward and _is_finite(command) and _is_finite(reward):
                yield begin, (*before, command.number, reward.number), after


def _is_finite(event: Event) -> bool:
    return event.spoilt is None or math.isfinite(event.spoilt)


def _between_restarts(log: list[Event]) -> Iterator[dict[str, list[Event]]]:
    """Each topic's messages in the order of their stamps; one that is older than another before it is not used."""
    streams: dict[str, list[Event]] = {topic: [] for topic in TYPES}
    for event in log:
        stream = streams[event.topic]
        if event.topic == "joint_commands" and any(e.t_ns == event.t_ns for e in streams["joint_states"]):
            event = dataclasses.replace(event, t_ns=event.t_ns + 1)  # with the stamp of the state that it answers
        if stream and event.t_ns < stream[-1].t_ns - 500 * MS:
            yield streams
            streams = {topic: [] for topic in TYPES}
            stream = streams[event.topic]
        if not stream or event.t_ns > stream[-1].t_ns:
            stream.append(event)
    yield streams


def _ticks(streams: dict[str, list[Event]]) -> Iterator[tuple[int, tuple[int, int] | None]]:
    """(time, numbers of state and force, or None where one is missing, too old or not finite)."""
    beat = [event.t_ns for event in streams["joint_states"]]
    now = beat[0] if beat else math.inf
    while beat and now <= beat[-1]:
        newest = [next((e for e in reversed(streams[topic]) if e.t_ns <= now), None) for topic in MAX_AGE]
        fresh = [e for e in newest if e and now - e.t_ns <= MAX_AGE[e.topic] and _is_finite(e)]
        seen = (fresh[0].number, fresh[1].number) if len(fresh) == 2 else None
        yield int(now), seen
        near = [t for t in beat if 0.75 * PERIOD <= t - now <= 1.25 * PERIOD]
        if seen and near:
            now = min(near, key=lambda t, due=now + PERIOD: abs(t - due))
        else:
            now = now + PERIOD if seen else min((t for t in beat if t > now), default=math.inf)


# ---- recording ------------------------------------------------------------------------------------------------------

Record = Callable[[Path, list[Sample]], Path]


def recorder(
    storage: str = "mcap", mode: CompressionMode = CompressionMode.NONE, big_endian: bool = False, **custom: str
) -> Record:
    """Records as `ros2 bag record` does."""
    plugin = StoragePlugin.MCAP if storage == "mcap" else StoragePlugin.SQLITE3

    def record(path: Path, samples: list[Sample]) -> Path:
        writer = Writer(path, version=9, storage_plugin=plugin)
        writer.set_compression(mode, CompressionFormat.ZSTD)
        with writer:
            types = dict.fromkeys((s.topic, s.type) for s in samples)
            known = {topic: writer.add_connection(topic, kind, typestore=STORE) for topic, kind in types}
            for sample in samples:
                data = STORE.serialize_cdr(sample.message, sample.type, little_endian=not big_endian)
                writer.write(known[sample.topic], sample.receive_ns, bytes(data))
            for key, text in custom.items():
                writer.set_custom_data(key.replace("__", "."), text)
        return path

    return record
