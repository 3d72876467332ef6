# SPDX-License-Identifier: Apache-2.0
"""The fields of a topic that a proposed contract observes or commands, and why it leaves out the others."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from spc_core.contract.positional import elements
from spc_core.doctor.diagnosis import TopicLog
from spc_core.doctor.value_checks import value_range
from spc_ros.doctor.quantities import quantity
from spc_ros.doctor.recorded_robot import RecordedTopic
from spc_ros.doctor.scan_beams import LASER_SCAN, longest_range
from spc_ros.doctor.urdf_limits import JointLimits
from spc_ros.doctor.yaml_text import shortened
from spc_ros.messages.fields import JOINT_ARRAYS, JOINT_STATE

NAV_SAT_FIX = "sensor_msgs/msg/NavSatFix"
M_PER_DEGREE = 111_320  # of latitude
NAMED = 3  # fields that are left out for one reason
MIN_LENGTH = 1e-6  # of a quaternion, shorter ones are not rotations
MANY_TURNS = 4.2 * np.pi  # rad; a joint that covers more turns without end; some arms have two turns each way
WRAP_SLACK = 0.5  # rad; how far an angle that wraps moves from one message to the next, at most
ONE_WAY_SHARE = 0.2  # of the messages in which a counter changes, at least
CLOCK_NAMES = re.compile(r"(^|[._])(sec|secs|nanosec|nsecs|stamp|timestamp|time|uptime|seq|count|counter|ticks)$")
FLOWING = re.compile(r"(^|[/_.])(odometer|mileage|energy|charge|consumed|counter|count|uptime|time|clock)($|[/_.])")
FLOAT_ARRAYS = ("std_msgs/msg/Float64MultiArray", "std_msgs/msg/Float32MultiArray")
ORIENTED = re.compile(r"(^|\.)(orientation|rotation|quaternion)$")


@dataclasses.dataclass(frozen=True)
class Choice:
    """The fields of a topic that go into the contract, and why the others do not."""

    fields: tuple[str, ...] = ()  # none: the topic is left out
    left_out: tuple[str, ...] = ()  # "fields (reason)"
    how: Mapping[str, str] = dataclasses.field(default_factory=dict)  # how a field is observed, as YAML
    notes: tuple[str, ...] = ()  # sentences for a comment


def choose(topic: RecordedTopic, joints: Mapping[str, JointLimits]) -> Choice:
    """The fields worth observing: always there, finite, changing, bounded; a quaternion as a whole."""
    log = topic.log
    if log.type == LASER_SCAN:
        return _beams(log)
    low, high = value_range(log)
    absent, finite = _at_times_absent(log), np.asarray(np.isfinite(log.values).all(axis=0))
    kept: list[str] = []
    left_out: dict[str, str] = {}
    how: dict[str, str] = {}
    for i, field in enumerate(log.fields):
        if absent[i]:
            left_out[field] = "not in every message"
        elif not finite[i]:
            left_out[field] = "NaN at times" if np.isnan(log.values[:, i]).any() else "infinite at times"
        elif log.type == JOINT_STATE and field.startswith("effort."):
            left_out[field] = "measured effort is mostly noise"
        elif low[i] == high[i]:
            left_out[field] = "never changes"
        elif reason := _unbounded(topic, field, joints):
            left_out[field] = reason
        else:
            kept.append(field)
            if _wraps(topic, field, joints):
                how[field] = "as: sin_cos"
    notes = ["angles that wrap are observed as sine and cosine"] if how else []
    if log.type == NAV_SAT_FIX and (metres := _metres(log, kept)):
        how |= metres
        notes.append("metres north and east of the middle of the recordings: degrees leave 0.4 m in training's float32")
    for path in _quaternions(log):
        parts = [f"{path}.{axis}" for axis in "xyzw"]
        if first := next((field for field in parts if field in kept), ""):
            kept[kept.index(first)] = path
            kept = [field for field in kept if field not in parts]
            left_out = {field: why for field, why in left_out.items() if field not in parts}
            how[path] = "as: rotation_6d"
            notes += [f"{path}: q and -q are one orientation, which a network cannot know, so that two columns of the",
                      f"rotation matrix are observed. Or, where only the heading matters: {{field: {path}, as: yaw}}"]  # fmt: skip  # noqa: E501
    return Choice(tuple(kept), _reasons(left_out), how, tuple(notes))


def _metres(log: TopicLog, kept: Sequence[str]) -> dict[str, str]:
    """Scale and offset from degrees to metres around the middle of all fixes, by field."""
    if "latitude" not in kept or "longitude" not in kept:
        return {}
    middle = {name: float(np.median(log.values[:, log.fields.index(name)])) for name in ("latitude", "longitude")}
    scale = {"latitude": M_PER_DEGREE, "longitude": round(M_PER_DEGREE * np.cos(np.radians(middle["latitude"])))}
    return {name: f"scale: {scale[name]}, offset: {-round(middle[name] * scale[name])}" for name in middle}


def _reasons(left_out: Mapping[str, str]) -> tuple[str, ...]:
    """The fields left out, by reason."""
    whys = dict.fromkeys(left_out.values())
    return tuple(f"{shortened([f for f, why in left_out.items() if why == each], NAMED)} ({each})" for each in whys)


def _beams(log: TopicLog) -> Choice:
    """Evenly spaced beams that are never NaN; infinity, where nothing is hit, becomes the longest range."""
    places = [i for i, field in enumerate(log.fields) if field.startswith("ranges.")]
    values = log.values[:, places]
    known = np.asarray(~np.isnan(values).any(axis=0))
    if not len(values) or not known.any() or not (values[:, known] != values[0, known]).any():
        return Choice(left_out=("ranges (NaN at times, or never change)",))
    fields = tuple(log.fields[place] for place, is_known in zip(places, known, strict=True) if is_known)
    most = f"clip: [0, {longest_range(log):g}]"
    blind = _reasons({log.fields[p]: "NaN at times" for p, seen in zip(places, known, strict=True) if not seen})
    note = f"{len(fields)} beams, evenly spaced over the scan; where nothing is hit, they read the longest range"
    return Choice(fields, blind, dict.fromkeys(fields, most), (note,))


def _quaternions(log: TopicLog) -> list[str]:
    """Paths of parts with finite x, y, z and w in every message, never all zero."""
    found = []
    for path in [field.removesuffix(".w") for field in log.fields if field.endswith(".w")]:
        parts = [f"{path}.{axis}" for axis in "xyzw"]
        if not all(part in log.fields for part in parts):
            continue
        values = log.values[:, [log.fields.index(part) for part in parts]]
        if bool(np.isfinite(values).all()) and bool((np.abs(values).max(axis=1, initial=0) > MIN_LENGTH).all()):
            found.append(path)
    return found


def _at_times_absent(log: TopicLog) -> np.ndarray:
    """(F,) bool: fields that some messages lack."""
    return np.zeros(len(log.fields), bool) if log.absent is None else np.asarray(log.absent.any(axis=0))


def _unbounded(topic: RecordedTopic, field: str, joints: Mapping[str, JointLimits]) -> str:
    """Why a number has no bounds that a policy would stay within; '' where it may have."""
    if topic.type == JOINT_STATE and field.startswith("position."):
        known = joints.get(field.partition(".")[2])
        wheel = known is not None and known.kind == "continuous" and "wheel" in field
        covered = max(float(np.ptp(values)) for values in topic.by_bag(field))
        turns = covered > MANY_TURNS and not (known and known.slides)
        return "turns without end; {as: sin_cos} where its angle matters" if wheel or turns else ""
    if CLOCK_NAMES.search(field) or FLOWING.search(f"{topic.topic}.{field}"):
        return "a clock or a counter"
    if quantity(topic.topic, topic.type, field).kind != "unknown":
        return ""
    steps = [np.diff(values) for values in topic.by_bag(field)]
    one_way = all((step >= 0).all() for step in steps) or all((step <= 0).all() for step in steps)
    moving = sum(np.count_nonzero(step) for step in steps) > ONE_WAY_SHARE * sum(map(len, steps))
    return "only ever grows or shrinks, as a counter or an odometer does" if one_way and moving else ""


def _wraps(topic: RecordedTopic, field: str, joints: Mapping[str, JointLimits]) -> bool:
    """Whether a joint's angle is one of a joint without ends, or jumps from one end of a circle to the other."""
    if topic.type != JOINT_STATE or not field.startswith("position."):
        return False
    known = joints.get(field.partition(".")[2])
    if known is not None:
        return known.kind == "continuous"
    values = topic.log.values[:, topic.log.fields.index(field)]
    circle = min(np.abs(values).max() - np.pi, max(values.max() - 2 * np.pi, -values.min())) < WRAP_SLACK
    jumps = np.concatenate([np.abs(np.diff(part)) for part in topic.by_bag(field)])
    return bool(circle and (np.abs(jumps - 2 * np.pi) < WRAP_SLACK).any())


def choose_command(log: TopicLog) -> Choice:
    """The command's fields: all that a message needs so that what is not learnt is sent as it was recorded.

    Of joint arrays those that are filled and change, other arrays as a whole, of the rest all numbers but those that
    are always what a new message holds.
    """
    low, high = value_range(log)
    absent = _at_times_absent(log)
    if log.type in JOINT_ARRAYS:
        of_array = [field.partition(".")[0] for field in log.fields]
        live = {name for i, name in enumerate(of_array) if not absent[i] and low[i] < high[i]}
        kept = [f for i, f in enumerate(log.fields) if not absent[i] and of_array[i] in live]
        return Choice(tuple(kept), _reasons({f: "never changes" for f in log.fields if f not in kept}))
    moves = [f for i, f in enumerate(log.fields) if not absent[i] and (low[i] < high[i] or _is_needed(f, low[i]))]
    if not any(low[log.fields.index(f)] < high[log.fields.index(f)] for f in moves):
        return Choice()
    whole = set(elements(log.fields)) if log.type not in FLOAT_ARRAYS else set()
    kept = []
    for field in log.fields:
        group = field.rpartition(".")[0]
        siblings = [f for f in log.fields if f.rpartition(".")[0] == group]
        one = group in whole or ORIENTED.search(group) is not None
        needs_all = log.type in FLOAT_ARRAYS or (one and not set(siblings).isdisjoint(moves))
        if field in moves or needs_all:
            kept.append(field)
    left_out = {f: f"always {low[log.fields.index(f)]:g}" for f in log.fields if f not in kept}
    return Choice(tuple(kept), _reasons(left_out))


def _is_needed(field: str, value: float) -> bool:
    """Whether a constant differs from what a new message holds: 0, or 1 for w of a quaternion."""
    return bool(np.isfinite(value)) and value != (1.0 if field.endswith(".w") else 0.0)


def whole_array(log: TopicLog) -> str:
    """Why the elements of an array cannot all be commanded; '' where they can."""
    is_array = log.type in FLOAT_ARRAYS or (elements(log.fields) and log.type not in JOINT_ARRAYS)
    if is_array and _at_times_absent(log).any():
        return "has an array whose length changes"
    empty = [field for field, known in zip(log.fields, np.isfinite(log.values).T, strict=True) if not known.any()]
    if is_array and log.type in FLOAT_ARRAYS and empty:
        return f"has elements that are NaN in every message: {shortened(empty, NAMED)}"
    return ""


def unit_lengths(fields: Sequence[str]) -> list[str]:
    """Paths of quaternions among a command's fields, whose length a policy does not keep."""
    return [f.removesuffix(".w") for f in fields if f.endswith(".w") and ORIENTED.search(f.removesuffix(".w"))]
