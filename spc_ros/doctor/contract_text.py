# SPDX-License-Identifier: Apache-2.0
"""The YAML of a proposed contract, with the reason of each line next to it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from spc_core.system.wording import plural
from spc_ros.doctor.action_text import action_lines
from spc_ros.doctor.contract_choices import nominal, round_up
from spc_ros.doctor.contract_design import Design
from spc_ros.doctor.field_choices import Choice
from spc_ros.doctor.quantities import units
from spc_ros.doctor.recorded_robot import RecordedTopic
from spc_ros.doctor.reward_text import reward_lines
from spc_ros.doctor.topic_roles import pauses
from spc_ros.doctor.yaml_text import listed, number, one_line, printable, shortened, word
from spc_ros.messages.fields import PACKAGES

AGE_PERIODS = 2.5  # max_age_s in periods of a topic: one lost message is tolerated


def contract_text(plan: Design, urdf: str, reward: str = "ask") -> str:
    """The text of the contract file; `urdf` is where limits of joints come from, '' for nowhere.

    `reward` is one of SOURCES in reward_text.py. Raises BagError as reward_lines does.
    """
    return _Text(plan, urdf, reward).text()


class _Text:
    def __init__(self, plan: Design, urdf: str, reward: str) -> None:
        self.plan, self.robot, self.urdf, self.reward = plan, plan.robot, urdf, reward
        self.prefix = _namespace([topic.topic for topic in plan.used], [topic.topic for topic in plan.robot.topics])

    def text(self) -> str:
        action = action_lines(self.plan, self._relative, self._own_clock)
        reward = reward_lines(self.plan, self._relative, self.reward)
        parts = [self._head(), self._observation(), self._not_observed(), action, reward]
        parts += [self._task(), self._episode()]
        return "\n".join(printable(line).rstrip() for part in parts for line in part) + "\n"

    def _head(self) -> list[str]:
        plan, robot, first = self.plan, self.robot, self.plan.states[0][0]
        bags = f"the bag {robot.bags[0].name}" if robot.found == 1 else f"{len(robot.bags)} of {robot.found} bags"
        why = f"{first.topic} comes at {first.rate_hz or 0:.1f} Hz"
        rates = [topic.rate_hz for topic, _ in plan.commands if topic.rate_hz and topic.topic not in plan.holds]
        if rates:
            why += f", the {'slowest ' if len(rates) > 1 else ''}command at {min(rates):.1f} Hz"
            every = (first.rate_hz or 0) / plan.rate_hz
            why += f"; a tick is every {every:.0f} states, so that each period has a command" if every > 1.5 else ""
        return [
            f"# Proposed by `spc contract init` from {bags}. Check every line, and fill in what is marked TODO.",
            "# Then: spc doctor BAGS --contract THIS_FILE; and: spc convert BAGS --contract THIS_FILE --out DATASET",
            *(f"# Not read: {one_line(error, 200)}" for error in robot.unread),
            *([f"# Topics are relative to the namespace {self.prefix.rstrip('/')}."] if self.prefix else []),
            *([f"# Limits of joints: {one_line(self.urdf, 200)}."] if self.urdf else []),
            f"name: {word(_name(robot.bags))}",
            f"rate_hz: {number(plan.rate_hz)} # ticks; {why}",
            f"clock: {plan.clocks.clock} # {plan.clocks.why}",
        ]

    def _observation(self) -> list[str]:
        lines = ["observation: # order here is the order in the vector; the first stream sets the ticks"]
        for topic, choice in self.plan.states:
            lines += self._stream(topic, choice)
        return lines

    def _not_observed(self) -> list[str]:
        """Why each other topic is left out, and how to observe those that may be wanted."""
        plain = [entry for entry in self.plan.left_out if entry.offer is None]
        offered = [entry for entry in self.plan.left_out if entry.offer is not None]
        lines = ["  # not observed:"] if plain else []
        lines += [f"  # {self._relative(entry.topic.topic)} ({_kind(entry.topic)}): {entry.why}" for entry in plain]
        lines += ["  # not observed either; remove the # where the robot needs it to decide:"] if offered else []
        for entry in offered:
            lines += [f"  # {entry.why}:"] + [f"  # {line[2:]}" for line in self._stream(entry.topic, entry.offer or Choice())]  # fmt: skip  # noqa: E501
        return lines

    def _stream(self, topic: RecordedTopic, choice: Choice) -> list[str]:
        rate_hz = topic.rate_hz or topic.per_second or self.plan.rate_hz
        age_s = round_up(AGE_PERIODS / min(nominal(rate_hz), self.plan.rate_hz))
        found = units(topic.topic, topic.type, [f for f in choice.fields if "scale" not in choice.how.get(f, "")])
        package = topic.type.partition("/")[0]
        return [
            f"  - topic: {word(self._relative(topic.topic))} # {topic.messages} messages at {rate_hz:.1f} Hz",
            f"    type: {topic.type}",
            *self._own_clock(topic, "    "),
            f"    fields: {listed(choice.fields, choice.how)}",
            *([f"    # units: {found}"] if found else []),
            f"    max_age_s: {number(age_s)} # {AGE_PERIODS:g} periods: one lost message is borne, two cut",
            *(f"    # {note}" for note in choice.notes),
            *([f"    # left out: {shortened(choice.left_out)}"] if choice.left_out else []),
            *(
                [f"    # the nodes cannot receive {package}; they know {', '.join(PACKAGES)}"]
                if package not in PACKAGES
                else []
            ),  # fmt: skip  # noqa: E501
        ]

    def _own_clock(self, topic: RecordedTopic, indent: str) -> list[str]:
        """The line of a topic whose clock is not that of the contract."""
        why = self.plan.clocks.receive.get(topic.topic)
        return (
            [f"{indent}clock: receive # {why}; the others' stamps are wall time, as receive times are"] if why else []
        )

    def _task(self) -> list[str]:
        marks, topic = self.robot.marks, word(self._relative(self.robot.marks.task_topic))
        where = "in the bag's custom_data, or on the topic `episode`; else give --task"
        if marks.tasks and not marks.changes:
            said = " and ".join(f"'{one_line(task, 60)}'" for task in marks.tasks[:3])
            return [f"task: {{key: spc.task_id, topic: {topic}}} # the topic says {said}"]
        if marks.tasks:
            several = (
                f"# {topic} names {len(marks.tasks)} tasks in this bag; topic: {topic} is for one task in each bag"
            )
            return [several, f"task: {{key: spc.task_id}} # {where}"]
        return [f"task: {{key: spc.task_id}} # {where}"]

    def _episode(self) -> list[str]:
        """The likeliest way to separate episodes, the others commented out."""
        marks = self.robot.marks
        ways = []
        if marks.episodes > 1:
            ways.append(f"{{segment: topic}} # the topic `episode` announces {plural(marks.episodes, 'episode')}")
        if marks.marker is not None:
            entry = f"topic: {word(self._relative(marks.marker.topic))}, type: {marks.marker.type}, field: data"
            note = f"# it is on {marks.stretches} times; what lies between is left out"
            ways.append(f"{{segment: topic, {entry}}} {note}")
        if silent := self._pauses():
            gap_s = round_up(min(silent) / 2)
            note = f"# {len(silent)} times nothing comes for {min(silent):.1f} s or longer"
            ways.append(f"{{segment: gap, gap_s: {number(gap_s)}}} {note}")
        ways.append("{segment: bag} # one bag is one episode")
        return [f"episode: {ways[0]}", *(f"# episode: {way}" for way in (ways[1:] if len(ways) > 1 else ()))]

    def _pauses(self) -> list[float]:
        """Seconds of the silences of all used topics, over all bags."""
        names = [topic.topic for topic in self.plan.used]
        return [s for bag in self.robot.logs if names[0] in bag for s in pauses([bag[n] for n in names if n in bag])]

    def _relative(self, topic: str) -> str:
        return topic.removeprefix(self.prefix).lstrip("/") if self.prefix else topic.lstrip("/")


def _kind(topic: RecordedTopic) -> str:
    return topic.type.rpartition("/")[2] or "several types"


def _namespace(used: Sequence[str], topics: Sequence[str]) -> str:
    """'/robot/' where all used topics are in it, and no other topic has the name of one within; '' otherwise."""
    firsts = {topic.split("/")[1] if topic.count("/") > 1 else "" for topic in used}
    if len(used) < 2 or len(firsts) > 1 or not (first := firsts.pop()):
        return ""
    within = [topic.removeprefix(f"/{first}") for topic in used]
    return f"/{first}/" if all(sum(other.endswith(name) for other in topics) == 1 for name in within) else ""


def _name(bags: Iterable[Path]) -> str:
    """A contract's name from the words that all bags' names share, without dates; else from the folder's."""
    for names in (bags, {bag.parent for bag in bags}):
        each = [re.findall(r"[a-z]+[a-z0-9]*", path.stem.lower()) for path in names]
        ignored = ("rosbag2", "rosbag", "bag", "bags", "train", "id", "ood")
        shared = [entry for entry in min(each) if entry not in ignored and all(entry in other for other in each)]
        if shared or len(each) == 1:
            return "_".join(shared) or "robot"
    return "robot"
