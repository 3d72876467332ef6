# SPDX-License-Identifier: Apache-2.0
"""Reads numbers of tf messages by the names of the frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spc_core.contract.frames import no_transform, split_field


def pair_name(transform: Any) -> str:
    """'parent->child' of a TransformStamped."""
    return f"{transform.header.frame_id}->{transform.child_frame_id}"


class FramesReader:
    """The numbers of a TFMessage at fields by frame names; of a transform that it has twice, the last one's."""

    def __init__(self, fields: Sequence[str], where: str) -> None:
        """`where` is the topic, for errors. Raises ValueError for a field that is not one of tf."""
        self.where = where
        self._wanted = [(pair, *part.split(".")) for pair, part in map(split_field, fields)]

    def find(self, message: Any) -> list[Any]:
        """The numbers, None for those of transforms that the message lacks."""
        held = {pair_name(transform): transform for transform in message.transforms}
        return [_number(held.get(pair), group, axis) for pair, group, axis in self._wanted]

    def problem(self, message: Any) -> str:
        """What the message lacks; '' if nothing."""
        seen = {pair_name(transform) for transform in message.transforms}
        lacking = dict.fromkeys(pair for pair, _, _ in self._wanted if pair not in seen)
        return f"topic '{self.where}': {no_transform(list(lacking), seen)}" if lacking else ""


def _number(transform: Any, group: str, axis: str) -> Any:
    if transform is None:
        return None
    return getattr(transform.header.stamp if group == "stamp" else getattr(transform.transform, group), axis)
