# SPDX-License-Identifier: Apache-2.0
"""Transforms of tf by the names of their frames: their places in the messages change from one to the next."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence

TF = "tf2_msgs/msg/TFMessage"
STATIC = "tf_static"  # tf2's name of the topic with transforms that never change
FORM = "transforms.<parent>-><child>.translation.x"
STAMP = ("stamp.sec", "stamp.nanosec")
_FIELD = re.compile(r"transforms\.(.*->.*)\.(translation\.[xyz]|rotation\.[xyzw]|stamp\.sec|stamp\.nanosec)")
_NUMBERED = re.compile(r"transforms\.\d+(\..*)?")


def is_static(topic: str, type_name: str) -> bool:
    """Whether a topic holds transforms that never change."""
    return type_name == TF and topic.rpartition("/")[2] == STATIC


def split_field(field: str) -> tuple[str, str]:
    """('odom->base', 'translation.x') of 'transforms.odom->base.translation.x'. Raises ValueError with the fix."""
    if found := _FIELD.fullmatch(field):
        return found[1], found[2]
    if _NUMBERED.fullmatch(field):
        raise ValueError(
            f"'{field}' goes by its place, which changes from one message of tf to the next; name the frames: {FORM}"
        )
    pair = field.removeprefix("transforms.")
    if field.startswith("transforms.") and "->" in pair:
        whole = f", or the whole rotation: {{field: {field}, as: rotation_6d}}" if pair.endswith(".rotation") else ""
        raise ValueError(
            f"'{field}' names no number of the transform; write {FORM}, with translation.x to .z or rotation.x to .w"
            f"{whole}"
        )
    raise ValueError(f"'{field}' is not a field of tf; write {FORM}")


def pairs_of(fields: Sequence[str]) -> list[str]:
    """The transforms that fields belong to, each once, in the order of the fields."""
    return list(dict.fromkeys(split_field(field)[0] for field in fields))


def stamp_fields(fields: Sequence[str]) -> tuple[str, ...]:
    """The stamp, in two numbers, of each transform that the fields belong to."""
    return tuple(f"transforms.{pair}.{part}" for pair in pairs_of(fields) for part in STAMP)


def _way(parent: str, child: str, seen: Collection[str]) -> list[str]:
    """The transforms of a tree that lead down from one frame to another; none where they do not, or in one step."""
    above = {pair.partition("->")[2]: pair for pair in seen}
    way: list[str] = []
    while child != parent:
        pair = above.get(child, "")
        if not pair or pair in way:
            return []
        way.insert(0, pair)
        child = pair.partition("->")[0]
    return way


def no_transform(missing: Collection[str], seen: Collection[str]) -> str:
    """That no message has these transforms, with the nearest of those seen."""
    near = []
    for pair in missing:
        parent, _, child = pair.partition("->")
        if len(missing) == 1 and (way := _way(parent, child, seen)):
            steps = ", ".join(way)
            return f"no message has the transform {pair}; trees are not composed: observe each on the way, {steps}"
        near += [f"{child}->{parent}"] if f"{child}->{parent}" in seen else []
        near += difflib.get_close_matches(pair, sorted(seen), n=2)
    nearest = f"; the nearest: {', '.join(dict.fromkeys(near))}" if near else ""
    return (
        f"no message has the transform {', '.join(missing)}{nearest}; they have {', '.join(sorted(seen)) or 'none'}; "
        "correct the frames in the contract"
    )
