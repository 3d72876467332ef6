# SPDX-License-Identifier: Apache-2.0
"""The sections of a contract from its YAML; each error names file, field, value and fix."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from spc_core.contract.frames import TF, is_static, split_field
from spc_core.contract.positional import JOINT_TRAJECTORY, hole
from spc_core.contract.reward_reader import read_computed_reward
from spc_core.contract.sections import (
    Action,
    ActionVector,
    Loss,
    Qos,
    Reward,
    Safety,
    Segments,
    Stream,
    observed_column,
)
from spc_core.contract.transforms import TRANSFORMS, Field
from spc_core.contract.yaml_section import Section

CLOCKS = ("header", "receive")
SEGMENTS = ("bag", "topic", "gap")
LOSS_LIMITS = {"hold_ms": 60_000.0, "deactivate_after_s": 86_400.0}
QOS = {"durability": ("transient_local", "volatile"), "reliability": ("reliable", "best_effort")}
UNFILLED_SAFE = "fill_in_the_safe_command"


def _message_type(section: Section) -> str:
    value = section.text("type")
    if value.count("/") != 2 or "/msg/" not in value:
        raise section.fail("type", f"is '{value}'; write package/msg/Type, for example sensor_msgs/msg/JointState")
    return value


def _clock(section: Section, default: str) -> str:
    return section.choice("clock", CLOCKS) if "clock" in section.values else default


def _point(section: Section) -> str | float | None:
    """The point of a trajectory of several points."""
    if "point" not in section.values:
        return None
    if section.text("type") != JOINT_TRAJECTORY:
        raise section.fail("point", f"is for {JOINT_TRAJECTORY} only; remove it")
    value = section.get("point")
    if value in ("first", "last"):
        return str(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    raise section.fail("point", f"is {value!r}; write first, last, or a time in s, such as 0.1")


def read_stream(section: Section, clock: str) -> Stream:
    section.only("topic", "type", "fields", "max_age_s", "clock", "point", "on_loss", "qos")
    entries = section.get("fields")
    if not isinstance(entries, list) or not entries:
        raise section.fail("fields", f"must be a list with at least one entry, got {entries!r}")
    observed = tuple(_field(section, f"fields[{i}]", entry) for i, entry in enumerate(entries))
    stream = Stream(section.text("topic"), _message_type(section), observed, section.positive("max_age_s"),
                    _clock(section, clock), _point(section), _on_loss(section), _qos(section))  # fmt: skip
    for i, field in enumerate(observed):
        _check_frames(section, f"fields[{i}]", stream.type, field.inputs)
    if is_static(stream.topic, stream.type) and not math.isinf(stream.max_age_s):
        problem = f"is {stream.max_age_s:g}, but what is on {stream.topic} is sent once and never ages; write .inf"
        raise section.fail("max_age_s", problem)
    return stream


def _check_frames(section: Section, key: str, type_name: str, paths: Sequence[str]) -> None:
    """Raises for the path of a transform that does not name its frames."""
    for path in paths if type_name == TF else ():
        try:
            split_field(path)
        except ValueError as error:
            raise section.fail(key, str(error).replace(f"'{path}' ", f"is '{path}', which ", 1)) from None


def _on_loss(stream: Section) -> Loss:
    return _parse_loss(stream.section("on_loss").only(*LOSS_LIMITS)) if "on_loss" in stream.values else Loss()


def _qos(stream: Section) -> Qos:
    if "qos" not in stream.values:
        return Qos()
    section = stream.section("qos").only("durability", "reliability")
    given = {key: section.choice(key, choices) for key, choices in QOS.items() if key in section.values}
    if given == {"durability": "transient_local", "reliability": "best_effort"}:
        raise section.fail("reliability", "is best_effort, but what is latched arrives reliably only; remove it")
    return Qos(**given)


def _field(stream: Section, key: str, entry: Any) -> Field:
    """A field from its path, or from a mapping of field, as, scale, offset and clip."""
    if isinstance(entry, str) and entry:
        return Field(entry)
    if not isinstance(entry, dict):
        raise stream.fail(key, f"must be a field's path, or a mapping such as {{field: orientation, as: yaw}}, got {entry!r}")  # fmt: skip  # noqa: E501
    section = Section(entry, stream.source, f"{stream.path}{key}.", stream.error)
    section.only("field", "as", "scale", "offset", "clip")
    clip = None
    if "clip" in entry:
        low, high = section.numbers("clip", 2)
        if not low < high:
            raise section.fail("clip", f"is [{low}, {high}]; the first must be below the second")
        clip = (low, high)
    scale = section.number("scale") if "scale" in entry else 1.0
    if scale == 0.0:
        raise section.fail("scale", "is 0, which makes all values equal; use another number")
    kind = section.choice("as", tuple(TRANSFORMS)) if "as" in entry else ""
    offset = section.number("offset") if "offset" in entry else 0.0
    return Field(section.text("field"), kind, scale, offset, clip)


def read_actions(top: Section, clock: str) -> ActionVector:
    """The action from one section, or from a list with a section for each topic."""
    if not isinstance(top.get("action"), list):
        return ActionVector((_action(top.section("action"), clock),))
    sections = top.sections("action")
    parts = tuple(_action(section, clock) for section in sections)
    topics = [part.topic.lstrip("/") for part in parts]
    for i, topic in enumerate(topics):
        if topic in topics[:i]:
            raise sections[i].fail(
                "topic", f"is {topic}, as in action[{topics.index(topic)}]; write all its fields in one section"
            )
    return ActionVector(parts)


def _action(section: Section, clock: str) -> Action:
    if "fill_in_the_action" in section.values:  # as `spc contract init` leaves it
        raise section.fail("fill_in_the_action", "is a placeholder; replace it with topic, type, fields and limits")
    section.only("topic", "type", "fields", "low", "high", "safe", "max_rate", "clock", "point", "hold")
    fields, kind = section.texts("fields"), _message_type(section)
    if kind == TF:
        raise section.fail(
            "type", f"is {TF}, which says where things are and moves nothing; give the topic of commands"
        )
    if twice := sorted({name for name in fields if fields.count(name) > 1}):
        raise section.fail("fields", f"lists {', '.join(twice)} more than once; keep one")
    if missing := hole(kind, fields):
        raise section.fail("fields", missing)
    n = len(fields)
    if section.get("safe") == UNFILLED_SAFE:  # as `spc contract init` leaves it
        raise section.fail("safe", f"is a placeholder: which command is safe cannot be told from a recording; "
                           f"replace it with {n} numbers, one for each of {', '.join(fields)}")  # fmt: skip
    action = Action(section.text("topic"), kind, fields, section.numbers("low", n),
                    section.numbers("high", n), section.numbers("safe", n), section.numbers("max_rate", n),
                    _clock(section, clock), _point(section),
                    section.flag("hold") if "hold" in section.values else False)  # fmt: skip
    for i, name in enumerate(fields):
        if not action.low[i] < action.high[i]:
            raise section.fail(f"low[{i}]", f"({name}) is {action.low[i]}, not below high {action.high[i]}")
        if not action.low[i] <= action.safe[i] <= action.high[i]:
            raise section.fail(
                f"safe[{i}]", f"({name}) is {action.safe[i]}, outside [{action.low[i]}, {action.high[i]}]"
            )
        if action.max_rate[i] <= 0:
            raise section.fail(f"max_rate[{i}]", f"({name}) must be positive, got {action.max_rate[i]}")
    return action


def read_reward(section: Section, clock: str) -> Reward:
    computed = read_computed_reward(section)
    if computed is not None:
        return computed
    section.only("topic", "type", "field", "clock")
    _check_frames(section, "field", _message_type(section), [section.text("field")])
    return Reward(section.text("topic"), _message_type(section), section.text("field"), _clock(section, clock))


def read_segments(section: Section) -> Segments:
    section.only("segment", "topic", "type", "field", "gap_s", "limit_s")
    segments = Segments(
        by=section.choice("segment", SEGMENTS),
        gap_s=section.positive("gap_s") if "gap_s" in section.values else math.inf,
        limit_s=section.positive("limit_s") if "limit_s" in section.values else math.inf,
    )
    if (segments.by == "gap") != ("gap_s" in section.values):
        raise section.fail("gap_s", "is required for segment: gap and only allowed there; give the pause in seconds")
    if segments.by != "topic":
        for key in ("topic", "type", "field"):
            if key in section.values:
                raise section.fail(key, f"is for segment: topic only, but segment is '{segments.by}'; remove it")
        return segments
    if "topic" not in section.values:
        return segments
    field = section.text("field") if "field" in section.values else "data"
    return dataclasses.replace(segments, topic=section.text("topic"), type=_message_type(section), field=field)


def _parse_loss(section: Section) -> Loss:
    """hold_ms and deactivate_after_s of a section; the caller checks the other keys."""
    given: dict[str, Any] = {}
    for key in LOSS_LIMITS:
        if key in section.values:
            given[key] = section.number(key)
            if not 0 <= given[key] <= LOSS_LIMITS[key]:
                raise section.fail(key, f"is {given[key]:g}; give a number from 0 to {LOSS_LIMITS[key]:g}")
    return Loss(**given)


def check_loss(section: Section, loss: Loss) -> None:
    """Raises if deactivation would come before the end of the hold."""
    if loss.hold_ms and loss.deactivate_after_s and loss.deactivate_after_s * 1e3 < loss.hold_ms:
        raise section.fail(
            "deactivate_after_s",
            f"is {loss.deactivate_after_s:g}, shorter than hold_ms {loss.hold_ms:g}; make it longer, or 0 for never",
        )


def read_safety(section: Section, observed: tuple[str, ...]) -> Safety:
    """`observed` are the names of the observation fields."""
    section.only("workspace", *LOSS_LIMITS)
    loss = _parse_loss(section)
    check_loss(section, loss)
    if "workspace" not in section.values:
        return Safety(loss=loss)
    box = section.section("workspace")
    workspace: dict[str, tuple[float, float]] = {}
    names: dict[int, str] = {}
    for name in box.values:
        try:
            column = observed_column(observed, str(name))
        except ValueError as error:
            raise box.fail(str(name), str(error)) from None
        if column in names:
            raise box.fail(str(name), f"is the same field as {names[column]}; keep one")
        low, high = box.numbers(name, 2)
        if not low < high:
            raise box.fail(str(name), f"is [{low:g}, {high:g}]; the first must be below the second")
        names[column], workspace[str(name)] = str(name), (low, high)
    return Safety(workspace, loss)
