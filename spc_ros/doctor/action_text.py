# SPDX-License-Identifier: Apache-2.0
"""The section `action` of a proposed contract: limits from the robot's description or the bags, and a safe command."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from spc_core.contract.section_readers import UNFILLED_SAFE
from spc_ros.doctor.contract_choices import limits, max_rate
from spc_ros.doctor.contract_design import Design
from spc_ros.doctor.field_choices import FLOAT_ARRAYS, Choice, unit_lengths
from spc_ros.doctor.quantities import MOST_M_S, STILL, quantity, units
from spc_ros.doctor.recorded_robot import RecordedTopic
from spc_ros.doctor.urdf_limits import JointLimits
from spc_ros.doctor.yaml_text import listed, numbers, shortened, word
from spc_ros.messages.fields import JOINT_ARRAYS, PACKAGES

HELD = 1e-3  # share of a constant number by which it may change


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The limits of one commanded number."""

    low: float
    high: float
    max_rate: float
    kind: str  # as in quantities.py
    described: bool  # by the URDF
    beyond: bool = False  # the bags hold commands beyond the URDF
    held: bool = False  # it never changed


def action_lines(
    plan: Design, relative: Callable[[str], str], own_clock: Callable[[RecordedTopic, str], list[str]]
) -> list[str]:
    """The section as lines; a placeholder where there is no command."""
    if not plan.commands:
        return [
            f"action: # TODO: {plan.no_command}.",
            "  # Name a topic here with type, fields, low, high, safe and max_rate, as in config/contracts/*.yaml",
            "  fill_in_the_action: true",
        ]
    sections = [_section(plan, topic, choice, relative, own_clock) for topic, choice in plan.commands]
    if len(sections) == 1:
        lines = [f"action: # {_why(plan.commands[0][0], plan)}", *(f"  {line}" for line in sections[0])]
    else:
        lines = [f"action: # {len(sections)} topics, each with its part; a tick needs a command on each of them"]
        for (topic, _), (first, *others) in zip(plan.commands, sections, strict=True):
            lines += [f"  - {first} # {_why(topic, plan)}", *(f"    {line}" for line in others)]
    for more in plan.more_commands:
        lines.append(f"  # not sent by this action: {relative(more.topic)} ({more.type}), {more.messages} messages")
    if plan.more_commands:
        lines.append("  # to send more than one, make `action` a list with such a section for each topic")
    return lines


def _section(
    plan: Design,
    topic: RecordedTopic,
    choice: Choice,
    relative: Callable[[str], str],
    own_clock: Callable[[RecordedTopic, str], list[str]],
) -> list[str]:
    """The lines of one topic, not indented."""
    bounds = [_bounds(topic, field, plan) for field in choice.fields]
    found, package = units(topic.topic, topic.type, choice.fields), topic.type.partition("/")[0]
    lines = [
        f"topic: {word(relative(topic.topic))}",
        f"type: {topic.type}",
        *own_clock(topic, ""),
        f"fields: {listed(choice.fields)}",
        *_point(topic),
        *_hold(plan, topic),
        f"# units: {found or 'those of the topic, which its type does not tell'}",
        f"low: {numbers([each.low for each in bounds])} # {_origin(bounds)}",
        f"high: {numbers([each.high for each in bounds])}",
        *_safe(topic, choice, bounds),
        f"max_rate: {numbers([each.max_rate for each in bounds])} # per second; {_rate_origin(bounds)}",
        *_notes(plan, topic, choice, bounds),
    ]
    if package not in PACKAGES:
        known = ", ".join(PACKAGES)
        lines.append(f"# the policy cannot publish {package}; it knows {known}: let it publish one of these, and relay")
    return lines


def _point(topic: RecordedTopic) -> list[str]:
    """The point of a trajectory that is the command, where there are several."""
    if topic.log.points < 2:
        return []
    return [
        f"point: last # of up to {topic.log.points}; the first is often where the robot is already. Or: first, or a "
        "time in s"
    ]


def _hold(plan: Design, topic: RecordedTopic) -> list[str]:
    """That the last command holds, where they come only when they change."""
    found = plan.holds.get(topic.topic)
    return [f"hold: true # {found}: they come only when they change; the last one holds"] if found else []


def _why(topic: RecordedTopic, plan: Design) -> str:
    regular = topic.rate_hz and topic.topic not in plan.holds
    kind, rate = topic.type.rpartition("/")[2], f" at {topic.rate_hz:.1f} Hz" if regular else ", irregular"
    return f"the likeliest command, by its name and its type {kind}: {topic.messages} messages{rate}"


def _bounds(topic: RecordedTopic, field: str, plan: Design) -> Bounds:
    values = topic.log.values[:, topic.log.fields.index(field)]
    known = quantity(topic.topic, topic.type, field)
    kind, seen = known.kind, values[np.isfinite(values)]
    most = float(np.abs(seen).max(initial=0.0))
    if known.unit == "m/s" and most > MOST_M_S:
        kind = "unknown"
    joint = plan.joints.get(field.partition(".")[2] if topic.type in JOINT_ARRAYS else field, JointLimits(""))
    low, high = limits(values, stops=kind in STILL)
    held = bool(len(seen)) and bool(seen.min() == seen.max()) and (kind not in STILL or most == 0)
    if held:
        margin = HELD * max(1.0, most)
        low, high = seen[0] - margin, seen[0] + margin
    described = joint.of(kind)
    rate = max_rate(topic.logs, field, low, high)
    if described is None:
        return Bounds(low, high, rate, kind, False, held=held)
    beyond = bool(len(seen)) and bool(seen.min() < described[0] or seen.max() > described[1])
    if kind == "position" and joint.velocity > 0:
        rate = joint.velocity
    return Bounds(*described, rate, kind, True, beyond)


def _origin(bounds: list[Bounds]) -> str:
    if all(each.described for each in bounds):
        return "from the URDF"
    seen = "the observed range, widened; write the robot's own limits"
    return f"from the URDF where it has them, else {seen}" if any(each.described for each in bounds) else seen


def _rate_origin(bounds: list[Bounds]) -> str:
    fastest = "the fastest observed change, widened"
    return f"the URDF's velocity of positions, else {fastest}" if any(each.described for each in bounds) else fastest


def _safe(topic: RecordedTopic, choice: Choice, bounds: list[Bounds]) -> list[str]:
    """The safe command where 0 is known to be one; else a line to fill in."""
    if all(each.kind in STILL for each in bounds):
        said = "; ".join(dict.fromkeys(STILL[each.kind] for each in bounds))
        return [f"safe: {numbers([0.0] * len(bounds))} # sent when anything is wrong; {said}"]
    open_fields = [field for field, each in zip(choice.fields, bounds, strict=True) if each.kind not in STILL]
    places = all(each.kind in ("position", *STILL) for each in bounds)
    what = "positions: 0 is a place to go to" if places else "not known to stand still at 0"
    columns = [topic.log.values[:, topic.log.fields.index(field)] for field in choice.fields]
    middle = [float(f"{np.nanmedian(column):.3g}") for column in columns]
    return [
        f"# TODO: {shortened(open_fields, 3)}: {what}. The policy sends `safe` when anything",
        f"# is wrong, so write {len(bounds)} numbers that are safe at any time. Until then, the file is refused.",
        f"# The middle of what was recorded, which need not be safe: {numbers(middle)}",
        f"safe: {UNFILLED_SAFE}",
    ]


def _notes(plan: Design, topic: RecordedTopic, choice: Choice, bounds: list[Bounds]) -> list[str]:
    lines = []
    if topic.type in FLOAT_ARRAYS and any(field.startswith("data.") for field in choice.fields):
        lines.append("all elements, also constant ones: the array has no names, so that each goes by its place")
        if plan.joints:
            lines.append("the limits of the URDF are not used, since nothing tells which element is which joint")
    lines += [f"{path}: the policy's four numbers are not of length 1; normalise them, or command a yaw"
              for path in unit_lengths(choice.fields)]  # fmt: skip
    beyond = [field for field, each in zip(choice.fields, bounds, strict=True) if each.beyond]
    if beyond:
        lines.append(f"the bags hold commands beyond the URDF's limits: {shortened(beyond)}")
    if plan.is_rare(topic):
        states = plan.states[0][0]
        slow = f"The policy would decide every {1 / plan.rate_hz:.3g} s, as they came."
        open_periods = "A period without a command is dropped. If the robot goes on executing the last one: hold: true"
        lines += [
            f"rare: {topic.messages} commands for {states.messages} states of {states.topic}. Do they come only when "
            "they change?",
            slow if topic.rate_hz else open_periods,
        ]
    gaps = [
        field for field in choice.fields if not np.isfinite(topic.log.values[:, topic.log.fields.index(field)]).all()
    ]
    if gaps:
        lines.append(f"NaN at times, which drops these periods: {shortened(gaps, 3)}")
    empty = np.asarray(np.isnan(topic.log.values).all(axis=0))
    never = [f for f, is_empty in zip(topic.log.fields, empty, strict=True) if is_empty and f not in choice.fields]
    if never and topic.type not in JOINT_ARRAYS:
        lines.append(f"always NaN in the bags, but 0 in the policy's messages: {shortened(never, 3)}; relay them")
    still = [field for field, each in zip(choice.fields, bounds, strict=True) if each.held]
    if still:
        lines.append(f"never changed, so that their limits hold them there: {shortened(still)}")
    if choice.left_out:
        lines.append(f"left out: {shortened(choice.left_out)}")
    return [f"# {line}" for line in lines]
