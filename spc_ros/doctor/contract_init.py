# SPDX-License-Identifier: Apache-2.0
"""`spc contract init`: proposes a contract from a bag: all but the reward, each line with its reason."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from spc_core.contract.rewards import REWARDS
from spc_core.doctor.diagnosis import TopicLog
from spc_core.doctor.topic_stats import intervals
from spc_ros.bags.files import BagError, find_bags
from spc_ros.bags.reader import BagReader
from spc_ros.doctor.contract_choices import (
    Choice,
    choose,
    choose_clocks,
    choose_command,
    limits,
    max_rate,
    round_rate,
    round_up,
    zero_stops,
)
from spc_ros.doctor.topic_logs import read_topic_logs
from spc_ros.doctor.topic_roles import (
    COMMAND_WORDS,
    MARKER_TYPES,
    REWARD_WORDS,
    Marks,
    command_score,
    find_command,
    find_marks,
    find_states,
    pauses,
)

AGE_PERIODS = 2.5  # max_age_s in periods of a topic: one lost message is tolerated
MAX_STREAMS = 6
UNFILLED = "fill_in_the_reward"


def propose(path: str | Path, definitions: Mapping[str, str] | None = None) -> str:
    """The YAML text of a contract for the robot in the bag, the reward left to the user. Raises BagError.

    `definitions`: text of .msg files by type name, for types that the bag does not define.
    """
    bag_path = find_bags([path])[0]
    with BagReader(bag_path, definitions) as bag:
        logs = read_topic_logs(bag, None).logs
        marks = find_marks(bag, logs)
    logs = [log for log in logs if len(log)]
    command = find_command(logs)
    states = [log for log in find_states(logs) if log is not command]
    if not states:
        others = [log for log in logs if log is not command and log.type not in MARKER_TYPES and intervals(log)]
        others = [log for log in others if not (REWARD_WORDS.search(log.topic) or COMMAND_WORDS.search(log.topic))]
        states = sorted(others, key=lambda log: bool(command_score(log.topic, log.type)))[:1]
    if not states:
        found = ", ".join(f"{log.topic} ({log.type})" for log in logs) or "no topic with numbers"
        raise BagError(
            f"{bag_path}: no topic looks like the robot's state; there is {found}; write the contract by hand"
        )
    states = [log for log in states if intervals(log)] or states
    chosen = [choose(log) for log in states[:MAX_STREAMS]]
    used = [*states[:MAX_STREAMS], *([command] if command else [])]
    spare = [log for log in logs if log not in used and log is not marks.marker]
    return _Proposal(bag_path, chosen, command, spare, marks).text()


class _Proposal:
    """Writes the YAML."""

    def __init__(
        self, path: Path, states: list[Choice], command: TopicLog | None, spare: list[TopicLog], marks: Marks
    ) -> None:
        self.path, self.states, self.command, self.spare, self.marks = path, states, command, spare, marks
        self.used = [choice.log for choice in states] + ([command] if command else [])
        self.prefix = _namespace([log.topic for log in self.used])
        rates = {log.topic: found.rate_hz for log in self.used if (found := intervals(log))}
        self.rates = rates
        self.state_hz = rates.get(states[0].log.topic, 10.0)
        self.command_hz = rates.get(command.topic) if command else None
        wanted = min(self.state_hz, self.command_hz or self.state_hz)
        self.rate_hz = round_rate(wanted)
        self.clocks = choose_clocks(self.used, self.rate_hz)

    def text(self) -> str:
        parts = [self._head(), self._observation(), self._action(), self._reward(), self._tail()]
        return "\n".join(_printable(line).rstrip() for part in parts for line in part) + "\n"

    def _head(self) -> list[str]:
        why = f"{self.states[0].log.topic} comes at {self.state_hz:.1f} Hz"
        why += f", the command at {self.command_hz:.1f} Hz" if self.command_hz else ""
        namespace = [f"# Topics are relative to the namespace {self.prefix.rstrip('/')}."] if self.prefix else []
        return [
            f"# Proposed by `spc contract init` from the bag {self.path.name}. Check every line, and fill in the "
            f"reward.",
            "# Then: spc doctor BAGS --contract THIS_FILE; and: spc convert BAGS --contract THIS_FILE --out DATASET",
            *namespace,
            f"name: {_word(_name(self.path))}",
            f"rate_hz: {_number(self.rate_hz)} # ticks; {why}",
            f"clock: {self.clocks.clock} # {self.clocks.why}",
        ]

    def _observation(self) -> list[str]:
        lines = ["observation: # order here is the order in the vector; the first stream sets the ticks"]
        for choice in self.states:
            lines += self._stream(choice)
        known = [log for log in self.spare if log.fields and intervals(log) and not REWARD_WORDS.search(log.topic)]
        if known:
            lines.append("  # also in the bag; remove the # where the robot needs it to decide:")
        for log in known:
            lines += [f"  # {line[2:]}" for line in self._stream(choose(log))]
        return lines

    def _stream(self, choice: Choice) -> list[str]:
        log = choice.log
        found = intervals(log)
        rate_hz = found.rate_hz if found else self.rate_hz
        age_s = round_up(AGE_PERIODS / min(rate_hz, self.rate_hz))
        lines = [
            f"  - topic: {_word(self._relative(log.topic))} # {len(log)} messages at {rate_hz:.1f} Hz",
            f"    type: {log.type}",
            *self._own_clock(log, "    "),
            f"    fields: {_listed(choice.fields, choice.rotations)}",
            f"    max_age_s: {_number(age_s)} # {AGE_PERIODS:g} periods: one lost message is borne, two cut",
        ]
        for path in choice.rotations:
            lines += [
                f"    # {path}: q and -q are one orientation, which a network cannot know, so that two columns of the",
                f"    # rotation matrix are observed. Or, where only the heading matters: {{field: {path}, as: yaw}}",
            ]
        if choice.left_out:
            shown = ", ".join(choice.left_out[:8]) + (" ..." if len(choice.left_out) > 8 else "")
            lines.append(f"    # left out: {shown}")
        return lines

    def _own_clock(self, log: TopicLog, indent: str) -> list[str]:
        """The line of a topic whose clock is not that of the contract."""
        why = self.clocks.receive.get(log.topic)
        return (
            [f"{indent}clock: receive # {why}; the others' stamps are wall time, as receive times are"] if why else []
        )

    def _action(self) -> list[str]:
        log = self.command
        if log is None:
            return [
                "action: # TODO: no topic looks like a command; name one of the bag's, with type, fields, low, high,",
                "  # safe and max_rate, as in config/contracts/*.yaml of spc_ros",
                "  fill_in_the_action: true",
            ]
        choice = choose_command(log)
        columns = [log.fields.index(field) for field in choice.fields]
        pairs = [limits(log.values[:, log.fields.index(f)], stops=zero_stops(f)) for f in choice.fields]
        safe = [min(max(0.0, low), high) for low, high in pairs]
        rates = [max_rate(log, column, *pair) for column, pair in zip(columns, pairs, strict=True)]
        others = [other for other in self.spare if command_score(other.topic, other.type)]
        lines = [
            f"action: # {_why_command(log)}; units are those of the topic",
            f"  topic: {_word(self._relative(log.topic))}",
            f"  type: {log.type}",
            *self._own_clock(log, "  "),
            f"  fields: {_listed(choice.fields)}",
            f"  low: {_numbers([low for low, _ in pairs])} # the observed range, widened; write the robot's own limits",
            f"  high: {_numbers([high for _, high in pairs])}",
            f"  safe: {_numbers(safe)} # sent when anything is wrong{_safe_note(choice.fields, safe)}",
            f"  max_rate: {_numbers(rates)} # per second; the fastest observed change, widened",
        ]
        if choice.left_out:
            lines.append(f"  # left out: {', '.join(choice.left_out[:8])}")
        lines += [f"  # or: topic {self._relative(other.topic)}, type {other.type}" for other in others]
        return lines

    def _reward(self) -> list[str]:
        lines = [
            "# TODO: what is the robot to do? One of these belongs in place of the line below; until then, the file "
            "is refused."
        ]
        found = [log for log in self.spare if log.fields]
        for log in sorted(found, key=lambda log: REWARD_WORDS.search(log.topic) is None)[:3]:
            topic, field = _word(self._relative(log.topic)), _word(log.fields[0])
            lines.append(f"# reward: {{topic: {topic}, type: {log.type}, field: {field}}}")
        if not found:
            lines.append("# reward: {topic: reward, type: std_msgs/msg/Float64, field: data}")
        for name, entry in REWARDS.items():
            weights = ", ".join(f"{key}: {value:g}" for key, value in entry.weights.items())
            lines.append(f"# reward: {{function: {name}, weights: {{{weights}}}}}")
        return [*lines, f"reward: {{{UNFILLED}: true}}"]

    def _tail(self) -> list[str]:
        return [*self._task(), *self._episode()]

    def _task(self) -> list[str]:
        marks, topic = self.marks, _word(self._relative(self.marks.task_topic))
        where = "in the bag's custom_data, or on the topic `episode`; else give --task"
        if len(marks.tasks) == 1:
            return [f"task: {{key: spc.task_id, topic: {topic}}} # the topic says '{_one_line(marks.tasks[0])}'"]
        if marks.tasks:
            several = (
                f"# {topic} names {len(marks.tasks)} tasks in this bag; topic: {topic} is for one task in each bag"
            )
            return [several, f"task: {{key: spc.task_id}} # {where}"]
        return [f"task: {{key: spc.task_id}} # {where}"]

    def _episode(self) -> list[str]:
        """The likeliest way to separate episodes, the others commented out."""
        marks, silent = self.marks, pauses(self.used)
        ways = []
        if marks.episodes > 1:
            ways.append(f"{{segment: topic}} # the topic `episode` announces {marks.episodes} episodes")
        if marks.marker is not None:
            entry = f"topic: {_word(self._relative(marks.marker.topic))}, type: {marks.marker.type}, field: data"
            note = f"# it is on {marks.stretches} times; what lies between is left out"
            ways.append(f"{{segment: topic, {entry}}} {note}")
        if silent:
            gap_s = round_up(min(silent) / 2)
            note = f"# {len(silent)} times nothing comes for {min(silent):.1f} s or longer"
            ways.append(f"{{segment: gap, gap_s: {_number(gap_s)}}} {note}")
        ways.append("{segment: bag} # one bag is one episode")
        return [f"episode: {ways[0]}", *(f"# episode: {way}" for way in (ways[1:] if len(ways) > 1 else ()))]

    def _relative(self, topic: str) -> str:
        return topic.removeprefix(self.prefix).lstrip("/") if self.prefix else topic.lstrip("/")


def _why_command(log: TopicLog) -> str:
    kind = log.type.rpartition("/")[2]
    return f"the likeliest command, by its name and its type {kind}, at {len(log)} messages"


def _safe_note(fields: Sequence[str], safe: Sequence[float]) -> str:
    if any(field.startswith(("position", "pose")) for field in fields):
        return "; POSITIONS: 0 may be far from where the robot is, choose a pose that is safe to go to"
    if any(safe):
        return "; NOT ZERO, which is far from all observed values: are these positions? Choose a safe value"
    return "; 0 must mean standing still"


def _namespace(topics: Sequence[str]) -> str:
    """'/robot/' where all topics are in it; '' otherwise."""
    firsts = {topic.split("/")[1] if topic.count("/") > 1 else "" for topic in topics}
    return f"/{first}/" if len(topics) > 1 and len(firsts) == 1 and (first := firsts.pop()) else ""


def _name(path: Path) -> str:
    """A contract's name from the bag's, without dates and numbers."""
    words = re.findall(r"[a-z]+[a-z0-9]*", path.stem.lower())
    return "_".join(word for word in words if word not in ("rosbag2", "rosbag", "bag", "train", "id", "ood")) or "robot"


def _word(text: str) -> str:
    """A text as YAML, quoted where YAML would take it for something else."""
    try:
        plain = yaml.safe_load(text) == text and not re.search(r"[,\[\]{}#:&*!|>'\"%@`]", text)
    except yaml.YAMLError:
        plain = False
    return text if plain else json.dumps(text, ensure_ascii=not text.isprintable())


def _printable(line: str) -> str:
    """A line without what would end it or what YAML refuses; names within it are quoted already."""
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def _one_line(text: str) -> str:
    """A text within a comment."""
    return " ".join(text.split())[:60]


def _listed(fields: Sequence[str], rotations: Sequence[str] = ()) -> str:
    entries = [f"{{field: {_word(f)}, as: rotation_6d}}" if f in rotations else _word(f) for f in fields]
    return f"[{', '.join(entries)}]"


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(map(_number, values))}]"


def _number(value: float) -> str:
    """A number as YAML 1.1 reads it: 1e+06 would be a text, 1.0e+06 is a number."""
    text = f"{value:g}"
    return text.replace("e", ".0e") if "e" in text and "." not in text else text
