# SPDX-License-Identifier: Apache-2.0
"""Arrays in JSON: their shape, and base64 of little-endian float32."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np


def pack(value: Any) -> Any:
    """An array as a mapping for JSON; anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    data = np.ascontiguousarray(value, "<f4")
    return {"shape": list(data.shape), "float32": base64.b64encode(data.tobytes()).decode()}


def unpack(value: Any) -> Any:
    """What pack() was given, arrays as float64. Raises KeyError or ValueError for a damaged one."""
    if not isinstance(value, Mapping):
        return value
    return np.frombuffer(base64.b64decode(value["float32"]), "<f4").reshape(value["shape"]).astype(np.float64)
