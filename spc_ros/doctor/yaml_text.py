# SPDX-License-Identifier: Apache-2.0
"""Names, numbers and lists as YAML that a person reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import yaml


def word(text: str) -> str:
    """A text as YAML, quoted where YAML would take it for something else."""
    try:
        plain = yaml.safe_load(text) == text and not re.search(r"[,\[\]{}#:&*!|>'\"%@`]", text)
    except yaml.YAMLError:
        plain = False
    return text if plain else json.dumps(text, ensure_ascii=not text.isprintable())


def printable(line: str) -> str:
    """A line without what would end it or what YAML refuses; names within it are quoted already."""
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def one_line(text: str, longest: int) -> str:
    """A text within a comment."""
    return " ".join(text.split())[:longest]


def shortened(entries: Sequence[str], most: int = 8) -> str:
    return ", ".join(entries[:most]) + (f" and {len(entries) - most} more" if len(entries) > most else "")


def listed(fields: Sequence[str], how: Mapping[str, str] | None = None) -> str:
    """A list of fields, each with how it is observed, if not as it is."""
    entries = [f"{{field: {word(f)}, {how[f]}}}" if how and f in how else word(f) for f in fields]
    return f"[{', '.join(entries)}]"


def numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(map(number, values))}]"


def number(value: float) -> str:
    """A number as YAML 1.1 reads it: 1e+06 would be a text, 1.0e+06 is a number."""
    text = f"{value:g}"
    return text.replace("e", ".0e") if "e" in text and "." not in text else text
