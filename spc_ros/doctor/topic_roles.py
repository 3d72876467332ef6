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
from spc_ros.bags.reader import BagReader, parse_episode, text_of

COMMAND_WORDS = re.compile(
    r"(^|[/_])(cmd|cmds|command|commands|control|controls|controller|controllers|setpoint|setpoints|action|actions|act|"
    r"thrust|thrusts|thruster|thrusters|desired)($|[/_])|cmd_vel"
)
EFFORT_WORDS = re.compile(r"(^|[/_])(effort|efforts|torque|torques)($|[/_])")  # of std_msgs, else a sensor's
STATE_WORDS = re.compile(
    r"(^|[/_])((state|states|status|feedback|measured|actual|odom|odometry|estimated?)$|"
    r"(sensor|sensors|broadcaster|observer|estimator)($|[/_]))"
)
COMMAND_TYPES = {  # score, and whether the type alone, by any name, makes a command
    "std_msgs/msg/Float64MultiArray": (3, False),
    "std_msgs/msg/Float32MultiArray": (2, False),
    "trajectory_msgs/msg/JointTrajectory": (3, True),
    "geometry_msgs/msg/Twist": (3, True),
    "geometry_msgs/msg/TwistStamped": (2, False),
    "ackermann_msgs/msg/AckermannDriveStamped": (3, True),
    "ackermann_msgs/msg/AckermannDrive": (3, True),
}
STATE_TYPES = {
    "sensor_msgs/msg/JointState": 6,
    "nav_msgs/msg/Odometry": 5,
    "sensor_msgs/msg/Imu": 4,
    "geometry_msgs/msg/PoseStamped": 3,
    "geometry_msgs/msg/PoseWithCovarianceStamped": 3,
    "geometry_msgs/msg/TwistStamped": 2,
    "geometry_msgs/msg/TwistWithCovarianceStamped": 2,
    "geometry_msgs/msg/WrenchStamped": 2,
    "geometry_msgs/msg/TransformStamped": 2,
    "geometry_msgs/msg/AccelStamped": 2,
    "sensor_msgs/msg/NavSatFix": 1,
    "sensor_msgs/msg/FluidPressure": 1,
    "sensor_msgs/msg/Range": 1,
    "sensor_msgs/msg/LaserScan": 1,
}
OWN_STATES = re.compile(r"/(?!.*ControllerState)\w*(Odometry|State|States|Attitude|LocalPosition|Imu|Feedback)$")
OWN_STATE_SCORE = 2  # of a type that a robot's own package names like a state
SENSED = ("nav_msgs/msg/Odometry",)  # with all of sensor_msgs but JointState, what no command is made of
REWARD_WORDS = re.compile(r"(^|[/_])(reward|rewards|return|score|cost)($|[/_])")
GRIPPER_WORDS = re.compile(r"(^|[/_])(gripper|grippers|hand|finger|fingers|claw|grasp)($|[/_])")
GOAL_WORDS = re.compile(r"(^|[/_])(goal|goals|target|waypoint|move_base_simple)($|[/_])")


def command_score(topic: str, type_name: str) -> int:
    """How much a topic looks like the robot's command; 0: not at all."""
    is_sensor = type_name.startswith("sensor_msgs/") and type_name != "sensor_msgs/msg/JointState"
    if REWARD_WORDS.search(topic) or STATE_WORDS.search(topic) or is_sensor or type_name in SENSED:
        return 0
    score, alone = COMMAND_TYPES.get(type_name, (0, False))
    effort = type_name.startswith("std_msgs/") and EFFORT_WORDS.search(topic)
    named = (effort or COMMAND_WORDS.search(topic)) and "WithCovariance" not in type_name
    return 4 + score if named else score if alone else 0


def state_score(topic: str, type_name: str) -> int:
    """How much a topic looks like a state of the robot; 0: not at all."""
    if command_score(topic, type_name) or REWARD_WORDS.search(topic) or GOAL_WORDS.search(topic):
        return 0
    is_array = type_name.endswith("MultiArray") and STATE_WORDS.search(topic)
    return STATE_TYPES.get(type_name, OWN_STATE_SCORE if OWN_STATES.search(type_name) else 1 if is_array else 0)


def find_command(logs: Iterable[TopicLog]) -> TopicLog | None:
    """The likeliest command; of equals the one with more numbers, then the shorter name."""
    found = [log for log in logs if command_score(log.topic, log.type) and log.fields]
    return min(found, key=command_rank, default=None)


def command_rank(log: TopicLog) -> tuple[int, int, int, str]:
    """Sorts commands, the likeliest first; the number of messages does not count, since it differs between bags."""
    return -command_score(log.topic, log.type), -len(log.fields), len(log.topic), log.topic


def find_states(logs: Iterable[TopicLog]) -> list[TopicLog]:
    """States of the robot, the likeliest first."""
    found = [log for log in logs if state_score(log.topic, log.type) and log.fields]
    return sorted(found, key=lambda log: (-state_score(log.topic, log.type), log.topic))


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
    changes: bool = False  # within a bag


def merge_marks(bags: Sequence[Marks]) -> Marks:
    """The marks of all bags of a robot."""
    marked = [marks for marks in bags if marks.marker is not None]
    best = max(marked, key=lambda marks: (marks.stretches, marks.marker.topic if marks.marker else ""), default=Marks())
    topics = {marks.task_topic for marks in bags if marks.task_topic}
    named = [marks for marks in bags if marks.task_topic == min(topics, default="")]
    tasks = tuple(sorted({task for marks in named for task in marks.tasks}))
    changes = any(len(marks.tasks) > 1 for marks in named)
    episodes = max((marks.episodes for marks in bags), default=0)
    return Marks(episodes, best.marker, best.stretches, min(topics, default=""), tasks, changes)


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
        texts[name].append(text_of(message, name))
    infos = [info for name in own for text in texts.pop(name) if (info := parse_episode([text], str(bag.path)))]
    named = {name: tuple(sorted({text for text in found if text.strip()})) for name, found in texts.items()}
    best = min((name for name in named if named[name]), key=lambda name: (len(named[name]), name), default="")
    episodes = len({(info.episode, info.start_ns) for info in infos})
    tasks = named.get(best, ())
    return Marks(episodes, marker if stretches else None, stretches, best, tasks, len(tasks) > 1)


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
