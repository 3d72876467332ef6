# SPDX-License-Identifier: Apache-2.0
"""Which recorded topic is most likely the command and which are states, judged by type and name."""

from __future__ import annotations

import re
from collections.abc import Iterable

from spc_core.doctor.diagnosis import TopicLog

COMMAND_WORDS = re.compile(
    r"(^|[/_])(cmd|cmds|command|commands|control|setpoint|action|actions|effort|torque)($|[/_])|cmd_vel"
)
COMMAND_TYPES = {
    "std_msgs/msg/Float64MultiArray": 3,
    "std_msgs/msg/Float32MultiArray": 2,
    "trajectory_msgs/msg/JointTrajectory": 3,
    "geometry_msgs/msg/Twist": 3,
    "geometry_msgs/msg/TwistStamped": 2,
    "ackermann_msgs/msg/AckermannDriveStamped": 3,
}
STATE_TYPES = {
    "sensor_msgs/msg/JointState": 6,
    "nav_msgs/msg/Odometry": 5,
    "sensor_msgs/msg/Imu": 4,
    "geometry_msgs/msg/PoseStamped": 3,
    "geometry_msgs/msg/PoseWithCovarianceStamped": 3,
    "geometry_msgs/msg/TwistStamped": 2,
    "geometry_msgs/msg/WrenchStamped": 2,
    "geometry_msgs/msg/TransformStamped": 2,
}
REWARD_WORDS = re.compile(r"(^|[/_])(reward|rewards|return|score|cost)($|[/_])")


def command_score(topic: str, type_name: str) -> int:
    """How much a topic looks like the robot's command; 0: not at all."""
    named = 4 if COMMAND_WORDS.search(topic) else 0
    if REWARD_WORDS.search(topic) or not (named or type_name in COMMAND_TYPES):
        return 0
    return named + COMMAND_TYPES.get(type_name, 0)


def state_score(topic: str, type_name: str) -> int:
    """How much a topic looks like a state of the robot; 0: not at all."""
    if COMMAND_WORDS.search(topic) or REWARD_WORDS.search(topic):
        return 0
    return STATE_TYPES.get(type_name, 0)


def find_command(logs: Iterable[TopicLog]) -> TopicLog | None:
    """The likeliest command; of equals the one with more messages."""
    found = [log for log in logs if command_score(log.topic, log.type) and log.fields]
    return max(found, key=lambda log: (command_score(log.topic, log.type), len(log)), default=None)


def find_states(logs: Iterable[TopicLog]) -> list[TopicLog]:
    """States of the robot, the likeliest first."""
    found = [log for log in logs if state_score(log.topic, log.type) and log.fields]
    return sorted(found, key=lambda log: (-state_score(log.topic, log.type), -len(log), log.topic))
