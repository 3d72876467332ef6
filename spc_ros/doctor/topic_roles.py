# SPDX-License-Identifier: Apache-2.0
"""The likely role of each recorded topic, by type, name and messages: command, state, reward, or mark of episodes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

import numpy as np

from spc_core.alignment.episode import marker_spans
from spc_core.doctor.diagnosis import TopicLog
from spc_core.doctor.topic_stats import intervals
from spc_ros.bags.reader import BagReader, parse_episode

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


STRING = "std_msgs/msg/String"
MARKER_TYPES = tuple(f"std_msgs/msg/{name}" for name in ("Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32"))  # fmt: skip  # noqa: E501
MARKER_WORDS = re.compile(r"(^|[/_])(episode|trial|run|running|rollout|demo|recording|active|in_progress)($|[/_])")
TASK_WORDS = re.compile(r"(^|[/_])(task|task_id|task_name|instruction|scenario|prompt|language)($|[/_])")
MANY_TEXTS = 100  # messages of a text topic; more make a log, not a name
PAUSE_S, PAUSE_PERIODS = 2.0, 50  # a silence of all topics this long is a pause, not a lost message


@dataclasses.dataclass(frozen=True)
class Marks:
    """Topics that mark episodes and tasks."""

    episodes: int = 0  # reported by the topic `episode`
    marker: TopicLog | None = None
    stretches: int = 0  # in which the marker is on
    task_topic: str = ""
    tasks: tuple[str, ...] = ()  # that it names


def find_marks(bag: BagReader, logs: Sequence[TopicLog]) -> Marks:
    """The marks of episodes and tasks in a bag. Raises BagError."""
    markers = [(log, _stretches(log)) for log in logs if log.type in MARKER_TYPES and MARKER_WORDS.search(log.topic)]
    marker, stretches = max(markers, key=lambda entry: entry[1], default=(None, 0))
    own = bag.episode_topics()
    texts: dict[str, list[str]] = {name: [] for name in own}
    for name, topic in bag.info.topics.items():
        if topic.type == STRING and 0 < topic.count <= MANY_TEXTS and TASK_WORDS.search(name):
            texts[name] = []
    for name, _, message in bag.messages(texts) if texts else ():
        texts[name].append(message.data)
    infos = [info for name in own for text in texts.pop(name) if (info := parse_episode([text], str(bag.path)))]
    named = {name: tuple(sorted({text for text in found if text.strip()})) for name, found in texts.items()}
    best = min((name for name in named if named[name]), key=lambda name: (len(named[name]), name), default="")
    episodes = len({(info.episode, info.start_ns) for info in infos})
    return Marks(episodes, marker if stretches else None, stretches, best, named.get(best, ()))


def _stretches(log: TopicLog) -> int:
    """Number of stretches in which a marker is on."""
    return len(marker_spans(log.time_ns.tolist(), log.values[:, 0].tolist())) if log.values.shape[1] else 0


def pauses(logs: Sequence[TopicLog]) -> list[float]:
    """Seconds of each long silence of the first topic in which the others are silent, too."""
    found = intervals(logs[0])
    if found is None:
        return []
    long = found.length_s > max(PAUSE_S, PAUSE_PERIODS * found.period_s)
    kept = []
    for begin_s, end_s, length_s in zip(found.begin_s[long], found.end_s[long], found.length_s[long], strict=True):
        middle = 0.25 * (end_s - begin_s)
        inside = (np.count_nonzero((log.seconds > begin_s + middle) & (log.seconds < end_s - middle)) for log in logs)
        if not any(inside):
            kept.append(float(length_s))
    return kept
