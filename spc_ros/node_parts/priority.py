# SPDX-License-Identifier: Apache-2.0
"""How urgent a node's threads are to the operating system, on Linux."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


class PriorityError(ValueError):
    """The system does not allow what a parameter asks for."""


def give_way(nice: int) -> None:
    """Make this process's threads less urgent than others by `nice`; never more urgent."""
    _each_thread(lambda t: os.setpriority(os.PRIO_PROCESS, t, max(nice, os.getpriority(os.PRIO_PROCESS, t))))


def take_precedence(priority: int) -> None:
    """Run this process's threads before all usual ones, first in, first out; threads begun later are usual ones.

    Raises PriorityError where the system does not allow it.
    """
    kind = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    try:
        _each_thread(lambda t: os.sched_setscheduler(t, kind, os.sched_param(priority)))
    except PermissionError:
        raise PriorityError(
            f"realtime_priority is {priority}, but the system allows none; give the user a limit `rtprio` of at least "
            f"{priority} (/etc/security/limits.conf), or set 0"
        ) from None


def _each_thread(act: Callable[[int], None]) -> None:
    """Call with the id of each thread of this process, the middleware's too; one may end meanwhile."""
    for thread in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(ProcessLookupError):
            act(int(thread.name))
