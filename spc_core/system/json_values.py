# SPDX-License-Identifier: Apache-2.0
"""Values for JSON files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def without_nan(value: Any) -> Any:
    """The value as mappings, lists, texts, numbers and None, which replaces NaN and infinity: JSON has neither."""
    if isinstance(value, Mapping):
        return {str(key): without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(entry) for entry in value]
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    return float(value) if math.isfinite(value) else None
