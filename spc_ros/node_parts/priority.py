# SPDX-License-Identifier: Apache-2.0
"""Scheduling priority of a process's threads on Linux."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


class PriorityError(ValueError):
    """The system does not permit the requested priority."""


def lower_priority(nice: int) -> None:
    """Raise the nice value of this process's threads to `nice`; never lower it."""
    _each_thread(lambda t: os.setpriority(os.PRIO_PROCESS, t, max(nice, os.getpriority(os.PRIO_PROCESS, t))))


def use_realtime_priority(priority: int) -> None:
    """Schedule this process's threads as SCHED_FIFO; threads that start later keep the usual policy.

    Raises PriorityError where the system does not permit it.
    """
    kind = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    try:
        _each_thread(lambda t: os.sched_setscheduler(t, kind, os.sched_param(priority)))
    except PermissionError:
        raise PriorityError(
            f"realtime_priority is {priority}, but the system does not permit it; raise the user's limit `rtprio` to "
            f"{priority} (/etc/security/limits.conf), or set 0"
        ) from None


def _each_thread(act: Callable[[int], None]) -> None:
    """Call `act` with the id of each thread, including the middleware's; a thread may end meanwhile."""
    for thread in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(ProcessLookupError):
            act(int(thread.name))
