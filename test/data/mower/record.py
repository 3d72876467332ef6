# SPDX-License-Identifier: Apache-2.0
"""Writes the bags of docs/your_robot.md: a mower that people drive to a beacon, on days of different wear and load.

Usage: python record.py FOLDER [runs a day]. FOLDER/bags has ten days, FOLDER/later four more. The bags hold what such a
robot publishes and nothing made for learning: no reward, no marks of episodes, no names of tasks but the folders'.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import mujoco
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_JAZZY)
ODOM, POINT, ARRAY = "nav_msgs/msg/Odometry", "geometry_msgs/msg/PointStamped", "std_msgs/msg/Float64MultiArray"
START_NS, PERIOD_NS, SUBSTEPS, STEPS = 1_800_000_000_000_000_000, 50_000_000, 10, 160
MOST = 3.0  # Nm of a motor
DAYS = [  # load of the hopper in kg, force of the left and right motor as a share of a new one's
    (2, 1.0, 1.0), (4, 1.0, 0.6), (6, 0.7, 1.0), (8, 0.9, 0.5), (10, 0.5, 0.8), (12, 1.0, 0.8), (14, 0.6, 0.6),
    (3, 0.5, 1.0), (7, 0.8, 0.8), (11, 0.7, 0.5),
]  # fmt: skip
LATER = [(5, 0.6, 0.9), (9, 0.9, 0.7), (13, 0.8, 0.5), (6, 0.5, 0.6)]


def made(name: str, **values: object) -> object:
    return STORE.types[name](**values)


def header(t_ns: int, frame: str) -> object:
    stamp = made("builtin_interfaces/msg/Time", sec=t_ns // 10**9, nanosec=t_ns % 10**9)
    return made("std_msgs/msg/Header", stamp=stamp, frame_id=frame)


def vector(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> object:
    return made("geometry_msgs/msg/Vector3", x=x, y=y, z=z)


def odometry(t_ns: int, speed: float, turn: float) -> object:
    point, still = made("geometry_msgs/msg/Point", x=0.0, y=0.0, z=0.0), np.zeros(36)
    pose = made("geometry_msgs/msg/Pose", position=point,
                orientation=made("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0))  # fmt: skip
    twist = made("geometry_msgs/msg/Twist", linear=vector(x=speed), angular=vector(z=turn))
    return made(ODOM, header=header(t_ns, "odom"), child_frame_id="base_link",
                pose=made("geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=still),
                twist=made("geometry_msgs/msg/TwistWithCovariance", twist=twist, covariance=still))  # fmt: skip


class Mower:
    """The simulated robot of one day."""

    def __init__(self, load: float, left: float, right: float) -> None:
        spec = mujoco.MjSpec.from_file(str(Path(__file__).parent / "mower.xml"))
        spec.geom("bin").mass = load
        self.model, self.gains = spec.compile(), np.array([left, right])
        self.data = mujoco.MjData(self.model)

    def start(self, rng: np.random.Generator) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:3] = rng.uniform(-0.5, 0.5, 3)
        mujoco.mj_forward(self.model, self.data)

    def seen(self) -> tuple[float, float, float, float]:
        """Speed, turn, and the beacon's x and y from here."""
        values = [self.data.sensor(name).data for name in ("odom.twist.twist.linear", "odom.twist.twist.angular")]
        x, y, _ = self.data.sensor("beacon.point").data
        return float(values[0][0]), float(values[1][2]), float(x), float(y)

    def drive(self, command: np.ndarray) -> None:
        self.data.ctrl[:] = self.gains * np.clip(command, -MOST, MOST)
        mujoco.mj_step(self.model, self.data, SUBSTEPS)
        mujoco.mj_forward(self.model, self.data)


class Driver:
    """A person: steady or not, bold or not, and used to the wear of this machine or not."""

    def __init__(self, rng: np.random.Generator, gains: np.ndarray) -> None:
        self.rng, skill = rng, rng.uniform()
        self.bold, self.steady = rng.uniform(0.8, 2.5), skill
        self.habit = gains ** rng.uniform(0, 1) if skill > 0.3 else np.ones(2)
        self.drift = np.zeros(2)

    def command(self, speed: float, turn: float, x: float, y: float) -> np.ndarray:
        away, bearing = np.hypot(x, y), np.arctan2(y, x)
        ahead = self.bold * np.clip(1.5 * away, 0, 1) * np.cos(bearing) - 1.2 * speed
        side = 1.5 * np.clip(bearing, -1, 1) * min(1.0, 3 * away) - 0.6 * turn
        self.drift = 0.9 * self.drift + (1 - self.steady) * self.rng.normal(0, 0.6, 2)
        return np.clip(np.array([ahead - side, ahead + side]) / self.habit + self.drift, -MOST, MOST)


def record(path: Path, mower: Mower, rng: np.random.Generator, t_ns: int) -> int:
    """One run as a bag; returns when it ended."""
    driver = Driver(rng, mower.gains)
    mower.start(rng)
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topics = {n: writer.add_connection(f"/{n}", kind, typestore=STORE)
                  for n, kind in (("odom", ODOM), ("beacon", POINT), ("wheels/commands", ARRAY))}  # fmt: skip

        def write(topic: str, kind: str, message: object, at_ns: int) -> None:
            writer.write(topics[topic], at_ns, bytes(STORE.serialize_cdr(message, kind)))

        for _ in range(STEPS):
            speed, turn, x, y = mower.seen()
            seen_ns = t_ns + int(rng.integers(0, 1_000_000))
            write("odom", ODOM, odometry(t_ns, speed, turn), seen_ns)
            point = made("geometry_msgs/msg/Point", x=x, y=y, z=0.0)
            write("beacon", POINT, made(POINT, header=header(t_ns, "base_link"), point=point), seen_ns + 200_000)
            command = driver.command(speed, turn, x, y)
            layout = made("std_msgs/msg/MultiArrayLayout", dim=[], data_offset=0)
            write("wheels/commands", ARRAY, made(ARRAY, layout=layout, data=command), seen_ns + 2_000_000)
            mower.drive(command)
            t_ns += PERIOD_NS
    return t_ns


def bags(folder: Path, runs: int) -> Iterator[Path]:
    """All bags, as they are written."""
    rng, t_ns = np.random.default_rng(0), START_NS
    for place, days in (("bags", DAYS), ("later", LATER)):
        for number, (load, left, right) in enumerate(days):
            mower, day = Mower(load, left, right), folder / place / f"{'day' if days is DAYS else 'later'}_{number:02d}"
            day.mkdir(parents=True, exist_ok=True)
            for run in range(runs):
                t_ns = record(day / f"run_{run:02d}", mower, rng, t_ns) + 60 * 10**9
                yield day / f"run_{run:02d}"


if __name__ == "__main__":
    count = sum(1 for _ in bags(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 12))
    print(f"{count} bags in {sys.argv[1]}")
