# SPDX-License-Identifier: Apache-2.0
"""A robot for tests, in a process of its own: states out, commands in, in real time. It knows of no episodes.

    PYTHONPATH=test python -m support.bare_robot FAMILY TASK_ID [PERIODS_UNTIL_TERMINATED]

SIGUSR1 is a human's hand: it brings the arm to its start. With a number it says `done` (std_msgs/Bool) so many
commanded periods after that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import rclpy
from rclpy.node import Node
from std_msgs.msg import Bool

from spc_core.contract.contract import load_contract
from spc_core.system.config_files import find_config
from spc_core.tasks import find_task, make_env
from spc_ros.messages.fields import FieldReader, message_class
from spc_ros.node_parts.contract_topics import StatePublishers
from spc_ros.node_parts.topics import stream_qos
from support.paths import ROOT, TEST_FOLDER


@contextlib.contextmanager
def bare_robot(environment: dict[str, str], done_after: int) -> Iterator[subprocess.Popen]:
    """The robot in a process of its own, until the block ends."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "support.bare_robot", "arm_reach", "arm_reach/id/02", str(done_after)]
    with subprocess.Popen(command, cwd=TEST_FOLDER, env={**os.environ, **environment, "PYTHONPATH": paths}) as robot:
        try:
            yield robot
        finally:
            robot.send_signal(signal.SIGTERM)


class BareRobot(Node):
    def __init__(self, family: str, task_id: str, done_after: int) -> None:
        super().__init__("bare_robot")
        self.contract = load_contract(find_config("contracts", family))
        self.env = make_env(family, find_task(task_id))
        self.out = StatePublishers(self, self.contract, reliable=False)
        action = self.contract.action.parts[0]
        self.reader = FieldReader(action.type, action.fields, action.topic)
        self.create_subscription(message_class(action.type), action.topic, self.on_command, stream_qos(False))
        self.done = self.create_publisher(Bool, "done", 10)
        self.safe, self.done_after, self.moved = np.array(action.safe), done_after, 0
        self.hand, self.observation = False, self.env.reset(seed=0)[0]
        self.command, self.command_s = self.safe, 0.0
        self.create_timer(self.contract.period_ns / 1e9, self.tick)

    def on_command(self, msg: object) -> None:
        self.command, self.command_s = self.reader.read(msg), time.monotonic()

    def tick(self) -> None:
        if self.hand:
            self.observation, self.hand, self.moved = self.env.reset(seed=0)[0], False, 1
        fresh = time.monotonic() - self.command_s < 0.1
        self.observation, reward, *_ = self.env.step(self.command if fresh else self.safe)
        self.out.publish(self.get_clock().now().nanoseconds, self.observation, float(reward))
        self.moved += fresh and self.moved > 0
        if fresh and self.moved == self.done_after:
            self.done.publish(Bool(data=True))


def main() -> None:
    rclpy.init()
    robot = BareRobot(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    signal.signal(signal.SIGUSR1, lambda *_: setattr(robot, "hand", True))
    rclpy.spin(robot)


if __name__ == "__main__":
    main()
