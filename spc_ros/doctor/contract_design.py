# SPDX-License-Identifier: Apache-2.0
"""Which topics of a robot's bags a proposed contract observes and commands, and why not the others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from spc_core.contract.frames import FORM, TF
from spc_core.doctor.command_checks import CommandPattern, command_pattern, total
from spc_core.doctor.topic_stats import MIN_MESSAGES
from spc_ros.bags.files import BagError
from spc_ros.bags.reader import EPISODE_TOPIC
from spc_ros.doctor.contract_choices import ROUND_SHARE, Clocks, clocks_of_all, nominal, round_rate
from spc_ros.doctor.field_choices import Choice, choose, choose_command, whole_array
from spc_ros.doctor.recorded_robot import DESCRIPTION, RecordedRobot, RecordedTopic
from spc_ros.doctor.topic_roles import (
    GOAL_WORDS,
    GRIPPER_WORDS,
    REWARD_WORDS,
    STATE_WORDS,
    command_rank,
    command_score,
    state_score,
)
from spc_ros.doctor.urdf_limits import JointLimits
from spc_ros.messages.fields import JOINT_ARRAYS
from spc_ros.messages.numeric_fields import MAX_ELEMENTS

MAX_STREAMS = 6
TICK_SHARE = 0.4  # a stream that sets the ticks is at most so much slower than the commands, or the fastest stream
FAST_ENOUGH_HZ = 20.0  # for the ticks, where no command says which rate is wanted
WHOLE = 0.1  # how far the number of states for each command may be from a whole one
SLOW_HZ = 2.0  # commands at a lower rate are goals rather than controls
RARE_SHARE = 0.2  # commands are rare where they are fewer than this share of the states
SINGLE = ("std_msgs/msg/Float64", "std_msgs/msg/Float32")
WHOLE_NUMBERS = ("Bool", "Byte", "Char", "Int", "UInt")  # std_msgs of these are no commands of a policy


Found = list[tuple[RecordedTopic, Choice]]


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A topic that the contract does not use, and what it would observe of it, if that may be wanted."""

    topic: RecordedTopic
    why: str
    offer: Choice | None = None


@dataclasses.dataclass(frozen=True)
class Design:
    """What a proposed contract consists of."""

    robot: RecordedRobot
    joints: Mapping[str, JointLimits]
    states: tuple[tuple[RecordedTopic, Choice], ...]  # the first one sets the ticks
    commands: tuple[tuple[RecordedTopic, Choice], ...]  # the topics of the action
    no_command: str  # why there is none
    more_commands: tuple[RecordedTopic, ...]  # that the action does not send
    left_out: tuple[LeftOut, ...]
    rate_hz: float
    clocks: Clocks
    holds: Mapping[str, CommandPattern]  # of commanded topics whose messages come only when they change

    @property
    def used(self) -> list[RecordedTopic]:
        return [topic for topic, _ in (*self.states, *self.commands)]

    def is_rare(self, command: RecordedTopic) -> bool:
        """Whether there are far fewer commands than states, irregular or slow ones."""
        if command.topic in self.holds or (command.rate_hz or 0.0) > SLOW_HZ:
            return False
        return command.messages < RARE_SHARE * self.states[0][0].messages


def design(robot: RecordedRobot, joints: Mapping[str, JointLimits]) -> Design:
    """Choose topics and fields. Raises BagError where nothing looks like a state."""
    refused = {topic.topic: _why_no_command(topic) for topic in robot.topics}
    able = [topic for topic in robot.topics if not refused[topic.topic]]
    able.sort(key=_rank)
    commanded = _commanded(able)
    states, left_out = _states(robot, joints, commanded, refused)
    if not states:
        there = "; ".join(f"{entry.topic.topic} ({entry.topic.type}): {entry.why}" for entry in left_out)
        raise BagError(f"{robot.bags[0]}: no topic looks like the robot's state; {there}; write the contract by hand")
    patterns = {topic.topic: _pattern(topic, states, robot) for topic in commanded}
    holds = {name: pattern for name, pattern in patterns.items() if pattern.on_change}
    states, rate_hz = _ticks(states, commanded, holds)
    names = [topic.topic for topic in (*(topic for topic, _ in states), *commanded)]
    clocks = clocks_of_all([[bag[name] for name in names if name in bag] for bag in robot.logs], rate_hz)
    if clocks.clock == "receive":  # then rates in simulated time are not those of the ticks
        commanded = [topic.received() for topic in commanded]
        states, rate_hz = _ticks([(topic.received(), choice) for topic, choice in states], commanded, holds)
    commands = tuple((topic, choose_command(topic.log)) for topic in commanded)
    names = {topic.topic for topic in commanded}
    others = tuple(topic for topic in able if topic.topic not in names)
    no_command = "" if commands else _why_none(refused)
    return Design(robot, joints, tuple(states), commands, no_command, others, tuple(left_out), rate_hz, clocks, holds)


def _pattern(command: RecordedTopic, states: Found, robot: RecordedRobot) -> CommandPattern:
    """How the commands of all bags come next to the likeliest state."""
    pairs = [(bag.get(command.topic), bag.get(states[0][0].topic)) for bag in robot.logs]
    return total(command_pattern(mine, theirs) for mine, theirs in pairs if mine is not None and theirs is not None)


def _commanded(able: Sequence[RecordedTopic]) -> list[RecordedTopic]:
    """The topics of the action: the likeliest, and those that move another part of the robot.

    These are the others of single numbers, such as thrusters, or the gripper of an arm.
    """
    best = [topic for topic in able if command_score(topic.topic, topic.type) == _score(able)]
    if len(best) > 1 and all(topic.type in SINGLE for topic in best):
        return [topic for topic in best if topic.everywhere] or best[:1]
    hands = [topic for topic in able[1:] if GRIPPER_WORDS.search(topic.topic) and topic.everywhere and topic.rate_hz]
    return [*able[:1], *([] if GRIPPER_WORDS.search(able[0].topic) else hands[:1])] if able else []


NO_COMMAND = "is not a command by its name and type"


def _rank(topic: RecordedTopic) -> tuple[Any, ...]:
    """Sorts commands: by presence, looks and steadiness, then as command_rank."""
    score = command_score(topic.topic, topic.type)
    return not topic.everywhere, -score, topic.rate_hz is None, command_rank(topic.log)


def _score(able: Sequence[RecordedTopic]) -> int:
    return command_score(able[0].topic, able[0].type) if able else 0


def _why_no_command(topic: RecordedTopic) -> str:
    """Why a topic cannot be the action; '' where it can."""
    if not command_score(topic.topic, topic.type):
        return NO_COMMAND
    if topic.problem:
        return topic.problem
    if topic.type.startswith("std_msgs/msg/") and topic.type[13:].startswith(WHOLE_NUMBERS):
        return "holds whole numbers, which a policy does not send"
    if not topic.logs or not topic.log.fields:
        return "holds no numbers of a command"
    if max(len(log) for log in topic.logs) < MIN_MESSAGES:
        return f"came {'once' if topic.messages == 1 else f'{topic.messages} times'} in all, too few to learn from"
    if unfit := whole_array(topic.log):
        return unfit
    if len(topic.log.fields) >= MAX_ELEMENTS and topic.type.endswith("MultiArray"):
        return f"holds an array of {MAX_ELEMENTS} or more numbers"
    if not choose_command(topic.log).fields:
        return "never changes in these bags"
    return ""


def _why_none(refused: Mapping[str, str]) -> str:
    """Why there is no action."""
    near = [f"{topic} {why}" for topic, why in refused.items() if why not in ("", NO_COMMAND)]
    return "; ".join(near) or "no topic looks like a command, by name and type"


def _states(
    robot: RecordedRobot,
    joints: Mapping[str, JointLimits],
    commanded: Sequence[RecordedTopic],
    refused: Mapping[str, str],
) -> tuple[Found, list[LeftOut]]:
    """(the streams to observe, the likeliest first, and all other topics but those of the action)."""
    found: Found = []
    left_out = []
    for topic in robot.topics:
        if topic in commanded:
            continue
        why = _no_stream(topic, robot)
        if not command_score(topic.topic, topic.type):
            why = why or _of_another_robot(topic.topic, commanded, robot)
        if why:
            left_out.append(LeftOut(topic, why))
            continue
        choice = choose(topic, joints)
        why, offer = _why_no_state(topic, choice, refused[topic.topic])
        if why:
            left_out.append(LeftOut(topic, why, choice if offer else None))
        else:
            found.append((topic, choice))
    if not found and (unknown := [entry for entry in left_out if entry.why == UNKNOWN]):
        guess = min(unknown, key=lambda entry: (not STATE_WORDS.search(entry.topic.topic), _most_fields(entry)))
        left_out.remove(guess)
        found = [(guess.topic, guess.offer or Choice())]
    found.sort(key=lambda entry: (-state_score(entry[0].topic, entry[0].type), entry[0].topic))
    left_out += [LeftOut(topic, f"{MAX_STREAMS} streams are observed", choice) for topic, choice in found[MAX_STREAMS:]]
    return found[:MAX_STREAMS], left_out


def _most_fields(entry: LeftOut) -> tuple[int, str]:
    """Sorts by the number of fields, the most first, then by name."""
    return -len(entry.offer.fields if entry.offer else ()), entry.topic.topic


UNKNOWN = "not known to be a state of the robot"


def _no_stream(topic: RecordedTopic, robot: RecordedRobot) -> str:
    """Why a topic is no stream of numbers at all; '' where it is one."""
    marks = robot.marks
    if topic.problem:
        return f"cannot be read: {topic.problem.removeprefix('not decoded, ')}"
    if topic.topic.endswith(DESCRIPTION):
        return "the robot's description"
    if topic.topic == marks.task_topic:
        return "names the task"
    if topic.topic.strip("/") == EPISODE_TOPIC or (marks.marker is not None and topic.topic == marks.marker.topic):
        return "marks episodes"
    if not topic.messages:
        return "no message"
    if topic.type == "rosgraph_msgs/msg/Clock":
        return "the time"
    if topic.type in JOINT_ARRAYS and not (topic.logs and topic.log.fields):
        return "its messages name no joints, or fill no array of theirs"
    if topic.type == TF:
        example = (
            FORM
            if ": none" in topic.frames
            else FORM.replace("<parent>-><child>", topic.frames.split(": ")[1].split(", ")[0])
        )
        return f"{topic.frames}; to observe one, write it by its frames: {example}"
    if not topic.logs or not topic.log.fields:
        return "no numbers that a state is made of (texts, images, lists or whole numbers)"
    if REWARD_WORDS.search(topic.topic):
        return "a reward, see below"
    return ""


def _of_another_robot(topic: str, commanded: Sequence[RecordedTopic], robot: RecordedRobot) -> str:
    """Why a sensor is left to another robot: the commanded one has the same, in its own namespace."""
    own, theirs = (name.strip("/").partition("/") for name in (commanded[0].topic if commanded else "", topic))
    twin = f"/{own[0]}/{theirs[2]}"
    if not own[2] or not theirs[2] or own[0] == theirs[0] or all(twin != other.topic for other in robot.topics):
        return ""
    return f"of another robot or arm than the command's, which has {twin}"


def _why_no_state(topic: RecordedTopic, choice: Choice, refused: str) -> tuple[str, bool]:
    """(why a stream of numbers is not observed, whether it may be wanted); '' where it is."""
    if command_score(topic.topic, topic.type):
        return f"a command, but {refused}" if refused else "another command", False
    if topic.type == "sensor_msgs/msg/Joy":
        return "an operator's device", False
    if max(len(log) for log in topic.logs) < MIN_MESSAGES:
        few = "came once: an event" if topic.messages == 1 else f"{topic.messages} messages, too few to judge"
        return f"{few}; to observe what stays valid, as a goal does, write max_age_s: .inf", False
    if not choice.fields:
        return f"nothing in it is worth observing: {', '.join(choice.left_out[:4])}", False
    if not topic.everywhere:
        return f"only in {len(topic.logs)} of {topic.bags} bags", True
    if topic.rate_hz is None:
        return f"comes irregularly, {topic.per_second:.1f} times a second", True
    if GOAL_WORDS.search(topic.topic):
        return "a goal", True
    return ("", True) if state_score(topic.topic, topic.type) else (UNKNOWN, True)


def _ticks(states: Found, commanded: Sequence[RecordedTopic], holds: Collection[str]) -> tuple[Found, float]:
    """The streams, the one that sets the ticks in front, and the rate."""
    rates = [topic.rate_hz for topic in commanded if topic.rate_hz and topic.topic not in holds]
    command_hz = min(rates) if rates else None  # each period needs a command on each topic, unless the last one holds
    states = _ticks_first(states, command_hz)[:MAX_STREAMS]
    return states, tick_rate(states[0][0].rate_hz or 10.0, command_hz)


def _ticks_first(states: Found, command_hz: float | None) -> Found:
    """The streams, in front the likeliest that is fast enough for the ticks and, if possible, in step with commands."""
    fastest = max(topic.rate_hz or 0.0 for topic, _ in states)
    wanted = TICK_SHARE * min(command_hz or FAST_ENOUGH_HZ, fastest)
    able = [entry for entry in states if (entry[0].rate_hz or 0.0) >= wanted]
    suited = [entry for entry in able if command_hz and _is_multiple(entry[0].rate_hz or 0.0, command_hz)]
    first = (suited or able)[0]
    return [first, *(entry for entry in states if entry is not first)]


def _is_multiple(state_hz: float, command_hz: float) -> bool:
    every = state_hz / command_hz
    return every > 1 - ROUND_SHARE and abs(every - round(every)) < ROUND_SHARE * every


def tick_rate(state_hz: float, command_hz: float | None) -> float:
    """The rate of the states, or that of every n-th of them, so slow that each period has a command."""
    rate_hz = round_rate(state_hz)
    ratio = rate_hz / nominal(command_hz) if command_hz else 1.0
    every = round(ratio) if abs(ratio - round(ratio)) < WHOLE else math.ceil(ratio)
    return float(f"{rate_hz / max(1, every):.4g}")
