# SPDX-License-Identifier: Apache-2.0
"""Serialised messages of a topic, many at a time: what bags are read into and columns are decoded from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class RawColumn:
    """N messages of one topic and type in log order; message i is buffer[start[i] : start[i] + size[i]], CDR."""

    topic: str
    type: str
    receive_ns: np.ndarray  # (N,) int64, not decreasing
    order: np.ndarray  # (N,) int64, place in the log among the messages of all topics, increasing
    buffer: np.ndarray  # (bytes,) uint8
    start: np.ndarray  # (N,) int64
    size: np.ndarray  # (N,) int64

    def __len__(self) -> int:
        return len(self.receive_ns)

    def messages(self) -> Iterator[bytes]:
        """The messages one by one, for what cannot be done in bulk."""
        for begin, size in zip(self.start.tolist(), self.size.tolist(), strict=True):
            yield self.buffer[begin : begin + size].tobytes()
