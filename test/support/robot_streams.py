# SPDX-License-Identifier: Apache-2.0
"""Streams of invented messages for recordings of robots, and their bags.

Values are invented: sines with noise, so that nothing is constant, straight or counted unless it is meant to be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

STORE = get_typestore(Stores.ROS2_JAZZY)
STORE.register(
    {
        **get_types_from_msg(
            "float32 steering_angle\nfloat32 steering_angle_velocity\nfloat32 speed\n"
            "float32 acceleration\nfloat32 jerk\n",
            "ackermann_msgs/msg/AckermannDrive",
        ),
        **get_types_from_msg(
            "std_msgs/Header header\nackermann_msgs/AckermannDrive drive\n", "ackermann_msgs/msg/AckermannDriveStamped"
        ),
        **get_types_from_msg(
            "std_msgs/Header header\nbool connected\nbool armed\nstring mode\n", "mavros_msgs/msg/State"
        ),
    }
)
T = STORE.types
START_NS = 1_790_000_000_000_000_000
NEVER = QosTime(2147483647, 4294967295)
LATCHED = Qos(
    QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL, NEVER, NEVER,
    QosLiveliness.AUTOMATIC, NEVER, False,
)  # fmt: skip


class Moment:
    """One message's time, and invented numbers."""

    def __init__(self, s: float, seed: int) -> None:
        self.s, self.t_ns = s, START_NS + seed * 3600 * 10**9 + round(s * 1e9)
        self.random = np.random.default_rng([seed, round(s * 1e6)])
        self.phase = 0.7 * seed

    def wave(self, number: float, size: float = 1.0, middle: float = 0.0) -> float:
        """A number that swings around `middle`, its own way for each `number`."""
        swing = np.sin((2 + 0.37 * number) * self.s + number + self.phase) + 0.002 * self.random.normal()
        return float(middle + size * swing)

    @property
    def header(self) -> Any:
        seconds, nanoseconds = divmod(self.t_ns, 10**9)
        stamp = T["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanoseconds)
        return T["std_msgs/msg/Header"](stamp=stamp, frame_id="base")

    def vector(self, first: int, size: float = 1.0, kind: str = "Vector3") -> Any:
        return T[f"geometry_msgs/msg/{kind}"](*(self.wave(first + i, size) for i in range(3)))

    def turned(self) -> Any:
        half = self.wave(1, 0.5)
        return T["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=float(np.sin(half)), w=float(np.cos(half)))

    def pose(self, first: int = 3) -> Any:
        return T["geometry_msgs/msg/Pose"](position=self.vector(first, kind="Point"), orientation=self.turned())

    def twist(self, linear: Sequence[int], angular: Sequence[int], size: float = 0.5) -> Any:
        """A twist with these axes moving."""
        parts = [[self.wave(i + 3 * k, size) if i in axes else 0.0 for i in range(3)] for k, axes in enumerate((linear, angular))]  # fmt: skip  # noqa: E501
        return T["geometry_msgs/msg/Twist"](*(T["geometry_msgs/msg/Vector3"](*part) for part in parts))


Make = Callable[[Moment], Any]


@dataclasses.dataclass(frozen=True)
class Stream:
    """A topic of a robot: `make` is called `hz` times a second, or at the given times."""

    topic: str
    type: str
    make: Make
    hz: float = 0.0
    at_s: tuple[float, ...] = ()
    latched: bool = False


@dataclasses.dataclass(frozen=True)
class RobotKind:
    """A robot by the topics that a recording of it has."""

    name: str
    streams: tuple[Stream, ...]


def record_kind(
    folder: Path, kind: RobotKind, seed: int = 0, seconds: float = 8.0, storage: StoragePlugin = StoragePlugin.MCAP
) -> Path:
    """A bag of the robot; other seeds move it in other ways, an hour later each."""
    path = folder / f"{kind.name.replace(' ', '_')}_{seed}"
    path.parent.mkdir(parents=True, exist_ok=True)
    log = []
    for number, stream in enumerate(kind.streams):
        random = np.random.default_rng([seed, number])
        times = np.arange(0.003 * number, seconds, 1 / stream.hz) if stream.hz else np.array(stream.at_s)
        shaken = times + random.uniform(0, 0.02 / stream.hz if stream.hz else 0, len(times))
        log += [(Moment(float(s), seed), stream) for s in shaken]
    with Writer(path, version=9, storage_plugin=storage) as writer:
        connections = {
            s.topic: writer.add_connection(
                s.topic, s.type, typestore=STORE, offered_qos_profiles=[LATCHED] if s.latched else []
            )
            for s in kind.streams
        }
        for moment, stream in sorted(log, key=lambda entry: entry[0].t_ns):
            data = STORE.serialize_cdr(stream.make(moment), stream.type)
            writer.write(connections[stream.topic], moment.t_ns + 1_000_000, data)
    return path


def stamped(name: str, package: str = "geometry_msgs", **parts: Callable[[Moment], Any]) -> tuple[str, Make]:
    """A type with a header, and how its messages are made."""
    kind = f"{package}/msg/{name}"
    return kind, lambda m: T[kind](header=m.header, **{part: make(m) for part, make in parts.items()})


def joints(
    names: Sequence[str], hz: float, topic: str = "/joint_states", arrays: str = "pve", **sizes: float
) -> Stream:
    """JointState with the arrays position, velocity and effort, by their first letters; all joints swing."""

    def make(m: Moment) -> Any:
        def array(offset: int, size: float) -> np.ndarray:
            return np.array([m.wave(offset + i, size) for i in range(len(names))])

        held = {"position": array(0, 1.0), "velocity": array(40, 1.5), "effort": array(80, 5.0)}
        given = {name: values if name[0] in arrays else np.empty(0) for name, values in held.items()}
        return T["sensor_msgs/msg/JointState"](header=m.header, name=list(names), **given)

    return Stream(topic, "sensor_msgs/msg/JointState", make, hz)


def trajectory(topic: str, names: Sequence[str], hz: float, first: int = 120) -> Stream:
    """Joint trajectories of one point with positions, as a servo sends them."""

    def make(m: Moment) -> Any:
        positions = np.array([m.wave(first + i) for i in range(len(names))])
        none = np.empty(0)
        soon = T["builtin_interfaces/msg/Duration"](sec=0, nanosec=round(1e9 / hz))
        point = T["trajectory_msgs/msg/JointTrajectoryPoint"](positions, none, none, none, soon)
        header = T["std_msgs/msg/Header"](stamp=T["builtin_interfaces/msg/Time"](sec=0, nanosec=0), frame_id="")
        return T["trajectory_msgs/msg/JointTrajectory"](header=header, joint_names=list(names), points=[point])

    return Stream(topic, "trajectory_msgs/msg/JointTrajectory", make, hz)


def floats(topic: str, count: int, hz: float, still: Sequence[int] = (), first: int = 160, **when: Any) -> Stream:
    """Float64MultiArray without a layout; the elements `still` are always 0."""
    layout = T["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0)

    def make(m: Moment) -> Any:
        data = np.array([0.0 if i in still else m.wave(first + i) for i in range(count)])
        return T["std_msgs/msg/Float64MultiArray"](layout=layout, data=data)

    return Stream(topic, "std_msgs/msg/Float64MultiArray", make, hz, **when)


def imu(topic: str, hz: float) -> Stream:
    none = np.zeros(9)

    def make(m: Moment) -> Any:
        return T["sensor_msgs/msg/Imu"](m.header, m.turned(), none, m.vector(6), none, m.vector(9, 3.0), none)

    return Stream(topic, "sensor_msgs/msg/Imu", make, hz)


def odometry(topic: str, hz: float) -> Stream:
    """Of something that moves on the ground."""

    def make(m: Moment) -> Any:
        place = T["geometry_msgs/msg/Point"](x=m.wave(3, 4.0), y=m.wave(4, 4.0), z=0.0)
        pose = T["geometry_msgs/msg/Pose"](position=place, orientation=m.turned())
        return T["nav_msgs/msg/Odometry"](
            header=m.header, child_frame_id="base",
            pose=T["geometry_msgs/msg/PoseWithCovariance"](pose=pose, covariance=np.zeros(36)),
            twist=T["geometry_msgs/msg/TwistWithCovariance"](twist=m.twist([0], [2]), covariance=np.zeros(36)),
        )  # fmt: skip

    return Stream(topic, "nav_msgs/msg/Odometry", make, hz)


def scan(topic: str, hz: float, count: int = 360) -> Stream:
    """A laser scan; some beams hit nothing and are infinite."""

    def make(m: Moment) -> Any:
        ranges = np.array([m.wave(i / 20, 1.0, 3.0) for i in range(count)], np.float32)
        ranges[ranges > 3.9] = np.inf
        step = 2 * np.pi / count
        return T["sensor_msgs/msg/LaserScan"](
            m.header, -np.pi, np.pi, step, 0.0, 1 / hz, 0.12, 12.0, ranges, np.empty(0, np.float32)
        )

    return Stream(topic, "sensor_msgs/msg/LaserScan", make, hz)


def gps(topic: str, hz: float) -> Stream:
    def make(m: Moment) -> Any:
        status = T["sensor_msgs/msg/NavSatStatus"](status=0, service=1)
        where = m.wave(1, 1e-4, 48.1), m.wave(2, 1e-4, 11.5), m.wave(3, 0.5, 510.0)
        return T["sensor_msgs/msg/NavSatFix"](m.header, status, *where, np.zeros(9), 0)

    return Stream(topic, "sensor_msgs/msg/NavSatFix", make, hz)


def number(topic: str, hz: float, value: Callable[[Moment], float], **when: Any) -> Stream:
    kind = "std_msgs/msg/Float64"
    return Stream(topic, kind, lambda m: T[kind](data=float(value(m))), hz, **when)


def text(topic: str, said: str, at_s: tuple[float, ...] = (0.0,), latched: bool = True) -> Stream:
    kind = "std_msgs/msg/String"
    return Stream(topic, kind, lambda m: T[kind](data=said), at_s=at_s, latched=latched)


def transforms(topic: str, hz: float) -> Stream:
    def make(m: Moment) -> Any:
        move = T["geometry_msgs/msg/Transform"](translation=m.vector(3), rotation=m.turned())
        one = T["geometry_msgs/msg/TransformStamped"](
            header=dataclasses.replace(m.header, frame_id="odom"), child_frame_id="base", transform=move
        )
        return T["tf2_msgs/msg/TFMessage"](transforms=[one])

    return Stream(topic, "tf2_msgs/msg/TFMessage", make, hz)


def battery(topic: str, hz: float) -> Stream:
    kind = "sensor_msgs/msg/BatteryState"

    def make(m: Moment) -> Any:
        none, nan = np.empty(0, np.float32), float("nan")
        return T[kind](m.header, 12.5 - 0.01 * m.s, nan, nan, nan, nan, nan, 0.9, 0, 0, 0, True, none, none, "", "")

    return Stream(topic, kind, make, hz)


def twist(topic: str, hz: float, linear: Sequence[int], angular: Sequence[int], **when: Any) -> Stream:
    return Stream(topic, "geometry_msgs/msg/Twist", lambda m: m.twist(linear, angular), hz, **when)


def urdf(limits: Mapping[str, tuple[float, float, float, float]]) -> str:
    """A robot description of revolute joints with (lower, upper, velocity, effort)."""
    entries = [
        f'<joint name="{name}" type="revolute">'
        f'<limit lower="{lower}" upper="{upper}" velocity="{v}" effort="{e}"/></joint>'
        for name, (lower, upper, v, e) in limits.items()
    ]
    return f'<?xml version="1.0"?><robot name="r">{"".join(entries)}</robot>'
