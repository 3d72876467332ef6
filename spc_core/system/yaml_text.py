# SPDX-License-Identifier: Apache-2.0
"""Reads YAML as yaml.safe_load does, some times as fast where PyYAML has its C parser."""

from __future__ import annotations

from typing import Any

import yaml

DEEPEST = 100  # levels of nesting; PyYAML calls itself for each
_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(text: str | bytes) -> Any:
    """Raises yaml.YAMLError."""
    try:
        depth = 0
        for event in yaml.parse(text, _SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                break
        else:
            return _SafeLoader(text).get_single_data()
    except (yaml.YAMLError, UnicodeEncodeError):
        return yaml.safe_load(text)  # its errors show the line
    raise yaml.YAMLError(f"nested more than {DEEPEST} levels deep")
