# SPDX-License-Identifier: Apache-2.0
"""Messages of tf."""

from __future__ import annotations

from typing import Any

from spc_core.contract.frames import TF
from support.recorded_bags import STORE, header


def transform(pair: str, t_ns: int, place: tuple[float, float, float], w: float = 1.0) -> Any:
    """A TransformStamped of 'parent->child'."""
    parent, child = pair.split("->")
    stamp = header(t_ns)
    stamp.frame_id = parent
    translation = STORE.types["geometry_msgs/msg/Vector3"](*map(float, place))
    rotation = STORE.types["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=0.0, w=float(w))
    moved = STORE.types["geometry_msgs/msg/Transform"](translation=translation, rotation=rotation)
    return STORE.types["geometry_msgs/msg/TransformStamped"](header=stamp, child_frame_id=child, transform=moved)


def tf_message(*transforms: Any) -> Any:
    return STORE.types[TF](transforms=list(transforms))
