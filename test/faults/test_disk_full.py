# SPDX-License-Identifier: Apache-2.0
"""A disk that fills up while a recorder runs on it: said, put aside, and recorded again once there is room."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from std_msgs.msg import String

from spc_core.alignment.episode import EpisodeInfo
from spc_ros.bags.reader import BagReader
from spc_ros.node_parts.topics import latched_qos
from spc_ros.processes import NodeGroup
from support.contracts import ARM_REACH
from support.node_probe import FakeRobot, Probe

pytestmark = pytest.mark.timeout(120)
LEFT = 65536  # bytes


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB, unmounted at the end."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_full_disk_ends_the_bag_not_the_recorder(
    nodes: NodeGroup, probe: Probe, small_disk: Path, storage: str
) -> None:
    nodes.start("recorder", {"directory": str(small_disk / "bags"), "storage": storage})
    nodes.wait_ready()
    episodes = probe.node.create_publisher(String, "episode", latched_qos(depth=10))
    probe.listen("recorder/bags", "std_msgs/msg/String", latched_qos(depth=100))
    robot, rng = FakeRobot(probe, ARM_REACH, reliable=True), np.random.default_rng(0)
    probe.until(lambda: robot.first_stream.get_subscription_count(), "the recorder hears the robot")

    def results() -> list[dict]:
        return [json.loads(msg.data) for msg in probe.heard["recorder/bags"]]

    def begin(number: int) -> EpisodeInfo:
        info = EpisodeInfo("running", "a/id/0", {}, number, 0, robot.t_ns + 1)
        episodes.publish(String(data=info.to_json()))
        probe.until(lambda: list((small_disk / "bags").glob(f".{number:04d}_*.recording*")), f"bag {number} is open")
        return info

    def end(info: EpisodeInfo) -> dict:
        ended = {**json.loads(info.to_json()), "state": "ended", "end_ns": robot.t_ns, "truncated": True}
        episodes.publish(String(data=json.dumps(ended)))
        probe.until(lambda: any(each["episode"] == info.episode for each in results()), "the bag's result")
        return results()[-1]

    def whole(number: int) -> None:
        info = begin(number)
        for _ in range(5):
            robot.say(rng.normal(size=4))
        told = end(info)
        assert told["path"], told["reason"]
        path = Path(told["path"])
        with BagReader(path) as bag:
            assert sum(topic == "/joint_states" for topic, _, _ in bag.messages()) == 5

    whole(0)
    begin(1)
    disk = os.statvfs(small_disk)
    (small_disk / "other").write_bytes(b"x" * (disk.f_bavail * disk.f_frsize - LEFT))

    def full() -> bool:
        for _ in range(20):
            robot.say(rng.normal(size=4))
        return any(each["episode"] == 1 for each in results())

    probe.until(full, "word of the full disk")
    said = results()[-1]
    assert said["path"] == "" and ("No space left" in said["reason"] or "full" in said["reason"])
    nodes.check()
    broken = list((small_disk / "bags").glob(".0001_*.broken-*"))
    assert len(broken) == 1 and str(broken[0]) in said["reason"]
    assert sorted(path.name for path in (small_disk / "bags").iterdir() if path.name[0] != ".") == ["0000_a-id-0"]
    (small_disk / "other").unlink()
    whole(2)
