# SPDX-License-Identifier: Apache-2.0
"""Checked reading of YAML files that users write: each error names file, field, value and fix."""

from __future__ import annotations

import math
from typing import Any

from spc_core.system.config_files import suggest


class Section:
    """A mapping in a YAML file with its file and path, which all its errors name."""

    def __init__(self, value: Any, source: str, path: str = "", error: type[ValueError] = ValueError) -> None:
        """`source` names the file, `path` the position in it with a trailing dot; `error` is the exception type."""
        self.source, self.path, self.error = source, path, error
        if not isinstance(value, dict):
            raise error(f"{source}: {path.rstrip('.') or 'the file'} must be a mapping, got {value!r}")
        self.values = value

    def fail(self, key: str, problem: str) -> ValueError:
        return self.error(f"{self.source}: {self.path}{key} {problem}")

    def only(self, *known: str) -> Section:
        """Refuse other keys; returns itself."""
        for key in self.values:
            if key not in known:
                raise self.fail(key, f"is not a known field{suggest(key, known)}; known: {', '.join(known)}")
        return self

    def get(self, key: str) -> Any:
        if key not in self.values:
            raise self.fail(key, "is missing; add it")
        return self.values[key]

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not value:
            raise self.fail(key, f"must be a text, got {value!r}")
        return value

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.fail(key, f"must be true or false, got {value!r}")
        return value

    def positive(self, key: str) -> float:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise self.fail(key, f"must be a positive number, got {value!r}")
        return float(value)

    def choice(self, key: str, known: tuple[str, ...]) -> str:
        value = self.get(key)
        if value not in known:
            raise self.fail(key, f"is {value!r}{suggest(value, known)}; use one of: {', '.join(known)}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(v, str) and v for v in value):
            raise self.fail(key, f"must be a list of texts with at least one entry, got {value!r}")
        return tuple(value)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        value = self.get(key)
        if not isinstance(value, list) or len(value) != count:
            raise self.fail(key, f"must be a list of {count} numbers, one for each field, got {value!r}")
        entries = self._below({f"{key}[{i}]": v for i, v in enumerate(value)}, self.path)
        return tuple(entries.number(entry) for entry in entries.values)

    def number(self, key: str) -> float:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.fail(key, f"must be a finite number, got {value!r}")
        return float(value)

    def section(self, key: str) -> Section:
        return self._below(self.get(key), f"{self.path}{key}.")

    def sections(self, key: str) -> list[Section]:
        value = self.get(key)
        if not isinstance(value, list) or not value:
            raise self.fail(key, f"must be a list with at least one entry, got {value!r}")
        return [self._below(v, f"{self.path}{key}[{i}].") for i, v in enumerate(value)]

    def _below(self, value: Any, path: str) -> Section:
        return Section(value, self.source, path, self.error)
