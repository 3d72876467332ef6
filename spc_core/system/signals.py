# SPDX-License-Identifier: Apache-2.0
"""How long work and the processes that help with it come to an end."""

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
    """A list that SIGINT, SIGTERM and SIGHUP (a closed terminal, unless under nohup) append to."""
    received: list[int] = []
    numbers = [s for s in STOP_SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
    handlers = {s: signal.signal(s, lambda number, _: received.append(number)) for s in numbers}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def end_with_parent(parent: int) -> None:
    """Have this process get SIGTERM when its parent, process `parent`, is gone, however that ended (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the line above
        raise SystemExit(1)
