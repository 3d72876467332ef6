# SPDX-License-Identifier: Apache-2.0
"""Orderly termination of long-running work and its child processes."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1


@contextmanager
def stop_on_signals() -> Iterator[list[int]]:
    """A list to which each SIGINT, SIGTERM and SIGHUP (a closed terminal, unless under nohup) is appended."""
    received: list[int] = []
    numbers = [s for s in STOP_SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
    handlers = {s: signal.signal(s, lambda number, _: received.append(number)) for s in numbers}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def end_with_parent(parent: int) -> None:
    """Send this process SIGTERM when its parent, process `parent`, ends for any reason (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before prctl took effect
        raise SystemExit(1)
