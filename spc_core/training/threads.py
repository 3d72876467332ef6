# SPDX-License-Identifier: Apache-2.0
"""CPU threads of a training. Their number decides how sums are rounded, so a run keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from spc_core.method.config import TrainConfig
from spc_core.method.fused import is_small


def usual_threads(config: TrainConfig, device_type: str) -> int:
    """Threads of a run that sets none: one for a small model, whose products are too short to be shared, else torch's.

    A rule instead of a measurement, so that the same seed gives the same bits; docs/benchmarks.md has the measurement.
    """
    return 1 if device_type == "cpu" and is_small(config) else torch.get_num_threads()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
