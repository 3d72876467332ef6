# SPDX-License-Identifier: Apache-2.0
"""Numbers and nouns in what is told to people."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """'1 bag', '2 bags'."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
