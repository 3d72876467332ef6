# SPDX-License-Identifier: Apache-2.0
"""A histogram of tick latencies, in logarithmic bins."""

from __future__ import annotations

import math
from collections.abc import Mapping

PER_DECADE = 12
LOW_US, HIGH_US = 10.0, 10_000_000.0
PREFIX = "latency_us "  # of a bin in a report, followed by its upper edge


class LatencyBins:
    """Counts by bin, from 10 us to 10 s; values outside count in the first or last bin."""

    def __init__(self) -> None:
        size = round(PER_DECADE * math.log10(HIGH_US / LOW_US))
        self._counts = [0] * (size + 1)
        self._keys = [f"{PREFIX}{LOW_US * 10 ** (i / PER_DECADE):.0f}" for i in range(size + 1)]

    def add(self, seconds: float) -> None:
        """Count one tick."""
        position = PER_DECADE * math.log10(max(seconds * 1e6, LOW_US) / LOW_US)
        self._counts[min(math.ceil(position - 1e-9), len(self._counts) - 1)] += 1

    def report(self) -> dict[str, int]:
        """Counts of the bins that are not empty."""
        return {key: count for key, count in zip(self._keys, self._counts, strict=True) if count}


def latency_counts(report: Mapping[str, int]) -> dict[str, int]:
    """Upper edge of a bin in us, as text, to count, from a report with other entries."""
    found = {key.removeprefix(PREFIX): n for key, n in report.items() if key.startswith(PREFIX) and n > 0}
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def quantile_us(latency: Mapping[str, int], share: float) -> float | None:
    """The upper edge of the bin that holds this share of the ticks, in us; None without ticks."""
    total, seen = sum(latency.values()), 0
    for edge, count in sorted(((int(edge), count) for edge, count in latency.items())):
        seen += count
        if seen >= share * total:
            return float(edge)
    return None
